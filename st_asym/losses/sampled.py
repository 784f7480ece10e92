"""Large corpora: documents by the chunk, a sample drawn anew in each step, the hardest negatives found so far."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed
from sentence_transformers.util import get_world_size
from torch import Tensor

from st_asym.losses.distributed import gather_rows, uniform
from st_asym.losses.documents import Documents, Negatives, Relevance, find
from st_asym.retrieval import nearest

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

    So many are drawn in proportion to what either kind counts as a whole; at least one of each kind that counts, as
    nothing else could stand for it, and all that count where there are fewer.
    """

    def __init__(self, labelled: Tensor, unlabelled_weight: float, count: int) -> None:
        kinds = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        shares = _shares(len(kinds[0]), len(kinds[1]), unlabelled_weight, count)
        first, second = (stretches(len(kind), share) for kind, share in zip(kinds, shares, strict=True))
        self._positions = torch.cat(kinds)
        self._starts = torch.cat([first[0], second[0] + len(kinds[0])])
        self._sizes = torch.cat([first[1], second[1]])
        self._weights = self._sizes.double().log()
        self._weights[len(first[1]) :] += math.log(unlabelled_weight or 1.0)  # none are drawn at a weight of 0

    def draw(self, device: torch.device) -> Negatives:
        """One document of each stretch, the same on every process, agreed upon through its device."""
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

    ``documents`` are their positions in the corpus, a row for each query, -1 where there are none. Memory is
    ``queries * (12 * size + 4 * dimension)`` bytes. ``among`` are the positions of the documents that count, ascending;
    None for the whole corpus. Every ``refresh_steps`` steps a scan covers so many of them.
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
        self.documents = torch.full((len(relevance), size), -1)
        self._similarities = torch.full((len(relevance), size), -torch.inf)
        self._vectors = torch.zeros(len(relevance), 0)
        self._waiting = torch.zeros(len(relevance), dtype=torch.bool)

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
        self.documents[labels], self._similarities[labels] = documents, similarities

    @torch.no_grad()
    def _scan(self) -> None:
        """Look through the next documents, each process through its share, for queries updated since the last scan."""
        labels = self._waiting.nonzero().flatten()
        kept = self.documents[labels]
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
        self.documents[labels], self._similarities[labels] = _hardest(*candidates, self.size)
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
    """The most similar of each row, of at least so many, shape ``(n, size)``; -1 stands for those at minus infinity."""
    best = similarities.topk(size, dim=1)
    return documents.gather(1, best.indices).masked_fill(best.values == -torch.inf, -1), best.values
