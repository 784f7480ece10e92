"""For each query of a large corpus, the negatives that are most similar to it as the heads are now."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from sentence_transformers.util import get_world_size
from torch import Tensor

from st_asym.losses.relevance import Relevance

_QUERIES_AT_ONCE = 1024


class HardNegatives:
    """The hardest negatives found so far, and the last vector of each query; on the CPU, equal on every process.

    Memory is ``queries * (12 * size + 4 * dimension)`` bytes.

    Args:
        relevance: The relevant documents, which are never negatives.
        size: How many negatives to keep of each query.
    """

    def __init__(self, relevance: Relevance, size: int) -> None:
        self.size = size
        self._relevance = relevance
        self._documents = torch.full((len(relevance), size), -1)
        self._similarities = torch.full((len(relevance), size), -torch.inf)
        self._vectors = torch.zeros(len(relevance), 0)
        self._waiting = torch.zeros(len(relevance), dtype=torch.bool)

    def of(self, labels: Tensor) -> Tensor:
        """Positions of documents, shape ``(n, size)``, -1 where there are none."""
        return self._documents[labels]

    def update(self, labels: Tensor, vectors: Tensor, documents: Tensor, similarities: Tensor) -> None:
        """Replace what is kept of some queries by the hardest of these candidates.

        Args:
            labels: Positions of the queries, shape ``(n,)``.
            vectors: Their unit vectors, shape ``(n, d)``.
            documents: Positions of the candidates, shape ``(n, c)``, none twice for a query.
            similarities: Of queries and candidates; minus infinity leaves a candidate out.
        """
        if self._vectors.shape[1] == 0:
            self._vectors = torch.zeros(len(self._relevance), vectors.shape[1])
        self._vectors[labels] = vectors.float()
        self._waiting[labels] = True
        self._documents[labels], self._similarities[labels] = hardest(documents, similarities.float(), self.size)

    def scan(self, chunks: Iterable[tuple[int, Tensor]]) -> None:
        """Look for harder ones for the queries that were updated since the last scan.

        Args:
            chunks: Position of the first document, and unit vectors of shape ``(n, d)``, one chunk after the other;
                under several processes, each scans chunks of its own.
        """
        labels = self._waiting.nonzero().flatten()
        documents, similarities = self._documents[labels], self._similarities[labels]
        rows, columns = self._known(labels)
        for first, vectors in chunks:
            here = (columns >= first) & (columns < first + len(vectors))
            found = self._best(self._vectors[labels], vectors, rows[here], columns[here] - first)
            candidates = torch.cat([documents, found[0] + first], dim=1)
            documents, similarities = hardest(candidates, torch.cat([similarities, found[1]], dim=1), self.size)
        if get_world_size() > 1:
            documents, similarities = self._of_all_processes(labels, documents, similarities)
        self._documents[labels], self._similarities[labels] = documents, similarities
        self._waiting[:] = False

    def _known(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and positions of what a scan must not find: relevant documents, and those it would find again."""
        rows, columns, _ = self._relevance.of(labels)
        kept = self._documents[labels]
        there = kept >= 0
        return torch.cat([rows, there.nonzero()[:, 0]]), torch.cat([columns, kept[there]])

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
