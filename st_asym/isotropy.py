"""How evenly a batch of vectors uses its space: three differentiable measures, all lowest when it is even.

Each takes a tensor of shape ``(n, d)``, of any floating dtype and any lengths, looks at directions only, computes in
float32 (float64 stays float64) and returns a scalar. Rows of zero length count as vectors that are orthogonal to all
others and receive no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALLEST_VALUE = 1e-12


def covariance(vectors: Tensor) -> Tensor:
    """Distance of the second-moment matrix from the identity, without the sampling bias of small batches.

    The mean over pairs i != j of cos(i, j)^2, less 1/d, plus the square of the mean of cos(i, j). With
    S = (d/n) sum_i x_i x_i^T over unit vectors x_i, the first part estimates ||S - I||_F^2 / d^2; it is the second
    moment term of Zhang et al. 2017, "Learning Spread-out Local Feature Descriptors" (https://arxiv.org/abs/1708.06320),
    without its clamp at zero, which would bias it. Computed from the n x n or the d x d product, whichever is smaller.

    Uniform directions give 0 on average: exactly in the first part, to within 2 / (d n (n - 1)) in the second. Vectors
    that all coincide give 2 - 1/d. A single vector gives 0.

    Args:
        vectors: Shape ``(n, d)``.

    Returns:
        A scalar.

    Example:
        >>> round(covariance(torch.ones(8, 4)).item(), 4)
        1.75
    """
    x = unit(vectors)
    n, d = x.shape
    if n < 2:
        return x.sum() * 0.0
    squared_lengths = x.pow(2).sum(dim=1)
    products = x @ x.T if n <= d else x.T @ x
    pairs = n * (n - 1)
    mean_cosine = (x.sum(dim=0).pow(2).sum() - squared_lengths.sum()) / pairs
    mean_squared_cosine = (products.pow(2).sum() - squared_lengths.pow(2).sum()) / pairs
    return mean_squared_cosine - 1.0 / d + mean_cosine.pow(2)


def sigreg(vectors: Tensor, directions: Tensor, *, knots: int = 17) -> Tensor:
    """Distance of the vectors' one-dimensional projections from the standard normal distribution.

    The Epps-Pulley statistic per sample, averaged over directions a: the integral over t of
    |mean_i exp(i t a.z_i) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), where z_i are the unit vectors times sqrt(d). This is the
    SIGReg of LeJEPA (Balestriero and LeCun 2025, https://arxiv.org/abs/2511.08544) divided by the batch size, so that
    its weight means the same at every batch size. The integral is a trapezoid sum over ``knots`` points in [0, 5],
    doubled, as the integrand is even.

    It is never zero: n independent normal vectors give (sqrt(2 pi) - sqrt(2 pi / 3)) / n = 1.06 / n on average, and
    uniform directions the same but for terms of order 1/d. Vectors that all coincide give 1.06 on average over
    directions, whatever n.

    Args:
        vectors: Shape ``(n, d)``.
        directions: Shape ``(d, slices)``, of any lengths: the directions to project on. Draw them anew for every batch
            from a normal distribution.
        knots: Points of the integral, at least 2.

    Returns:
        A scalar.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> directions = torch.randn(64, 256)
        >>> even = sigreg(torch.randn(512, 64), directions)
        >>> even.item() < 0.01 < sigreg(torch.ones(512, 64), directions).item()
        True
    """
    x = unit(vectors)
    projections = (x * math.sqrt(x.shape[1])) @ unit(directions.to(x).T).T
    t = torch.linspace(0.0, 5.0, knots, dtype=x.dtype, device=x.device)
    normal = torch.exp(-0.5 * t.pow(2))
    weights = torch.full_like(t, 2.0 * 5.0 / (knots - 1))
    weights[[0, -1]] /= 2.0
    angles = projections.unsqueeze(-1) * t
    distances = (angles.cos().mean(dim=0) - normal).pow(2) + angles.sin().mean(dim=0).pow(2)
    return (distances @ (weights * normal)).mean()


def uniformity(vectors: Tensor) -> Tensor:
    """Logarithm of the mean Gaussian potential of pairs, log mean_{i != j} exp(-2 ||x_i - x_j||^2).

    From Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere" (https://arxiv.org/abs/2005.10242), with their t = 2. Vectors that all coincide, and a single vector,
    give 0; uniform directions about -4 + 8/d.

    Args:
        vectors: Shape ``(n, d)``.

    Returns:
        A scalar.

    Example:
        >>> round(uniformity(torch.eye(8)).item(), 4)
        -4.0
    """
    x = unit(vectors)
    n = len(x)
    if n < 2:
        return x.sum() * 0.0
    squared_lengths = x.pow(2).sum(dim=1)
    squared_distances = squared_lengths[:, None] + squared_lengths[None, :] - 2.0 * (x @ x.T)
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    potentials = (-2.0 * squared_distances).masked_fill(itself, -torch.inf)
    return potentials.flatten().logsumexp(dim=0) - math.log(n * (n - 1))


def unit(vectors: Tensor) -> Tensor:
    """Rows of ``vectors`` at length one, in float32 or better; rows of no length stay zero and get no gradient."""
    x = vectors if vectors.dtype == torch.float64 else vectors.float()
    # Scaled by a constant first, so that squares neither overflow nor vanish.
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    has_length = ~(largest <= _SMALLEST_VALUE)  # so that NaN stays NaN
    scaled = torch.where(has_length, x / torch.where(has_length, largest, 1.0), 0.0)
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(has_length, lengths, 1.0)
