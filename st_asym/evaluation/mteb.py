"""Data sets as tasks of MTEB, and one model on one of them, by query: its vectors as they are, or compressed."""

from __future__ import annotations

import hashlib
import json
import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias, Union

import datasets
import mteb
import numpy as np
import pytrec_eval
import torch
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from torch import Tensor

from st_asym.cache import CachedSentenceTransformer
from st_asym.data import RetrievalData, load_data
from st_asym.data.collection import Qrels, counted, first_few, own_documents
from st_asym.data.document import Document, copies, relevant_of
from st_asym.data.formats import as_list
from st_asym.data.prepare import check_ids, check_texts
from st_asym.data.sources import is_one_source, read
from st_asym.evaluation.comparison import FULL, METRICS, Scores, text_digest
from st_asym.evaluation.models import check_finite
from st_asym.retrieval import nearest

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


Source: TypeAlias = Union[str, "PathLike[str]", RetrievalData, Any]


class ScoredByQuery(AbsTaskRetrieval):
    """A task that keeps the scores of each query, which MTEB hands to this hook of its tasks."""

    # Split and subset to query id to metric to score.
    by_query: dict[tuple[str, str], dict[str, dict[str, float]]]

    def task_specific_scores(
        self,
        scores: dict[str, dict[str, float]],
        qrels: Any,
        results: dict[str, dict[str, float]],
        hf_split: str,
        hf_subset: str,
    ) -> dict[str, float]:
        """Keep MTEB's own values, and the reciprocal rank, which it gives as a mean only."""
        ranks = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(results)
        self.by_query[hf_split, hf_subset] = {
            query_id: {
                "ndcg@10": values["ndcg_cut_10"],
                "map@100": values["map_cut_100"],
                "mrr@10": reciprocal if (reciprocal := ranks[query_id]["recip_rank"]) > 1 / 10.5 else 0.0,
                "recall@100": values["recall_100"],
            }
            for query_id, values in scores.items()
        }
        return super().task_specific_scores(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)


class LocalRetrieval(ScoredByQuery):
    """A collection that is in memory, as a task of MTEB: all queries of the split have a relevant document.

    With ``ignore_identical_ids``, a document with the id of the query is left out of its results.
    """

    def __init__(self, name: str, data: RetrievalData, split: str, *, ignore_identical_ids: bool) -> None:
        self.metadata = TaskMetadata(
            name=name,
            description=f"{name}, a local collection.",
            dataset={"path": name, "revision": _digest(data, split)},
            type="Retrieval",
            category="t2t",
            eval_splits=[split],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )
        super().__init__()
        self.ignore_identical_ids = ignore_identical_ids
        self._data = data
        self._split = split

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:  # noqa: ARG002 - MTEB's signature
        """Put the collection into MTEB's shape."""
        judged = {query_id: dict(documents) for query_id, documents in self._data.qrels[self._split].items()}
        corpus, queries = (
            Dataset.from_dict({"id": list(texts), "text": list(texts.values())})
            for texts in (self._data.corpus, {query_id: self._data.queries[query_id] for query_id in judged})
        )
        part: Any = {"corpus": corpus, "queries": queries, "relevant_docs": judged, "top_ranked": None}
        self.dataset = {"default": {self._split: part}}
        self.data_loaded = True

    def unload_data(self) -> None:
        """Let go of MTEB's copy, and not, as MTEB does, of the metadata: they are this collection's own."""
        self.dataset = {}
        self.data_loaded = False


@dataclass(frozen=True)
class Benchmark:
    """A retrieval task of MTEB, with what tells it from others."""

    name: str
    task: ScoredByQuery
    version: str  # the revision of the data on the Hub, or a digest of the data
    notes: tuple[str, ...] = ()  # what was left out of the data, a sentence each
    data: RetrievalData | None = None  # all that was read, where the data are local
    path: Path | None = None  # where it was read, if that is a file or folder


def benchmarks(tasks: Source | Mapping[str, Source] | Iterable[Source], split: str) -> list[Benchmark]:
    """Find what is to be evaluated, as :func:`st_asym.evaluate` takes it, and refuse what cannot be judged."""
    named: list[tuple[str | None, Source]]
    named_or_read = isinstance(tasks, str | PathLike | RetrievalData | AbsTaskRetrieval | Mapping)
    if not named_or_read and not is_one_source(tasks):
        tasks = as_list(tasks)  # an array or a generator may hold pairs, or several data sets
    if isinstance(tasks, str | PathLike | RetrievalData | AbsTaskRetrieval) or is_one_source(tasks):
        named = [(None, tasks)]
    elif isinstance(tasks, Mapping):
        named = list(tasks.items())
    else:
        named = [(None, source) for source in tasks]
    found = [_benchmark(name, source, split, number) for number, (name, source) in enumerate(named, start=1)]
    if not found:
        raise ValueError("There is nothing to evaluate on: name a task of MTEB or give the path of a collection.")
    names = [benchmark.name for benchmark in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{counted(len(repeated), 'name')} given to more than one data set: {first_few(repeated)}. "
            'Give tasks as {"name": data, ...}.'
        )
    return found


