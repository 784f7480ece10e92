"""Which queries ask for documents that were training positives, and which do not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, Union

from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import counted, first_few
from st_asym.data.sources import read
from st_asym.evaluation.running import text_digest
from st_asym.evaluation.scores import Scores
from st_asym.splitting import seen_unseen

Train: TypeAlias = Union[RetrievalData, Qrels, str, "os.PathLike[str]"]


class TrainingData:
    """What the models were trained on, if that is known.

    Args:
        train: As for :func:`st_asym.evaluate`.
        names: Of the data sets that are evaluated.

    Raises:
        FileNotFoundError: No such collection.
        TypeError: Neither a collection nor its path nor qrels.
        ValueError: Names of other data sets, or a collection without a ``train`` split.
    """

    def __init__(self, train: Train | Mapping[str, Train] | None, names: Sequence[str]) -> None:
        by_name: dict[str, Any] = dict.fromkeys(names, train)
        if isinstance(train, Mapping) and not _is_qrels(train):
            if unknown := sorted(set(train) - set(names)):
                number = counted(len(unknown), "data set")
                raise ValueError(f"train names {number} not evaluated: {first_few(unknown)}; there are {list(names)}.")
            by_name = {name: train.get(name) for name in names}
        # By identity: one collection for all data sets is read once.
        read = {id(source): _positives(source) for source in by_name.values() if source is not None}
        self._known = {name: read[id(source)] for name, source in by_name.items() if source is not None}

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


def _positives(source: Any) -> tuple[set[str], bool]:
    """Ids of the relevant documents, or digests of their texts, and whether it is those."""
    if isinstance(source, str | os.PathLike):
        found = read(source, "train")  # as fit does: all pairs of a file are for training
        if not isinstance(found, RetrievalData):
            raise ValueError(f"{os.fspath(source)} holds documents alone: no query was trained on.")
        source = found
    if isinstance(source, RetrievalData):
        if "train" not in source.qrels:
            raise ValueError(f"The training data have no split 'train', only {sorted(source.qrels)}.")
        documents = {document for relevant in source.relevant("train").values() for document in relevant}
        return {text_digest(source.corpus[document]) for document in documents}, True
    if not isinstance(source, Mapping) or not _is_qrels(source):
        raise TypeError(f"train must be a collection, its path or qrels, not a {type(source).__name__}.")
    return {document for grades in source.values() for document, grade in grades.items() if grade > 0}, False


def _is_qrels(train: Mapping[str, Any]) -> bool:
    """Query id to document id to grade, rather than data set to something."""
    return all(
        isinstance(grades, Mapping) and not any(isinstance(grade, Mapping) for grade in grades.values())
        for grades in train.values()
    )
