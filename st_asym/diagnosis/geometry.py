"""How a set of vectors fills its space, in figures that do not change when the space is rotated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import skew
from torch import Tensor

from st_asym.losses.isotropy import uniformity
from st_asym.retrieval.search import TOP, nearest
from st_asym.trainer.monitor import scaled_std

# Vectors that uniformity and hubness look at, which compare all with all.
_OF_UNIFORMITY = 2048
_OF_HUBNESS = 8192


@dataclass(frozen=True)
class Spread:
    """How the vectors of one side fill their space. All but ``length`` look at directions, as cosine does.

    Attributes:
        dimension: Of the vectors.
        mean_norm: Length of the mean of the unit vectors: 0 centred, 1 all coincide.
        std: Standard deviation of the unit vectors, averaged over dimensions and scaled by the square root of their
            number: 1 even and centred, 0 all coincide.
        mean_cosine: Mean cosine of two of them.
        isoscore: IsoScore*, see :func:`st_asym.diagnosis.geometry.isoscore`: 1 even, 0 on one axis.
        effective_rank: See :func:`st_asym.diagnosis.geometry.effective_rank`.
        uniformity: See :func:`st_asym.losses.isotropy.uniformity`: about -4 even, 0 all coincide. Of more than 2,048
            vectors, as many are looked at, always the same ones.
        hubness: See :func:`st_asym.diagnosis.geometry.hubness`, of the vectors of this side among themselves.
        length: Mean length before the last ``Normalize``.
        length_std: Standard deviation of the lengths.
        std_by_dimension: Standard deviation of each dimension, scaled in the same way.
        spectrum: Share of the variance along each principal axis, the largest first.
    """

    dimension: int
    mean_norm: float
    std: float
    mean_cosine: float
    isoscore: float
    effective_rank: float
    uniformity: float
    hubness: float
    length: float
    length_std: float
    std_by_dimension: tuple[float, ...]
    spectrum: tuple[float, ...]

    @classmethod
    def of(cls, vectors: Tensor, directions: Tensor) -> Spread:
        """The figures of vectors of shape ``(n, d)``, given also at length one."""
        d = directions.shape[1]
        lengths = vectors.double().norm(dim=1)
        variances = spectrum(directions)
        return cls(
            dimension=d,
            mean_norm=mean_norm(directions),
            std=float(scaled_std(directions.double())),
            mean_cosine=mean_cosine(directions),
            isoscore=isoscore(variances),
            effective_rank=effective_rank(variances),
            uniformity=float(uniformity(sample(directions, _OF_UNIFORMITY))),
            hubness=hubness(directions),
            length=float(lengths.mean()),
            length_std=float(lengths.std()),
            std_by_dimension=tuple((directions.double().std(dim=0) * d**0.5).tolist()),
            spectrum=tuple((variances / variances.sum().clamp(min=1e-300)).tolist()),
        )


def mean_norm(vectors: Tensor) -> float:
    """Length of the mean vector: of unit vectors 0 when they are centred, 1 when they coincide."""
    return float(vectors.double().mean(dim=0).norm())


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine of all pairs i != j of unit vectors; 0 for a single vector.

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
    """Variance along each principal axis, the largest first: the eigenvalues of the covariance matrix, in float64.

    Of n vectors, at most n - 1 of them are above zero.

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
    """IsoScore*, in [0, 1]: 1 when variance is the same along all axes, 0 when it lies on one or there is none.

    From Rudman and Eickhoff 2024, "Stable Anisotropic Regularization" (https://arxiv.org/abs/2305.19358). With v the
    eigenvalues of the covariance matrix (see :func:`spectrum`) scaled to length sqrt(d), and the defect
    delta = ||v - 1|| / sqrt(2 (d - sqrt(d))), it is ((d - delta^2 (d - sqrt(d)))^2 - d) / (d^2 - d), which is
    (sum(v)^2 / sum(v^2) - 1) / (d - 1). Without their shrinkage of the covariance matrix (zeta = 0): n vectors have
    variance along n - 1 axes at most, so compare figures of equally many vectors.

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
    """Number of axes in use, from 1 to d: the exponential of the entropy of the singular values; 0 without variance.

    From Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality". The singular values are
    those of the centred vectors, that is the square roots of ``variances`` (see :func:`spectrum`), divided by their
    sum.

    Example:
        >>> round(effective_rank(torch.tensor([1.0, 1.0, 1.0, 0.0])), 6)
        3.0
    """
    values = variances.double().sqrt()
    total = values.sum()
    if total == 0:
        return 0.0
    return math.exp(float(torch.special.entr(values / total).sum()))


def sample(vectors: Tensor, most: int) -> Tensor:
    """As many rows at random, always the same ones, or all where there are no more."""
    if len(vectors) <= most:
        return vectors
    rows = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:most]
    return vectors[rows.to(vectors.device)]


def occurrences(vectors: Tensor, k: int = TOP) -> NDArray[np.int64]:
    """In how many of the other unit vectors' lists of k nearest neighbours each vector is, by cosine; k on average.

    Example:
        >>> line = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.5]]))
        >>> occurrences(line, k=1).tolist()
        [1, 2, 0]
    """
    itself = torch.arange(len(vectors), device=vectors.device)
    _, neighbours = nearest(vectors, vectors, min(k, len(vectors) - 1), excluded=(itself, itself))
    return neighbours.flatten().bincount(minlength=len(vectors)).cpu().numpy()


def hubness(vectors: Tensor, k: int = TOP) -> float:
    """Skewness of the number of k-occurrences, S_N_k: 0 without hubs; above 1.4 hubs are strong.

    From Radovanovic, Nanopoulos and Ivanovic 2010, "Hubs in Space: Popular Nearest Neighbors in High-Dimensional Data",
    with cosine for the distance. Of more than 8,192 unit vectors, as many are looked at, always the same ones.

    Example:
        >>> hubness(torch.eye(3))
        0.0
    """
    return skewness(occurrences(sample(vectors, _OF_HUBNESS), k))


def skewness(counts: NDArray[np.int64]) -> float:
    """Third standardised moment; 0 where all values are equal."""
    return float(skew(counts)) if counts.size and counts.min() < counts.max() else 0.0