def _benchmark(name: str | None, source: Source, split: str, number: int) -> Benchmark:
    if isinstance(source, AbsTaskRetrieval):
        return _of_task(name, source)
    if isinstance(source, str | PathLike):
        path = Path(fspath(source))
        if path.exists():
            found = _of_collection(name or path.name.partition(".")[0] or path.resolve().name, load_data(path), split)
            return replace(found, path=path.resolve())
        return _of_task(name, _task_of_mteb(fspath(source)))
    data = read(source, name or f"data set {number}")
    if not isinstance(data, RetrievalData):
        raise ValueError(f"{name or f'Data set {number}'} holds documents alone, no queries.")
    if not isinstance(source, RetrievalData) and set(data.qrels) == {"train"}:
        data = replace(data, qrels={split: data.qrels["train"]})  # pairs, or qrels without a split: all are judged
    return _of_collection(name or f"data set {number}", data, split)


def _task_of_mteb(name: str) -> AbsTaskRetrieval:
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        hint = str(error).partition("not found")[2].strip(" .\"'")
        raise ValueError(f"{name!r} is neither a file or folder here nor a task of MTEB: {hint}") from error
    if isinstance(task, AbsTaskAggregate):
        parts = [part.metadata.name for part in task.metadata.tasks]
        raise ValueError(f"{name} is an aggregate of {len(parts)} tasks: name those wanted of {first_few(parts, 12)}.")
    if not isinstance(task, AbsTaskRetrieval):
        raise ValueError(f"{name} is a task of {task.metadata.type}, not of retrieval.")
    return task


def _of_task(name: str | None, task: AbsTaskRetrieval) -> Benchmark:
    metadata = task.metadata
    version = f"{metadata.dataset['path']}@{metadata.dataset['revision']}"
    parts = f"{list(task.eval_splits)} {list(task.hf_subsets)}"
    # The same task, of a class that has its own for a base and keeps what it scores.
    kind: Any = type(type(task).__name__, (ScoredByQuery, type(task)), {})
    scored = kind.__new__(kind)
    vars(scored).update(vars(task))
    return Benchmark(name or metadata.name, scored, f"{metadata.name} {version} {parts}")


def _of_collection(name: str, data: RetrievalData, split: str) -> Benchmark:
    """A collection of one's own as a task.

    Documents without text stay in the corpus, as in MTEB; queries without a relevant document are left out. A document
    with the id of the query is left out of its results, as BEIR does (a query of ArguAna is a document of the corpus
    itself), unless it is relevant: then queries and documents are numbered independently. So is one that has the text
    of a relevant document under another id, which MTEB counts as not relevant.
    """
    check_texts(data.queries, data.corpus)
    if split == "all":
        data = data.with_all_split()
    if split not in data.qrels:
        splits = ", ".join(sorted(data.qrels)) or "none"
        raise ValueError(f"{name} has no split {split!r} to evaluate on; it has {splits}. Give split=..., or 'all'.")
    check_ids(data.queries, data.corpus, data.qrels[split], f"{name}, split {split!r},")
    answered = data.relevant(split)
    judged = {query_id: documents for query_id, documents in data.qrels[split].items() if query_id in answered}
    if not judged:
        raise ValueError(f"{name}: no query of the split {split!r} has a relevant document.")
    own = own_documents(data.corpus, judged)
    task = LocalRetrieval(name, replace(data, qrels={split: judged}), split, ignore_identical_ids=bool(own))
    notes = (*data.notes, *_notes(data, split, judged, own))
    return Benchmark(name, task, task.metadata.dataset["revision"], notes, data)


def _notes(data: RetrievalData, split: str, judged: Qrels, own: Sequence[str]) -> Iterator[str]:
    """What was left out, a sentence each."""
    if bare := [query_id for query_id in data.qrels[split] if query_id not in judged]:
        yield f"{counted(len(bare), 'query', 'queries')} without a relevant document left out: {first_few(bare)}."
    if empty := [key for key, text in data.corpus.items() if not text.strip()]:
        yield f"{counted(len(empty), 'document')} without text kept: {first_few(empty)}."
    if empty := [key for key in judged if not data.queries[key].strip()]:
        yield f"{counted(len(empty), 'query', 'queries')} without text kept: {first_few(empty)}."
    if own:
        yield f"{counted(len(own), 'query has', 'queries have')} the id of a document, which is not a result."
    copied = copies(judged, data.corpus)
    if ids := list(dict.fromkeys(document for documents in copied.values() for document in documents)):
        yield (
            f"{counted(len(ids), 'document has', 'documents have')} the text of one that is relevant, under another id "
            f"({first_few(ids)}): they count as not relevant, as in MTEB, so that no system can be perfect."
        )


def _digest(data: RetrievalData, split: str) -> str:
    """Digest what is searched, asked and judged: 16 hexadecimal digits."""
    judged: Qrels = data.qrels[split]
    queries = {query_id: data.queries[query_id] for query_id in judged}
    digest = hashlib.blake2b(digest_size=8)
    for part in (data.corpus, queries, judged):
        digest.update(b"\0")
        for key in sorted(part):
            digest.update(json.dumps([key, part[key]], sort_keys=True).encode())
    return digest.hexdigest()


# How many documents are rescored after a search by bits, and read back at a time.
_RESCORED = 400
_CHUNK = 65_536
# MTEB looks up the id of each result by itself, which takes longer than the search; nothing below rank 100 is shown.
KEPT = 101
Form = str | int


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
