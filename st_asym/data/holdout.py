"""Which queries to hold out, by the graph of queries and their relevant documents: some seen, some unseen."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import block_array, csc_array, csr_array
from scipy.sparse.csgraph import connected_components

from st_asym.data.collection import Qrels, counted, first_few
from st_asym.data.document import relevant_of, text_key

Array = np.ndarray[Any, np.dtype[Any]]

# The share of held-out queries to make unseen, and of training positives that this may cost.
_UNSEEN, _MOST_LOST = 0.5, 0.05


@dataclass(frozen=True)
class HeldOut:
    """Training and held-out queries that have no query in common."""

    train: Qrels  # to train on
    dev: Qrels  # to judge on
    seen: tuple[str, ...]  # queries of dev with a relevant document that is a training positive too
    unseen: tuple[str, ...]  # and those without
    # Judgments taken from training to make queries unseen, all relevant. A loss must not use these documents as
    # negatives of these queries.
    withheld: Qrels
    lost_queries: tuple[str, ...]  # they have no relevant document left to train on, and are in neither side

    @property
    def lost_positives(self) -> int:
        """How many training positives the unseen queries cost, besides their own."""
        return sum(map(len, self.withheld.values()))

    def __str__(self) -> str:
        """How far it went, in a sentence or two, for the report of a fit."""
        text = (
            f"{counted(len(self.train), 'training query', 'training queries')} and {len(self.dev):,} held out: "
            f"{len(self.seen):,} seen, {len(self.unseen):,} whose documents are no training positives. "
        )
        if not self.lost_positives:
            return text + "No training positive was lost for that."
        kept = sum(len(relevant_of(grades)) for grades in self.train.values())
        return text + (
            f"That cost {self.lost_positives:,} of {self.lost_positives + kept:,} training positives and "
            f"{counted(len(self.lost_queries), 'training query', 'training queries')}."
        )


def hold_out(
    qrels: Qrels,
    *,
    share: float = 0.2,
    seed: int = 0,
    queries: Mapping[str, str] | None = None,
    corpus: Mapping[str, str] | None = None,
) -> HeldOut:
    """Hold out a share of the queries, so that about half of them ask for documents that training never sees.

    Whole components of the graph of queries and relevant documents go first, in random order: they cost nothing. Then
    come queries that share a document with one that stays in training, as far as there are such. If too few are unseen,
    documents are withheld from training, those of the held-out query that costs the fewest training positives first;
    queries that lose all their documents so are held out too, and others return to training for them. Such unseen
    queries are those with few relevant documents that few other queries share.

    ``share`` is of the queries. More than half may be unseen where queries share no documents, and at most a twentieth
    of the training positives is lost. ``queries`` and ``corpus`` are id to text: queries with the same text stay
    together, and documents with the same text count as one. The order of the qrels makes no difference.

    Example:
        >>> qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"b": 1}, "q4": {"c": 1}}
        >>> cut = hold_out(qrels, share=0.5)
        >>> len(cut.train), len(cut.seen), len(cut.unseen), cut.lost_positives
        (2, 1, 1, 0)
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}.")
    graph = _QueryGraph(qrels, queries, corpus)
    random = np.random.default_rng(seed)
    total = int(graph.sizes.sum())
    wanted = min(max(round(share * total), 1), total - 1)
    chosen = _whole_components(graph, round(_UNSEEN * wanted), wanted, random)
    _add_seen(graph, chosen, wanted, random)
    if not chosen.any():  # every unit is larger than what was wanted
        chosen[graph.sizes.argmin()] = True
    return _cut(graph, chosen, _withhold(graph, chosen, priority=random.permutation(len(chosen))))


def folds(
    qrels: Qrels,
    k: int,
    *,
    seed: int = 0,
    queries: Mapping[str, str] | None = None,
    corpus: Mapping[str, str] | None = None,
) -> list[HeldOut]:
    """Cut the queries ``k`` times, so that each is held out once; for data too small for one :func:`hold_out`.

    About half of the queries stay together with all that they share documents with, and are unseen in their fold; the
    others are dealt over the folds. If too few are unseen, a fold withholds documents from training as
    :func:`hold_out` does; it has the queries that it has, so that costs more. Where queries of one text are most of the
    data, there may be nothing left for some folds: these are left out. The arguments are those of :func:`hold_out`.
    """
    graph = _QueryGraph(qrels, queries, corpus)
    if not 2 <= k <= len(graph.units):
        raise ValueError(f"k must be from 2 to the number of different queries, {len(graph.units)}, got {k}.")
    random = np.random.default_rng(seed)
    room, left = graph.sizes.sum() / k, _UNSEEN * graph.sizes.sum()
    together, apart = [], []
    # Units by themselves are unseen anyway.
    for members in sorted(graph.components(random), key=lambda members: len(members) > 1):
        size = graph.sizes[members].sum()
        if size <= min(room, left):
            together.append(members)
            left -= size
        else:
            apart += [np.array([unit]) for unit in random.permutation(members)]
    filled = np.zeros(k)
    fold_of = np.zeros(len(graph.units), dtype=int)
    for block in sorted(together, key=lambda block: -int(graph.sizes[block].sum())) + apart:
        fold_of[block] = filled.argmin()
        filled[filled.argmin()] += graph.sizes[block].sum()
    return [_cut(graph, fold_of == fold, _withhold(graph, fold_of == fold)) for fold in np.unique(fold_of)]


