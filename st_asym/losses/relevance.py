"""Which documents answer which query and which do not, as positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Relevant = Mapping[str, Mapping[str, float] | Iterable[str]]


class Lists:
    """A list of numbers for each query, one after the other.

    Args:
        lists: The lists, in the order of the queries.
    """

    def __init__(self, lists: Sequence[Sequence[int]]) -> None:
        self._starts = torch.tensor([0, *map(len, lists)]).cumsum(0)
        self.values = torch.tensor([number for own in lists for number in own], dtype=torch.int64)

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The lists of some queries.

        Args:
            labels: Positions of queries, shape ``(n,)``, on the CPU.

        Returns:
            For each number its row in ``labels``, and its place in :attr:`values`.
        """
        starts = self._starts[labels]
        counts = self._starts[labels + 1] - starts
        rows = torch.arange(len(labels)).repeat_interleave(counts)
        return rows, torch.arange(len(rows)) + (starts - counts.cumsum(0) + counts)[rows]


class Relevance:
    """The relevant documents of each query and their weights, grade over sum of grades; and those judged not relevant.

    Args:
        relevant: Query id to document id to grade, or to the ids of its relevant documents.
        ids: The ids of the corpus, by position.
        ignored: Query id to the ids of documents that are neither relevant nor not; those that are not in the corpus,
            or relevant as well, do not matter.

    Attributes:
        queries: Ids of the queries.
        labelled: Positions of the documents that are relevant to some query, in ascending order.

    Raises:
        TypeError: The documents of a query are a single string, or a grade is not a number.
        ValueError: A grade is not finite, a relevant document is not in the corpus, an id is there twice, or no query
            has a relevant document. The message counts and names the first.
    """

    def __init__(
        self, relevant: Relevant, ids: Sequence[str], ignored: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        self.queries = list(relevant)
        ignored = {} if ignored is None else ignored
        judged = [_grades(query, documents) for query, documents in relevant.items()]
        grades = [{document: grade for document, grade in own.items() if grade > 0} for own in judged]
        if not any(grades):
            raise ValueError(f"None of the {len(grades)} queries in `relevant` has a document with a grade above 0.")
        wanted = {document for own in judged for document in own}
        positions = _positions(wanted.union(*(ignored.get(query, ()) for query in self.queries)), ids)
        missing = [(q, d) for q, own in zip(self.queries, grades, strict=True) for d in own if d not in positions]
        if missing:
            raise ValueError(
                f"{len(missing)} relevant documents are not in the corpus of {len(ids)}; the first are "
                f"{_first([f'{document!r} of query {query!r}' for query, document in missing])}."
            )
        kept_out = [
            [d for d in ignored.get(query, ()) if d in positions and d not in own] if own else []
            for query, own in zip(self.queries, grades, strict=True)
        ]
        # Ignored documents have no weight as positives, and like positives they are no negatives.
        self._relevant = Lists(
            [[positions[d] for d in (*own, *out)] for own, out in zip(grades, kept_out, strict=True)]
        )
        self._weights = torch.tensor(
            [
                grade / math.fsum(own.values())
                for own, out in zip(grades, kept_out, strict=True)
                for grade in (*own.values(), *(0.0 for _ in out))
            ],
            dtype=torch.float64,
        )
        self._refused = Lists(
            [
                [positions[d] for d, grade in all_.items() if grade <= 0 and d in positions and d not in set(out)]
                for all_, out in zip(judged, kept_out, strict=True)
            ]
        )
        self.labelled = torch.unique(self._relevant.values[self._weights > 0])

    def __len__(self) -> int:
        """The number of queries, those without a relevant document included."""
        return len(self.queries)

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The relevant documents of some queries.

        Args:
            labels: Positions of queries, shape ``(n,)``, on the CPU.

        Returns:
            For each relevant document its row in ``labels``, its position in the corpus and its weight (float64), and
            the same for each ignored document, of weight 0.

        Raises:
            ValueError: A query has no relevant document.
        """
        rows, entries = self._relevant.of(labels)
        counts = torch.bincount(rows, minlength=len(labels))
        if not counts.all():
            bare = [self.queries[label] for label in labels[counts == 0].tolist()]
            raise ValueError(
                f"{len(bare)} of {len(labels)} rows are queries without a relevant document: {_first(map(repr, bare))}"
                ". Leave them out of the data set, as RetrievalData.labelled_queries does."
            )
        return rows, self._relevant.values[entries], self._weights[entries]

    def refused(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The documents that were judged not relevant to some queries.

        Args:
            labels: As for :meth:`of`.

        Returns:
            For each such document its row in ``labels``, and its position in the corpus.
        """
        rows, entries = self._refused.of(labels)
        return rows, self._refused.values[entries]


def _grades(query: str, documents: Mapping[str, float] | Iterable[str]) -> dict[str, float]:
    """The documents of one query with their grades."""
    if isinstance(documents, str):
        raise TypeError(f"The documents of query {query!r} are the string {documents!r:.80}: give a list of ids.")
    if not isinstance(documents, Mapping):
        return dict.fromkeys(documents, 1.0)
    for document, grade in documents.items():
        try:
            finite = math.isfinite(grade)
        except TypeError:
            raise TypeError(f"The grade of document {document!r} for query {query!r} is {grade!r}.") from None
        if not finite:
            raise ValueError(f"The grade of document {document!r} for query {query!r} is {grade}.")
    return {document: float(grade) for document, grade in documents.items()}


def _positions(wanted: set[Any], ids: Sequence[Any]) -> dict[Any, int]:
    """Positions of the wanted ids alone: a dict of all ids of a large corpus would take gigabytes."""
    if len(set(ids)) < len(ids):
        seen: set[Any] = set()
        twice = [key for key in ids if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        raise ValueError(f"{len(twice)} ids occur more than once in the corpus: {_first(map(repr, twice))}.")
    return {key: position for position, key in enumerate(ids) if key in wanted}


def _first(offenders: Iterable[str], count: int = 3) -> str:
    named = list(offenders)
    return ", ".join(named[:count]) + (", ..." if len(named) > count else "")
