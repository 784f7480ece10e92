"""Large corpora: documents by the chunk, a sample drawn anew in each step, the hardest negatives found so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed
from sentence_transformers.util import get_world_size
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from st_asym.losses.distributed import gather_rows, uniform
from st_asym.losses.documents import Documents, Relevance
from st_asym.retrieval import nearest

# Documents that go through the head at once: a processor is fastest where they stay in its cache.
_CPU_CHUNK, _GPU_CHUNK = 1024, 16_384
# What the graph of one step may take before its chunks are computed again in the backward pass.
_GRAPH_BYTES = 1 << 30
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


class Negatives(NamedTuple):
    """Documents that are negatives of all queries of a batch, but for pairs that are counted apart."""

    positions: Tensor | None  # in the corpus, ascending, shape (n,), on the CPU; None for all of it
    # Logarithms of how many documents each counts for, shape (n,); None where each counts for one.
    weights: Tensor | None

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

    ``documents`` gives the unit vectors of a stretch of them. Pairs of ``rows`` and ``columns``, on the CPU, are
    counted apart. ``activations`` is how many numbers the graph keeps of each document on its way through the head: a
    graph that is too large, or chunks that are asked for, are computed again in the backward pass. ``reduced`` computes
    similarities in bfloat16, and not their sums.
    """
    device = queries.device
    size = chunk_size or (_CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK)
    columns, order = columns.sort()
    starts = range(0, count, size)
    edges = [*torch.searchsorted(columns, torch.tensor(starts)).tolist(), len(columns)]
    rows, columns, back = (part.to(device) for part in (rows[order], columns, order.argsort()))
    weights = None if weights is None else weights.to(queries)

    def compare_chunk(stretch: slice, own: slice) -> Logits:
        vectors = documents(stretch)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            similarities = queries @ vectors.to(queries.dtype).T
        with torch.autocast(device.type, enabled=False):
            logits = similarities.to(queries.dtype)
            apart = rows[own], columns[own] - stretch.start
            pairs = logits[apart]
            # Finite, so that a query without negatives has a gradient, of zero.
            logits[apart] = torch.finfo(logits.dtype).min
            top = logits.detach().topk(min(best, logits.shape[1]), dim=1)
            if weights is not None:
                logits = logits + weights[stretch]
            return Logits(logits.logsumexp(dim=1), pairs, top.indices + stretch.start, top.values)

    run: Callable[..., Any] = compare_chunk
    graph = count * (activations + 3 * len(queries)) * queries.element_size()
    if chunk_size is not None or graph > _GRAPH_BYTES:
        run = partial(checkpoint, compare_chunk, use_reentrant=False)
    stretches = (slice(start, min(start + size, count)) for start in starts)
    parts = [run(stretch, slice(*own)) for stretch, own in zip(stretches, pairwise(edges), strict=True)]
    sums, pairs, places, logits = zip(*parts, strict=True)
    return Logits(
        torch.stack(sums, dim=1).logsumexp(dim=1),
        torch.cat(pairs)[back],
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


class Sample:
    """Documents drawn anew in each step, those that are relevant to some query and the others apart.

    So many are drawn in proportion to what either kind counts as a whole; at least one of each kind that counts, as
    nothing else could stand for it, and all that count where there are fewer.
    """

    def __init__(self, labelled: Tensor, unlabelled_weight: float, count: int) -> None:
        parts = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        self._positions, offsets, lengths, weights = torch.cat(parts), [], [], []
        shares = _shares(len(parts[0]), len(parts[1]), unlabelled_weight, count)
        first = 0
        for part, weight, share in zip(parts, (1.0, unlabelled_weight), shares, strict=True):
            starts, sizes = stretches(len(part), share)
            offsets.append(starts + first)
            lengths.append(sizes)
            weights.append(sizes.double().log() + (math.log(weight) if weight else 0.0))
            first += len(part)
        self._starts, self._sizes, self._weights = torch.cat(offsets), torch.cat(lengths), torch.cat(weights)

    def draw(self, device: torch.device) -> Negatives:
        """One document of each stretch, the same on every process; ``device`` is where they exchange what they draw."""
        places = self._starts + (uniform(len(self._starts), device) * self._sizes).long()
        positions, order = self._positions[places].sort()
        return Negatives(positions, self._weights[order])


def stretches(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Starts and lengths of ``count`` equal stretches, or of as many as there are places."""
    count = min(count, size)
    bounds = torch.arange(count + 1) * size // max(count, 1)
    return bounds[:-1], bounds.diff()


class HardNegatives:
    """The hardest negatives found so far, and the last vector of each query; on the CPU, equal on every process.

    Memory is ``queries * (12 * size + 4 * dimension)`` bytes. ``among`` are the positions of the documents that count,
    ascending; None for the whole corpus. Every ``refresh_steps`` steps a scan covers so many of them.
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

        ``labels`` and unit ``vectors`` are those of the own queries, the rest of shape ``(n, candidates)``. No document
        is there twice for a query; a similarity of minus infinity leaves it out.
        """
        hardest = _hardest(documents, similarities.float(), self.size)
        own = (labels.to(vectors.device), vectors.detach().float(), *hardest)
        labels, vectors, documents, similarities = (gather_rows(tensor).cpu() for tensor in own)
        if self._vectors.shape[1] == 0:
            self._vectors = torch.zeros(len(self._relevance), vectors.shape[1])
        self._vectors[labels], self._waiting[labels] = vectors, True
        self._documents[labels], self._similarities[labels] = documents, similarities

    @torch.no_grad()
    def _scan(self) -> None:
        """Look through the next documents, each process through its share, for queries updated since the last scan."""
        labels = self._waiting.nonzero().flatten()
        kept = self._documents[labels]
        # Not to be found: what is judged or ignored, and what would be found again.
        known, there = self._relevance.of(labels), kept >= 0
        rows = torch.cat([known.rows, there.nonzero()[:, 0]])
        columns = torch.cat([known.columns, kept[there]])
        if self._among is not None:
            columns = find(columns, self._among)
        queries = self._vectors[labels].to(self._corpus.device)
        similarities, places = (
            part.cpu() for part in nearest(queries, self._chunks(), self.size, excluded=(rows, columns))
        )
        found = [(places if self._among is None else self._among[places], similarities)]
        if get_world_size() > 1:
            own, found = found[0], [found[0]] * get_world_size()
            torch.distributed.all_gather_object(found, own)
        documents, values = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        candidates = torch.cat([kept, documents], dim=1), torch.cat([self._similarities[labels], values], dim=1)
        self._documents[labels], self._similarities[labels] = _hardest(*candidates, self.size)
        self._waiting[:] = False
        self._next = (self._next + self._window) % self._count

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Unit vectors of the documents that this process scans, in stretches, each with the place of its first."""
        world = get_world_size()
        rank = torch.distributed.get_rank() if world > 1 else 0
        end = self._next + self._window
        for begin, stop in ((self._next, min(end, self._count)), (0, max(0, end - self._count))):
            for start in range(begin + rank * _SCAN_CHUNK, stop, world * _SCAN_CHUNK):
                part = slice(start, min(start + _SCAN_CHUNK, stop))
                vectors = self._corpus.take(part if self._among is None else self._among[part])
                yield start, self._corpus.project(vectors)


def _shares(labelled: int, unlabelled: int, unlabelled_weight: float, count: int) -> tuple[int, int]:
    """How many labelled and unlabelled documents to draw, of so many that there are."""
    if not unlabelled or not unlabelled_weight:
        return min(count, labelled), 0
    share = round(count * labelled / (labelled + unlabelled_weight * unlabelled))
    first = min(labelled, max(1, min(share, count - 1)))
    second = min(unlabelled, max(1, count - first))
    return min(labelled, max(first, count - second)), second


def _hardest(documents: Tensor, similarities: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The most similar of each row, shape ``(n, size)``, filled up with -1 at minus infinity."""
    best = similarities.topk(min(size, similarities.shape[1]), dim=1)
    chosen = documents.gather(1, best.indices).masked_fill(best.values == -torch.inf, -1)
    missing = size - chosen.shape[1]
    return (
        torch.nn.functional.pad(chosen, (0, missing), value=-1),
        torch.nn.functional.pad(best.values, (0, missing), value=-torch.inf),
    )
