"""Queries against many documents, a chunk at a time; and what several processes share: rows, sums, random draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed
from sentence_transformers.util import get_world_size
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Documents that go through the head at once: a processor is fastest where they stay in its cache.
_CPU_CHUNK, _GPU_CHUNK = 1024, 16_384
# What the graph of one step may take before its chunks are computed again in the backward pass.
_GRAPH_BYTES = 1 << 30


class Negatives(NamedTuple):
    """Documents that are negatives of all queries of a batch, but for pairs that are counted apart."""

    positions: Tensor | None  # in the corpus, ascending, shape (n,), on the CPU; None for all of it
    weights: (
        Tensor | None
    )  # logarithms of how many documents each counts for, shape (n,); None where each counts for one

    def places(self, columns: Tensor) -> Tensor:
        """Where some documents of the corpus are among these, -1 for those that are not."""
        return columns if self.positions is None else find(columns, self.positions)


class Logits(NamedTuple):
    """What a chunk of documents, or all of them, give for each query; the least finite number stands for none."""

    sums: Tensor  # log-sum-exp over the negatives, shape (n,)
    pairs: Tensor  # logits of the pairs that are counted apart, shape (pairs,)
    places: Tensor  # the most similar negatives of each chunk, shape (n, best)
    logits: Tensor  # their logits


def find(wanted: Tensor, ascending: Tensor) -> Tensor:
    """Places of some numbers among others, which are not none, -1 for those that are not there."""
    places = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return torch.where(ascending[places] == wanted, places, -1)


def compare(
    queries: Tensor,
    documents: Callable[[slice], Tensor],
    count: int,
    project: Callable[[Tensor], Tensor] | None,
    rows: Tensor,
    columns: Tensor,
    *,
    activations: int,
    chunk_size: int | None,
    weights: Tensor | None = None,
    best: int = 0,
    reduced: bool = False,
) -> Logits:
    """Compare queries, unit vectors over the temperature of shape ``(n, d)``, with so many documents.

    ``documents`` gives the vectors of a stretch of them, which ``project`` makes unit vectors. Pairs of ``rows`` and
    ``columns``, on the CPU, are counted apart. ``activations`` is how many numbers the graph keeps of each document on
    its way through the head: a graph that is too large, or chunks that are asked for, are computed again in the
    backward pass. ``reduced`` computes similarities in bfloat16, and not their sums.
    """
    size = chunk_size or (_CPU_CHUNK if queries.device.type == "cpu" else _GPU_CHUNK)
    graph = count * (activations + 3 * len(queries)) * queries.element_size()
    run: Callable[..., Any] = _compare_chunk
    if chunk_size is not None or graph > _GRAPH_BYTES:
        run = partial(checkpoint, _compare_chunk, use_reentrant=False)
    columns, order = columns.sort()
    rows, back = rows[order].to(queries.device), order.argsort().to(queries.device)
    starts = range(0, count, size)
    edges = torch.searchsorted(columns, torch.tensor(starts)).tolist()
    columns = columns.to(queries.device)
    weights = None if weights is None else weights.to(queries)
    parts = []
    for start, first, last in zip(starts, edges, [*edges[1:], len(columns)], strict=True):
        stretch = slice(start, min(start + size, count))
        own = None if weights is None else weights[stretch]
        pairs = rows[first:last], columns[first:last] - start
        part = run(queries, documents, stretch, *pairs, project, own, best, reduced)
        parts.append(part._replace(places=part.places + start))
    sums, logits_of_pairs, places, logits = zip(*parts, strict=True)
    return Logits(
        torch.stack(sums, dim=1).logsumexp(dim=1),
        torch.cat(logits_of_pairs)[back],
        torch.cat(places, dim=1),
        torch.cat(logits, dim=1),
    )


def add_to_sums(sums: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """Log-sum-exp over the negatives of each query, shape ``(n,)`` and finite, and over some more of them.

    ``logits`` are those of the others, ``rows`` their queries.
    """
    rows = rows.to(sums.device)
    largest = sums.detach().scatter_reduce(0, rows, logits.detach(), "amax")
    return largest + (sums - largest).exp().index_add(0, rows, (logits - largest[rows]).exp()).log()


def sum_over_positives(negatives: Tensor, positives: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum over positives of weight * -log(e^s / (e^s + sum of negatives)).

    ``negatives`` are log-sum-exp over the negatives of each query, shape ``(n,)``; ``positives`` are the logits s, of
    the queries ``rows``.
    """
    difference = negatives[rows.to(negatives.device)] - positives
    return torch.dot(weights.to(difference), torch.logaddexp(difference, torch.zeros_like(difference)))


def _compare_chunk(
    queries: Tensor,
    documents: Callable[[slice], Tensor],
    stretch: slice,
    rows: Tensor,
    columns: Tensor,
    project: Callable[[Tensor], Tensor] | None,
    weights: Tensor | None,
    best: int,
    reduced: bool,
) -> Logits:
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
        return Logits(logits.logsumexp(dim=1), pairs, top.indices, top.values)


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, shape ``(sum of n, ...)``, the own ones with their gradient.

    A loss that each process computes over all rows then has its whole gradient with respect to the own rows, and
    nothing is sent on the way back. Every process must call it, with rows of the same shape.
    """
    world = get_world_size()
    if world == 1:
        return tensor
    counts = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world)]
    torch.distributed.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
    longest = max(int(count) for count in counts)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    rows = [part[: int(count)] for part, count in zip(parts, counts, strict=True)]
    rows[torch.distributed.get_rank()] = tensor
    return torch.cat(rows)


def total(number: int, device: torch.device) -> int:
    """The sum of a number over all processes."""
    if get_world_size() == 1:
        return number
    summed = torch.tensor(number, device=device)
    torch.distributed.all_reduce(summed)
    return int(summed)


def uniform(count: int, device: torch.device) -> Tensor:
    """Numbers from 0 to 1, float64, the same on every process.

    They come from torch's CPU generator, whose state the trainer saves with each checkpoint.
    """
    draws = torch.rand(count, dtype=torch.float64)
    if get_world_size() == 1:
        return draws
    shared = draws.to(device)
    torch.distributed.broadcast(shared, src=0)
    return shared.cpu()
