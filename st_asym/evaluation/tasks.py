"""What models are evaluated on: tasks of MTEB by name, and collections of one's own as such tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias, Union

import mteb
import pytrec_eval
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata

from st_asym.data import RetrievalData, load_data
from st_asym.data.collection import Qrels, counted, first_few, own_documents
from st_asym.data.document import copies
from st_asym.data.formats import as_list
from st_asym.data.prepare import check_ids, check_texts
from st_asym.data.sources import is_one_source, read

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
