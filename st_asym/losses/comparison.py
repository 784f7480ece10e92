"""Queries against many documents, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]


class Comparison(NamedTuple):
    """What a chunk of documents, or all of them, give for each query.

    Attributes:
        sums: Log-sum-exp over the negatives, shape ``(n,)``; the least finite number where there are none.
        pairs: Logits of the pairs that are no negatives, shape ``(pairs,)``.
        places: The most similar negatives of each chunk, shape ``(n, best)``.
        logits: Their logits; the least finite number for what is no negative.
    """

    sums: Tensor
    pairs: Tensor
    places: Tensor
    logits: Tensor


def at_once(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function and keep its graph."""
    return function(*args)


def twice(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function without its graph, and again in the backward pass."""
    return checkpoint(function, *args, use_reentrant=False)


def compare(
    queries: Tensor,
    documents: Callable[[slice], Tensor],
    chunks: Sequence[tuple[int, int]],
    run: Run,
    rows: Tensor,
    columns: Tensor,
    *,
    project: Callable[[Tensor], Tensor] | None,
    weights: Tensor | None = None,
    best: int = 0,
    reduced: bool = False,
) -> Comparison:
    """Compare queries with documents.

    Args:
        queries: Unit vectors over the temperature, shape ``(n, d)``, float32 or float64.
        documents: Gives the vectors of a stretch of documents.
        chunks: First and last but one of each stretch.
        run: :func:`at_once`, or :func:`twice` to keep one chunk at a time in memory.
        rows: Rows of pairs of query and document that are no negatives, shape ``(pairs,)``, on the CPU.
        columns: The documents of these pairs.
        project: What the vectors go through to become unit vectors; None if they are.
        weights: The logarithm of how much each document counts, shape ``(documents,)``; None for one each.
        best: How many of the most similar documents of each chunk to return.
        reduced: Whether similarities are computed in bfloat16; their sums are not.
    """
    order = columns.argsort()
    rows, columns = rows[order].to(queries.device), columns[order]
    weights = None if weights is None else weights.to(queries)
    parts = []
    for start, stop in chunks:
        first, last = torch.searchsorted(columns, torch.tensor([start, stop])).tolist()
        part = run(
            _compare_chunk,
            queries,
            documents(slice(start, stop)),
            rows[first:last],
            (columns[first:last] - start).to(queries.device),
            project,
            None if weights is None else weights[start:stop],
            best,
            reduced,
        )
        parts.append(part._replace(places=part.places + start))
    sums, pairs, places, logits = zip(*parts, strict=True)
    return Comparison(
        torch.stack(sums, dim=1).logsumexp(dim=1),
        torch.cat(pairs)[order.argsort().to(queries.device)],
        torch.cat(places, dim=1),
        torch.cat(logits, dim=1),
    )


def _compare_chunk(
    queries: Tensor,
    vectors: Tensor,
    rows: Tensor,
    columns: Tensor,
    project: Callable[[Tensor], Tensor] | None,
    weights: Tensor | None,
    best: int,
    reduced: bool,
) -> Comparison:
    documents = vectors if project is None else project(vectors)
    with torch.autocast(queries.device.type, torch.bfloat16, enabled=reduced):
        similarities = queries @ documents.to(queries.dtype).T
    with torch.autocast(queries.device.type, enabled=False):
        logits = similarities.to(queries.dtype)
        pairs = logits[rows, columns]
        # Finite, so that a query without negatives has a gradient, of zero.
        logits[rows, columns] = torch.finfo(logits.dtype).min
        top = logits.detach().topk(min(best, logits.shape[1]), dim=1)
        if weights is not None:
            logits = logits + weights
        return Comparison(logits.logsumexp(dim=1), pairs, top.indices, top.values)


def with_more(sums: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
    """Log-sum-exp over what ``sums`` stands for and some more terms.

    Args:
        sums: One number per query, shape ``(n,)``.
        rows: The queries of the further terms, shape ``(terms,)``.
        logits: The terms.
    """
    if not len(rows):
        return sums
    top = sums.detach().scatter_reduce(0, rows, logits.detach(), "amax")
    return top + (sums - top).exp().index_add(0, rows, (logits - top[rows]).exp()).log()


def sum_over_positives(negatives: Tensor, positives: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum over positives of weight * -log(e^s / (e^s + sum of negatives)).

    Args:
        negatives: Log-sum-exp over the negatives of each query, shape ``(n,)``.
        positives: Logits s, shape ``(positives,)``.
        rows: Their queries.
        weights: Their weights.
    """
    difference = negatives[rows.to(negatives.device)] - positives
    return torch.dot(weights.to(difference), torch.logaddexp(difference, torch.zeros_like(difference)))
