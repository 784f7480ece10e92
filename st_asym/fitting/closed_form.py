"""Heads in closed form: within-pair whitening."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.modules import Dense, Router
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import Unpack

from st_asym.fitting.vectors import taken
from st_asym.heads.projection import AsymmetricProjection, ProjectionOptions

# Pairs whose differences are in memory at a time.
_PORTION = 1024


def pair_covariance(queries: Any, documents: Any, rows: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """The second moment of q - d over labelled pairs, of unit vectors, as float64 of shape ``(d, d)``.

    ``rows`` of queries, ``columns`` of documents and ``weights``, which are divided by their sum, are of shape
    ``(pairs,)``; vectors are tensors, or arrays such as a ``numpy.memmap``.
    """
    total = torch.zeros(queries.shape[1], queries.shape[1], dtype=torch.float64)
    share = weights.double() / weights.double().sum()
    for start in range(0, len(rows), _PORTION):
        part = slice(start, start + _PORTION)
        asked, answers = taken(queries, rows[part]).double(), taken(documents, columns[part]).double()
        difference = normalize(asked) - normalize(answers)
        total += difference.T @ (share[part, None] * difference)
    return total


def pair_whitening(covariance: Tensor, strength: float) -> Tensor:
    r"""The matrix W = (C + s tr(C)/n I)^(-1/2), which makes differences within a pair alike in all directions.

    Directions in which a query and its documents differ anyway tell nothing about relevance, and get less weight. Known
    as relevant component analysis (Bar-Hillel et al. 2005, "Learning a Mahalanobis Metric from Equivalence
    Constraints") and as within-class covariance normalisation (Hatch et al. 2006). C alone is singular where there are
    fewer pairs than dimensions; the shrinkage s takes care of that, and the larger it is, the nearer W is to the
    identity.

    Args:
        covariance: C of :func:`pair_covariance`, shape ``(n, n)``.
        strength: s, above zero.

    Returns:
        Float64, symmetric and positive definite, of shape ``(n, n)``; scaled to a trace of n, so that the identity is
        its limit. (Cosine does not see the scale.)

    Raises:
        ValueError: ``strength`` is not above zero, or the covariance is not finite.

    Example:
        >>> covariance = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
        >>> pair_whitening(covariance, 1.0).diagonal()
        tensor([0.8730, 1.1270], dtype=torch.float64)
    """
    if not strength > 0:
        raise ValueError(f"strength must be above 0, got {strength}.")
    if not torch.isfinite(covariance).all():
        raise ValueError("The covariance is not finite: a vector of a pair is not.")
    size = len(covariance)
    identity = torch.eye(size, dtype=torch.float64, device=covariance.device)
    mean = covariance.double().trace() / size
    if mean <= 0:  # queries equal to their documents: no direction is worse than another
        return identity
    values, vectors = torch.linalg.eigh(covariance.double() + strength * mean * identity)
    whitening: Tensor = vectors @ torch.diag(values.clamp(min=strength * mean).rsqrt()) @ vectors.T
    return whitening * (size / whitening.trace())


def whitened_heads(
    queries: Any, documents: Any, *, strength: float = 1.0, **projection: Unpack[ProjectionOptions]
) -> Router:
    """Heads that start as within-pair whitening, see :func:`pair_whitening`: good ones, without any training.

    Args:
        queries: Vectors before the heads, a row for each labelled pair, shape ``(pairs, d)``.
        documents: The vectors of the relevant documents, row by row.
        strength: s: the larger, the nearer to the identity. 0.1 to 3 is the range worth trying.
        **projection: More options of :func:`st_asym.AsymmetricProjection`. One linear layer without bias, if no
            ``hidden_features`` are given; with ``hidden_features="2x"``, heads to be trained further. With
            ``document=False`` or ``query=False`` the other head is W W, which gives the same similarities but for the
            length of the vectors.

    Returns:
        A stock ``Router``, for :class:`~sentence_transformers.SentenceTransformer` pipelines before a ``Normalize``.

    Raises:
        ValueError: The arrays do not fit each other, hold no pair, or a value that is not finite; ``strength`` is not
            above 0; ``init`` is not the identity; or as for :func:`st_asym.AsymmetricProjection`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> documents = torch.randn(20, 4, generator=generator)
        >>> queries = documents + torch.tensor([1.0, 0.1, 0.1, 0.1]) * torch.randn(20, 4, generator=generator)
        >>> heads = whitened_heads(queries, documents)
        >>> projected = heads({"sentence_embedding": queries}, task="query")["sentence_embedding"]
        >>> projected.shape
        torch.Size([20, 4])
    """
    queries, documents = torch.as_tensor(queries), torch.as_tensor(documents)
    if queries.ndim != 2 or queries.shape != documents.shape or not len(queries):
        raise ValueError(
            f"queries and documents must have one row for each pair and the same dimension, not the shapes "
            f"{tuple(queries.shape)} and {tuple(documents.shape)}."
        )
    if projection.get("init", "identity") != "identity":
        raise ValueError("Whitened heads start from the identity: leave init out.")
    options: ProjectionOptions = {"hidden_features": None, "bias": False}
    options.update(projection)
    rows = torch.arange(len(queries))
    covariance = pair_covariance(queries, documents, rows, rows, torch.ones(len(rows)))
    whitening = pair_whitening(covariance, strength)
    return write_whitening(AsymmetricProjection(queries.shape[1], **options), whitening)


@torch.no_grad()
def write_whitening(router: Router, whitening: Tensor) -> Router:
    """Let heads that start as the identity, not trained yet, start as a matrix W instead, in place and exactly.

    Each head then gives W x, or W W x where the other side has none. Of a head with hidden layers the first holds
    [W; -W].
    """
    routes: Any = router.sub_modules
    firsts = [next((layer for layer in route if isinstance(layer, Dense)), None) for route in routes.values()]
    if None in firsts:  # one side alone has to do what both would: q W W d = (W q) (W d)
        whitening = whitening @ whitening
    for first in {layer for layer in firsts if layer is not None}:  # a shared head is both routes
        weight = first.linear.weight
        weight.copy_((weight.double() @ whitening.to(weight.device)).to(weight.dtype))
    return router
