"""From texts to a saved model in one call, with the untouched encoder kept where training does not beat it."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from sentence_transformers import SentenceTransformer

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.cache.filling import Precision
from st_asym.data import as_retrieval_data
from st_asym.data.inputs import Corpus, Pairs
from st_asym.fitting.gate import Collection
from st_asym.fitting.heads import State, dialled, heads_state, load_heads
from st_asym.fitting.rehearsing import Attempt, attempt, cuts
from st_asym.fitting.report import FitReport
from st_asym.fitting.saving import free_place, save
from st_asym.fitting.settings import Settings, usual_init
from st_asym.fitting.training import train_heads
from st_asym.fitting.tuning import check_optuna, tune
from st_asym.fitting.workbench import Workbench
from st_asym.hub.facts import Encoder
from st_asym.model import load_encoder
from st_asym.systems import Init, get_system

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` gives.

    Attributes:
        model: A ``SentenceTransformer`` of stock modules, as it was saved.
        report: What was done, and why: ``print(result.report)``.

    Example:
        >>> result = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model")  # doctest: +SKIP
        >>> result.model.encode_query("a question")  # doctest: +SKIP
    """

    model: SentenceTransformer
    report: FitReport


def fit(
    encoder: SentenceTransformer | str | os.PathLike[str],
    train: Pairs | Corpus | None = None,
    *,
    output_dir: str | os.PathLike[str],
    dev: Pairs | None = None,
    corpus: Corpus | None = None,
    system: str = "asymmetric",
    init: Init | None = None,
    collection: Collection | None = None,
    hold_out_test: bool = False,
    settings: Settings | None = None,
    trials: int = 0,
    max_seconds: float | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    precision: Precision = "fp32",
    seed: int = 0,
    show_progress_bar: bool = True,
) -> FitResult:
    """Fit query and document heads to labelled pairs and save a stock model, or the encoder itself where it is better.

    Every text is encoded once, into the cache. Queries are held out, part of them on documents that training does not
    see: the ``dev`` split, or, without one, a cut of the training queries (each query once, over four or five folds,
    where they are fewer than 2,000). Training on the rest shows what it is worth on them, after each epoch and for
    heads that are turned back towards the identity by a dial. Of what gains beyond noise and loses nothing on unseen
    documents, the least that is as good as the best is chosen. If nothing does, the model is the untouched encoder, and
    the first line of the report says so. Where the held-out queries were cut from the training queries, the heads are
    then trained on all of them, with the same choice.

    Args:
        encoder: A ``SentenceTransformer``, or the Hub id or path of one. It is frozen in place, and shared.
        train: Pairs or judged queries in any form that :func:`st_asym.data.as_retrieval_data` takes; or documents
            alone, whose titles or sentences then stand for queries.
        output_dir: Where the model is saved, made if missing. An earlier result of ``fit`` there is replaced.
        dev: Queries to judge on, in the same forms. They are never trained on.
        corpus: More documents to search among.
        system: ``"asymmetric"``, ``"frozen"``, ``"iso_pred"`` or ``"respred"``, see
            :func:`st_asym.systems.get_system`.
        init: ``"identity"`` or ``"random"``; None for the identity, and for what the other systems had originally.
        collection: ``"open"`` where queries will ask for documents that training never saw, ``"closed"`` where the
            corpus stays as it is; None counts both equally.
        hold_out_test: Whether to leave out of training, of pairs without a ``test`` split, the queries that
            :func:`st_asym.evaluate` and :func:`st_asym.diagnose` take of a file of them: a fifth, by a hash of their
            text.
        settings: How heads are shaped and trained; None for defaults that are good across collections.
        trials: How many other settings to try (needs the extra ``tune``). They are compared on the held-out queries.
        max_seconds: When to stop: rehearsing ends after the epoch that leaves no more time than the last training
            needs. There is at least one epoch, and encoding is not cut short.
        cache: An :class:`st_asym.EmbeddingCache`, or its directory; None for one in the cache folder of
            ``huggingface_hub``.
        precision: As for :meth:`st_asym.EmbeddingCache.fill`.
        seed: Of everything that is drawn.
        show_progress_bar: Whether to show encoding and training.

    Returns:
        The model and the report. ``output_dir`` holds the model, the report as ``st_asym_report.json``, and what the
        model was made of, see :func:`st_asym.save_provenance`.

    Raises:
        FileExistsError: ``output_dir`` holds something else than an earlier result.
        TypeError, ValueError, FileNotFoundError: As for :func:`st_asym.data.as_retrieval_data` and
            :func:`st_asym.asymmetric_model`, and for settings that no training can have.
        CacheError: As for :meth:`st_asym.EmbeddingCache.fill`.

    Example:
        >>> result = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model")  # doctest: +SKIP
        >>> print(result.report)  # doctest: +SKIP
        >>> SentenceTransformer("model").encode_query("a question")  # doctest: +SKIP
    """
    started = time.monotonic()
    output = free_place(Path(output_dir).resolve())
    _check_arguments(init, collection, trials, max_seconds)
    kind = get_system(system)
    init = init or usual_init(kind)
    settings = settings or Settings.of(kind, init)
    if trials:
        check_optuna()
    if settings.hard_negatives and not kind.contrastive:
        raise ValueError(f"The system {system!r} has no contrastive loss to give hard_negatives to: leave them at 0.")
    report = FitReport(system=system, init=init, collection=collection, settings=settings, seed=seed)
    with report.timed("read"):
        data = as_retrieval_data(train, corpus=corpus, dev=dev, hold_out_test=hold_out_test)
        report.note_data(data)
        bench = Workbench(
            encoder if isinstance(encoder, SentenceTransformer) else load_encoder(encoder),
            kind,
            init,
            data,
            open_cache(cache),
            precision=precision,
            deadline=math.inf if max_seconds is None else started + max_seconds,
            seed=seed,
        )
    model = bench.encoder
    if kind.trains:
        bench.check(settings)
        with report.timed("encode"):
            bench.fill(show_progress_bar=show_progress_bar)
        with _quiet():
            model = _fitted(bench, settings, trials, collection, report)
    with report.timed("save"):
        sources = [source for source in (train, corpus, dev) if source is not None]
        save(model, report, output, Encoder.of(encoder, bench.encoder), data, sources)
    return FitResult(model, report)


