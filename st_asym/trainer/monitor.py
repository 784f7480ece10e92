"""What the loss does not show: accuracy, similarities and spread of the vectors, in the trainer's own log."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.losses import uses_gradient_cache
from sentence_transformers.base.modules import Router
from sentence_transformers.util import cos_sim
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from st_asym.heads.anatomy import layer_reader
from st_asym.losses.distributed import gathered
from st_asym.losses.isotropy import scaled_std
from st_asym.trainer.columns import check_router_mapping, column_prompts

logger = logging.getLogger(__name__)

METRICS = ("in_batch_accuracy", "positive_similarity", "negative_similarity", "query_std", "document_std")
# In the entries of a training step, but no part of its loss.
NO_LOSSES = ("epoch", "step", "grad_norm", "learning_rate", "num_input_tokens_seen")
LOWEST_STD, HIGHEST_STD = 0.5, 2.0


def watch(trainer: SentenceTransformerTrainer) -> TrainingMonitor:
    """Check a trainer's arguments now, and add the figures of :class:`TrainingMonitor` to its log.

    Columns without a route are refused, and so are arguments that fail under several processes; prompts that training
    would leave out are warned about. Neither the loss nor the trainer changes. The figures go where the trainer's log
    goes: ``state.log_history``, the console, and every integration in ``report_to``.

    Args:
        trainer: A ``SentenceTransformerTrainer``, before ``train()`` or ``evaluate()``.

    Returns:
        The monitor, a callback that now comes first in ``trainer.callback_handler``.

    Raises:
        ValueError: A column of the training or evaluation data has no route (see
            :func:`st_asym.check_router_mapping`), or there is no mapping to tell the mini-batches of a Cached... loss
            by, or several processes train with a ``ddp_find_unused_parameters`` that fails: any but False, or, for a
            Cached... loss with heads that are not shared, False.

    Example:
        >>> watch(trainer)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.state.log_history[0]  # doctest: +SKIP
        {'loss': ..., 'in_batch_accuracy': ..., 'query_std': ..., ...}
    """
    _check_arguments(trainer)
    monitor = TrainingMonitor()
    monitor.attach(trainer.model)
    trainer.add_callback(monitor)
    # Ahead of the integrations: they read the log when their turn comes.
    callbacks = trainer.callback_handler.callbacks
    callbacks.insert(0, callbacks.pop())
    return monitor


class TrainingMonitor(TrainerCallback):
    """Read the vectors as they leave the model, and log what they say about training.

    In training and, prefixed with ``eval_``, in evaluation:

    - ``in_batch_accuracy``: share of queries for which, by cosine, the own document is the best of the batch;
    - ``positive_similarity``, ``negative_similarity``: mean cosine of a query with its own document and with the
      others;
    - ``query_std``, ``document_std``: standard deviation over the batch, averaged over dimensions and scaled by the
      square root of the dimension: 1.0 for unit vectors that spread in all directions, 0 when all coincide.

    Each is the mean over the batches since the last log that have it, over all processes. A standard deviation that
    leaves [0.5, 2], and is at least halved or doubled where it began outside, while the accuracy does not fall, is
    warned about, once, as a collapse or a length explosion. Only a model that does not end in ``Normalize`` can
    explode.

    The figures expect one query column. Of a batch that runs at several depths or dimensions they are those of the
    greatest. Of a loss that embeds queries alone, such as :class:`st_asym.CorpusContrastiveLoss`, there is
    ``query_std`` and nothing else. They go into the log, not into what ``evaluate`` returns, so that
    ``metric_for_best_model`` cannot name them.

    Use :func:`watch`, which puts the callback where the integrations see its figures.
    """

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._queries: list[Tensor] = []
        self._documents: list[Tensor] = []
        self._sums: dict[bool, Tensor] = {}  # in training or not: of each figure the number of batches and the sum
        self._first: dict[str, float] = {}
        self._warned: set[tuple[str, str]] = set()

    def attach(self, model: nn.Module) -> None:
        """Listen to ``model`` and to no other."""
        self.detach()
        self._handle = model.register_forward_hook(self._collect, with_kwargs=True)

    def detach(self) -> None:
        """Stop listening."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _collect(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: dict[str, Any]) -> None:
        """Keep the vectors of one column, but not those of ``encode`` or of a Cached loss's pass without gradients."""
        if torch.is_inference_mode_enabled() or (model.training and not torch.is_grad_enabled()):
            return
        if (reader := layer_reader(model)) is not None and reader.layer_idx is not None:
            return  # the same batch again, at lesser depth
        task = kwargs.get("task") or args[0].get("task") or ("document" if self._queries else "query")
        columns = self._queries if task == "query" else self._documents
        vectors = output["sentence_embedding"].detach()
        # Matryoshka losses run the same batch again at fewer dimensions.
        if not columns or columns[0].shape[1] == vectors.shape[1]:
            columns.append(vectors)

    def _finish_batch(self, *, training: bool) -> None:
        """Turn the columns of one batch into figures."""
        queries, documents = self._queries, self._documents
        self._queries, self._documents = [], []
        if not queries or 0 < sum(map(len, documents)) < sum(map(len, queries)):
            return
        figures = _figures(torch.cat(queries).float(), torch.cat(documents).float() if documents else None)
        here = torch.tensor([bool(documents) or name == "query_std" for name in METRICS], device=figures.device)
        self._sums[training] = torch.stack([here.to(figures), figures.where(here, 0.0)]) + self._sums.get(training, 0.0)
        if training and len(self._first) < len(METRICS):
            found = zip(METRICS, figures.tolist(), here.tolist(), strict=True)
            self._first = {name: figure for name, figure, is_here in found if is_here} | self._first

    def on_train_begin(self, *_args: Any, model: nn.Module | None = None, **_kwargs: Any) -> None:
        """Follow the trainer to the model that it trains, and forget the last run."""
        if model is not None:
            self.attach(model)
        self._first, self._warned = {}, set()

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Forget what ran between the steps."""
        self._queries, self._documents = [], []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """A training batch is over, or one that is accumulated."""
        self._finish_batch(training=True)

    on_substep_end = on_step_end

    def on_prediction_step(self, *_args: Any, **_kwargs: Any) -> None:
        """An evaluation batch is over."""
        self._finish_batch(training=False)

    def on_log(self, *context: Any, logs: dict[str, Any] | None = None, **_kwargs: Any) -> None:
        """Add the figures to this log entry and to the trainer's history."""
        _, state, _ = context  # after the arguments, before the control
        prefix = _prefix(logs or {})
        if logs is None or prefix is None:
            return
        figures = self._means(training=prefix == "")
        named = {f"{prefix}{name}": round(value, 4) for name, value in figures.items()}
        logs.update(named)
        if state.log_history:
            state.log_history[-1].update(named)
        if prefix == "" and state.is_world_process_zero:
            self._warn(figures)

    def _means(self, *, training: bool) -> dict[str, float]:
        """Means since the last call over the batches that have the figure, of all processes."""
        own = self._sums.pop(training, None)
        sums = [part for part in gathered(None if own is None else own.cpu()) if part is not None]
        if not sums:
            return {}
        counts, figures = torch.stack(sums).sum(dim=0).tolist()
        found = zip(METRICS, counts, figures, strict=True)
        return {name: figure / count for name, count, figure in found if count}

    def _warn(self, figures: dict[str, float]) -> None:
        """Name a collapse or a length explosion, once for each side."""
        accuracy = [of.get("in_batch_accuracy", math.nan) for of in (self._first, figures)]
        if accuracy[1] < accuracy[0]:
            return
        for side in ("query", "document"):
            before, now = (of.get(f"{side}_std", math.nan) for of in (self._first, figures))
            if now < LOWEST_STD and (before >= LOWEST_STD or now < before / 2):
                trouble, advice = "Collapse", "Raise the isotropy weight, or lower the learning rate."
            elif now > HIGHEST_STD and (before <= HIGHEST_STD or now > before * 2):
                trouble = "Length explosion"
                advice = "Compare by cosine: end the model in Normalize, and use cos_sim in the loss."
            else:
                continue
            if (trouble, side) not in self._warned:
                self._warned.add((trouble, side))
                logger.warning(
                    "%s of the %s vectors: their standard deviation went from %.2f to %.2f (about 1 is even, [%s, %s] "
                    "is safe)%s. %s",
                    *(trouble, side, before, now, LOWEST_STD, HIGHEST_STD),
                    ""
                    if math.isnan(sum(accuracy))
                    else f" while in-batch accuracy went from {accuracy[0]:.3f} to {accuracy[1]:.3f}",
                    advice,
                )


