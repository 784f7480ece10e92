"""Queries against many documents, a chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from sentence_transformers.util import get_world_size
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from st_asym.losses.distributed import gather_rows
from st_asym.losses.documents import Documents, Relevance

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


_QUERIES_AT_ONCE = 1024
# Documents that a scan takes through the head at once: without a gradient, they may be many.
_SCAN_CHUNK = 4096
# BibTeX of how hard negatives are renewed.
HARD_NEGATIVES = """
@misc{xiong2020approximate,
    title={Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval},
    author={Lee Xiong and Chenyan Xiong and Ye Li and Kwok-Fung Tang and Jialin Liu and Paul Bennett and Junaid Ahmed
        and Arnold Overwijk},
    year={2020},
    eprint={2007.00808},
    archivePrefix={arXiv},
    primaryClass={cs.IR}
}
"""


class Sample:
    """Documents drawn anew in each step, those that are relevant to some query and the others apart.

    Args:
        labelled: Of each document, whether it is relevant to some query.
        unlabelled_weight: What each of the others counts.
        count: How many to draw, in proportion to what either kind counts as a whole; at least one of each kind that
            counts, as nothing else could stand for it, and all that count where there are fewer.
    """

    def __init__(self, labelled: Tensor, unlabelled_weight: float, count: int) -> None:
        parts = [(labelled.nonzero()[:, 0], 1.0), ((~labelled).nonzero()[:, 0], unlabelled_weight)]
        self._positions, offsets, lengths, weights = torch.cat([part for part, _ in parts]), [], [], []
        first = 0
        for (part, weight), share in zip(
            parts, _shares([len(p) for p, _ in parts], unlabelled_weight, count), strict=True
        ):
            starts, sizes = stretches(len(part), share)
            offsets.append(starts + first)
            lengths.append(sizes)
            weights.append(sizes.double().log() + (math.log(weight) if weight else 0.0))
            first += len(part)
        self._starts, self._sizes, self._weights = torch.cat(offsets), torch.cat(lengths), torch.cat(weights)

    def draw(self, device: torch.device) -> Negatives:
        """One document of each stretch, the same on every process.

        Args:
            device: Where processes exchange what they draw.
        """
        places = self._starts + (uniform(len(self._starts), device) * self._sizes).long()
        positions, order = self._positions[places].sort()
        return Negatives(positions, self._weights[order])


def _shares(sizes: list[int], unlabelled_weight: float, count: int) -> tuple[int, int]:
    """How many labelled and unlabelled documents to draw, of so many that there are."""
    labelled, unlabelled = sizes[0], sizes[1] if unlabelled_weight > 0 else 0
    if not unlabelled:
        return min(count, labelled), 0
    share = round(count * labelled / (labelled + unlabelled_weight * unlabelled))
    first = min(labelled, max(1, min(share, count - 1)))
    second = min(unlabelled, max(1, count - first))
    return min(labelled, max(first, count - second)), second


def stretches(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Starts and lengths of ``count`` equal stretches, or of as many as there are places."""
    count = min(count, size)
    bounds = torch.arange(count + 1) * size // max(count, 1)
    return bounds[:-1], bounds.diff()


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


