"""Queries against many documents, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]
# Documents that go through the head at once: a processor is fastest where they stay in its cache.
_CPU_CHUNK, _GPU_CHUNK = 1024, 16_384
# What the graph of one step may take before its chunks are computed again in the backward pass.
_GRAPH_BYTES = 1 << 30
Read = Callable[[slice], Tensor]


class Negatives(NamedTuple):
    """Documents that are negatives of all queries of a batch, but for pairs that are counted apart.

    Attributes:
        positions: In the corpus, ascending, shape ``(n,)``, on the CPU; None for all of it.
        weights: Logarithms of how many documents each counts for, shape ``(n,)``; None where each counts for one.
    """

    positions: Tensor | None
    weights: Tensor | None

    def places(self, columns: Tensor) -> Tensor:
        """Where some documents of the corpus are among these, -1 for those that are not."""
        return columns if self.positions is None else find(columns, self.positions)


class Comparison(NamedTuple):
    """What a chunk of documents, or all of them, give for each query.

    Attributes:
        sums: Log-sum-exp over the negatives, shape ``(n,)``; the least finite number where there are none.
        pairs: Logits of the pairs that are counted apart, shape ``(pairs,)``.
        places: The most similar negatives of each chunk, shape ``(n, best)``.
        logits: Their logits; the least finite number for what is no negative.
    """

    sums: Tensor
    pairs: Tensor
    places: Tensor
    logits: Tensor


def find(wanted: Tensor, ascending: Tensor) -> Tensor:
    """Places of some numbers among others, which are not none, -1 for those that are not there."""
    places = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return torch.where(ascending[places] == wanted, places, -1)


def at_once(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function and keep its graph."""
    return function(*args)


def twice(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function without its graph, and again in the backward pass."""
    return checkpoint(function, *args, use_reentrant=False)


def plan(
    documents: int, queries: Tensor, activations: int, chunk_size: int | None
) -> tuple[list[tuple[int, int]], Run]:
    """Chunks of documents, and what calls a function of one: now, or again in the backward pass.

    Args:
        documents: How many there are.
        queries: What they are compared with.
        activations: How many numbers the graph keeps of each document on its way through the head.
        chunk_size: Documents at once, computed again in the backward pass; None keeps the graph while it is small.
    """
    size = chunk_size or (_CPU_CHUNK if queries.device.type == "cpu" else _GPU_CHUNK)
    chunks = [(start, min(start + size, documents)) for start in range(0, documents, size)]
    graph = documents * (activations + 3 * len(queries)) * queries.element_size()
    return chunks, at_once if chunk_size is None and graph <= _GRAPH_BYTES else twice


def compare(
    queries: Tensor,
    documents: Read,
    project: Callable[[Tensor], Tensor] | None,
    chunks: Sequence[tuple[int, int]],
    run: Run,
    rows: Tensor,
    columns: Tensor,
    *,
    weights: Tensor | None = None,
    best: int = 0,
    reduced: bool = False,
) -> Comparison:
    """Compare queries with documents.

    Args:
        queries: Unit vectors over the temperature, shape ``(n, d)``, float32 or float64.
        documents: Gives the vectors of a stretch of documents.
        project: What the vectors go through to become unit vectors; None if they are.
        chunks: First and last but one of each stretch.
        run: :func:`at_once`, or :func:`twice` to keep one chunk at a time in memory.
        rows: Rows of pairs of query and document that are counted apart, shape ``(pairs,)``, on the CPU.
        columns: The documents of these pairs.
        weights: Logarithms of how many documents each counts for, shape ``(documents,)``.
        best: How many of the most similar documents of each chunk to return.
        reduced: Whether similarities are computed in bfloat16; their sums are not.
    """
    columns, order = columns.sort()
    rows, back = rows[order].to(queries.device), order.argsort().to(queries.device)
    edges = torch.searchsorted(columns, torch.tensor([start for start, _ in chunks])).tolist()
    columns = columns.to(queries.device)
    weights = None if weights is None else weights.to(queries)
    parts = []
    for (start, stop), first, last in zip(chunks, edges, [*edges[1:], len(columns)], strict=True):
        part = run(
            _compare_chunk,
            queries,
            documents,
            slice(start, stop),
            rows[first:last],
            columns[first:last] - start,
            project,
            None if weights is None else weights[start:stop],
            best,
            reduced,
        )
        parts.append(part._replace(places=part.places + start))
    sums, pairs, places, logits = zip(*parts, strict=True)
    return Comparison(
        torch.stack(sums, dim=1).logsumexp(dim=1),
        torch.cat(pairs)[back],
        torch.cat(places, dim=1),
        torch.cat(logits, dim=1),
    )


def _compare_chunk(
    queries: Tensor,
    documents: Read,
    stretch: slice,
    rows: Tensor,
    columns: Tensor,
    project: Callable[[Tensor], Tensor] | None,
    weights: Tensor | None,
    best: int,
    reduced: bool,
) -> Comparison:
    vectors = documents(stretch)
    vectors = vectors if project is None else project(vectors)
    with torch.autocast(queries.device.type, torch.bfloat16, enabled=reduced):
        similarities = queries @ vectors.to(queries.dtype).T
    with torch.autocast(queries.device.type, enabled=False):
        logits = similarities.to(queries.dtype)
        pairs = logits[rows, columns]
        # Finite, so that a query without negatives has a gradient, of zero.
        logits[rows, columns] = torch.finfo(logits.dtype).min
        top = logits.detach().topk(min(best, logits.shape[1]), dim=1)
        if weights is not None:
            logits = logits + weights
        return Comparison(logits.logsumexp(dim=1), pairs, top.indices, top.values)


def add_to_sums(sums: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """Log-sum-exp over the negatives of each query and some more of them.

    Args:
        sums: Log-sum-exp over negatives of each query, shape ``(n,)``, finite.
        logits: Logits of the others, shape ``(others,)``.
        rows: Their queries.

    Returns:
        Shape ``(n,)``.
    """
    rows = rows.to(sums.device)
    largest = sums.detach().scatter_reduce(0, rows, logits.detach(), "amax")
    return largest + (sums - largest).exp().index_add(0, rows, (logits - largest[rows]).exp()).log()


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