def _check_arguments(trainer: SentenceTransformerTrainer) -> None:
    mapping = trainer.args.router_mapping
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        if isinstance(mapping, dict) and mapping and dataset is not None:
            check_router_mapping(mapping, dataset)
    if not mapping and any(_cached(trainer)):
        raise ValueError(
            "A Cached... loss shows the model one mini-batch at a time, and without a router_mapping those of queries "
            "are not told from those of documents: pass router_mapping=st_asym.router_mapping(dataset) in the training "
            "arguments."
        )
    prompts = column_prompts(trainer.model, {"query": "query", "document": "document"})
    if prompts and not trainer.args.prompts:
        logger.warning(
            "The model puts a prompt before each %s when it encodes, and the trainer does not: pass "
            "prompts=st_asym.column_prompts(model, mapping) in the training arguments.",
            " and ".join(prompts),
        )
    if trainer.args.world_size > 1:
        _check_unused_parameters(trainer)


def _cached(trainer: SentenceTransformerTrainer) -> list[bool]:
    """Of each loss, whether it is a Cached... loss or has one in it."""
    losses = list(trainer.loss.values()) if isinstance(trainer.loss, dict) else [trainer.loss]
    return [any(uses_gradient_cache(part) for part in loss.modules()) for loss in losses]


def _check_unused_parameters(trainer: SentenceTransformerTrainer) -> None:
    # Cached... losses send gradients around once, after the last of their runs; the other losses after all columns.
    cached = _cached(trainer)
    at_the_last_run = any(cached) and _columns_train_different_parameters(trainer.model)
    if at_the_last_run and not all(cached):
        raise ValueError(
            "Under several processes heads that are not shared train with Cached... losses alone or without any: those "
            "fail with ddp_find_unused_parameters=False, and the other losses without it."
        )
    searched = trainer.args.ddp_find_unused_parameters is not False
    if at_the_last_run and not searched:
        raise ValueError(
            "Under several processes a Cached... loss with heads that are not shared needs the training argument "
            "ddp_find_unused_parameters=True, or None: its last run uses one head, and waits for the other's gradients."
        )
    if searched and not all(cached):
        raise ValueError(
            "Under several processes the training arguments need ddp_find_unused_parameters=False: the loss runs the "
            "model once per column, and searching for unused parameters after each run fails in the first step."
        )