class HardNegatives:
    """The hardest negatives found so far, and the last vector of each query; on the CPU, equal on every process.

    Memory is ``queries * (12 * size + 4 * dimension)`` bytes.

    Args:
        relevance: What is known of the queries: none of it is a hard negative.
        documents: The corpus.
        among: Positions of the documents that count, ascending; None for the whole corpus.
        size: How many negatives to keep of each query.
        refresh_steps: Steps from one scan to the next.
        scanned: How many documents a scan covers.
    """

    def __init__(
        self,
        relevance: Relevance,
        documents: Documents,
        among: Tensor | None,
        *,
        size: int,
        refresh_steps: int,
        scanned: int,
    ) -> None:
        self.size = size
        self._relevance, self._corpus, self._among = relevance, documents, among
        self._count = len(documents) if among is None else len(among)
        self._refresh_steps, self._window = refresh_steps, min(scanned, self._count)
        self._steps = self._next = 0
        self._documents = torch.full((len(relevance), size), -1)
        self._similarities = torch.full((len(relevance), size), -torch.inf)
        self._vectors = torch.zeros(len(relevance), 0)
        self._waiting = torch.zeros(len(relevance), dtype=torch.bool)

    def of(self, labels: Tensor) -> Tensor:
        """Positions of documents, shape ``(n, size)``, -1 where there are none."""
        return self._documents[labels]

    def step(self) -> None:
        """Count a step of training, and scan where it is time to."""
        self._steps += 1
        if self._steps % self._refresh_steps == 0:
            self._scan()

    def update(self, labels: Tensor, vectors: Tensor, documents: Tensor, similarities: Tensor) -> None:
        """Replace what is kept of some queries, of all processes, by the hardest of these candidates.

        Args:
            labels: Positions of the own queries, shape ``(n,)``.
            vectors: Their unit vectors, shape ``(n, d)``.
            documents: Positions of the candidates, shape ``(n, c)``, none twice for a query.
            similarities: Of queries and candidates; minus infinity leaves a candidate out.
        """
        own = (
            labels.to(vectors.device),
            vectors.detach().float(),
            *hardest(documents, similarities.float(), self.size),
        )
        labels, vectors, documents, similarities = (gather_rows(tensor).cpu() for tensor in own)
        if self._vectors.shape[1] == 0:
            self._vectors = torch.zeros(len(self._relevance), vectors.shape[1])
        self._vectors[labels], self._waiting[labels] = vectors, True
        self._documents[labels], self._similarities[labels] = documents, similarities

    @torch.no_grad()
    def _scan(self) -> None:
        """Look through the next documents, each process through its share, for queries updated since the last scan."""
        labels = self._waiting.nonzero().flatten()
        documents, similarities = self._documents[labels], self._similarities[labels]
        rows, columns = self._known(labels)
        for positions, vectors in self._chunks():
            places = find(columns, positions)
            here = places >= 0
            found = self._best(self._vectors[labels], vectors, rows[here], places[here])
            candidates = torch.cat([documents, positions[found[0]]], dim=1)
            documents, similarities = hardest(candidates, torch.cat([similarities, found[1]], dim=1), self.size)
        if get_world_size() > 1:
            documents, similarities = self._of_all_processes(labels, documents, similarities)
        self._documents[labels], self._similarities[labels] = documents, similarities
        self._waiting[:] = False
        self._next = (self._next + self._window) % self._count

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions and unit vectors of the documents that this process scans."""
        rank, world = (torch.distributed.get_rank(), get_world_size()) if get_world_size() > 1 else (0, 1)
        end = self._next + self._window
        for begin, stop in ((self._next, min(end, self._count)), (0, max(0, end - self._count))):
            for start in range(begin + rank * _SCAN_CHUNK, stop, world * _SCAN_CHUNK):
                part = slice(start, min(start + _SCAN_CHUNK, stop))
                positions = torch.arange(part.start, part.stop) if self._among is None else self._among[part]
                vectors = self._corpus.take(part if self._among is None else positions)
                yield positions, self._corpus.project(vectors)

    def _known(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and positions of what a scan must not find: what is judged or ignored, and what it would find again."""
        known = self._relevance.of(labels)
        kept = self._documents[labels]
        there = kept >= 0
        return torch.cat([known.rows, there.nonzero()[:, 0]]), torch.cat([known.columns, kept[there]])

    def _best(self, queries: Tensor, vectors: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        size = min(self.size, len(vectors))
        places, similarities = [torch.empty(0, size, dtype=torch.int64)], [torch.empty(0, size)]
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            products = queries[start : start + _QUERIES_AT_ONCE].to(vectors.device) @ vectors.float().T
            here = (rows >= start) & (rows < start + len(products))
            products[(rows[here] - start).to(products.device), columns[here].to(products.device)] = -torch.inf
            best = products.topk(size, dim=1)
            places.append(best.indices.cpu())
            similarities.append(best.values.cpu())
        return torch.cat(places), torch.cat(similarities)

    def _of_all_processes(self, labels: Tensor, documents: Tensor, similarities: Tensor) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor] | None] = [None] * get_world_size()
        # What was kept before the scan is on every process: count it once.
        new = (documents[:, :, None] != self._documents[labels][:, None, :]).all(dim=2)
        torch.distributed.all_gather_object(found, (documents, similarities.masked_fill(~new, -torch.inf)))
        parts = [(self._documents[labels], self._similarities[labels]), *(part for part in found if part is not None)]
        candidates, values = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        return hardest(candidates, values, self.size)


def hardest(documents: Tensor, similarities: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The most similar of each row, shape ``(n, size)``, filled up with -1 at minus infinity."""
    best = similarities.topk(min(size, similarities.shape[1]), dim=1)
    chosen = documents.gather(1, best.indices).masked_fill(best.values == -torch.inf, -1)
    missing = size - chosen.shape[1]
    return (
        torch.nn.functional.pad(chosen, (0, missing), value=-1),
        torch.nn.functional.pad(best.values, (0, missing), value=-torch.inf),
    )
