"""How a set of vectors fills its space, in figures that do not change when the space is rotated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import skew
from torch import Tensor

from st_asym.losses.isotropy import uniformity
from st_asym.retrieval.metrics import TOP

# Rows that uniformity, which compares all with all, looks at.
_SAMPLE = 2048


def mean_norm(vectors: Tensor) -> float:
    """Length of the mean vector: of unit vectors 0 when they are centred, 1 when they coincide.

    Args:
        vectors: Shape ``(n, d)``.

    Example:
        >>> mean_norm(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        0.0
    """
    return float(vectors.double().mean(dim=0).norm())


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine of all pairs i != j; 0 for a single vector.

    Args:
        vectors: Unit vectors, shape ``(n, d)``.

    Example:
        >>> mean_cosine(torch.eye(3))
        0.0
    """
    n = len(vectors)
    if n < 2:
        return 0.0
    x = vectors.double()
    return float((x.sum(dim=0).pow(2).sum() - x.pow(2).sum()) / (n * (n - 1)))


def spectrum(vectors: Tensor) -> Tensor:
    """Variance along each principal axis, the largest first: the eigenvalues of the covariance matrix.

    Args:
        vectors: Shape ``(n, d)``.

    Returns:
        Shape ``(d,)``, float64. At most n - 1 of them are above zero.

    Example:
        >>> spectrum(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))
        tensor([4., 0.], dtype=torch.float64)
    """
    n, d = vectors.shape
    centred = vectors.double() - vectors.double().mean(dim=0)
    # The smaller of the two matrices that share their eigenvalues.
    gram = centred.T @ centred if d <= n else centred @ centred.T
    found = torch.linalg.eigvalsh(gram / n).clamp(min=0.0).flip(0)
    return torch.cat([found, found.new_zeros(d - len(found))])


def isoscore(variances: Tensor) -> float:
    """IsoScore*: 1 when variance is the same along all axes, 0 when it lies on one.

    From Rudman and Eickhoff 2024, "Stable Anisotropic Regularization" (https://arxiv.org/abs/2305.19358). With v the
    eigenvalues of the covariance matrix scaled to length sqrt(d), and the defect
    delta = ||v - 1|| / sqrt(2 (d - sqrt(d))), it is ((d - delta^2 (d - sqrt(d)))^2 - d) / (d^2 - d), which is
    (sum(v)^2 / sum(v^2) - 1) / (d - 1). Without their shrinkage of the covariance matrix (zeta = 0): n vectors have
    variance along n - 1 axes at most, so compare figures of equally many vectors.

    Args:
        variances: Of :func:`spectrum`, shape ``(d,)``.

    Returns:
        In [0, 1]; 0 where there is no variance, 1 in one dimension.

    Example:
        >>> isoscore(torch.ones(5)), isoscore(torch.tensor([1.0, 0.0, 0.0]))
        (1.0, 0.0)
    """
    d = len(variances)
    squares = float(variances.double().pow(2).sum())
    if squares == 0.0:
        return 0.0
    if d == 1:
        return 1.0
    return min(1.0, max(0.0, (float(variances.double().sum()) ** 2 / squares - 1.0) / (d - 1)))


def effective_rank(variances: Tensor) -> float:
    """Number of axes in use: the exponential of the entropy of the singular values.

    From Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality". The singular values are
    those of the centred vectors, that is the square roots of ``variances``, divided by their sum.

    Args:
        variances: Of :func:`spectrum`, shape ``(d,)``.

    Returns:
        From 1 to d; 0 where there is no variance.

    Example:
        >>> round(effective_rank(torch.tensor([1.0, 1.0, 1.0, 0.0])), 6)
        3.0
    """
    values = variances.double().sqrt()
    total = values.sum()
    if total == 0:
        return 0.0
    return math.exp(float(torch.special.entr(values / total).sum()))


def sampled_uniformity(vectors: Tensor) -> float:
    """:func:`st_asym.losses.isotropy.uniformity`, of 2,048 of the vectors, always the same ones, where there are more.

    Args:
        vectors: Shape ``(n, d)``.
    """
    return float(uniformity(sample(vectors, _SAMPLE)))


def sample(vectors: Tensor, most: int) -> Tensor:
    """As many rows at random, always the same ones, or all where there are no more."""
    if len(vectors) <= most:
        return vectors
    rows = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:most]
    return vectors[rows.to(vectors.device)]


_NEIGHBOURS = 10
# Vectors that are compared with each other.
_MOST = 8192
# Similarities that are in memory at a time.
_AT_ONCE = 2**24


