"""What models are evaluated on: tasks of MTEB, and collections of one's own as such tasks.

And which of their judged queries say less, as a model was trained on them or on their documents (seen).
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import mteb
import pytrec_eval
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata

from st_asym.cache.fingerprint import data_digests
from st_asym.data import RetrievalData, load_data
from st_asym.data.collection import Qrels, counted, first_few, own_documents
from st_asym.data.document import copies, relevant_of, text_key
from st_asym.data.formats import as_list, is_table
from st_asym.data.prepare import check_ids, check_texts, whole_grades
from st_asym.data.sources import is_data_set_of_splits, is_one_source, read
from st_asym.evaluation.comparison import FEW
from st_asym.evaluation.models import Models, models_of
from st_asym.trust.provenance import Provenance, made_with_heads

if TYPE_CHECKING:
    from st_asym.evaluation.mteb import TaskScores

Source: TypeAlias = Union[str, "PathLike[str]", RetrievalData, Any]
Train: TypeAlias = Union[RetrievalData, Qrels, str, "PathLike[str]", Any]

TRAINED, OTHERS = "trained on", "not trained on"
_KEEP_OUT = (
    "Keep a part out of training: fit(..., hold_out_test=True), or st-asym fit with --evaluate of the file that is "
    "trained on."
)


class ScoredByQuery(AbsTaskRetrieval):
    """A task with the scores of each query, which MTEB hands to this hook of its tasks, beside the means."""

    def task_specific_scores(
        self,
        scores: dict[str, dict[str, float]],
        qrels: Any,
        results: dict[str, dict[str, float]],
        hf_split: str,
        hf_subset: str,
    ) -> dict[str, Any]:
        """MTEB's own values, and the reciprocal rank, which it gives as a mean only, under ``by_query``."""
        ranks = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(results)
        by_query = {
            query_id: {
                "ndcg@10": values["ndcg_cut_10"],
                "map@100": values["map_cut_100"],
                "mrr@10": reciprocal if (reciprocal := ranks[query_id]["recip_rank"]) > 1 / 10.5 else 0.0,
                "recall@100": values["recall_100"],
            }
            for query_id, values in scores.items()
        }
        more = super().task_specific_scores(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)
        return {**more, "by_query": by_query}


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
    tasks = listed(tasks)
    if is_one_source(tasks) or not isinstance(tasks, list | Mapping):
        named = [(None, tasks)]
    else:
        named = list(tasks.items()) if isinstance(tasks, Mapping) else [(None, source) for source in tasks]
    files, found = [_file_name(source) if name is None else None for name, source in named], []
    for number, ((name, source), file) in enumerate(zip(named, files, strict=True), start=1):
        if file is not None and files.count(file) > 1:
            file = f"{Path(str(source)).absolute().parent.name}/{file}"
        found.append(_benchmark(name or file, source, split, number))
    if not found:
        raise ValueError("There is nothing to evaluate on: name a task of MTEB or give the path of a collection.")
    names = [benchmark.name for benchmark in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{counted(len(repeated), 'name')} given to more than one data set: {first_few(repeated)}. "
            'Give tasks as {"name": data, ...}.'
        )
    if "average" in names:
        raise ValueError("A data set is called 'average', as the mean over all is. Give it as {\"name\": data, ...}.")
    return found


def listed(tasks: Source | Mapping[str, Source] | Iterable[Source]) -> Source | Mapping[str, Source] | list[Source]:
    """The same, an array or a generator as a list: it may hold pairs, or several data sets."""
    whole = isinstance(tasks, str | PathLike | Mapping | RetrievalData | AbsTaskRetrieval) or is_one_source(tasks)
    return tasks if whole else as_list(tasks)


def _file_name(source: Source) -> str | None:
    """What a file or folder is called, a file less its ending; None for what is none."""
    if not isinstance(source, str | PathLike) or not Path(fspath(source)).exists():
        return None
    path = Path(fspath(source))
    path = path if path.name.strip(".") else path.resolve()
    return Path(re.sub(r"(?i)\.gz$", "", path.name)).stem if path.is_file() else path.name


def _benchmark(name: str | None, source: Source, split: str, number: int) -> Benchmark:
    if isinstance(source, AbsTaskRetrieval):
        return _of_task(name, source)
    if isinstance(source, str | PathLike):
        path = Path(fspath(source))
        if path.exists():
            found = _of_collection(name or path.name, load_data(path), split)
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
        alike = re.search(r"Did you mean: .*\?", str(error))
        hint = f": {alike[0]}" if alike else "."
        raise ValueError(f"{name!r} is neither a file or folder here nor a task of MTEB{hint}") from error
    if isinstance(task, AbsTaskAggregate):
        parts = [part.metadata.name for part in task.metadata.tasks]
        raise ValueError(f"{name} is an aggregate of {len(parts)} tasks: name those wanted of {first_few(parts, 12)}.")
    if not isinstance(task, AbsTaskRetrieval):
        raise ValueError(f"{name} is a task of {task.metadata.type}, not of retrieval.")
    return task