def expected_unseen(
    qrels: Qrels,
    *,
    seed: int,
    queries: Mapping[str, str] | None = None,
    corpus: Mapping[str, str] | None = None,
) -> float:
    """The share, from 0 to 1, of queries on unseen documents that cutting queries at random gives.

    It is what traffic like the training queries would have: each query is held out once, in at most five random
    cuts. The arguments are those of :func:`hold_out`.
    """
    graph = _QueryGraph(qrels, queries, corpus)
    count = min(len(graph.units), 5)
    cut_of = np.random.default_rng(seed).permutation(np.arange(len(graph.units)) % count)
    withheld = np.zeros(graph.related.shape[1], dtype=bool)
    found = 0
    for cut in range(count):
        held_out = cut_of == cut
        found += int(graph.sizes[held_out & (_cost(graph, held_out, withheld) == 0)].sum())
    return found / int(graph.sizes.sum())


def seen_unseen(
    train: Qrels, dev: Qrels, *, corpus: Mapping[str, str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell dev queries whose relevant documents are training positives from those whose are not.

    Queries without a relevant document are in neither part. With the texts of a corpus, documents with the same text
    count as one.
    """
    return _seen_unseen(train, dev, _document_numbers((train, dev), corpus))


def apart(
    train: Qrels, dev: Qrels, *, seed: int = 0, corpus: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Training and dev queries no two of which share a relevant document, drawn in random order.

    Queries about one document are alike, and a cut may keep them together: these can be compared as if each had been
    drawn by itself. With the texts of a corpus, documents with the same text count as one.
    """
    documents = _document_numbers((train, dev), corpus)
    found: tuple[list[str], list[str]] = [], []
    taken: set[int] = set()
    queries = [(side, query_id) for side, part in enumerate((train, dev)) for query_id in sorted(part)]
    for place in np.random.default_rng(seed).permutation(len(queries)).tolist():
        side, query_id = queries[place]
        relevant = {documents[d] for d in relevant_of((train, dev)[side][query_id])}
        if relevant and not relevant & taken:
            taken |= relevant
            found[side].append(query_id)
    return found


def groups(
    parts: Iterable[Qrels], queries: Mapping[str, str], corpus: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Query id to the number of its group: queries with one text, or about the very same documents, are alike.

    What is found for one of them says little more than what is found for another.
    """
    parts = list(parts)
    documents = _document_numbers(parts, corpus)
    alike = DisjointSet()
    first: dict[object, str] = {}
    for query_id, grades in (item for part in parts for item in part.items()):
        alike.add(query_id)
        about = frozenset(documents[d] for d in relevant_of(grades))
        for key in (text_key(queries[query_id]), about):
            alike.merge(first.setdefault(key, query_id), query_id)
    numbers: dict[str, int] = {}
    return {query_id: numbers.setdefault(alike[query_id], len(numbers)) for query_id in alike}


def _seen_unseen(train: Qrels, dev: Qrels, documents: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = {documents[d] for grades in train.values() for d in relevant_of(grades)}
    seen: list[str] = []
    unseen: list[str] = []
    for query_id, grades in dev.items():
        relevant = {documents[d] for d in relevant_of(grades)}
        if relevant:
            (seen if relevant & known else unseen).append(query_id)
    return tuple(seen), tuple(unseen)


def _document_numbers(parts: Iterable[Qrels], corpus: Mapping[str, str] | None) -> dict[str, int]:
    """Document id to a number, in the order of ids; documents with the same text have the same number."""
    ids = sorted({document_id for qrels in parts for grades in qrels.values() for document_id in grades})
    numbers: dict[str, int] = {}
    return {
        document_id: numbers.setdefault(document_id if corpus is None else text_key(corpus[document_id]), len(numbers))
        for document_id in ids
    }


class _QueryGraph:
    """Which units, queries with the same text, have which documents, both numbered in the order of their ids.

    ``positives`` says how many positives each document is of each unit, ``related`` whether it is one; both have the
    shape (units, documents). ``sizes`` are the numbers of queries.
    """

    def __init__(self, qrels: Qrels, queries: Mapping[str, str] | None, corpus: Mapping[str, str] | None) -> None:
        bare = [query_id for query_id, grades in sorted(qrels.items()) if not relevant_of(grades)]
        if bare:
            number = counted(len(bare), "query has", "queries have")
            raise ValueError(f"{number} no relevant document: {first_few(bare)}. Leave them out.")
        units: dict[str, list[str]] = {}
        for query_id in sorted(qrels):
            units.setdefault(query_id if queries is None else text_key(queries[query_id]), []).append(query_id)
        if len(units) < 2:
            raise ValueError(f"Holding out takes at least two different queries, got {len(units)}.")
        self.qrels = qrels
        self.units = list(units.values())
        self.sizes: Array = np.array([len(unit) for unit in self.units])
        self.documents = _document_numbers([qrels], corpus)
        rows, columns = array("q"), array("q")
        for row, unit in enumerate(self.units):
            for query_id in unit:
                own = [self.documents[key] for key, grade in qrels[query_id].items() if grade > 0]
                rows.extend([row] * len(own))
                columns.extend(own)
        shape = (len(units), max(self.documents.values()) + 1)
        self.positives = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        self.related = self.positives.sign()

    def components(self, random: np.random.Generator) -> Iterator[Array]:
        """The units of each connected component, in random order."""
        units = len(self.units)
        number, labels = connected_components(block_array([[None, self.related], [self.related.T, None]]))
        order = np.argsort(labels[:units], kind="stable")
        members = np.split(order, np.cumsum(np.bincount(labels[:units], minlength=number))[:-1])
        for component in random.permutation(number):
            if len(members[component]):  # a document may be relevant to no query
                yield members[component]


def _whole_components(graph: _QueryGraph, target: int, most: int, random: np.random.Generator) -> Array:
    """A mask of units: components in random order that fit the target, or else one that is at least not too large."""
    chosen = np.zeros(len(graph.units), dtype=bool)
    if target == 0:
        return chosen
    room, larger = target, []
    for members in graph.components(random):
        size = int(graph.sizes[members].sum())
        if size <= room:
            chosen[members] = True
            room -= size
        elif size <= most:
            larger.append((size, members))
    if larger and not chosen.any():
        chosen[min(larger, key=lambda one: one[0])[1]] = True
    return chosen


def _add_seen(graph: _QueryGraph, chosen: Array, wanted: int, random: np.random.Generator) -> None:
    """Add units to the mask up to the number of queries that is wanted, first those that will be seen.

    For each of these a unit that shares a document with it is left in training as long as others can be taken.
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


def _witness(graph: _QueryGraph, sharing: csc_array, unit: int, training: Array, keeps: Array) -> int | None:
    """Another unit in training that shares a document, at best one that is kept there already."""
    for document in graph.related.indices[graph.related.indptr[unit] : graph.related.indptr[unit + 1]]:
        others = sharing.indices[sharing.indptr[document] : sharing.indptr[document + 1]]
        others = others[training[others] & (others != unit)]
        if len(others):
            return int(others[keeps[others].argmax()])
    return None


def _withhold(graph: _QueryGraph, chosen: Array, priority: Array | None = None) -> Array:
    """A mask of documents: those of held-out units that cost training the fewest positives, one unit after another.

    With a ``priority`` of units, training units that have no document left are held out too, each for the seen one of
    the least that can go back to training: both sides gain, and ``chosen`` changes.
    """
    withheld = np.zeros(graph.related.shape[1], dtype=bool)
    target = round(_UNSEEN * graph.sizes[chosen].sum())
    budget = _MOST_LOST * graph.positives[np.flatnonzero(~chosen)].sum()
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


def _cost(graph: _QueryGraph, chosen: Array, withheld: Array) -> Array:
    """How many training positives are on the documents of each unit, besides those withheld: 0 is unseen."""
    uses = graph.positives.T @ ~chosen
    uses[withheld] = 0
    return np.asarray(graph.related @ uses)


def _swap(graph: _QueryGraph, chosen: Array, withheld: Array, priority: Array) -> None:
    """Hold out training units without a document left, each for a seen unit of its size that costs nothing there."""
    for unit in np.flatnonzero(~chosen & (graph.related @ ~withheld == 0)):
        cost = _cost(graph, chosen, withheld)
        taken = withheld | (graph.related.T @ (chosen & (cost == 0)) > 0)
        fit = chosen & (cost > 0) & (graph.related @ taken == 0) & (graph.sizes == graph.sizes[unit])
        candidates = np.flatnonzero(fit)
        if len(candidates):
            chosen[candidates[priority[candidates].argmin()]] = False
            chosen[unit] = True


def _cut(graph: _QueryGraph, chosen: Array, withheld: Array) -> HeldOut:
    """Both sides of a mask of held-out units, less the withheld documents on the side of training."""
    dev: Qrels = {}
    train: Qrels = {}
    lost: Qrels = {}
    taken = {document_id for document_id, number in graph.documents.items() if withheld[number]}
    for unit, held_out in zip(graph.units, chosen, strict=True):
        for query_id in unit:
            grades = graph.qrels[query_id]
            if held_out:
                dev[query_id] = dict(grades)
                continue
            if gone := {d: grade for d, grade in grades.items() if grade > 0 and d in taken}:
                lost[query_id] = gone
            left = {d: grade for d, grade in grades.items() if d not in gone} if gone else grades
            if relevant_of(left):
                train[query_id] = left
    seen, unseen = _seen_unseen(train, dev, graph.documents)
    return HeldOut(train, dev, seen, unseen, lost, tuple(query_id for query_id in lost if query_id not in train))
