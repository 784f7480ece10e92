"""``fit``: from texts to a saved model."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.cache.encoding import Precision
from st_asym.data import RetrievalData, as_retrieval_data
from st_asym.data.document import copies
from st_asym.data.files import LOGS_FOLDER, REPORT_FILE, check_place, new_folder
from st_asym.data.holdout import HeldOut, groups
from st_asym.data.holdout import expected_unseen as unseen_at_random
from st_asym.data.sources import Corpus, Pairs
from st_asym.fitting.candidates import Candidate, candidates
from st_asym.fitting.gate import Rehearsal, are_sound, decide
from st_asym.fitting.loop import refit
from st_asym.fitting.rehearsal import alike, cuts, rehearse
from st_asym.fitting.report import FitReport, bm25_sentence
from st_asym.fitting.settings import Settings
from st_asym.fitting.tuning import check_optuna, tune
from st_asym.fitting.vectors import Vectors, read_vectors
from st_asym.heads.anatomy import EncoderSource, gives_unit_vectors, is_cut, public_name
from st_asym.heads.model import fresh_heads, load_encoder, saved_size
from st_asym.heads.saved import rescued_heads
from st_asym.trust.provenance import keep_what_is_not_ours, save_provenance

Collection = Literal["open", "closed"]

# Documents that nobody asks for are tried as full negatives where they are more than this share of the corpus, and at
# most this share of the queries is expected to be unseen.
_MANY, _MOSTLY = 0.2, 0.1
# What NumPy's generator of the trainer takes.
_MOST_SEED = 2**32 - 1


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


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """The caller's random generators as they were, which the trainer and MTEB reseed, and no bars of data sets."""
    hidden = datasets.are_progress_bars_disabled()
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the caller's
    datasets.disable_progress_bars()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        if not hidden:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def ready_to_train() -> Iterator[None]:
    """The caller :func:`undisturbed`, gradients, and no full garbage collections.

    The trainer collects garbage after each run among all objects of all modules that were ever imported. Those that
    were there before are left out of that.
    """
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        with undisturbed(), torch.inference_mode(mode=False), torch.enable_grad():
            yield
    finally:
        if not frozen:
            gc.unfreeze()


