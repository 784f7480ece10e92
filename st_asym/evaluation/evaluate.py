"""Models through data sets, and the table of it; and which of two models stays."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.data.collection import counted
from st_asym.evaluation.comparison import FEW, FULL, Bar, Comparison, difference_on, fused_name, rows_of
from st_asym.evaluation.models import (
    Baseline,
    Models,
    System,
    answered_from,
    other_widths,
    queries_as_documents,
    same_models,
    systems_of,
    vectors_of,
)
from st_asym.fitting.fit import undisturbed
from st_asym.retrieval.significance import CONFIDENCE, RESAMPLES, Difference
from st_asym.trust.provenance import installed

if TYPE_CHECKING:
    from st_asym.evaluation.baselines import Baselines
    from st_asym.evaluation.compressed import Form
    from st_asym.evaluation.mteb import Measurement
    from st_asym.evaluation.tasks import Benchmark, Source, Train

# What measures, besides what makes the vectors.
_PACKAGES = ("mteb", "scipy", "pytrec-eval-terrier")


def evaluate(
    models: Models,
    tasks: Source | Mapping[str, Source] | Iterable[Source],
    *,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] | None = "runs/evaluate",
    split: str = "test",
    train: Train | Mapping[str, Train] | None = None,
    compressed: Form | Sequence[Form] = (),
    baselines: Sequence[Baseline] | None = None,
    at_least: float = 0.035,
    significance: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare models on retrieval data sets, with the scores of MTEB.

    The first row is what the others are compared with: the first model, or, where that has heads, its encoder without
    them. A model is known by a digest of its weights and settings, a data set by a digest of what it holds or by its
    revision on the Hub: what was evaluated before is read from ``results``, what has changed is evaluated, and an
    interrupted evaluation goes on where it was. The encoder runs once per distinct text, for all models that share it.

    Args:
        models: Name to a ``SentenceTransformer`` or to the path or Hub id of one; to a list of those, the same system
            from several seeds, which is one row with its spread; or to a mapping of seeds to them.
        tasks: One or several of: names of MTEB's retrieval tasks, which are read from the Hub; paths of BEIR folders,
            zips or files of pairs; :class:`st_asym.data.RetrievalData`; data sets, data frames or lists of pairs;
            ``(queries, corpus, qrels)``. Or a mapping of names to such.
        cache: Where the encoders' vectors are, or will be; None for the cache of :func:`st_asym.fit`.
        results: A folder for the scores of every model on every data set. None keeps nothing.
        split: Of local collections, which queries are judged, ``"all"`` for those of every split. Tasks of MTEB have
            their own.
        train: What the models were trained on, to tell queries whose relevant documents were training positives from
            others: a collection in any form that :func:`st_asym.fit` takes, whose documents are recognised by their
            text, or qrels with the document ids of the data set; or a mapping of data sets to such. Of a file of pairs
            all count, as :func:`st_asym.fit` trains on all; of one that is itself evaluated, all but its ``test``.
        compressed: Also evaluate with ``"int8"`` or ``"binary"`` vectors, or with so many dimensions, as
            :class:`st_asym.evaluation.compressed.CompressedIndex` describes.
        baselines: ``"bm25"`` for a row of BM25, ``"hybrid"`` for a row of each system with BM25 added: the cosine plus
            a weight times BM25 standardised over the corpus, the weight from 0 to .06 by those queries of the split
            ``dev`` that the system was not trained on, or .02 without 20 of them. None for both where
            ``bm25s`` is installed; ``()`` for neither. Both need corpora of at most a million documents.
        at_least: Share of the first row's nDCG@10 that a system must gain to work.
        significance: What its p-value must be below.
        seed: Of the tests' random draws.

    Returns:
        The table, with every score of every query.

    Raises:
        ImportError: MTEB is not installed, or ``bm25s`` where ``baselines`` are asked for.
        OSError: A data set cannot be read from the Hub.
        TypeError: Not a model, or not a data set.
        ValueError: A data set that cannot be judged or has an unknown name, or a model with vectors that are not
            finite. The message counts and names what is wrong. What was evaluated before is kept in ``results``.

    Example:
        >>> comparison = evaluate(
        ...     {"MiniLM": "all-MiniLM-L6-v2", "with heads": [model_0, model_1]}, ["SciFact", "my-beir-folder"]
        ... )  # doctest: +SKIP
        >>> print(comparison)  # doctest: +SKIP
    """
    require_mteb()
    from st_asym.evaluation.baselines import Baselines
    from st_asym.evaluation.compressed import check_forms
    from st_asym.evaluation.mteb import compressed_scores, scores_by_query
    from st_asym.evaluation.tasks import benchmarks, seen_queries, trained_queries, training_documents

    bar = Bar(at_least, significance)
    given: Any = [compressed] if isinstance(compressed, str | int | np.integer) else compressed
    compressed = tuple(int(form) if isinstance(form, np.integer) else form for form in given)
    with undisturbed():
        found = benchmarks(tasks, split)
        positives = training_documents(train, found)
        systems = systems_of(models)
        beside = Baselines(baselines, models, split)
        trained, trained_notes = trained_queries(models, found, split)
        text = next((one.data.queries[query] for one in found if one.data for query in one.data.qrels[split]), "text")
        cautions = (*trained_notes, *(note for system in systems for note in queries_as_documents(system, text)))
        for system in systems:
            check_forms(compressed, system.models[0].get_embedding_dimension())
        vectors = open_cache(cache)
        cached = [replace(one, models=tuple(answered_from(vectors, model) for model in one.models)) for one in systems]
        store, forms = None if results is None else Path(results), tuple(dict.fromkeys((FULL, *compressed)))
        measured = [record for one in found for record in _measure(one, cached, forms, store, beside)]
    rows, measured = beside.among(systems, measured)
    for own in trained.values():
        own |= {fused_name(name): queries for name, queries in own.items()}
    first = {one.scores.data: one.scores for one in measured if one.system == systems[0].name and one.form == FULL}
    parts = {data: seen_queries(scores, positives, trained.get(data, {})) for data, scores in first.items()}
    versions = {one.name: one.version for one in found}
    queries = scores_by_query(measured, parts)
    return Comparison(
        rows=rows_of(rows, queries, parts, bar, seed, trained, compressed_scores(measured)),
        data={
            data: {
                "split": scores.split,
                **({} if scores.subset == "default" else {"subset": scores.subset}),
                "queries": len(scores.queries),
                "documents": scores.documents,
                "version": versions[scores.benchmark],
            }
            for data, scores in first.items()
        },
        queries=queries,
        settings={
            "at_least": at_least,
            "significance": significance,
            "seed": seed,
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "correction": "Benjamini-Hochberg",
        },
        versions=installed(*_PACKAGES, *(["bm25s"] if len(rows) > len(systems) else [])),
        notes=(*cautions, *_left_out(found), *same_models(systems), *other_widths(systems), *beside.notes),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        cautions=cautions,
    )


