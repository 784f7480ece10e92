"""One model on one task by MTEB, what it measured, by query, and where that is kept."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mteb
from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from st_asym.cache import CachedSentenceTransformer
from st_asym.data.collection import counted, first_few
from st_asym.data.document import Document, relevant_of
from st_asym.data.files import read_json, write_json
from st_asym.evaluation.comparison import FORMAT, FULL, MAIN, METRICS, mean, of_json, short_digest
from st_asym.evaluation.compressed import CompressedIndex, Form
from st_asym.evaluation.models import check_finite
from st_asym.evaluation.tasks import Benchmark, text_digest

logger = logging.getLogger(__name__)

_BATCH = 32
# Vectors that are looked up cost nothing to batch.
_CACHED_BATCH = 1024
# Raised where texts or prompts reach models in another way: scores that were kept before are not those.
_WAY = "2"


@dataclass(frozen=True)
class TaskScores:
    """What one model scored on one data set."""

    benchmark: str  # the name of the task
    data: str  # that of the data set, which is the task's where it has only one
    split: str
    documents: int  # how many were searched
    queries: tuple[str, ...]  # their ids
    by_query: dict[str, tuple[float, ...]]  # each of METRICS for each query, in the order of queries
    relevant: dict[str, dict[str, str]]  # query id to the ids of its relevant documents, each with a digest of its text
    bm25_weight: float | None = None  # how much BM25 counted beside the cosine, where it was added
    subset: str = "default"  # of a task that has several


class Measurement(NamedTuple):
    """What one model of a system, of which there is one per seed, scored on one data set with vectors of one form."""

    system: str
    form: str  # "full", "int8", "binary" or a number of dimensions
    scores: TaskScores


def kept_or_measured(
    folder: Path | None,
    benchmark: Benchmark,
    system: str,
    known: Mapping[str, str],
    measure: Callable[[], list[TaskScores]],
) -> list[Measurement]:
    """What a folder has of this data set and exactly this model; measured, logged and kept where there is nothing.

    ``known`` tells the model and its vectors from others, under ``"model"`` and ``"form"`` among others. A file is
    written when a model has been through a data set, in one step, so that an interrupted evaluation goes on with the
    next one. A file that is damaged, or of another format or version, counts as missing.
    """
    key = {"name": benchmark.name, "data": benchmark.version, "mteb": version("mteb"), "way": _WAY, **known}
    path, found = None, list[TaskScores]()
    if folder is not None:
        file = f"{key['model'][:12]}-{key['form']}-{short_digest(key)}.json"
        path = folder / re.sub(r"[^\w.-]+", "_", key["name"]) / file
    if path is not None and path.is_file():
        try:
            content = read_json(path)
            if content["format"] != FORMAT or content["key"] != key:
                raise ValueError("it is of another version")
            found = [of_json(TaskScores, values) for values in content["scores"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s cannot be used (%s): this is evaluated again.", path, error)
    if not found:
        vectors = f", {key['form']} vectors" if "vectors" in key else ""
        logger.info("%s: %s%s", benchmark.name, system, vectors)
        found = measure()
        if path is not None:
            content = {"format": FORMAT, "key": key, "scores": [asdict(one) for one in found]}
            write_json(path, content, indent=None)
    return [Measurement(system, key["form"], one) for one in found]


def scores_by_query(measured: Sequence[Measurement], parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every score of every query with full vectors, as :class:`st_asym.Comparison` keeps it.

    ``parts`` are groups of the queries of a data set, see :func:`st_asym.evaluation.tasks.seen_queries`.
    """
    found: dict[str, dict[str, Any]] = {}
    for system, form, scores in measured:
        if form == FULL:
            part: Mapping[str, Any] = parts.get(scores.data, {})
            seen = list(part["seen"]) if "seen" in part else None
            known = {"ids": list(scores.queries), "seen": seen, "trained on": list(part.get("trained on", ()))}
            own = found.setdefault(scores.data, {**known, "scores": {}})["scores"].setdefault(system, {})
            for metric in METRICS:
                own.setdefault(metric, []).append(list(scores.by_query[metric]))
    return found


