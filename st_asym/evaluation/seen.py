"""Which queries, and which of the documents that they ask for, were in training."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import counted, first_few
from st_asym.data.sources import is_one_source, read
from st_asym.data.tables import is_table
from st_asym.evaluation.running import text_digest
from st_asym.evaluation.scores import Scores
from st_asym.splitting import seen_unseen

if TYPE_CHECKING:
    from st_asym.evaluation.tasks import Benchmark

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