def _left_out(found: Sequence[Benchmark]) -> list[str]:
    """What was left out of the data sets, each sentence with the name of its own where there are several."""
    named = len(found) > 1
    return [f"{note.removesuffix('.')} ({one.name})." if named else note for one in found for note in one.notes]


def _measure(
    benchmark: Benchmark, systems: Sequence[System], forms: Sequence[Form], store: Path | None, beside: Baselines
) -> list[Measurement]:
    """All models on one data set, and what stands beside them, as far as its results are not stored yet."""
    from st_asym.evaluation.mteb import kept_or_measured, run

    measured = []
    try:
        for system in systems:
            for model, digest in zip(system.models, system.digests, strict=True):
                for form in forms:
                    known = {"model": digest, "vectors": vectors_of(model), "form": str(form)}
                    measure = partial(run, benchmark, system.name, model, digest, form)
                    measured += kept_or_measured(store, benchmark, system.name, known, measure)
        documents = max(one.scores.documents for one in measured)
        measured += beside.measure(benchmark, systems, documents, store)
    finally:
        if benchmark.task.data_loaded:
            benchmark.task.unload_data()
    return measured


def require_mteb() -> None:
    """Say what to do where MTEB is not installed, or cannot make its folder, as it does when it is imported."""
    if importlib.util.find_spec("mteb") is None:
        raise ImportError("evaluate needs MTEB, which is not installed: pip install 'st_asym[eval]'.")
    try:
        importlib.import_module("mteb")
    except OSError as error:
        raise OSError(f"MTEB's folder cannot be made ({error}): set MTEB_CACHE to one that can be written.") from error


