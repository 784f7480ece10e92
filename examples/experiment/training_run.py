"""A training run of the stock trainer on cached vectors, with its progress in the log, and the model that it leaves."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Dense, Router
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiment.predictors import PREDICTION
from experiment.systems import System
from st_asym import CachedSentenceTransformer, column_prompts, router_mapping, save_heads, watch, whitened_heads
from st_asym.evaluation import choose_model
from st_asym.heads.model import behind_encoder

logger = logging.getLogger("experiment")

_SHOWN = {
    "loss": "loss",
    "contrastive": "contrastive",
    "predictive": "predictive",
    "isotropy": "isotropy",
    "in_batch_accuracy": "accuracy",
    "query_std": "query std",
    "document_std": "document std",
}


class Progress(TrainerCallback):
    """A line in the log for each of the first four steps, every tenth, and each evaluation."""

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Write what :func:`st_asym.watch` has added as well."""
        logs = logs or {}
        prefix = "eval_" if "eval_loss" in logs else ""
        if f"{prefix}loss" not in logs or (not prefix and state.global_step > 4 and state.global_step % 10):
            return
        figures = [f"{shown} {logs[prefix + name]:.4f}" for name, shown in _SHOWN.items() if prefix + name in logs]
        kind = "validation" if prefix else "training"
        logger.info("step %d of %d, %s: %s", state.global_step, state.max_steps, kind, ", ".join(figures))


def train(
    model: CachedSentenceTransformer,
    loss: nn.Module,
    pairs: Dataset,
    dev: Dataset,
    folder: Path,
    *,
    seed: int,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Train in place, with a checkpoint for each epoch, the best and the last of which :func:`chosen_model` finds.

    Stopped with Ctrl-C it returns as well, so that what there is can be evaluated.

    Args:
        model: Of a system, its encoder answered from the cache.
        loss: For that model.
        pairs: Columns ``query`` and ``document``, to train on.
        dev: The same, to validate on.
        folder: Where the checkpoints go; it must not hold a run.
        seed: Of the order of pairs.
        **arguments: More of ``SentenceTransformerTrainingArguments``.

    Returns:
        The trainer's log, an entry for each step and each validation.

    Raises:
        FileExistsError: There is a run in the folder already, whose checkpoints would be taken for this one's.
    """
    if any(folder.glob("checkpoint-*")) or (folder / "heads").exists():
        raise FileExistsError(f"{folder} holds a run already: give another --output.")
    mapping = router_mapping(pairs)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            batch_sampler="no_duplicates",
            router_mapping=mapping,
            prompts=column_prompts(model, mapping) or None,
            per_device_eval_batch_size=64,
            logging_steps=1,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            save_only_model=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **arguments,
        ),
        train_dataset=pairs,
        eval_dataset=dev,
        loss=loss,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    watch(trainer)
    try:
        trainer.train()
    except KeyboardInterrupt:
        logger.warning("Stopped at step %d: what is saved is evaluated.", trainer.state.global_step)
    return list(trainer.state.log_history)


def chosen_model(encoder: SentenceTransformer, folder: Path, system: System | None = None) -> SentenceTransformer:
    """The best checkpoint of a run, else the latest, without what only training needs, behind the encoder in memory.

    Each checkpoint holds the whole encoder: the chosen heads, in the folder ``heads``, take their place.

    Args:
        encoder: The one that the run's model has.
        folder: The run's.
        system: What was trained; None for heads of the library's own.

    Raises:
        ValueError: There is no checkpoint.
    """
    chosen = choose_model(folder)
    logger.info("Evaluated: %s", chosen.why)
    saved = SentenceTransformer(str(chosen.path))
    saved = saved if system is None else system.finish(saved)
    router = next(module for module in saved.children() if isinstance(module, Router))
    model = behind_encoder(encoder, router.to(encoder.device))
    save_heads(model, folder / "heads")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return model


@torch.no_grad()
def start_from_pairs(model: SentenceTransformer, pairs: Dataset) -> None:
    """Turn the identity start of all heads, and of a target, into the closed-form one, in place.

    Args:
        model: With heads that are the identity.
        pairs: Columns ``query`` and ``document``: the labelled pairs.
    """
    queries, documents = (
        encode(pairs[column], batch_size=1024, show_progress_bar=False, convert_to_tensor=True).cpu()
        for encode, column in ((model.encode_query, "query"), (model.encode_document, "document"))
    )
    whitened = whitened_heads(queries, documents, hidden_features="2x", shared=True)
    start = next(module for module in whitened.modules() if isinstance(module, Dense)).linear.weight
    for layer in model.modules():
        if (
            isinstance(layer, Dense)
            and layer.module_input_name == "sentence_embedding"
            and layer.module_output_name != PREDICTION
            and layer.linear.weight.shape == start.shape
        ):
            layer.linear.weight.copy_(start)
