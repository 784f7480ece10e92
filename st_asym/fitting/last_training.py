"""The last training, whose heads are kept: the stock trainer, as a user of the library would write it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache
from st_asym.cache.encoding import Precision
from st_asym.data import RetrievalData
from st_asym.fitting.candidates import Candidate
from st_asym.fitting.closed_form import pair_covariance
from st_asym.fitting.gate import Choice
from st_asym.fitting.loop import Log, ShuffledBatches, dialled, heads_state, load_heads
from st_asym.fitting.vectors import Vectors
from st_asym.heads.model import behind_encoder
from st_asym.trainer.columns import column_prompts, router_mapping

_NO_LOSSES = ("epoch", "step", "grad_norm", "learning_rate")


def refit(
    encoder: SentenceTransformer,
    candidate: Candidate,
    choice: Choice,
    vectors: Vectors,
    data: RetrievalData,
    cache: EmbeddingCache,
    *,
    precision: Precision = "fp32",
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str | Sequence[str] = "none",
) -> tuple[SentenceTransformer, Log]:
    """Make the heads that were chosen, on all training queries.

    Args:
        encoder: The encoder, which the model shares.
        candidate: How the heads are made.
        choice: How far they are trained, and turned back.
        vectors: The collection.
        data: The same as texts.
        cache: Where the encoder's vectors are.
        precision: How they were made.
        callbacks: For the trainer.
        report_to: For the trainer's arguments.

    Returns:
        The model, of stock modules, in evaluation mode; and the mean losses of each epoch.
    """
    train = data.qrels["train"]
    covariance = pair_covariance(vectors.queries, vectors.documents, *vectors.pairs(train))
    width = encoder.get_embedding_dimension() or vectors.dimension
    heads = candidate.heads(vectors.dimension, width, covariance)
    model = behind_encoder(encoder, heads)
    dtype = next(heads.parameters()).dtype
    log: Log = []
    if candidate.trains:
        heads.float()  # whatever the encoder is in: an optimizer's steps are lost in half precision
        cached = CachedSentenceTransformer(model, cache, precision=precision)
        with tempfile.TemporaryDirectory() as folder:
            trainer = _Trainer(
                model=cached,
                args=_arguments(folder, candidate, cached, data, vectors.seed, report_to),
                train_dataset=data.labelled_queries("train"),
                loss=candidate.loss(cached, vectors, train, {}),
                callbacks=[*callbacks, _Until(choice.epoch)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        log = [_losses(entry) for entry in trainer.state.log_history if "loss" in entry]
        if choice.dial != 1.0:
            identity = heads_state(candidate.identity(vectors.dimension, width))
            load_heads(heads, dialled(identity, heads_state(heads), choice.dial))
        model = cached.stock_model()
        heads.to(dtype)
    return model.eval(), log


def _arguments(
    folder: str,
    candidate: Candidate,
    model: SentenceTransformer,
    data: RetrievalData,
    seed: int,
    report_to: str | Sequence[str],
) -> SentenceTransformerTrainingArguments:
    settings, mapping = candidate.settings, router_mapping(data.labelled_queries("train"))
    report: Any = report_to if isinstance(report_to, str) else list(report_to)
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs or 1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        batch_sampler=ShuffledBatches,
        router_mapping=mapping,
        prompts=column_prompts(model, mapping) or None,
        optim="adamw_torch_fused",
        max_grad_norm=0.0,
        logging_strategy="epoch",
        save_strategy="no",
        report_to=report,
        disable_tqdm=True,
        seed=seed,
        use_cpu=model.device.type == "cpu",
        ddp_find_unused_parameters=False,
    )


def _losses(entry: dict[str, float]) -> dict[str, float]:
    parts = {name: value for name, value in entry.items() if name not in _NO_LOSSES}
    shown = parts if len(parts) > 2 else {"loss": parts["loss"]}
    return {"epoch": round(entry["epoch"]), **shown}


class _Trainer(SentenceTransformerTrainer):
    """The stock trainer, which writes no model card: :func:`st_asym.fit` writes one that says more."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave it out, and with it the statistics and examples of the training data."""


class _Until(TrainerCallback):
    """Ends training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the library's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """End it."""
        if round(state.epoch or 0) >= self._epoch:
            control.should_training_stop = True
