"""Which documents answer which query, as positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

Relevant = Mapping[str, Mapping[str, float] | Iterable[str]]


class Known(NamedTuple):
    """What is known of some queries and documents: relevant, judged not relevant, or to be ignored.

    Attributes:
        rows: Row of the query, shape ``(pairs,)``, ascending.
        columns: Position of the document in the corpus.
        weights: Weight of the document as a positive, float64; 0 where it is not relevant.
        judged: Whether the document was judged not relevant.
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor
    judged: Tensor


class Relevance:
    """The judged documents of each query: relevant ones, weighted by grade over sum of grades, and others.

    Args:
        relevant: Query id to document id to grade, or to the ids of its relevant documents. Documents with a grade of
            zero or less that are not in the corpus do not matter.
        ids: The ids of the corpus, by position.
        ignored: Query id to the ids of documents that are neither relevant nor not, whatever a grade of zero says;
            those that are not in the corpus, or relevant, do not matter.

    Attributes:
        queries: The ids of the queries.
        labelled: Of each document, whether it is relevant to a query; shape ``(documents,)``.

    Raises:
        TypeError: The documents of a query are a single string, or a grade is not a number.
        ValueError: A grade is not finite, a relevant document is not in the corpus, an id is there twice, or no query
            has a relevant document. The message counts and names the first.
    """

    def __init__(
        self, relevant: Relevant, ids: Sequence[str], ignored: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        self.queries = list(relevant)
        grades = [_grades(query, documents) for query, documents in relevant.items()]
        positive = [{document: grade for document, grade in own.items() if grade > 0} for own in grades]
        if not any(positive):
            raise ValueError(f"None of the {len(grades)} queries in `relevant` has a document with a grade above 0.")
        apart = [dict.fromkeys((ignored or {}).get(query, ()), False) for query in self.queries]
        for own, others in zip(grades, apart, strict=True):
            others.update({document: True for document in own if document not in others})
        positions = _positions(set(chain(*positive, *apart)), ids)
        missing = [(q, d) for q, own in zip(self.queries, positive, strict=True) for d in own if d not in positions]
        if missing:
            raise ValueError(
                f"{len(missing)} relevant documents are not in the corpus of {len(ids)}; the first are "
                f"{_first([f'{document!r} of query {query!r}' for query, document in missing])}."
            )
        counts, columns, weights, judged = [0], list[int](), list[float](), list[bool]()
        for own, others in zip(positive, apart, strict=True):
            total = math.fsum(own.values())
            kept = {d: is_judged for d, is_judged in others.items() if own and d in positions and d not in own}
            counts.append(len(own) + len(kept))
            columns += [positions[document] for document in (*own, *kept)]
            weights += [*(grade / total for grade in own.values()), *[0.0] * len(kept)]
            judged += [*[False] * len(own), *kept.values()]
        self._starts = torch.tensor(counts).cumsum(0)
        self._columns, self._judged = torch.tensor(columns), torch.tensor(judged)
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self.labelled = torch.zeros(len(ids), dtype=torch.bool)
        self.labelled[self._columns[self._weights > 0]] = True

    def __len__(self) -> int:
        """The number of queries, those without a relevant document included."""
        return len(self.queries)

    def of(self, labels: Tensor) -> Known:
        """The relevant, judged and ignored documents of some queries.

        Args:
            labels: Positions of queries, shape ``(n,)``, on the CPU.

        Raises:
            ValueError: A query has no relevant document.
        """
        starts = self._starts[labels]
        counts = self._starts[labels + 1] - starts
        if not counts.all():
            bare = [self.queries[label] for label in labels[counts == 0].tolist()]
            raise ValueError(
                f"{len(bare)} of {len(labels)} rows are queries without a relevant document: {_first(map(repr, bare))}"
                ". Leave them out of the data set, as RetrievalData.labelled_queries does."
            )
        rows = torch.arange(len(labels)).repeat_interleave(counts)
        entries = torch.arange(len(rows)) + (starts - counts.cumsum(0) + counts)[rows]
        return Known(rows, self._columns[entries], self._weights[entries], self._judged[entries])


def _grades(query: str, documents: Mapping[str, float] | Iterable[str]) -> dict[str, float]:
    """The judged documents of one query."""
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
