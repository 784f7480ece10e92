"""What only a large corpus needs: a sample of its documents in each step, and the hardest negatives of each query."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property

import torch
import torch.distributed
from sentence_transformers.util import get_world_size
from torch import Tensor

from st_asym.losses.relevance import Relevance

_QUERIES_AT_ONCE = 1024


class Sample:
    """Documents drawn anew in each step, those that are relevant to some query and the others apart.

    Args:
        documents: How many there are.
        labelled: Positions of those that are relevant to some query, ascending.
        unlabelled_weight: What each of the others counts.
    """

    def __init__(self, documents: int, labelled: Tensor, unlabelled_weight: float) -> None:
        self._labelled, self._weight = labelled, unlabelled_weight
        self.everything = torch.arange(documents)
        others = torch.ones(documents, dtype=torch.bool)
        others[labelled] = False
        self._unlabelled = others.nonzero()[:, 0] if unlabelled_weight > 0 else labelled[:0]

    @cached_property
    def all_log_weights(self) -> Tensor | None:
        """The logarithm of what each document of the corpus counts; None where each counts one."""
        if self._weight == 1 or not len(self._unlabelled):
            return None
        return self.log_weights(self.everything)

    def log_weights(self, documents: Tensor) -> Tensor:
        """The logarithm of what documents at these positions count."""
        weights = torch.zeros(len(documents), dtype=torch.float64)
        if self._weight < 1:
            weights[~torch.isin(documents, self._labelled)] = math.log(max(self._weight, 1e-30))
        return weights

    def documents(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw so many documents, in proportion to what those of either kind count together.

        Args:
            count: How many; all that count, if there are fewer.
            device: Where processes exchange what they draw.

        Returns:
            Positions, ascending, and the logarithm of what each counts, those that it stands for included.
        """
        sizes = len(self._labelled), len(self._unlabelled)
        total = sizes[0] + self._weight * sizes[1]
        first = min(sizes[0], max(count - sizes[1], round(count * sizes[0] / total)))
        drawn = [
            self.draw(part, wanted, device)
            for part, wanted in ((self._labelled, first), (self._unlabelled, min(sizes[1], count - first)))
        ]
        positions = torch.cat([positions for positions, _ in drawn])
        logs = [stands_for.double().log() for _, stands_for in drawn]
        if len(logs[1]) and self._weight < 1:
            logs[1] = logs[1] + math.log(self._weight)
        positions, order = positions.sort()
        return positions, torch.cat(logs)[order]

    def draw(self, documents: Tensor, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """One document from each of ``count`` equal stretches of a list, and how many documents it stands for.

        The same on every process. The draws come from torch's CPU generator, whose state the trainer saves with each
        checkpoint; a list that is taken whole draws nothing.
        """
        if count >= len(documents):
            return documents, torch.ones(len(documents), dtype=torch.int64)
        draws = torch.rand(count, dtype=torch.float64)
        if get_world_size() > 1:
            shared = draws.to(device)
            torch.distributed.broadcast(shared, src=0)
            draws = shared.cpu()
        bounds = torch.arange(count + 1) * len(documents) // max(count, 1)
        sizes = bounds.diff()
        return documents[bounds[:-1] + (draws * sizes).long()], sizes


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
