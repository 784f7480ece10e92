"""What queries find before and after the heads, and what the relevant documents say of that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import own_documents
from st_asym.data.document import copies
from st_asym.diagnosis.geometry import skewness
from st_asym.fitting.gate import Gain
from st_asym.retrieval import Judgments
from st_asym.retrieval.metrics import TOP
from st_asym.retrieval.search import Pairs, nearest

BINS = 100
# Similarities that are in memory at a time.
_AT_ONCE = 2**24
# Cosines that differ by less are equal.
_TIE = 1e-5
# Queries that are shown on either end, and letters of a text.
_SHOWN = 10
_LONGEST = 300


@dataclass(frozen=True)
class Ranking:
    """What queries find, without regard to what is relevant."""

    changed: float  # share of queries with another document among their ten nearest
    replaced: float  # share of the ten nearest that are others, over all queries
    first_changed: float  # share of queries with another nearest document
    hubness_before: float  # skewness of the number of queries that have a document among their ten nearest
    hubness_after: float


@dataclass(frozen=True)
class RelevanceFigures:
    """How near queries are to their relevant documents."""

    # Mean squared distance of a query and a relevant document on the unit sphere, 0 where they coincide (Wang and Isola
    # 2020, https://arxiv.org/abs/2005.10242).
    alignment: float
    positive: float  # mean cosine of a query and a relevant document
    negative: float  # mean cosine of a query and any other document
    margin: float  # positive less negative
    # For each query the mean cosine with its relevant documents less that with the nearest other document, averaged.
    hard_margin: float


@dataclass(frozen=True)
class Example:
    """A query whose nDCG@10 changed, with texts cut to 300 characters."""

    query_id: str
    query: str
    before: float
    after: float
    relevant: str  # its most relevant document
    first_before: str  # the document that it found first
    first_after: str


@dataclass(frozen=True)
class Judged:
    """What the relevant documents say: nDCG@10 of each judged query, and the ten that gained and lost most."""

    before: RelevanceFigures
    after: RelevanceFigures
    query_ids: tuple[str, ...]
    ndcg_before: tuple[float, ...]
    ndcg_after: tuple[float, ...]
    difference: float  # mean of the differences
    error: float | None  # its standard error; None for a single query
    gains: tuple[Example, ...]  # the largest first
    losses: tuple[Example, ...]


@dataclass(frozen=True)
class Histograms:
    """How many pairs of a query and a document have which cosine: relevant ones, zeros without qrels, and others."""

    edges: tuple[float, ...]  # of the bins, one more than there are bins
    positive_before: tuple[int, ...]
    positive_after: tuple[int, ...]
    negative_before: tuple[int, ...]
    negative_after: tuple[int, ...]


@dataclass(frozen=True)
class Positions:
    """Which pairs of a query and a document are special, by their rows."""

    qrels: Qrels  # grades, zero or more, of the queries that have a relevant document
    positives: Pairs  # by query
    # No results: a query that is that document itself, and documents that have the text of a relevant one.
    left_out: Pairs

    @classmethod
    def of(cls, data: RetrievalData, qrels: Qrels) -> Positions:
        """Those of a collection."""
        graded = {q: {d: max(grade, 0) for d, grade in judged.items()} for q, judged in qrels.items()}
        graded = {q: graded[q] for q in data.queries if any(graded.get(q, {}).values())}
        queries, documents = ({key: row for row, key in enumerate(texts)} for texts in (data.queries, data.corpus))

        def rows(ids: Iterable[tuple[str, str]]) -> Pairs:
            found = [(queries[q], documents[d]) for q, d in dict.fromkeys(ids)]
            query_rows, document_rows = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T
            return query_rows, document_rows

        positives = rows((q, d) for q, judged in graded.items() for d, grade in judged.items() if grade > 0)
        itself = [(key, key) for key in own_documents(data.corpus, graded)]
        copied = [(q, d) for q, others in copies(graded, data.corpus).items() for d in others]
        return cls(graded, positives, rows([*itself, *copied]))


@dataclass(frozen=True)
class Similarities:
    """Cosines of n queries with m documents."""

    top: Tensor  # positions of the ten nearest documents, nearest first, shape (n, 10), or all where there are fewer
    top_values: Tensor  # their cosines
    positives: NDArray[np.float64]  # of the positive pairs, in the order they were given
    best_negative: NDArray[np.float64]  # of each query with another document, shape (n,); -inf where there is none
    mean_negative: float
    positive_counts: tuple[int, ...]  # how many are in each of 100 equal bins over [-1, 1]
    negative_counts: tuple[int, ...]


def compare(queries: Tensor, documents: Tensor, positives: Pairs, left_out: Pairs) -> Similarities:
    """Compare all queries with all documents, both unit vectors; pairs as of :class:`Positions`."""
    n, m = len(queries), len(documents)

    def histogram(values: Tensor) -> Tensor:
        return torch.histc(values, bins=BINS, min=-1.0, max=1.0).long()  # without what is infinite

    top_values, top = nearest(queries, documents, TOP, excluded=left_out)
    size = max(1, _AT_ONCE // m)
    found, best = [], []
    counts = torch.zeros(BINS, dtype=torch.int64)
    total = 0.0
    for start in range(0, n, size):
        block = (queries[start : start + size] @ documents.T).clamp_(-1.0, 1.0)
        mine, none = (_of_block(block, pairs, start) for pairs in (positives, left_out))
        found.append(block[mine])
        block[mine] = block[none] = -torch.inf
        counts += histogram(block)
        total += float(block.nan_to_num(neginf=0.0).sum(dtype=torch.float64))
        best.append(block.amax(dim=1))
    of_positives = torch.cat(found)
    return Similarities(
        top=top,
        top_values=top_values,
        positives=of_positives.double().numpy(),
        best_negative=torch.cat(best).double().numpy(),
        mean_negative=total / max(1, n * m - len(positives[0]) - len(left_out[0])),
        positive_counts=tuple(histogram(of_positives).tolist()),
        negative_counts=tuple(counts.tolist()),
    )


def _of_block(block: Tensor, pairs: Pairs, start: int) -> Pairs:
    """The pairs whose query is in a block of rows, counted from its start."""
    here = (pairs[0] >= start) & (pairs[0] < start + len(block))
    return pairs[0][here] - start, pairs[1][here]


def ranking(before: Similarities, after: Similarities, queries: Tensor, documents: Tensor) -> Ranking:
    """How far two searches differ, given the unit vectors before; ties in another order are no change."""
    # Of the documents found now, the cosines before: those that were further away than the tenth are new among the ten.
    then = torch.einsum("nd,nkd->nk", queries, documents[after.top])
    replaced = (then < before.top_values[:, -1:] - _TIE).sum(dim=1).double()
    hubs = [skewness(found.top.flatten().bincount(minlength=len(documents)).numpy()) for found in (before, after)]
    return Ranking(
        changed=float((replaced > 0).double().mean()),
        replaced=float(replaced.mean() / before.top.shape[1]),
        first_changed=float((then[:, 0] < before.top_values[:, 0] - _TIE).double().mean()),
        hubness_before=hubs[0],
        hubness_after=hubs[1],
    )


def judge(data: RetrievalData, positions: Positions, before: Similarities, after: Similarities) -> Judged | None:
    """Compare two searches by what is relevant; None where nothing is judged."""
    if not positions.qrels:
        return None
    ids, documents = list(positions.qrels), list(data.corpus)
    rows = [row for row, key in enumerate(data.queries) if key in positions.qrels]
    judgments = Judgments(positions.qrels, {key: row for row, key in enumerate(documents)})
    ndcg_before, ndcg_after = (judgments.ndcg(found.top[rows]) for found in (before, after))
    gain = Gain.of(ndcg_before, ndcg_after)
    change = ndcg_after - ndcg_before
    order = np.argsort(-change, kind="stable")

    def example(place: int) -> Example:
        query_id, row = ids[place], rows[place]
        grades = positions.qrels[query_id]
        return Example(
            query_id=query_id,
            query=_short(data.queries[query_id]),
            before=float(ndcg_before[place]),
            after=float(ndcg_after[place]),
            relevant=_short(data.corpus[max(grades, key=lambda key: grades[key])]),
            first_before=_short(data.corpus[documents[int(before.top[row, 0])]]),
            first_after=_short(data.corpus[documents[int(after.top[row, 0])]]),
        )

    return Judged(
        before=_relevance(positions, before),
        after=_relevance(positions, after),
        query_ids=tuple(ids),
        ndcg_before=tuple(ndcg_before.tolist()),
        ndcg_after=tuple(ndcg_after.tolist()),
        difference=gain.mean,
        error=gain.error if gain.queries > 1 else None,
        gains=tuple(example(place) for place in order[:_SHOWN] if change[place] > 0),
        losses=tuple(example(place) for place in order[::-1][:_SHOWN] if change[place] < 0),
    )


def _relevance(positions: Positions, found: Similarities) -> RelevanceFigures:
    """Nearness of relevant documents, and how far the others are."""
    rows, places = np.unique(positions.positives[0].numpy(), return_inverse=True)
    of_query = np.bincount(places, weights=found.positives) / np.bincount(places)
    margins = (of_query - found.best_negative[rows])[np.isfinite(found.best_negative[rows])]
    positive = float(found.positives.mean())
    return RelevanceFigures(
        alignment=2.0 - 2.0 * positive,
        positive=positive,
        negative=found.mean_negative,
        margin=positive - found.mean_negative,
        hard_margin=float(margins.mean()) if margins.size else math.nan,
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
