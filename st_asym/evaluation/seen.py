"""Judged queries that the models were trained on: counted, and told from the others."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from st_asym.cache.fingerprint import data_digests
from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import counted, first_few
from st_asym.data.holdout import seen_unseen
from st_asym.data.rows import is_table
from st_asym.data.sources import is_one_source, read
from st_asym.evaluation.mteb import text_digest
from st_asym.evaluation.scores import Scores
from st_asym.trust.provenance import Provenance, made_with_heads

if TYPE_CHECKING:
    from st_asym.evaluation.models import Models
    from st_asym.evaluation.tasks import Benchmark

TRAINED, OTHERS = "trained on", "not trained on"
# Fewer queries say little.
FEW = 20
_KEEP_OUT = (
    "Keep a part out of training: fit(..., hold_out_test=True), or st-asym fit with --evaluate of the file that is "
    "trained on."
)


@dataclass(frozen=True)
class TrainedOn:
    """What the provenance of saved models says of the queries that they are judged on.

    Attributes:
        notes: A sentence or two for each model and data set.
        queries: Data set to system to the ids of judged queries that it was trained on, where there are any.
    """

    notes: tuple[str, ...] = ()
    queries: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Models, found: Sequence[Benchmark], split: str) -> TrainedOn:
        """Look at all models and all local data sets."""
        notes: list[str] = []
        queries: dict[str, dict[str, frozenset[str]]] = {}
        local = [_Local(one.name, one.data, split) for one in found if one.data is not None]
        for name, given in models.items():
            made = [one for one in map(made_with_heads, _models(given)) if one is not None]
            for data in local:
                again, note = data.trained_on(name, made)
                notes += note
                if again:
                    queries.setdefault(data.name, {})[name] = frozenset(again)
        return cls(tuple(notes), queries)

    def parts(self, data: str, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Judged queries that any system was trained on, and the others; empty where there are none of the first."""
        again = {query for own in self.queries.get(data, {}).values() for query in own}
        if not again:
            return {}
        return {
            TRAINED: tuple(query for query in ids if query in again),
            OTHERS: tuple(query for query in ids if query not in again),
        }


class _Local:
    """A local data set."""

    def __init__(self, name: str, data: Any, split: str) -> None:
        self.name, self._data, self._split = name, data, split
        self._judged: dict[str, set[str]] = data.relevant(split)
        self._asked = data.with_all_split().relevant("all")

    @cached_property
    def _described(self) -> Any:
        return data_digests(self._data)["queries"]

    def trained_on(self, name: str, made: Sequence[Provenance]) -> tuple[set[str], list[str]]:
        """The judged queries that a system was trained on, and what to say of it."""
        digests = [one.trained_queries for one in made]
        known = [found for found in digests if found is not None and found.query_digests is not None]
        rest = [one for one, found in zip(made, digests, strict=True) if found not in known]
        texts = {query: self._data.queries[query] for query in self._asked}
        trained = {query for one in known for query in one.among(texts)}
        if any(map(self._is_whole, rest)):
            trained = set(self._asked)
        again = trained & self._judged.keys()
        if not again:
            return again, self._unknown(name, rest)
        if trained >= self._asked.keys():
            return again, [
                f"{name} was trained on all queries of {self.name}, those judged here included: its scores say nothing "
                f"about new ones. {_KEEP_OUT}"
            ]
        relevant = {query: self._judged[query] for query in again}
        pairs: set[str] = set().union(*(one.with_their_documents(texts, self._data.corpus, relevant) for one in known))
        return again, [self._part(name, again, len(pairs), trained)]

    def _is_whole(self, made: Provenance) -> bool:
        """Whether a model without digests of each query was trained on all queries of this data set."""
        return any(
            part.get("queries") == self._described and self._split not in part.get("qrels", {self._split})
            for part in made.data.values()
        )

    def _unknown(self, name: str, made: Sequence[Provenance]) -> list[str]:
        """Say that it cannot be told where there were too many queries; of models of 0.1 nothing is known."""
        numbers = [one.trained["queries"] for one in made if one.trained]
        return [
            f"{name} was trained on {number:,} queries, too many for a digest of each: whether queries of {self.name} "
            "were among them is not known."
            for number in numbers[:1]
        ]

    def _part(self, name: str, again: set[str], pairs: int, trained: set[str]) -> str:
        judged, left = len(self._judged), len(self._judged) - len(again)
        if not left:
            new = [split for split in self._data.qrels if split != "all" and not trained & self._asked_of(split)]
            every = f"all {judged:,} judged queries" if judged > 1 else "the one judged query"
            return (
                f"{name} was trained on {every} of {self.name} (split {self._split}): its scores say nothing about new "
                "ones. "
                + (f"It was not trained on those of the split {new[0]}: evaluate on them." if new else _KEEP_OUT)
            )
        shared = f" ({pairs:,} with a document that answers them here)" if pairs else ""
        few = f" {left:,} {'says' if left == 1 else 'say'} little: evaluate on more new ones." if left < FEW else ""
        return (
            f"{name} was trained on {len(again):,} of {judged:,} judged queries of {self.name}{shared}. They are no "
            f"evidence: its verdict is by the other {left:,}, whose scores stand apart ({OTHERS}).{few}"
        )

    def _asked_of(self, split: str) -> set[str]:
        return set(self._data.relevant(split))


