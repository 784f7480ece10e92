"""Queries and their relevant documents as a graph, and which of them to hold out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy.sparse import csc_array, csr_array
from scipy.sparse.csgraph import connected_components

from st_asym.data.collection import Qrels, counted, first_few
from st_asym.data.document import text_key

Array = np.ndarray[Any, np.dtype[Any]]


def _key(name: str, texts: Mapping[str, str] | None) -> str:
    """What is the same for ids with the same text: the id itself where texts are not given."""
    return name if texts is None else text_key(texts[name])


def document_numbers(parts: Iterable[Qrels], corpus: Mapping[str, str] | None) -> dict[str, int]:
    """Document id to a number, in the order of ids; documents with the same text have the same number."""
    numbers: dict[str, int] = {}
    ids = sorted({document_id for qrels in parts for grades in qrels.values() for document_id in grades})
    return {document_id: numbers.setdefault(_key(document_id, corpus), len(numbers)) for document_id in ids}


class QueryGraph:
    """Which units, queries with the same text, have which documents, both numbered in the order of their ids."""

    def __init__(self, qrels: Qrels, queries: Mapping[str, str] | None, corpus: Mapping[str, str] | None) -> None:
        bare = [q for q, documents in sorted(qrels.items()) if not any(grade > 0 for grade in documents.values())]
        if bare:
            number = counted(len(bare), "query has", "queries have")
            raise ValueError(f"{number} no relevant document: {first_few(bare)}. Leave them out.")
        self.qrels = qrels
        units: dict[str, list[str]] = {}
        for query_id in sorted(qrels):
            units.setdefault(_key(query_id, queries), []).append(query_id)
        if len(units) < 2:
            raise ValueError(f"Holding out takes at least two different queries, got {len(units)}.")
        self.units = list(units.values())
        self.sizes: Array = np.array([len(unit) for unit in self.units])
        self.documents = document_numbers([qrels], corpus)
        cells = [
            (row, self.documents[document_id])
            for row, unit in enumerate(self.units)
            for query_id in unit
            for document_id, grade in qrels[query_id].items()
            if grade > 0
        ]
        shape = (len(units), max(self.documents.values()) + 1)
        # How many positives each document is of each unit, and whether it is one.
        self.positives = csr_array((np.ones(len(cells)), np.array(cells).T), shape=shape)
        self.positives.sum_duplicates()
        ones = np.ones(self.positives.nnz)
        self.related = csr_array((ones, self.positives.indices, self.positives.indptr), shape=shape)

    def components(self, random: np.random.Generator) -> Iterator[Array]:
        """The units of each connected component, in random order."""
        units, documents = self.related.shape
        joint = csr_array(
            (
                self.related.data,
                self.related.indices + units,
                np.append(self.related.indptr, [self.related.nnz] * documents),
            ),
            shape=(units + documents, units + documents),
        )
        number, labels = connected_components(joint, directed=False)
        order = np.argsort(labels[:units], kind="stable")
        members = np.split(order, np.cumsum(np.bincount(labels[:units], minlength=number))[:-1])
        for component in random.permutation(number):
            if len(members[component]):  # a document may be relevant to no query
                yield members[component]


def whole_components(graph: QueryGraph, target: int, most: int, random: np.random.Generator) -> Array:
    """A mask of units: components in random order that fit the target, or else one that is at least not too large."""
    chosen = np.zeros(len(graph.units), dtype=bool)
    if target == 0:
        return chosen
    too_large = []
    room = target
    for members in graph.components(random):
        size = graph.sizes[members].sum()
        if size <= room:
            chosen[members] = True
            room -= size
        elif size <= most:
            too_large.append(members)
    if not chosen.any() and too_large:
        chosen[min(too_large, key=lambda members: int(graph.sizes[members].sum()))] = True
    return chosen


def add_seen(graph: QueryGraph, chosen: Array, wanted: int, random: np.random.Generator) -> None:
    """Add units to the mask up to the number of queries that is wanted, first those that will be seen.

    Each of these names a unit that shares a document with it, which then stays in training while others can be taken.
    """
    sharing = graph.related.tocsc()
    keeps = np.zeros_like(chosen)
    room = wanted - int(graph.sizes[chosen].sum())
    order = random.permutation(len(graph.units))
    for only_seen, only_spare in ((True, True), (False, True), (False, False)):
        for unit in order:
            if chosen[unit] or graph.sizes[unit] > room or (only_spare and keeps[unit]):
                continue
            witness = _witness(graph, sharing, unit, ~chosen, keeps)
            if witness is not None or not only_seen:
                chosen[unit] = True
                keeps[witness if witness is not None else []] = True
                room -= int(graph.sizes[unit])


def _witness(graph: QueryGraph, sharing: csc_array, unit: int, training: Array, keeps: Array) -> int | None:
    """Another unit in training that shares a document, at best one that is kept there already."""
    for document in graph.related.indices[graph.related.indptr[unit] : graph.related.indptr[unit + 1]]:
        others = sharing.indices[sharing.indptr[document] : sharing.indptr[document + 1]]
        others = others[training[others] & (others != unit)]
        if len(others):
            return int(others[keeps[others].argmax()])
    return None


def withhold(
    graph: QueryGraph, chosen: Array, unseen: float, max_lost: float, swap: np.random.Generator | None = None
) -> Array:
    """A mask of documents: those of held-out units that cost training the fewest positives, one unit after another.

    With ``swap``, training units that have no document left are held out too, each for a seen one that goes back to
    training: both sides gain, and ``chosen`` changes.
    """
    withheld = np.zeros(graph.related.shape[1], dtype=bool)
    target = round(unseen * graph.sizes[chosen].sum())
    budget = max_lost * graph.positives[np.flatnonzero(~chosen)].sum()
    priority = None if swap is None else swap.permutation(len(chosen))
    while True:
        cost = _cost(graph, chosen, withheld)
        lost = (graph.positives @ withheld)[~chosen].sum()
        missing = target - graph.sizes[chosen & (cost == 0)].sum()
        fitting = np.flatnonzero(chosen & (cost > 0) & (cost <= budget - lost) & (graph.sizes <= missing))
        if not len(fitting):
            return withheld
        withheld[graph.related[[fitting[cost[fitting].argmin()]]].indices] = True
        if priority is not None:
            _swap(graph, chosen, withheld, priority)


def _cost(graph: QueryGraph, chosen: Array, withheld: Array) -> Array:
    """How many training positives are on the documents of each unit, besides those withheld: 0 is unseen."""
    uses = graph.positives.T @ ~chosen
    uses[withheld] = 0
    return np.asarray(graph.related @ uses)


def _swap(graph: QueryGraph, chosen: Array, withheld: Array, priority: Array) -> None:
    for unit in np.flatnonzero(~chosen & (graph.related @ ~withheld == 0)):
        cost = _cost(graph, chosen, withheld)
        taken = withheld | (graph.related.T @ (chosen & (cost == 0)) > 0)
        fit = chosen & (cost > 0) & (graph.related @ taken == 0) & (graph.sizes == graph.sizes[unit])
        candidates = np.flatnonzero(fit)
        if len(candidates):
            chosen[candidates[priority[candidates].argmin()]] = False
            chosen[unit] = True
