"""Evaluation that leaves no trace in the process it runs in."""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import mteb
import numpy as np
import pytrec_eval
import torch
from mteb.abstasks import AbsTaskRetrieval
from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from st_asym.cache import CachedSentenceTransformer
from st_asym.data.collection import counted, first_few
from st_asym.data.document import Document, text_key
from st_asym.evaluation.compressed import CompressedIndex, Form
from st_asym.evaluation.scores import METRICS, Scores
from st_asym.evaluation.tasks import Benchmark


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


def check_finite(vectors: Any, name: str, side: str) -> None:
    """Refuse to rank by vectors that are NaN or infinite.

    Args:
        vectors: Shape ``(n, d)``, or a list of ``n`` vectors.
        name: Whose they are.
        side: Of which side, ``"query"`` or ``"document"``.

    Raises:
        ValueError: It counts them and names the first rows.
    """
    table = torch.stack(list(vectors)) if isinstance(vectors, list | tuple) and vectors else torch.as_tensor(vectors)
    finite = torch.isfinite(table).flatten(1).all(dim=1) if table.ndim > 1 else torch.isfinite(table)
    if finite.all():
        return
    wrong = torch.nonzero(~finite).flatten().tolist()
    raise ValueError(
        f"{name} gives vectors that are not finite for {len(wrong):,} of {len(finite):,} texts ({side} side, rows "
        f"{first_few(wrong)}): there is nothing to rank by. Its weights are damaged, or its training has diverged."
    )


FULL = "full"

_BATCH = 32
# Vectors that are looked up cost nothing to batch.
_CACHED_BATCH = 1024


class _Encoder(SentenceTransformerEncoderWrapper):
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
        vectors = super().encode(inputs, prompt_type=prompt_type, **kwargs)
        check_finite(vectors, self._name, prompt_type.value if prompt_type is not None else "text")
        return vectors


def run(benchmark: Benchmark, name: str, model: SentenceTransformer, digest: str, form: Form) -> list[Scores]:
    """Evaluate a model with ``mteb.evaluate``.

    Args:
        benchmark: On what.
        name: What the model is called.
        model: It, or the same model answered from a cache.
        digest: What tells it from other models.
        form: ``"full"`` for its vectors as they are, or a form of :class:`CompressedIndex`.

    Returns:
        One entry per subset and split of the task; mostly one.

    Raises:
        OSError: The data cannot be read from the Hub.
        ValueError: The model gives vectors that are not finite, or has no results for some queries.
    """
    encoder: Any = _Encoder(name, model, digest)
    if form != FULL:
        if model.similarity_fn_name != "cosine":
            raise ValueError(
                f"{name} compares by {model.similarity_fn_name}; compressed vectors are compared by cosine alone."
            )
        encoder = SearchEncoderWrapper(encoder, index_backend=CompressedIndex(form))
    batch_size = _CACHED_BATCH if isinstance(model, CachedSentenceTransformer) else _BATCH
    options: Any = {"batch_size": batch_size, "show_progress_bar": False}
    _load(benchmark)
    recorder = _Recorder(benchmark.task)
    with recorder:
        result = mteb.evaluate(
            encoder,
            benchmark.task,
            cache=None,
            co2_tracker=False,
            encode_kwargs=options,
            show_progress_bar=False,
        )
    measured = {
        (split, scores["hf_subset"]): scores
        for split, entries in result.task_results[0].scores.items()
        for scores in entries
    }
    return [
        _scores(benchmark, split, subset, measured[split, subset], by_query, several=len(measured) > 1)
        for (split, subset), by_query in recorder.by_query.items()
    ]


def _load(benchmark: Benchmark) -> None:
    """Load the data before MTEB does, which would unload them after each model.

    Raises:
        OSError: The Hub cannot be reached, or does not have them.
    """
    if benchmark.task.data_loaded:
        return
    try:
        benchmark.task.load_data()
    except OSError as error:
        raise OSError(
            f"{benchmark.name} cannot be read from the Hub ({error}). Without it, give the path of a BEIR folder."
        ) from error


class _Recorder:
    """Keeps the scores of each query that MTEB hands to a task's own hook."""

    def __init__(self, task: AbsTaskRetrieval) -> None:
        self.task = task
        self.by_query: dict[tuple[str, str], dict[str, dict[str, float]]] = {}

    def __enter__(self) -> None:
        own = self.task.task_specific_scores

        def record(
            scores: dict[str, dict[str, float]],
            qrels: dict[str, dict[str, int]],
            results: dict[str, dict[str, float]],
            hf_split: str,
            hf_subset: str,
        ) -> dict[str, float]:
            self.by_query[hf_split, hf_subset] = _by_query(scores, qrels, results)
            return own(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

        vars(self.task)["task_specific_scores"] = record

    def __exit__(self, *_: object) -> None:
        del vars(self.task)["task_specific_scores"]


def _by_query(
    scores: Mapping[str, Mapping[str, float]], qrels: dict[str, dict[str, int]], results: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Query id to each metric. MTEB's own values, and the reciprocal rank, which it gives as a mean only."""
    ranks = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(results)
    found = {}
    for query_id, values in scores.items():
        reciprocal = ranks[query_id]["recip_rank"]
        found[query_id] = {
            "ndcg@10": values["ndcg_cut_10"],
            "map@100": values["map_cut_100"],
            "mrr@10": reciprocal if reciprocal > 1 / 10.5 else 0.0,
            "recall@100": values["recall_100"],
        }
    return found


def _scores(
    benchmark: Benchmark,
    split: str,
    subset: str,
    measured: Mapping[str, Any],
    by_query: Mapping[str, Mapping[str, float]],
    *,
    several: bool,
) -> Scores:
    data: Any = benchmark.task.dataset
    part = data[subset][split] if subset in data else data[split]
    relevant = part["relevant_docs"]
    if missing := [query_id for query_id in relevant if query_id not in by_query]:
        raise ValueError(
            f"{benchmark.name}: {counted(len(missing), 'judged query has', 'judged queries have')} no text or no "
            f"results: {first_few(missing)}."
        )
    order = sorted(by_query)
    return Scores(
        benchmark=benchmark.name,
        data=f"{benchmark.name} ({subset}, {split})" if several else benchmark.name,
        split=split,
        documents=len(part["corpus"]),
        queries=tuple(order),
        means={metric: float(measured[metric.replace("@", "_at_")]) for metric in METRICS},
        by_query={metric: tuple(float(by_query[query_id][metric]) for query_id in order) for metric in METRICS},
        relevant=_relevant(part["corpus"], relevant),
        mteb={key: _plain(value) for key, value in measured.items()},
    )


def _relevant(corpus: Any, relevant: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, str]]:
    wanted = {document for grades in relevant.values() for document, grade in grades.items() if grade > 0}
    rows = [row for row, document in enumerate(corpus["id"]) if document in wanted]
    texts = {
        row["id"]: text_digest(Document(row.get("title") or "", row["text"]).joined) for row in corpus.select(rows)
    }
    return {
        query_id: {document: texts.get(document, "") for document, grade in grades.items() if grade > 0}
        for query_id, grades in relevant.items()
    }


def text_digest(text: str) -> str:
    """A short digest of a text, whatever its case and white space."""
    return hashlib.blake2b(text_key(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON knows it, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
