"""One model on one task by MTEB, its vectors as they are or compressed, and what it measured, by query."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import mteb
import numpy as np
import torch
from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from torch import Tensor

from st_asym.cache import CachedSentenceTransformer
from st_asym.data.collection import Document, counted, first_few
from st_asym.evaluation.comparison import FULL, METRICS, Scores, text_digest
from st_asym.evaluation.models import check_finite
from st_asym.evaluation.tasks import Benchmark
from st_asym.retrieval import nearest

_BATCH = 32
# Vectors that are looked up cost nothing to batch.
_CACHED_BATCH = 1024
# How many documents are rescored after a search by bits, and read back at a time.
_RESCORED = 400
_CHUNK = 65_536
# MTEB looks up the id of each result by itself, which takes longer than the search; nothing below rank 100 is shown.
KEPT = 101

Form = str | int


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
    result = mteb.evaluate(
        searcher, task, cache=None, co2_tracker=False, encode_kwargs=options, show_progress_bar=False
    ).task_results[0]
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
    relevant = {
        query_id: [document for document, grade in grades.items() if grade > 0] for query_id, grades in judged.items()
    }
    wanted = {document for documents in relevant.values() for document in documents}
    rows = corpus.select([row for row, document in enumerate(corpus["id"]) if document in wanted])
    texts = {row["id"]: text_digest(Document(row.get("title") or "", row["text"]).joined) for row in rows}
    return {
        query_id: {document: texts.get(document, "") for document in documents}
        for query_id, documents in relevant.items()
    }


def check_forms(forms: tuple[Form, ...], dimension: int | None) -> None:
    """Refuse what is neither a precision nor a number of dimensions to keep."""
    for form in forms:
        if form in ("int8", "binary"):
            continue
        if not isinstance(form, int) or isinstance(form, bool) or form < 1:
            raise ValueError(f"compressed must hold 'int8', 'binary' or numbers of dimensions, got {form!r}.")
        if dimension is not None and form >= dimension:
            raise ValueError(f"The vectors have {dimension} dimensions: they cannot be truncated to {form}.")


class CompressedIndex:
    """The corpus in a compressed form, searched with the full query vectors; by cosine.

    - ``"int8"``: one byte per dimension, in 256 steps between the smallest and the largest value of the corpus;
      documents are compared as read back from their bytes.
    - ``"binary"``: one bit per dimension. The 400 documents with the fewest bits other than the query's are rescored
      with the query's full vector (Yamada et al. 2021, "Efficient Passage Retrieval with Hashing").
    - a number: the first dimensions of query and document.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self._documents: NDArray[Any] = np.empty((0, 0))
        self._ranges: NDArray[np.float32] = np.empty((2, 0), dtype=np.float32)

    def add_documents(self, embeddings: Any, idxs: list[str]) -> None:  # noqa: ARG002 - MTEB's signature
        """Compress the vectors of the corpus, shape ``(n, d)``."""
        vectors = self._prepared(embeddings).numpy()
        self._ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
        if self.form == "int8":
            vectors = np.asarray(quantize_embeddings(vectors, "int8", ranges=self._ranges))
        elif self.form == "binary":
            vectors = np.asarray(quantize_embeddings(vectors, "ubinary"))
        self._documents = vectors

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[..., Any],  # noqa: ARG002 - MTEB's signature
        top_ranked: Any = None,
        query_idx_to_id: dict[int, str] | None = None,  # noqa: ARG002
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Similarities and positions of the nearest documents of each query."""
        if top_ranked is not None:
            raise ValueError("Compressed vectors are measured by searching a corpus, not by reranking.")
        queries = self._prepared(embeddings)
        top_k = min(top_k, KEPT)
        if self.form != "binary":
            values, positions = nearest(queries, self._stretches(), top_k)
            return values.tolist(), positions.tolist()
        # Products of signs order documents by the number of differing bits.
        _, candidates = nearest(torch.where(queries > 0, 1.0, -1.0), self._stretches(), _RESCORED)
        found = self._read(candidates.flatten().numpy()).view(*candidates.shape, -1)
        values, order = torch.einsum("qd,qkd->qk", queries, found).topk(min(top_k, candidates.shape[1]), dim=1)
        return values.tolist(), candidates.gather(1, order).tolist()

    def clear(self) -> None:
        """Let go of the corpus."""
        self._documents = np.empty((0, 0))

    def _prepared(self, embeddings: Any) -> Tensor:
        vectors = torch.as_tensor(embeddings).detach().cpu().float()
        return torch.nn.functional.normalize(vectors[:, : self.form] if isinstance(self.form, int) else vectors)

    def _stretches(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self._documents), _CHUNK):
            yield start, self._read(slice(start, start + _CHUNK))

    def _read(self, rows: Any) -> Tensor:
        """Documents as the index holds them, in float32: read back from bytes, or signs instead of bits."""
        documents = self._documents[rows]
        low, high = self._ranges
        if self.form == "int8":
            documents = (documents.astype(np.float32) + 128) * ((high - low) / 255) + low
        elif self.form == "binary":
            documents = np.unpackbits(documents, axis=-1, count=len(low)).astype(np.float32) * 2 - 1
        return torch.from_numpy(np.asarray(documents, dtype=np.float32))