def occurrences(vectors: Tensor, k: int = _NEIGHBOURS) -> NDArray[np.int64]:
    """In how many of the other vectors' lists of k nearest neighbours each vector is, by cosine.

    Args:
        vectors: Unit vectors, shape ``(n, d)``.
        k: Length of the lists; n - 1 where there are no more others.

    Returns:
        Shape ``(n,)``, k on average.

    Example:
        >>> line = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.5]]))
        >>> occurrences(line, k=1).tolist()
        [1, 2, 0]
    """
    n = len(vectors)
    k = min(k, n - 1)
    counts = torch.zeros(n, dtype=torch.int64, device=vectors.device)
    rows = max(1, _AT_ONCE // max(n, 1))
    for start in range(0, n, rows):
        similarities = vectors[start : start + rows] @ vectors.T
        own = torch.arange(len(similarities), device=vectors.device)
        similarities[own, own + start] = -torch.inf
        counts += similarities.topk(k, dim=1).indices.flatten().bincount(minlength=n)
    return counts.cpu().numpy()


def hubness(vectors: Tensor, k: int = _NEIGHBOURS) -> float:
    """Skewness of the number of k-occurrences, S_N_k: 0 without hubs; above 1.4 hubs are strong.

    From Radovanovic, Nanopoulos and Ivanovic 2010, "Hubs in Space: Popular Nearest Neighbors in High-Dimensional Data",
    with cosine for the distance. Of more than 8,192 vectors, as many are looked at, always the same ones.

    Args:
        vectors: Unit vectors, shape ``(n, d)``.
        k: Length of the lists of neighbours.

    Returns:
        The skewness; 0 where all counts are equal.

    Example:
        >>> hubness(torch.eye(3))
        0.0
    """
    return skewness(occurrences(sample(vectors, _MOST), k))


def skewness(counts: NDArray[np.int64]) -> float:
    """Third standardised moment; 0 where all values are equal."""
    return float(skew(counts)) if counts.size and counts.min() < counts.max() else 0.0


BINS = 100
# Similarities that are in memory at a time.
_AT_ONCE_SIMILARITIES = 2**24


@dataclass(frozen=True)
class Similarities:
    """Cosines of n queries with m documents.

    Attributes:
        top: Positions of the ten nearest documents, nearest first, shape ``(n, 10)``, or all where there are fewer.
        top_values: Their cosines.
        positives: The cosines of the positive pairs, in the order they were given.
        best_negative: The highest cosine of each query with a document that is not positive, shape ``(n,)``;
            -inf where all are.
        mean_negative: The mean over all pairs that are not positive.
        positive_counts: How many positive pairs are in each of 100 equal bins over [-1, 1].
        negative_counts: The same for all others.
    """

    top: Tensor
    top_values: Tensor
    positives: NDArray[np.float64]
    best_negative: NDArray[np.float64]
    mean_negative: float
    positive_counts: tuple[int, ...]
    negative_counts: tuple[int, ...]


def compare(
    queries: Tensor,
    documents: Tensor,
    positives: Sequence[tuple[int, int]],
    left_out: Sequence[tuple[int, int]] = (),
) -> Similarities:
    """Compare all queries with all documents.

    Args:
        queries: Unit vectors, shape ``(n, d)``.
        documents: Unit vectors, shape ``(m, d)``.
        positives: Distinct positions of queries and of documents that are relevant to them, by query.
        left_out: Positions of queries and of documents that are no results of theirs, none of which is positive.
    """
    n, m = len(queries), len(documents)
    pairs, others = (torch.tensor(places, dtype=torch.int64).reshape(-1, 2) for places in (positives, left_out))
    rows = max(1, _AT_ONCE_SIMILARITIES // m)
    tops, values, best, found = [], [], [], []
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    total = 0.0
    for start in range(0, n, rows):
        block = (queries[start : start + rows] @ documents.T).clamp_(-1.0, 1.0)
        none = others[(others[:, 0] >= start) & (others[:, 0] < start + rows)]
        block[none[:, 0] - start, none[:, 1]] = -torch.inf
        nearest = block.topk(min(TOP, m), dim=1)
        tops.append(nearest.indices)
        values.append(nearest.values)
        own = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + rows)]
        mine = block[own[:, 0] - start, own[:, 1]]
        found.append(mine)
        counts[0] += _histogram(mine)
        counts[1] += _histogram(block) - _histogram(mine)
        block[none[:, 0] - start, none[:, 1]] = 0.0
        total += float(block.sum(dtype=torch.float64) - mine.sum(dtype=torch.float64))
        block[none[:, 0] - start, none[:, 1]] = -torch.inf
        block[own[:, 0] - start, own[:, 1]] = -torch.inf
        best.append(block.amax(dim=1))
    return Similarities(
        top=torch.cat(tops),
        top_values=torch.cat(values),
        positives=torch.cat(found).double().numpy(),
        best_negative=torch.cat(best).double().numpy(),
        mean_negative=total / max(1, n * m - len(pairs) - len(others)),
        positive_counts=tuple(counts[0].tolist()),
        negative_counts=tuple(counts[1].tolist()),
    )


def entered(before: Similarities, after: Similarities, queries: Tensor, documents: Tensor) -> NDArray[np.int64]:
    """How many of each query's ten nearest documents were further away before than its tenth.

    Documents that were as near as the tenth do not count, so that ties in another order are no change.

    Args:
        before: Similarities before.
        after: Similarities after.
        queries: Unit vectors before, shape ``(n, d)``.
        documents: Unit vectors before, shape ``(m, d)``.

    Returns:
        Shape ``(n,)``.
    """
    then = torch.einsum("nd,nkd->nk", queries, documents[after.top])
    return (then < before.top_values[:, -1:] - 1e-5).sum(dim=1).numpy()


def by_query(pairs: Sequence[tuple[int, int]]) -> Mapping[int, list[int]]:
    """The places of the pairs of each query."""
    found: dict[int, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        found.setdefault(query, []).append(place)
    return found


def _histogram(values: Tensor) -> Tensor:
    return torch.histc(values, bins=BINS, min=-1.0, max=1.0).long()