def compressed_scores(measured: Sequence[Measurement]) -> dict[str, dict[str, dict[str, float]]]:
    """System to form to data set, and ``"average"``, to nDCG@10 with compressed vectors."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    scores: dict[tuple[str, str, str], list[float]] = {}
    for system, form, one in measured:
        if form != FULL:
            scores.setdefault((system, form, one.data), []).extend(one.by_query[MAIN])
    for (system, form, data), own in scores.items():
        found.setdefault(system, {}).setdefault(form, {})[data] = mean(own)
    for means in (means for forms in found.values() for means in forms.values()):
        means["average"] = mean([*means.values()])
    return found


def run(benchmark: Benchmark, name: str, model: SentenceTransformer, digest: str, form: Form) -> list[TaskScores]:
    """Evaluate a model with ``mteb.evaluate``: one entry per subset and split of the task, mostly one.

    Its vectors are taken as they are (``"full"``) or in a form of :class:`CompressedIndex`. The data stay loaded.
    """
    encoder: Any = FrozenEncoder(name, model, digest)
    if form != FULL:
        if model.similarity_fn_name != "cosine":
            raise ValueError(
                f"{name} compares by {model.similarity_fn_name}; compressed vectors are compared by cosine alone."
            )
        encoder = SearchEncoderWrapper(encoder, index_backend=CompressedIndex(form))
    return measured_by(encoder, benchmark, _CACHED_BATCH if isinstance(model, CachedSentenceTransformer) else _BATCH)


def measured_by(searcher: Any, benchmark: Benchmark, batch_size: int = _CACHED_BATCH) -> list[TaskScores]:
    """What MTEB measures of something that it can search with; see :func:`run`."""
    options: Any = {"batch_size": batch_size, "show_progress_bar": False}
    task = benchmark.task
    if not task.data_loaded:  # else MTEB would load them, and unload them after each model
        try:
            task.load_data()
        except OSError as error:
            raise OSError(
                f"{benchmark.name} cannot be read from the Hub ({error}). Without it, give the path of a BEIR folder."
            ) from error
    quiet: Any = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    result = mteb.evaluate(searcher, task, encode_kwargs=options, **quiet).task_results[0]
    weight, several = getattr(searcher, "weight", None), sum(map(len, result.scores.values())) > 1
    return [
        replace(_scores(benchmark, split, part, several=several), bm25_weight=weight)
        for split, parts in result.scores.items()
        for part in parts
    ]


class FrozenEncoder(SentenceTransformerEncoderWrapper):
    """MTEB's own wrapper, with the model's digest for its revision and no vector that is not finite."""

    def __init__(self, name: str, model: SentenceTransformer, digest: str) -> None:
        log = logging.getLogger("mteb")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                # How MTEB itself uses the library and its own functions, and prompts whose names it does not know,
                # which the library finds by itself.
                for kind in (FutureWarning, DeprecationWarning, UserWarning):
                    warnings.simplefilter("ignore", kind)
                super().__init__(model)
        finally:
            log.setLevel(level)
        self._name = name
        self.mteb_model_meta = self.mteb_model_meta.model_copy(update={"name": f"st_asym/{name}", "revision": digest})

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> Any:
        """Vectors of texts, shape ``(n, d)``."""
        task = kwargs["task_metadata"]
        if task.dataset["path"] == task.name:  # a local collection, for which the library chooses a prompt itself
            self.model_prompts = None
        vectors = super().encode(inputs, prompt_type=prompt_type, **kwargs)
        check_finite(vectors, self._name, prompt_type.value if prompt_type is not None else "text")
        return vectors


def _scores(benchmark: Benchmark, split: str, measured: Mapping[str, Any], *, several: bool) -> TaskScores:
    """What was measured on one subset and split of a task, one of ``several`` or the only one."""
    data: Any = benchmark.task.dataset
    subset, by_query = measured["hf_subset"], measured["by_query"]
    part = data[subset][split] if subset in data else data[split]
    if missing := [query_id for query_id in part["relevant_docs"] if query_id not in by_query]:
        raise ValueError(
            f"{benchmark.name}: {counted(len(missing), 'judged query has', 'judged queries have')} no text or no "
            f"results: {first_few(missing)}."
        )
    queries = sorted(by_query)
    return TaskScores(
        benchmark=benchmark.name,
        data=f"{benchmark.name} ({subset}, {split})" if several else benchmark.name,
        split=split,
        documents=len(part["corpus"]),
        queries=tuple(queries),
        by_query={metric: tuple(float(by_query[query_id][metric]) for query_id in queries) for metric in METRICS},
        relevant=_relevant(part["corpus"], part["relevant_docs"]),
        subset=subset,
    )


def _relevant(corpus: Any, judged: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, str]]:
    """Query id to the ids of its relevant documents, with digests of their texts."""
    wanted = {document for grades in judged.values() for document in relevant_of(grades)}
    rows = corpus.select([row for row, document in enumerate(corpus["id"]) if document in wanted])
    texts = {row["id"]: text_digest(Document(row.get("title") or "", row["text"]).joined) for row in rows}
    return {
        query_id: {document: texts.get(document, "") for document, grade in grades.items() if grade > 0}
        for query_id, grades in judged.items()
    }