@ready_to_train()
def fit(
    encoder: SentenceTransformer | str | os.PathLike[str],
    train: Pairs | Corpus | None = None,
    *,
    output_dir: str | os.PathLike[str],
    dev: Pairs | None = None,
    corpus: Corpus | None = None,
    collection: Collection | None = None,
    expected_unseen: float | None = None,
    hold_out_test: bool = False,
    settings: Settings | None = None,
    trials: int = 0,
    max_seconds: float | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    precision: Precision = "fp32",
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str | Sequence[str] = "none",
    show_progress_bar: bool = True,
) -> FitResult:
    """Fit query and document heads to labelled pairs and save a stock model, or the encoder itself where it is better.

    Every text is encoded once, into the cache. Queries are held out, part of them on documents that training does not
    see: the ``dev`` split, and, where it has fewer than 1,000 queries or there is none, a cut of the training queries
    (each query once, over four or five folds, where they are fewer than 2,000). A few candidates are rehearsed on the
    others: within-pair whitening in closed form, and heads trained from it, on both sides and on queries alone, each at
    half and all of its epochs and turned back towards the identity by a dial; what is clearly behind after a cut is not
    rehearsed on the next. The one that is worth most on the held-out queries, seen and unseen in the proportion of the
    traffic to expect, is kept, if its gain is more than chance would give the best of so many, and if it loses on
    neither half; otherwise the model is the untouched encoder, and the first line of the report says so. Where ``dev``
    queries are unlike the training queries and do not bear it out by themselves, they decide alone (see
    :func:`st_asym.fitting.gate.decide`). What is kept is then trained by ``SentenceTransformerTrainer``, on all
    training queries.

    Args:
        encoder: A ``SentenceTransformer``, or the Hub id or path of one. It is frozen in place, and shared.
        train: Pairs or judged queries in any form that :func:`st_asym.data.as_retrieval_data` takes; or documents
            alone, whose titles or sentences then stand for queries.
        output_dir: Where the model is saved, made if missing. An earlier result of ``fit`` there is replaced; what was
            put beside it stays.
        dev: Queries to judge on, in the same forms. They are never trained on. Where they are fewer than 1,000,
            training queries are held out besides; fewer than 5 can show nothing.
        corpus: More documents to search among.
        collection: ``"open"`` where queries will ask for documents that training never saw, ``"closed"`` where the
            corpus stays as it is; None for the share of both that cutting queries at random gives, or that of ``dev``.
        expected_unseen: That share of queries on unseen documents itself, from 0 (closed) to 1 (open).
        hold_out_test: Whether to leave out of training, of pairs without a ``test`` split, the queries that
            :func:`st_asym.evaluate` and :func:`st_asym.diagnose` take of a file of them: a fifth, by a hash of their
            text.
        settings: How heads are shaped and trained: what is given narrows the candidates.
        trials: How many other settings to try (needs the extra ``tune``). They are rehearsed like the candidates.
        max_seconds: When to stop: rehearsing ends after the epoch that leaves no more time than the last training
            needs. There is at least one epoch, and encoding is not cut short.
        cache: An :class:`st_asym.EmbeddingCache`, or its directory; None for one in the cache folder of
            ``huggingface_hub``.
        precision: As for :meth:`st_asym.EmbeddingCache.fill`.
        seed: The random seed. The caller's random generators stay as they are.
        callbacks: For the trainer of the last training.
        report_to: For its arguments, such as ``"tensorboard"``, whose logs are then in the folder ``runs`` of
            ``output_dir``.
        show_progress_bar: Whether to show encoding, rehearsing and training.

    Returns:
        The model and the report. ``output_dir`` holds the model, the report as ``st_asym_report.json``, and what the
        model was made of, see :func:`st_asym.save_provenance`.

    Raises:
        FileExistsError: ``output_dir`` holds something else than an earlier result.
        TypeError, ValueError, FileNotFoundError: As for :func:`st_asym.data.as_retrieval_data` and
            :func:`st_asym.asymmetric_model`, and for settings that no training can have.
        OSError: ``output_dir`` cannot be written, which is looked at before anything is encoded; or, in the end, the
            disk is full: then the message says where the heads are kept.
        CacheError: As for :meth:`st_asym.EmbeddingCache.fill`.

    Example:
        >>> result = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model")  # doctest: +SKIP
        >>> print(result.report)  # doctest: +SKIP
        >>> SentenceTransformer("model").encode_query("a question")  # doctest: +SKIP
    """
    output = _free_place(Path(output_dir).resolve())
    settings, seed, unseen = checked_settings(collection, expected_unseen, trials, max_seconds, settings, seed)
    _check_callbacks(callbacks, report_to)
    deadline = time.monotonic() + (max_seconds or math.inf)
    report = FitReport(settings=settings, collection=collection, seed=seed)
    with report.timed("read"):
        data = as_retrieval_data(train, corpus=corpus, dev=dev, hold_out_test=hold_out_test)
        report.note_data(data)
        model = load_encoder(encoder)
        _check_encoder(model, settings)
        fresh_heads(model, settings.projection())  # what cannot be built is refused before anything is encoded
        check_place(output, saved_size(model))
        given, store = EncoderSource.of(encoder, model), open_cache(cache)
        _free_place(output)  # where the cache may be now
    with report.timed("encode"):
        copied = copies(data.with_all_split().qrels["all"], data.corpus)
        vectors = read_vectors(
            model, data, store, copied, precision=precision, seed=seed, show_progress_bar=show_progress_bar
        )
    with report.timed("rehearse"):
        width = model.get_embedding_dimension() or vectors.dimension
        if settings.sides is None and width < vectors.dimension:  # truncate_dim: both sides get what cuts them
            report.settings = replace(settings, sides="both")
        options: dict[str, Any] = {"deadline": deadline, "trials": trials, "show_progress_bar": show_progress_bar}
        chosen, parts, judged = rehearsed(vectors, data, report, width, unseen, **options)
        report.bm25 = bm25_sentence(data, parts, judged, report.chosen.choice if report.chosen else None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        logs = Path(folder) / LOGS_FOLDER
        if chosen is not None and report.chosen is not None:
            with report.timed("train"):
                choice = report.chosen.choice
                options = {"precision": precision, "callbacks": callbacks or (), "report_to": report_to or "none"}
                model, report.training = refit(model, chosen, choice, vectors, data, store, logs=logs, **options)
        with report.timed("save"):
            sources = [source for source in (train, corpus, dev) if source is not None]
            _save(model, report, output, given, data, sources, logs)
    return FitResult(model, report)


def rehearsed(
    vectors: Vectors,
    data: RetrievalData,
    report: FitReport,
    out_features: int,
    unseen: float | None,
    *,
    deadline: float,
    trials: int,
    show_progress_bar: bool,
) -> tuple[Candidate | None, list[HeldOut], list[Rehearsal]]:
    """The candidate that is worth being kept, if there is one; the cuts, and the scores on those that decided.

    It goes by vectors alone: the texts of ``data`` only say which queries and documents are the same. ``unseen`` is the
    share of queries on unseen documents, where it is given and not said by the collection of ``report``.
    """
    settings, train = report.settings, data.qrels["train"]
    parts = cuts(data, vectors.seed)
    if not parts:
        report.held_out = ["There is one training query: none can be held out. Give queries to judge on as dev."]
        return None, [], []
    unseen = {"open": 1.0, "closed": 0.0}.get(report.collection or "", unseen)
    dev = "dev" in data.qrels
    if unseen is None and dev:
        unseen = len(parts[0].unseen) / max(1, len(parts[0].seen) + len(parts[0].unseen))
    elif unseen is None:
        unseen = unseen_at_random(train, seed=vectors.seed, queries=data.queries, corpus=data.corpus)
    labelled = {key for judged in train.values() for key, grade in judged.items() if grade > 0}
    closed = unseen < _MOSTLY and len(labelled) < (1 - _MANY) * len(vectors.document_ids)
    tried = candidates(settings, len(train), closed=closed)
    with tqdm(desc="Rehearsing", unit=" runs", disable=not show_progress_bar) as bar:
        found = rehearse(
            vectors, parts, tried, unseen, out_features=out_features, deadline=deadline, progress=bar.update
        )
        if trials and found.has_time():
            more, report.trials = tune(found, tried, settings, trials)
            tried = [*tried, *more]
    like_train = dev and len(found.judged) > 1 and alike(vectors, data)
    alike_queries = groups([train, *([data.qrels["dev"]] if dev else [])], data.queries, data.corpus)
    sound = data.labels == "judged" and are_sound(found.judged, alike_queries)
    options: dict[str, Any] = {"dev": dev, "alike": like_train, "sound": sound, "groups": alike_queries}
    decision = decide(found.judged, unseen, found.finalists, **options)
    by_name = {candidate.name: candidate for candidate in tried}
    report.note_rehearsals(found, decision, by_name, parts, like_train)
    judged = found.judged[:1] if decision.by_dev else found.judged
    return (by_name[decision.chosen.choice.candidate] if decision.chosen else None), parts, judged


def _save(
    model: SentenceTransformer,
    report: FitReport,
    output: Path,
    encoder: EncoderSource,
    data: RetrievalData,
    sources: Sequence[object],
    logs: Path,
) -> None:
    """Write model, report, card and provenance; what others put beside an earlier result stays.

    ``sources`` are what ``data`` was read from, as the user named it; ``logs`` is what the trainer logged. Where the
    disk is full or does not take the model, the error says where the heads are kept.
    """
    from st_asym.report.card import attach, new_card
    from st_asym.report.tables import code

    with rescued_heads(model, output), new_folder(output, _free_place, keep_what_is_not_ours) as new:
        model.save_pretrained(str(new), create_model_card=False)
        report.save(new / REPORT_FILE)
        if logs.is_dir():
            shutil.copytree(logs, new / LOGS_FOLDER)
        # Data in memory have no name.
        data_name = code(public_name(sources[0])) if isinstance(sources[0], str | os.PathLike) else None
        card = new_card(model, encoder, report.as_dict(), data_name, new)
        card.save(new)
        if report.kept:  # otherwise it is the user's own encoder, with the encoder's own card
            attach(model, card, new)
        settings = {**report.settings.as_dict(), **{k: getattr(report, k) for k in ("collection", "expected_unseen")}}
        name = ", ".join(map(public_name, sources))
        save_provenance(new, model, data={name: data}, settings=settings, seed=report.seed)


def _free_place(output: Path) -> Path:
    """A place that is empty, or holds an earlier result: known before hours of work."""
    if output == Path.cwd() or os.path.ismount(output):
        raise FileExistsError(f"{output} cannot be replaced by a new folder while it is in use: name a folder in it.")
    if output.exists() and not (output / REPORT_FILE).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"{output} exists and is not an earlier result of fit (it has no {REPORT_FILE}): name another output_dir."
        )
    return output