def _fitted(
    bench: Workbench, settings: Settings, trials: int, collection: Collection | None, report: FitReport
) -> SentenceTransformer:
    """The model of the best choice, or the encoder itself."""
    parts = cuts(bench.data, bench.seed)
    if not parts:
        report.held_out = ["There is one training query: none can be held out. Give queries to judge on as dev."]
        return bench.encoder
    with report.timed("rehearse"):
        best = attempt(bench, parts, settings, collection)
        if trials and not bench.out_of_time:
            best, report.trials = tune(bench, parts, best, trials, collection)
    report.note_attempt(best, parts)
    if best.chosen is None:
        return bench.encoder
    with report.timed("train"):
        stage, choice = best.stage, best.chosen.choice
        end = best.end if choice.epoch == best.last_epoch and not report.refitted else _trained(bench, best)
        load_heads(stage.model, dialled(stage.start, end, choice.dial))
    return bench.system.finish(stage.model.stock_model()).eval()


def _trained(bench: Workbench, best: Attempt) -> State:
    """The heads of the chosen epoch, on all training queries."""
    stage, chosen = best.stage, best.chosen
    load_heads(stage.model, stage.start)
    train_heads(
        bench,
        stage,
        bench.data.qrels["train"],
        after_epoch=lambda epoch: chosen is not None and epoch >= chosen.choice.epoch,
    )
    return heads_state(stage.model)


def _check_arguments(init: Any, collection: Any, trials: int, max_seconds: float | None) -> None:
    if init not in (None, "identity", "random"):
        raise ValueError(f"init must be 'identity' or 'random', got {init!r}.")
    if collection not in (None, "open", "closed"):
        raise ValueError(f"collection must be 'open', 'closed' or None, got {collection!r}.")
    if trials < 0:
        raise ValueError(f"trials must not be below 0, got {trials}.")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be above 0, got {max_seconds}.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what costs many short training runs more than it is worth: progress bars and full garbage collections.

    The trainer collects garbage after each run, among all objects of all modules that were ever imported. Those that
    were there before are left out of that.
    """
    hidden, frozen = datasets.are_progress_bars_disabled(), gc.get_freeze_count()
    datasets.disable_progress_bars()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if not hidden:
            datasets.enable_progress_bars()