def _columns_train_different_parameters(model: nn.Module) -> bool:
    trainable = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for router in (module for module in model.modules() if isinstance(module, Router)):
        routes = [trainable.intersection(route.parameters()) for route in router.sub_modules.values()]
        outside = trainable.difference(*routes)
        if len({frozenset(route | outside) for route in routes} - {frozenset()}) > 1:
            return True
    return False


def _figures(queries: Tensor, documents: Tensor | None) -> Tensor:
    """The ``METRICS`` of one batch: ``queries`` (n, d), ``documents`` (n or a multiple, d) with the own ones first.

    NaN for what needs documents, where there are none.
    """
    n = len(queries)
    if documents is None:
        spread = scaled_std(queries)
        return torch.stack([spread if name == "query_std" else spread * torch.nan for name in METRICS])
    similarities = cos_sim(queries, documents)
    positives = similarities.diagonal()
    best = similarities.argmax(dim=1)
    return torch.stack(
        [
            (best == torch.arange(n, device=queries.device)).float().mean(),
            positives.mean(),
            (similarities.sum() - positives.sum()) / max(similarities.numel() - n, 1),
            scaled_std(queries),
            scaled_std(documents),
        ]
    )


def _prefix(logs: dict[str, Any]) -> str | None:
    """``""`` for a training log, such as ``"eval_"`` for an evaluation, None for a log without a loss."""
    if "loss" in logs:
        return ""
    names = (name for name in logs if name.endswith("_loss") and name != "train_loss")
    return next((name.removesuffix("loss") for name in names), None)