def _check_encoder(model: SentenceTransformer, settings: Settings) -> None:
    """Refuse an encoder whose own ranking is not by cosine or dot product, or that settings do not suit."""
    similarity = model.similarity_fn_name
    if similarity == "manhattan" or (similarity == "euclidean" and not gives_unit_vectors(model)):
        raise ValueError(
            f"The encoder compares by {similarity} distance, and heads by cosine, so that what they gain over the "
            "encoder cannot be judged. If cosine is how you search, set encoder.similarity_fn_name = 'cosine'."
        )
    if settings.sides in ("query", "document") and is_cut(model):
        raise ValueError(
            f"The encoder cuts its vectors to {model.truncate_dim} dimensions (truncate_dim), which the heads of both "
            f"sides do after it: leave sides={settings.sides!r} out, or load it without truncate_dim."
        )


def _check_callbacks(callbacks: Any, report_to: Any) -> None:
    """Refuse what the trainer would refuse, after hours of work."""
    if not isinstance(callbacks or (), Sequence):
        raise TypeError(f"callbacks must be a list of TrainerCallback, got a {type(callbacks).__name__}.")
    for one in callbacks or ():
        if not (isinstance(one, TrainerCallback) or (isinstance(one, type) and issubclass(one, TrainerCallback))):
            raise TypeError(f"callbacks must be a list of TrainerCallback, got {one!r:.80} in it.")
    listed = [report_to] if isinstance(report_to, str) else list(report_to or ())
    try:
        for kind in get_reporting_integration_callbacks(listed[0] if len(listed) == 1 else listed):  # type: ignore[no-untyped-call]
            kind()
    except (ValueError, RuntimeError) as error:  # there is none of the name, or its package is not installed
        raise ValueError(f"report_to={report_to!r}: {error}") from error