def _of_task(name: str | None, task: AbsTaskRetrieval) -> Benchmark:
    metadata = task.metadata
    version = f"{metadata.dataset['path']}@{metadata.dataset['revision']}"
    if not type(task).__module__.startswith("mteb."):  # what it holds need not be what its revision names
        version += f" {_held(task)}"
    parts = f"{list(task.eval_splits)} {list(task.hf_subsets)}"
    # The same task, of a class that has its own for a base and keeps what it scores.
    kind: Any = type(type(task).__name__, (ScoredByQuery, type(task)), {})
    scored = kind.__new__(kind)
    vars(scored).update(vars(task))
    return Benchmark(name or metadata.name, scored, f"{metadata.name} {version} {parts}")


def _held(task: AbsTaskRetrieval) -> str:
    """A digest of what a task holds, which is loaded: queries, documents and judgments."""
    if not task.data_loaded:
        task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    rows = json.dumps(
        task.dataset, sort_keys=True, default=lambda one: one.to_list() if isinstance(one, Dataset) else str(one)
    )
    return hashlib.blake2b(rows.encode(), digest_size=8).hexdigest()


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
        raise ValueError(f"{name} has no split {split!r} to evaluate on; it has {splits}. Give one of them, or 'all'.")
    check_ids(data.queries, data.corpus, data.qrels[split], f"{name}, split {split!r},")
    data = replace(data, qrels={**data.qrels, split: whole_grades(data.qrels[split], f"the split {split!r} of {name}")})
    answered = data.relevant(split)
    judged = {query_id: documents for query_id, documents in data.qrels[split].items() if query_id in answered}
    if not judged:
        others = ", ".join(sorted(other for other in data.qrels if data.relevant(other)))
        remedy = f" Queries of {others} have one: give split {others}, or 'all'." if others else ""
        raise ValueError(f"{name}: no query of the split {split!r} has a relevant document.{remedy}")
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


