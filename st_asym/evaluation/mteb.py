"""One model on one task by MTEB, and what it measured, by query."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import mteb
import numpy as np
import torch
from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from st_asym.cache import CachedSentenceTransformer
from st_asym.data.collection import counted, first_few
from st_asym.data.document import Document, relevant_of
from st_asym.evaluation.comparison import FULL, METRICS, Scores, text_digest
from st_asym.evaluation.compressed import CompressedIndex, Form
from st_asym.evaluation.models import check_finite
from st_asym.evaluation.tasks import Benchmark

_BATCH = 32
# Vectors that are looked up cost nothing to batch.
_CACHED_BATCH = 1024


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the random state, which MTEB seeds anew for each task, and the progress bars of its data sets quiet."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - what MTEB seeds
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        if shown:
            datasets.enable_progress_bars()


def run(benchmark: Benchmark, name: str, model: SentenceTransformer, digest: str, form: Form) -> list[Scores]:
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


def measured_by(searcher: Any, benchmark: Benchmark, batch_size: int = _CACHED_BATCH) -> list[Scores]:
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
    task.by_query = {}
    quiet: Any = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    result = mteb.evaluate(searcher, task, encode_kwargs=options, **quiet).task_results[0]
    means = {(split, part["hf_subset"]): part for split, parts in result.scores.items() for part in parts}
    return [_scores(benchmark, split, subset, means) for split, subset in task.by_query]


class FrozenEncoder(SentenceTransformerEncoderWrapper):
    """MTEB's own wrapper, with the model's digest for its revision and no vector that is not finite."""

    def __init__(self, name: str, model: SentenceTransformer, digest: str) -> None:
        with warnings.catch_warnings():
            # How MTEB itself uses the library, and its own functions.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            super().__init__(model)
        self._name = name
        self.mteb_model_meta = self.mteb_model_meta.model_copy(update={"name": f"st_asym/{name}", "revision": digest})

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> Any:
        """Vectors of texts, shape ``(n, d)``."""
        vectors = super().encode(inputs, prompt_type=prompt_type, **kwargs)
        check_finite(vectors, self._name, prompt_type.value if prompt_type is not None else "text")
        return vectors


def _scores(benchmark: Benchmark, split: str, subset: str, means: Mapping[tuple[str, str], Any]) -> Scores:
    """What was measured on one subset and split of a task."""
    data: Any = benchmark.task.dataset
    part = data[subset][split] if subset in data else data[split]
    by_query, measured = benchmark.task.by_query[split, subset], means[split, subset]
    if missing := [query_id for query_id in part["relevant_docs"] if query_id not in by_query]:
        raise ValueError(
            f"{benchmark.name}: {counted(len(missing), 'judged query has', 'judged queries have')} no text or no "
            f"results: {first_few(missing)}."
        )
    queries = sorted(by_query)
    # JSON has no NaN.
    unknown = {key for key, value in measured.items() if isinstance(value, float) and not math.isfinite(value)}
    return Scores(
        benchmark=benchmark.name,
        data=f"{benchmark.name} ({subset}, {split})" if len(means) > 1 else benchmark.name,
        split=split,
        documents=len(part["corpus"]),
        queries=tuple(queries),
        means={metric: float(measured[metric.replace("@", "_at_")]) for metric in METRICS},
        by_query={metric: tuple(float(by_query[query_id][metric]) for query_id in queries) for metric in METRICS},
        relevant=_relevant(part["corpus"], part["relevant_docs"]),
        mteb={key: None if key in unknown else value for key, value in measured.items()},
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
