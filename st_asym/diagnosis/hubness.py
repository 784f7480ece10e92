"""Hubs: vectors that are among the nearest of very many others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import skew
from torch import Tensor

from st_asym.diagnosis.statistics import sample

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
