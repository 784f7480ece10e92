"""How a set of vectors fills its space, in figures that do not change when the space is rotated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from st_asym.isotropy import uniformity

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
    """:func:`st_asym.isotropy.uniformity`, of 2,048 of the vectors, always the same ones, where there are more.

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