def text_digest(text: str) -> str:
    """A short digest of a text, whatever its case and white space."""
    return hashlib.blake2b(text_key(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def seen_queries(
    scores: TaskScores, positives: Mapping[str, set[str]], trained: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, ...]]:
    """The queries of a data set in groups, as far as it is known what was trained on.

    ``"seen"`` and ``"unseen"`` have a relevant document among ``positives``, those of training, and none;
    ``"trained on"`` and ``"not trained on"`` are queries that any system was trained on (``trained``), and the others.
    """
    groups: dict[str, tuple[str, ...]] = {}
    if scores.benchmark in positives:
        known = positives[scores.benchmark]
        relevant = {query: {*found, *found.values()} for query, found in scores.relevant.items() if found}
        groups["seen"] = tuple(query for query, names in relevant.items() if names & known)
        groups["unseen"] = tuple(query for query, names in relevant.items() if not names & known)
    if again := {query for own in trained.values() for query in own}:
        groups[TRAINED] = tuple(query for query in scores.queries if query in again)
        groups[OTHERS] = tuple(query for query in scores.queries if query not in again)
    return groups


def training_documents(train: Train | Mapping[str, Train] | None, found: Sequence[Benchmark]) -> dict[str, set[str]]:
    """The relevant documents of training, where ``train`` says what the models were trained on.

    By data set: digests of their texts; their ids, where neither ``train`` nor the data set has texts here.
    """
    names = [benchmark.name for benchmark in found]
    by_name: dict[str, Any] = dict.fromkeys(names, train)
    if isinstance(train, Mapping) and not _is_collection(train, names):
        if unknown := sorted(set(train) - set(names)):
            number = counted(len(unknown), "data set")
            raise ValueError(f"train names {number} not evaluated: {first_few(unknown)}; there are {names}.")
        by_name = {name: train.get(name) for name in names}
    positives: dict[str, set[str]] = {}
    known: dict[int, set[str]] = {}  # by identity: one collection for all data sets is read once
    for benchmark in found:
        source, data = by_name[benchmark.name], benchmark.data
        if source is None:
            continue
        if data is not None and _is_its_file(source, benchmark):
            kept = [part for part in data.qrels if part not in ("test", "all")]
            rest = {query: judged for part in kept for query, judged in data.qrels[part].items()}
            positives[benchmark.name] = _positives(replace(data, qrels={"train": rest}))
            continue
        if id(source) not in known:
            known[id(source)] = _positives(source)
        positives[benchmark.name] = known[id(source)]
        if data is not None and _is_qrels(source):  # by text, so that copies under other ids are known too
            of_all = sum(one is source for one in by_name.values()) > 1
            positives[benchmark.name] = _texts_of(known[id(source)], benchmark.name, data, may_be_none=of_all)
    return positives


def _texts_of(documents: set[str], name: str, data: RetrievalData, *, may_be_none: bool) -> set[str]:
    """Digests of the texts of documents, as far as the data set has them."""
    inside = [document for document in documents if document in data.corpus]
    if documents and not inside and not may_be_none:
        named = f"{counted(len(documents), 'document')}, none of which {name} has: {first_few([*documents])}"
        raise ValueError(f"train names {named}. Qrels have the document ids of the data set; pairs need none.")
    return {text_digest(data.corpus[document]) for document in inside}


def _is_its_file(source: Any, benchmark: Benchmark) -> bool:
    """Whether a file of pairs is itself what is judged: then a part of its queries was kept out of training."""
    path = Path(source).resolve() if isinstance(source, str | PathLike) else None
    return path is not None and path == benchmark.path and not path.is_dir() and not zipfile.is_zipfile(path)


def _positives(source: Any) -> set[str]:
    """Ids of the relevant documents of qrels; of a collection, digests of their texts."""
    if _is_qrels(source):
        return {document for grades in source.values() for document in relevant_of(grades)}
    if not isinstance(source, Iterable | RetrievalData | PathLike):
        raise TypeError(f"train must be a collection, its path or qrels, not a {type(source).__name__}.")
    found = read(source, "train")  # as fit does: all pairs of a file are for training
    if not isinstance(found, RetrievalData):
        name = fspath(source) if isinstance(source, str | PathLike) else "train"
        raise ValueError(f"{name} holds documents alone: no query was trained on.")
    if "train" not in found.qrels:
        raise ValueError(f"The training data have no split 'train', only {sorted(found.qrels)}.")
    documents = {document for relevant in found.relevant("train").values() for document in relevant}
    return {text_digest(found.corpus[document]) for document in documents}


def _is_collection(train: Mapping[str, Any], names: Sequence[str]) -> bool:
    """One collection or qrels, rather than data set to such."""
    splits = all(map(is_table, train.values())) and not set(train) <= set(names)
    return splits or is_one_source(train) or _is_qrels(train)


def _is_qrels(train: Any) -> bool:
    """Query id to document id to grade, rather than data set to something."""
    return (
        isinstance(train, Mapping)
        and not is_one_source(train)
        and all(
            isinstance(grades, Mapping)
            and not is_data_set_of_splits(grades)
            and not any(isinstance(grade, Mapping) for grade in grades.values())
            for grades in train.values()
        )
    )


def trained_queries(
    models: Models, found: Sequence[Benchmark], split: str
) -> tuple[dict[str, dict[str, set[str]]], list[str]]:
    """What the provenance of saved models says of the queries that they are judged on.

    Local data set to system to the ids of judged queries that it was trained on, where there are any; and sentences.
    """
    trained: dict[str, dict[str, set[str]]] = {}
    notes: list[str] = []
    for name, given in models.items():
        made = [one for one in map(made_with_heads, models_of(given)) if one is not None]
        for one in found if made else ():
            if one.data is not None:
                again, said = _trained_on(name, made, one.name, one.data, split)
                notes += said
                if again:
                    trained.setdefault(one.name, {})[name] = again
    return trained, notes


def _trained_on(
    system: str, made: Sequence[Provenance], name: str, data: RetrievalData, split: str
) -> tuple[set[str], list[str]]:
    """The judged queries of a data set that a system was trained on, and what to say of it."""
    relevant = data.relevant(split)
    texts = {query: data.queries[query] for query in data.with_all_split().relevant("all")}
    digests = [one.trained_queries for one in made]
    known = [found for found in digests if found is not None and found.query_digests is not None]
    rest = [one for one, found in zip(made, digests, strict=True) if found not in known]
    trained = {query for one in known for query in one.among(texts)}
    if rest:  # without digests of each query: whether it was trained on all of this data set
        described = data_digests(data)["queries"]
        parts = [part for one in rest for part in one.data.values() if part.get("queries") == described]
        if any(split not in part.get("qrels", {split}) for part in parts):
            trained = set(texts)
    again = trained & relevant.keys()
    if not again:
        # Of models of 0.1 it is not known how many.
        numbers = [one.trained["queries"] for one in rest if one.trained]
        return again, [
            f"{system} was trained on {number:,} queries, too many for a digest of each: whether queries of {name} "
            "were among them is not known."
            for number in numbers[:1]
        ]
    judged, left = len(relevant), len(relevant) - len(again)
    if trained >= texts.keys():
        said = f"all queries of {name}, those judged here included: its scores say nothing about new ones. {_KEEP_OUT}"
    elif not left:
        new = [one for one in data.qrels if one != "all" and not trained & data.relevant(one).keys()]
        every = f"all {judged:,} judged queries" if judged > 1 else "the one judged query"
        hint = f"It was not trained on those of the split {new[0]}: evaluate on them." if new else _KEEP_OUT
        said = f"{every} of {name} (split {split}): its scores say nothing about new ones. {hint}"
    else:
        relevant = {query: relevant[query] for query in again}
        pairs = {query for one in known for query in one.with_their_documents(texts, data.corpus, relevant)}
        shared = f" ({len(pairs):,} with a document that answers them here)" if pairs else ""
        few = f" {left:,} {'says' if left == 1 else 'say'} little: evaluate on more new ones." if left < FEW else ""
        said = (
            f"{len(again):,} of {judged:,} judged queries of {name}{shared}. They are no evidence: its verdict is by "
            f"the other {left:,}, whose scores stand apart ({OTHERS}).{few}"
        )
    return again, [f"{system} was trained on {said}"]
