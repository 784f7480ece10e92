"""The nearest documents of each query, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# How many numbers a block of similarities may have: 64 MiB in float32.
_BLOCK = 1 << 24

Pairs = tuple[Tensor, Tensor]


@torch.no_grad()
def nearest(
    queries: Tensor,
    documents: Tensor | Iterable[tuple[int, Tensor]],
    k: int,
    *,
    excluded: Pairs | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` most similar documents of each query, by inner product: the cosine, of unit vectors.

    Args:
        queries: Vectors of shape ``(n, d)``.
        documents: Vectors of shape ``(m, d)``; or stretches of them, each with the position of its first one, such as
            a corpus that is too large for memory.
        k: How many to find; all, if there are fewer.
        excluded: Rows of queries and positions of documents that are no results, such as a query's own document, each
            an integer tensor of shape ``(pairs,)``.

    Returns:
        Similarities and positions, each of shape ``(n, min(k, m))``, the most similar first. What was excluded, where
        nothing else is left, has a similarity of minus infinity.

    Example:
        >>> documents = torch.eye(3)
        >>> similarities, positions = nearest(torch.tensor([[0.6, 0.0, 0.8]]), documents, 2)
        >>> similarities, positions
        (tensor([[0.8000, 0.6000]]), tensor([[2, 0]]))
    """
    parts = [(0, documents)] if isinstance(documents, Tensor) else documents
    best = queries.new_empty(len(queries), 0)
    positions = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first, part in parts:
        found = _nearest_in(queries, part, k, _within(excluded, first, len(part)))
        best, positions = torch.cat([best, found[0]], dim=1), torch.cat([positions, found[1] + first], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        positions = positions.gather(1, order)
    return best, positions


def _nearest_in(queries: Tensor, documents: Tensor, k: int, excluded: Pairs) -> tuple[Tensor, Tensor]:
    """The nearest in one stretch of documents, some queries at a time."""
    rows, columns = excluded
    size = max(1, _BLOCK // max(1, len(documents)))
    values, places = [], []
    for start in range(0, len(queries), size):
        block = queries[start : start + size] @ documents.to(queries.dtype).T
        here = (rows >= start) & (rows < start + len(block))
        block[rows[here] - start, columns[here]] = -torch.inf
        top = block.topk(min(k, len(documents)), dim=1)
        values.append(top.values)
        places.append(top.indices)
    if not values:
        none = queries.new_empty(0, min(k, len(documents)))
        return none, none.long()
    return torch.cat(values), torch.cat(places)


def _within(pairs: Pairs | None, first: int, length: int) -> Pairs:
    """The pairs whose document is in a stretch, counted from its start."""
    if pairs is None:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    rows, columns = pairs
    here = (columns >= first) & (columns < first + length)
    return rows[here], columns[here] - first