@dataclass(frozen=True)
class Replacement:
    """Whether ``new`` replaces ``old``: ``print(replacement)`` is a sentence.

    Attributes:
        old: The name of the model in service.
        new: The name of the one that may replace it.
        replaces: The answer.
        reason: For it, in words.
        gain: In mean nDCG@10 from the old to the new one, None where no queries are left.
        halves: The same for ``"seen"`` and ``"unseen"`` queries, where the comparison knows them.
    """

    old: str
    new: str
    replaces: bool
    reason: str
    gain: Difference | None = None
    halves: dict[str, Difference] | None = None

    def __str__(self) -> str:
        """``Replace last by next: nDCG@10 +1.20 points [+0.31, +2.10], p = 0.009, on 412 queries ...``."""
        return f"{f'Replace {self.old} by {self.new}' if self.replaces else f'Keep {self.old}'}: {self.reason}"


def replacement(comparison: Comparison, old: str, new: str, *, unknown: Sequence[str] = ()) -> Replacement:
    """Decide between two models of a comparison.

    The new one replaces the old one if its mean nDCG@10 is higher, on the queries that no model of the comparison was
    trained on, and if it is not significantly lower on those of them whose documents were trained on, or on the others
    (where the comparison was given ``train``). The difference need not be significant: both models passed their own
    tests against the encoder, the new one has seen more, and a week has few queries. Without a new query, or a
    difference, the old one stays; so it does where it is not known what was trained on.

    Args:
        comparison: Of :func:`st_asym.evaluate`; data sets count the same.
        old: The name of the model in service.
        new: The name of the one that may replace it.
        unknown: Models that were trained on queries of which there are no digests.

    Raises:
        KeyError: The comparison has no model of such a name.

    Example:
        >>> comparison = evaluate({"last": "current", "next": "next"}, "week.csv", split="all")  # doctest: +SKIP
        >>> replacement(comparison, "last", "next").replaces  # doctest: +SKIP
        True
    """
    old, new = (comparison[name].name for name in (old, new))  # or an error says which there are
    if unknown:
        reason = f"it is not known which queries {' and '.join(unknown)} learnt from."
        return Replacement(old, new, replaces=False, reason=reason)
    gain = _gain_on(comparison, old, new, None)
    if gain is None:
        return Replacement(old, new, replaces=False, reason=f"it or {new} was trained on every query.")
    both = {half: _gain_on(comparison, old, new, half) for half in ("seen", "unseen")}
    halves = {half: own for half, own in both.items() if own is not None}
    lost = [half for half, own in halves.items() if own.points < 0 and own.p < Bar.significance]
    reason = f"nDCG@10 {gain}, on {counted(gain.queries, 'query', 'queries')} that neither was trained on"
    reason += "".join(f"; {halves[half]}, on {half} documents, which is beyond noise" for half in lost)
    reason += f". Fewer than {FEW} say little." if gain.queries < FEW else "."
    return Replacement(old, new, gain.points > 0 and not lost, reason, gain, halves)


def _gain_on(comparison: Comparison, old: str, new: str, half: str | None) -> Difference | None:
    """The difference on queries that were not trained on, all or those of a half; None where there are none."""
    rows: dict[str, list[int]] = {}
    for data, known in comparison.queries.items():
        trained, seen = set(known["trained on"]), set(known["seen"] or ())
        left = [row for row, key in enumerate(known["ids"]) if key not in trained]
        if half is not None:
            left = [row for row in left if (known["ids"][row] in seen) == (half == "seen")]
        if left and (half is None or known["seen"] is not None):
            rows[data] = left
    return difference_on(comparison.queries, old, new, rows, seed=0) if rows else None
