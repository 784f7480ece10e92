"""All cosines of queries with documents in one pass, without keeping them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_asym.retrieval.metrics import TOP

BINS = 100
# Similarities that are in memory at a time.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Similarities:
    """Cosines of n queries with m documents.

    Attributes:
        top: Positions of the ten nearest documents, nearest first, shape ``(n, 10)``, or all where there are fewer.
        top_values: Their cosines.
        positives: The cosines of the positive pairs, in the order they were given.
        best_negative: The highest cosine of each query with a document that is not positive, shape ``(n,)``;
            -inf where all are.
        mean_negative: The mean over all pairs that are not positive.
        positive_counts: How many positive pairs are in each of 100 equal bins over [-1, 1].
        negative_counts: The same for all others.
    """

    top: Tensor
    top_values: Tensor
    positives: NDArray[np.float64]
    best_negative: NDArray[np.float64]
    mean_negative: float
    positive_counts: tuple[int, ...]
    negative_counts: tuple[int, ...]


def compare(
    queries: Tensor,
    documents: Tensor,
    positives: Sequence[tuple[int, int]],
    left_out: Sequence[tuple[int, int]] = (),
) -> Similarities:
    """Compare all queries with all documents.

    Args:
        queries: Unit vectors, shape ``(n, d)``.
        documents: Unit vectors, shape ``(m, d)``.
        positives: Distinct positions of queries and of documents that are relevant to them, by query.
        left_out: Positions of queries and of documents that are no results of theirs, none of which is positive.
    """
    n, m = len(queries), len(documents)
    pairs, others = (torch.tensor(places, dtype=torch.int64).reshape(-1, 2) for places in (positives, left_out))
    rows = max(1, _AT_ONCE // m)
    tops, values, best, found = [], [], [], []
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    total = 0.0
    for start in range(0, n, rows):
        block = (queries[start : start + rows] @ documents.T).clamp_(-1.0, 1.0)
        none = others[(others[:, 0] >= start) & (others[:, 0] < start + rows)]
        block[none[:, 0] - start, none[:, 1]] = -torch.inf
        nearest = block.topk(min(TOP, m), dim=1)
        tops.append(nearest.indices)
        values.append(nearest.values)
        own = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + rows)]
        mine = block[own[:, 0] - start, own[:, 1]]
        found.append(mine)
        counts[0] += _histogram(mine)
        counts[1] += _histogram(block) - _histogram(mine)
        block[none[:, 0] - start, none[:, 1]] = 0.0
        total += float(block.sum(dtype=torch.float64) - mine.sum(dtype=torch.float64))
        block[none[:, 0] - start, none[:, 1]] = -torch.inf
        block[own[:, 0] - start, own[:, 1]] = -torch.inf
        best.append(block.amax(dim=1))
    return Similarities(
        top=torch.cat(tops),
        top_values=torch.cat(values),
        positives=torch.cat(found).double().numpy(),
        best_negative=torch.cat(best).double().numpy(),
        mean_negative=total / max(1, n * m - len(pairs) - len(others)),
        positive_counts=tuple(counts[0].tolist()),
        negative_counts=tuple(counts[1].tolist()),
    )


def entered(before: Similarities, after: Similarities, queries: Tensor, documents: Tensor) -> NDArray[np.int64]:
    """How many of each query's ten nearest documents were further away before than its tenth.

    Documents that were as near as the tenth do not count, so that ties in another order are no change.

    Args:
        before: Similarities before.
        after: Similarities after.
        queries: Unit vectors before, shape ``(n, d)``.
        documents: Unit vectors before, shape ``(m, d)``.

    Returns:
        Shape ``(n,)``.
    """
    then = torch.einsum("nd,nkd->nk", queries, documents[after.top])
    return (then < before.top_values[:, -1:] - 1e-5).sum(dim=1).numpy()


def by_query(pairs: Sequence[tuple[int, int]]) -> Mapping[int, list[int]]:
    """The places of the pairs of each query."""
    found: dict[int, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        found.setdefault(query, []).append(place)
    return found


def _histogram(values: Tensor) -> Tensor:
    return torch.histc(values, bins=BINS, min=-1.0, max=1.0).long()
