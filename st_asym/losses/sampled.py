"""Large corpora: a sample of documents drawn anew in each step, and the hardest negatives found so far."""

from __future__ import annotations

import math

import torch
from sentence_transformers.util import get_rank, get_world_size
from torch import Tensor
from torch.nn.functional import pad

from st_asym.losses.distributed import gathered, one_of_each
from st_asym.losses.documents import NOTHING, Documents, KnownPairs, Negatives, Relevance, find
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

    ``count`` is divided in proportion to the total weight of either kind: at least one document of each kind whose
    weight is above 0, and all of a kind that has fewer than its part.
    """

    def __init__(self, labelled: Tensor, unlabelled_weight: float, count: int) -> None:
        self._kinds = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        self._weights = 0.0, math.log(unlabelled_weight or 1.0)  # of one document; none are drawn at a weight of 0
        first, second = map(len, self._kinds)
        if not second or not unlabelled_weight:
            self._counts = min(count, first), 0
            return
        share = round(count * first / (first + unlabelled_weight * second))
        drawn = min(first, max(1, min(share, count - 1)))
        others = min(second, max(1, count - drawn))
        self._counts = min(first, max(drawn, count - others)), others

    def draw(self) -> Negatives:
        """One document of each stretch, which counts for all of it; the same on every process."""
        positions, weights = [], []
        for kind, weight, count in zip(self._kinds, self._weights, self._counts, strict=True):
            places, lengths = one_of_each(len(kind), count)
            positions.append(kind[places])
            weights.append(weight + lengths.double().log())
        ascending, order = torch.cat(positions).sort()
        return Negatives(ascending, torch.cat(weights)[order])


class HardNegatives:
    """The hardest negatives found so far, and the last vector of each query; on the CPU, equal on every process.

    ``documents`` are their positions in the corpus, a row for each query, -1 where there are none. Memory is
    ``queries * (12 * size + 4 * dimension)`` bytes. ``among`` are the positions of the documents that count, ascending;
    None for the whole corpus. Every ``refresh_steps`` steps a scan covers so many of them.
    """

    def __init__(
        self,
        relevance: Relevance,
        corpus: Documents,
        among: Tensor | None,
        *,
        size: int,
        refresh_steps: int,
        scanned: int,
    ) -> None:
        self.size = size
        self._relevance, self._corpus, self._among = relevance, corpus, among
        self._count = len(corpus) if among is None else len(among)
        self._refresh_steps, self._window = refresh_steps, min(scanned, self._count)
        self._steps = self._next = 0
        self.documents = torch.full((len(relevance), size), -1)
        self._similarities = torch.full((len(relevance), size), NOTHING)
        self._vectors = torch.zeros(len(relevance), 0)
        self._waiting = torch.zeros(len(relevance), dtype=torch.bool)

    def of(self, labels: Tensor, unlabelled_weight: float) -> KnownPairs:
        """The hard negatives of queries at some positions; what does not count as a negative at all is never kept."""
        kept = self.documents[labels]
        rows, ranks = (kept >= 0).nonzero(as_tuple=True)
        columns = kept[rows, ranks]
        weights = self._relevance.weights(columns, unlabelled_weight)
        return KnownPairs(rows, columns, torch.zeros_like(weights), weights, torch.ones_like(rows, dtype=torch.bool))

    def step(self) -> None:
        """Count a step of training, and scan where it is time to."""
        self._steps += 1
        if self._steps % self._refresh_steps == 0:
            self._scan()

    def update(self, labels: Tensor, vectors: Tensor, documents: Tensor, similarities: Tensor) -> None:
        """Replace what is kept of some queries, of all processes, by the hardest of these candidates.

        ``labels`` and ``vectors`` are those of the own queries, the rest of shape ``(n, candidates)``. No document is
        there twice for a query; at a similarity of ``NOTHING`` it is no candidate.
        """
        vectors, similarities = vectors.detach().float().cpu(), similarities.float().cpu()
        if self._vectors.shape[1] == 0:
            self._vectors = torch.zeros(len(self._relevance), vectors.shape[1])
        for of, its_vectors, *hardest in gathered((labels, vectors, *self._hardest(documents.cpu(), similarities))):
            self._vectors[of], self._waiting[of] = its_vectors, True
            self.documents[of], self._similarities[of] = hardest

    @torch.no_grad()
    def _scan(self) -> None:
        """Look through the next documents, each process through its share, for queries updated since the last scan."""
        labels = self._waiting.nonzero().flatten()
        places = ((torch.arange(self._window) + self._next) % self._count).sort().values
        window = places if self._among is None else self._among[places]
        # Not to be found: what is judged or ignored, and what would be found again.
        known, kept = self._relevance.of(labels), self.documents[labels]
        again = (kept >= 0).nonzero(as_tuple=True)
        excluded = torch.cat([known.rows, again[0]]), find(torch.cat([known.columns, kept[again]]), window)
        own = (
            (start, self._corpus.project(self._corpus.take(window[start : start + _SCAN_CHUNK])))
            for start in range(get_rank() * _SCAN_CHUNK, self._window, get_world_size() * _SCAN_CHUNK)
        )
        queries = self._vectors[labels].to(self._corpus.device)
        similarities, found = (part.cpu() for part in nearest(queries, own, self.size, excluded=excluded))
        for its_documents, its_similarities in gathered((window[found], similarities)):
            candidates = torch.cat([self.documents[labels], its_documents], dim=1)
            values = torch.cat([self._similarities[labels], its_similarities], dim=1)
            self.documents[labels], self._similarities[labels] = self._hardest(candidates, values)
        self._waiting[:] = False
        self._next = (self._next + self._window) % self._count

    def _hardest(self, documents: Tensor, similarities: Tensor) -> tuple[Tensor, Tensor]:
        """The most similar of each row, shape ``(n, size)``; -1 stands for what is no candidate."""
        missing = (0, max(0, self.size - documents.shape[1]))
        best = pad(similarities, missing, value=NOTHING).topk(self.size, dim=1)
        documents = pad(documents, missing, value=-1).gather(1, best.indices)
        return documents.masked_fill(best.values <= NOTHING / 2, -1), best.values