def _models(given: Any) -> list[Any]:
    """The models of one system."""
    several = list(given.values()) if isinstance(given, Mapping) else given
    return list(several) if isinstance(several, list | tuple) else [several]


Train: TypeAlias = Union[RetrievalData, Qrels, str, "os.PathLike[str]", Any]


class TrainingData:
    """What the models were trained on, if that is known.

    Args:
        train: As for :func:`st_asym.evaluate`.
        found: What is evaluated.
        split: Of local collections.

    Raises:
        FileNotFoundError: No such collection.
        TypeError: Neither a collection nor its path nor qrels.
        ValueError: Names of other data sets, or a collection without a ``train`` split.
    """

    def __init__(
        self, train: Train | Mapping[str, Train] | None, found: Sequence[Benchmark], split: str = "test"
    ) -> None:
        names = [benchmark.name for benchmark in found]
        by_name: dict[str, Any] = dict.fromkeys(names, train)
        if isinstance(train, Mapping) and not _is_collection(train, names):
            if unknown := sorted(set(train) - set(names)):
                number = counted(len(unknown), "data set")
                raise ValueError(f"train names {number} not evaluated: {first_few(unknown)}; there are {list(names)}.")
            by_name = {name: train.get(name) for name in names}
        for benchmark in found:
            source = by_name[benchmark.name]
            if _is_its_file(source, benchmark) and benchmark.data is not None:
                qrels = benchmark.data.qrels
                rest = {query: judged for part in qrels if part != split for query, judged in qrels[part].items()}
                by_name[benchmark.name] = replace(benchmark.data, qrels={"train": rest})
        # By identity: one collection for all data sets is read once.
        read = {id(source): _positives(source) for source in by_name.values() if source is not None}
        self._known = {name: read[id(source)] for name, source in by_name.items() if source is not None}
        for benchmark in found:
            if benchmark.name in self._known and benchmark.data is not None:
                self._known[benchmark.name] = _by_text(*self._known[benchmark.name], benchmark.data.corpus)

    def parts(self, scores: Scores) -> dict[str, tuple[str, ...]] | None:
        """``"seen"`` and ``"unseen"`` query ids, None where the training data are not known."""
        if scores.benchmark not in self._known:
            return None
        positives, by_text = self._known[scores.benchmark]
        dev = {
            query: dict.fromkeys(digests.values() if by_text else digests, 1)
            for query, digests in scores.relevant.items()
        }
        seen, unseen = seen_unseen({"train": dict.fromkeys(positives, 1)}, dev)
        return {"seen": seen, "unseen": unseen}


def _is_its_file(source: Any, benchmark: Benchmark) -> bool:
    """Whether a file of pairs is itself what is judged: then a part of its queries was kept out of training."""
    if not isinstance(source, str | os.PathLike) or benchmark.path is None or benchmark.path.is_dir():
        return False
    path = Path(source).resolve()
    return path == benchmark.path and not zipfile.is_zipfile(path)


def _positives(source: Any) -> tuple[set[str], bool]:
    """Ids of the relevant documents, or digests of their texts, and whether it is those."""
    if isinstance(source, Mapping) and _is_qrels(source):
        return {document for grades in source.values() for document, grade in grades.items() if grade > 0}, False
    if not isinstance(source, Iterable | RetrievalData | os.PathLike):
        raise TypeError(f"train must be a collection, its path or qrels, not a {type(source).__name__}.")
    found = read(source, "train")  # as fit does: all pairs of a file are for training
    if not isinstance(found, RetrievalData):
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "train"
        raise ValueError(f"{name} holds documents alone: no query was trained on.")
    if "train" not in found.qrels:
        raise ValueError(f"The training data have no split 'train', only {sorted(found.qrels)}.")
    documents = {document for relevant in found.relevant("train").values() for document in relevant}
    return {text_digest(found.corpus[document]) for document in documents}, True


def _by_text(positives: set[str], by_text: bool, corpus: Mapping[str, str]) -> tuple[set[str], bool]:
    """Positives by the digests of their texts, so that copies under other ids are known too."""
    if by_text:
        return positives, True
    return {text_digest(corpus[document]) for document in positives if document in corpus}, True


def _is_collection(train: Mapping[str, Any], names: Sequence[str]) -> bool:
    """One collection or qrels, rather than data set to such."""
    splits = all(map(is_table, train.values())) and not set(train) <= set(names)
    return splits or is_one_source(train) or _is_qrels(train)


def _is_qrels(train: Mapping[str, Any]) -> bool:
    """Query id to document id to grade, rather than data set to something."""
    return not is_one_source(train) and all(
        isinstance(grades, Mapping) and not any(isinstance(grade, Mapping) for grade in grades.values())
        for grades in train.values()
    )