def checked_settings(
    collection: Any, expected_unseen: Any, trials: Any, max_seconds: Any, settings: Any, seed: Any
) -> tuple[Settings, int, float | None]:
    """Settings, seed and share of unseen queries as Python has them; what no fit can have is refused."""
    number, whole = int | float | np.number | None, int | np.integer
    for name, value, kinds, what in (
        ("settings", settings, Settings | None, "Settings(...) or None"),
        ("expected_unseen", expected_unseen, number, "a number or None"),
        ("max_seconds", max_seconds, number, "a number or None"),
        ("trials", trials, whole, "a whole number"),
        ("seed", seed, whole, "a whole number"),
    ):
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be {what}, got {value!r:.80}.")
    both = f"collection={collection!r} and expected_unseen={expected_unseen} say the same: give one."
    for message, wrong in {
        f"collection must be 'open', 'closed' or None, got {collection!r}.": collection not in (None, "open", "closed"),
        f"expected_unseen must be from 0 to 1, got {expected_unseen}.": not 0 <= (expected_unseen or 0) <= 1,
        both: expected_unseen is not None and collection is not None,
        f"trials must not be below 0, got {trials}.": trials < 0,
        f"seed must be from 0 to {_MOST_SEED:,}, got {seed}.": not 0 <= seed <= _MOST_SEED,
        f"max_seconds must be above 0, got {max_seconds}.": max_seconds is not None and not max_seconds > 0,
    }.items():
        if wrong:
            raise ValueError(message)
    if trials:
        check_optuna()
    return settings or Settings(), int(seed), None if expected_unseen is None else float(expected_unseen)
