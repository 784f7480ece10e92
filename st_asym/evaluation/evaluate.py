"""Models through data sets, and the table of it."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from st_asym.cache import EmbeddingCache
from st_asym.evaluation.comparison import Bar, Comparison
from st_asym.evaluation.models import Candidate, Models, answered_from, candidates, queries_as_documents, vectors_of
from st_asym.evaluation.rank import Run, System, rows_of, scores_by_query
from st_asym.evaluation.scores import ResultStore
from st_asym.retrieval.significance import CONFIDENCE, RESAMPLES

if TYPE_CHECKING:
    from st_asym.evaluation.compressed import Form
    from st_asym.evaluation.seen import Train
    from st_asym.evaluation.tasks import Benchmark, Source

logger = logging.getLogger(__name__)

_PACKAGES = (
    "st_asym",
    "mteb",
    "sentence-transformers",
    "transformers",
    "torch",
    "numpy",
    "scipy",
    "pytrec-eval-terrier",
)


def evaluate(
    models: Models,
    tasks: Source | Mapping[str, Source] | Iterable[Source],
    *,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] | None = "runs/evaluate",
    split: str = "test",
    train: Train | Mapping[str, Train] | None = None,
    compressed: Form | Sequence[Form] = (),
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
        cache: Where the encoders' vectors are, or will be. None keeps them until the end only.
        results: A folder for the scores of every model on every data set. None keeps nothing.
        split: Of local collections, which queries are judged, ``"all"`` for those of every split. Tasks of MTEB have
            their own.
        train: What the models were trained on, to tell queries whose relevant documents were training positives from
            others: a collection in any form that :func:`st_asym.fit` takes, whose documents are recognised by their
            text, or qrels with the document ids of the data set; or a mapping of data sets to such. Of a file of pairs
            all count, as :func:`st_asym.fit` trains on all; of one that is itself evaluated, those that are not judged.
        compressed: Also evaluate with ``"int8"`` or ``"binary"`` vectors, or with so many dimensions, as
            :class:`st_asym.evaluation.compressed.CompressedIndex` describes.
        at_least: Share of the first row's nDCG@10 that a system must gain to work.
        significance: What its p-value must be below.
        seed: Of the tests' random draws.

    Returns:
        The table, with every score of every query.

    Raises:
        ImportError: MTEB is not installed.
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
    from st_asym.evaluation.compressed import check_forms
    from st_asym.evaluation.mteb import FULL, undisturbed
    from st_asym.evaluation.seen import TrainedOn, TrainingData
    from st_asym.evaluation.tasks import benchmarks

    bar = Bar(at_least, significance)
    with ExitStack() as stack:
        stack.enter_context(undisturbed())
        found = benchmarks(tasks, split)
        known = TrainingData(train, found, split)
        systems = candidates(models)
        again = TrainedOn.of(models, found, split)
        text = next((one.data.queries[query] for one in found if one.data for query in one.data.qrels[split]), "text")
        cautions = (*again.notes, *(note for system in systems for note in queries_as_documents(system, text)))
        compressed = (compressed,) if isinstance(compressed, str | int) else tuple(compressed)
        for system in systems:
            check_forms(compressed, system.models[0].get_embedding_dimension())
        if cache is None:
            cache = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="st_asym-vectors-", ignore_cleanup_errors=True)
            )
        if not isinstance(cache, EmbeddingCache):
            cache = EmbeddingCache(cache)
        answered = [
            replace(system, models=tuple(answered_from(cache, model) for model in system.models)) for system in systems
        ]
        evaluation = _Evaluation(ResultStore(results), (FULL, *compressed))
        by_data = [evaluation.measure(benchmark, answered) for benchmark in found]
    measured = [_system(system, [one[number] for one in by_data]) for number, system in enumerate(systems)]
    first = measured[0].runs[0]
    parts = {
        data: part
        for data, scores in first.items()
        if (part := {**(known.parts(scores) or {}), **again.parts(data, scores.queries)})
    }
    return Comparison(
        rows=rows_of(measured, parts, bar, seed, again.queries),
        data=_facts(found, first),
        queries=scores_by_query(measured, parts),
        settings={
            "at_least": at_least,
            "significance": significance,
            "seed": seed,
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "correction": "Benjamini-Hochberg",
        },
        versions={name: version(name) for name in _PACKAGES},
        notes=(*cautions, *(note for one in found for note in one.notes), *_odd(systems)),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        cautions=cautions,
    )


@dataclass(frozen=True)
class _Evaluation:
    """What all models and data sets of one call share."""

    store: ResultStore
    forms: tuple[Form, ...]

    def measure(self, benchmark: Benchmark, systems: Sequence[Candidate]) -> list[list[dict[str, Run]]]:
        """All models on one data set: for each system and each of its models, form to scores."""
        try:
            return [
                [self._measure(benchmark, system, number) for number in range(len(system.models))] for system in systems
            ]
        finally:
            if benchmark.task.data_loaded:
                benchmark.task.unload_data()

    def _measure(self, benchmark: Benchmark, system: Candidate, number: int) -> dict[str, Run]:
        from st_asym.evaluation.mteb import run

        model, digest = system.models[number], system.digests[number]
        found: dict[str, Run] = {}
        for form in self.forms:
            key = {
                "name": benchmark.name,
                "data": benchmark.version,
                "model": digest,
                "vectors": vectors_of(model),
                "form": str(form),
                "mteb": version("mteb"),
            }
            scores = self.store.get(key)
            if scores is None:
                logger.info("%s: %s, %s vectors", benchmark.name, system.name, form)
                scores = run(benchmark, system.name, model, digest, form)
                self.store.put(key, scores)
            found[str(form)] = {one.data: one for one in scores}
        return found


def _system(system: Candidate, by_data: list[list[dict[str, Run]]]) -> System:
    """What was measured of a system, its data sets put together."""
    runs: dict[str, list[Run]] = {}
    for number in range(len(system.models)):
        for form in by_data[0][number]:
            runs.setdefault(form, []).append(
                {data: scores for one in by_data for data, scores in one[number][form].items()}
            )
    full, *_ = runs
    return System(system.name, system.digests, system.seeds, runs.pop(full), runs)


def _facts(found: Sequence[Benchmark], first: Run) -> dict[str, dict[str, Any]]:
    """What was judged, by data set."""
    return {
        data: {
            "split": scores.split,
            "queries": len(scores.queries),
            "documents": scores.documents,
            "version": next(one.version for one in found if one.name == scores.benchmark),
        }
        for data, scores in first.items()
    }


def require_mteb() -> None:
    """Say what to install.

    Raises:
        ImportError: MTEB is not installed.
    """
    if importlib.util.find_spec("mteb") is None:
        raise ImportError("evaluate needs MTEB, which is not installed: pip install 'st_asym[eval]'.")


def _odd(systems: Sequence[Candidate]) -> list[str]:
    """Models that are the same though they should not be."""
    notes = []
    names: dict[str, str] = {}
    for system in systems:
        if len(set(system.digests)) < len(system.digests):
            notes.append(
                f"{system.name}: {len(system.digests)} models were given, {len(set(system.digests))} different."
            )
        for digest in dict.fromkeys(system.digests):
            if digest in names:
                notes.append(f"{system.name} and {names[digest]} are the same model.")
            names.setdefault(digest, system.name)
    return notes
