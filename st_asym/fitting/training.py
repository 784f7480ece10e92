"""One training run of the heads, with the stock trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_asym.data import Qrels
from st_asym.fitting.workbench import Stage, Workbench
from st_asym.losses import CorpusContrastiveLoss
from st_asym.routing import column_prompts, router_mapping

# Called after each epoch with its number, from 1; training ends where it returns True.
AfterEpoch = Callable[[int], bool]
# Figures of each epoch by name; ``epoch`` itself is one of them.
Log = list[dict[str, float]]

_NO_LOSSES = ("epoch", "step", "grad_norm", "learning_rate")


def train_heads(
    bench: Workbench,
    stage: Stage,
    qrels: Qrels,
    *,
    ignored: Qrels | None = None,
    after_epoch: AfterEpoch | None = None,
) -> Log:
    """Train the heads of a stage in place, from where they are.

    Args:
        bench: Queries and corpus.
        stage: The model, and how to train it.
        qrels: What to train on.
        ignored: Documents that are neither positives nor negatives of a query.
        after_epoch: Called after each epoch.

    Returns:
        The mean loss of each epoch, and of its parts where it has several.
    """
    settings, model = stage.settings, stage.model
    data = replace(bench.data, qrels={"train": qrels})
    torch.manual_seed(bench.seed)
    contrastive: nn.Module | None = None
    if settings.contrastive == "corpus" and bench.system.contrastive:
        rows = data.labelled_queries("train")
        contrastive = CorpusContrastiveLoss(
            model,
            bench.documents,
            qrels,
            ignored=_joined(bench.twins, ignored or {}),
            temperature=settings.temperature,
            precision="bf16",
        )
    else:
        rows = bench.pairs(stage, data, ignored)
        if bench.system.contrastive:
            contrastive = MultipleNegativesRankingLoss(model, scale=1.0 / settings.temperature)
    loss = contrastive
    if contrastive is None or settings.isotropy_weight or bench.system.predictive is not None:
        loss = bench.system.loss(model, contrastive, isotropy=settings.isotropy_weight, kind=settings.isotropy_kind)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model=model,
            args=_arguments(folder, stage, rows, bench.seed),
            train_dataset=rows,
            loss=loss,
            callbacks=[_Epochs(after_epoch)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [_losses(entry) for entry in trainer.state.log_history if "loss" in entry]


def _losses(entry: dict[str, float]) -> dict[str, float]:
    parts = {name: value for name, value in entry.items() if name not in _NO_LOSSES}
    shown = parts if len(parts) > 2 else {"loss": parts["loss"]}
    return {"epoch": round(entry["epoch"]), **shown}


class _Trainer(SentenceTransformerTrainer):
    """The stock trainer, which writes no model card: one run of many, on part of the data, is not worth one."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave it out, and with it the statistics and examples of the training data."""


def _arguments(folder: str, stage: Stage, rows: Dataset, seed: int) -> SentenceTransformerTrainingArguments:
    settings, mapping = stage.settings, router_mapping(rows)
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        batch_sampler="no_duplicates" if settings.contrastive == "in-batch" else "batch_sampler",
        router_mapping=mapping,
        prompts=column_prompts(stage.model, mapping) or None,
        optim="adamw_torch_fused",
        max_grad_norm=0.0,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=stage.model.device.type == "cpu",
        ddp_find_unused_parameters=False,
    )


def _joined(*parts: Qrels) -> Qrels:
    """Documents by query, of all parts."""
    found: Qrels = {}
    for query_id, documents in ((q, d) for part in parts for q, d in part.items()):
        found[query_id] = {**found.get(query_id, {}), **documents}
    return found


class _Epochs(TrainerCallback):
    """Tells when an epoch ends, and ends training."""

    def __init__(self, after_epoch: AfterEpoch | None) -> None:
        self._after_epoch = after_epoch

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the library's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Ask whether to go on."""
        if self._after_epoch is not None and self._after_epoch(round(state.epoch or 0)):
            control.should_training_stop = True
