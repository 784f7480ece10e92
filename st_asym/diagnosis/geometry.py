"""Figures of vectors: how a set of them fills its space, and what the heads of a model do to it.

What describes one set does not change when the space is rotated.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.stats import entropy, skew
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from torch import Tensor, nn

from st_asym.heads.anatomy import Side, evaluating, taken_apart
from st_asym.losses.isotropy import scaled_std, uniformity, unit
from st_asym.retrieval.metrics import TOP
from st_asym.retrieval.search import nearest

SIDES: tuple[Side, Side] = ("query", "document")

# Vectors that uniformity and hubness look at, which compare all with all: of more, as many, always the same ones.
_OF_UNIFORMITY = 2048
_OF_HUBNESS = 8192
# Vectors that go through a head at a time.
_AT_ONCE = 16_384


# One set of vectors


@dataclass(frozen=True)
class Spread:
    """How the vectors of one side fill their space. All but ``length`` look at directions, as cosine does."""

    dimension: int
    mean_norm: float  # length of the mean of the unit vectors: 0 centred, 1 all coincide
    # Standard deviation of the unit vectors, averaged over dimensions and scaled by the square root of their number: 1
    # even and centred, 0 all coincide.
    std: float
    mean_cosine: float  # of two of them
    isoscore: float  # 1 even, 0 on one axis
    effective_rank: float
    uniformity: float  # about -4 even, 0 all coincide
    hubness: float  # of the vectors of this side among themselves
    length: float  # mean before the last Normalize
    length_std: float
    std_by_dimension: tuple[float, ...]  # scaled in the same way
    spectrum: tuple[float, ...]  # share of the variance along each principal axis, the largest first

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
    """Mean cosine of all pairs i != j of unit vectors; 0 for a single vector."""
    n = len(vectors)
    if n < 2:
        return 0.0
    x = vectors.double()
    return float((x.sum(dim=0).pow(2).sum() - x.pow(2).sum()) / (n * (n - 1)))


def spectrum(vectors: Tensor) -> Tensor:
    """Variance along each principal axis, the largest first: the eigenvalues of the covariance matrix, in float64."""
    n, d = vectors.shape
    centred = vectors.double() - vectors.double().mean(dim=0)
    # The smaller of the two matrices that share their eigenvalues, of which n vectors have n - 1 above zero at most.
    gram = centred.T @ centred if d <= n else centred @ centred.T
    found = torch.linalg.eigvalsh(gram / n).clamp(min=0.0).flip(0)
    return torch.cat([found, found.new_zeros(d - len(found))])


def isoscore(variances: Tensor) -> float:
    """IsoScore*, in [0, 1]: 1 when variance is the same along all axes, 0 when it lies on one or there is none.

    From Rudman and Eickhoff 2024, "Stable Anisotropic Regularization" (https://arxiv.org/abs/2305.19358). With v the
    :func:`spectrum` scaled to length sqrt(d), and the defect delta = ||v - 1|| / sqrt(2 (d - sqrt(d))), it is
    ((d - delta^2 (d - sqrt(d)))^2 - d) / (d^2 - d), which is (sum(v)^2 / sum(v^2) - 1) / (d - 1). Without their
    shrinkage of the covariance matrix (zeta = 0), so compare figures of equally many vectors.
    """
    d = len(variances)
    squares = float(variances.double().pow(2).sum())
    if squares == 0.0:
        return 0.0
    if d == 1:
        return 1.0
    return min(1.0, max(0.0, (float(variances.double().sum()) ** 2 / squares - 1.0) / (d - 1)))


def effective_rank(variances: Tensor) -> float:
    """Number of axes in use, from 1 to d, of a :func:`spectrum`; 0 without variance.

    From Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality": the exponential of the
    entropy of the singular values of the centred vectors, divided by their sum.
    """
    values = variances.double().sqrt()
    return math.exp(entropy(values)) if values.any() else 0.0


def sample(vectors: Tensor, most: int) -> Tensor:
    """As many rows at random, always the same ones, or all where there are no more."""
    if len(vectors) <= most:
        return vectors
    rows = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:most]
    return vectors[rows.to(vectors.device)]


def hubness(vectors: Tensor, k: int = TOP) -> float:
    """Skewness of the number of k-occurrences of unit vectors, S_N_k: 0 without hubs; above 1.4 hubs are strong.

    From Radovanovic, Nanopoulos and Ivanovic 2010, "Hubs in Space: Popular Nearest Neighbors in High-Dimensional Data",
    with cosine for the distance.
    """
    vectors = sample(vectors, _OF_HUBNESS)
    itself = torch.arange(len(vectors), device=vectors.device)
    _, neighbours = nearest(vectors, vectors, min(k, len(vectors) - 1), excluded=(itself, itself))
    return skewness(neighbours, len(vectors))


def skewness(neighbours: Tensor, count: int) -> float:
    """Third standardised moment of how often each of so many vectors is a neighbour; 0 where all are equally often."""
    counts = neighbours.flatten().bincount(minlength=count).cpu().numpy()
    return float(skew(counts)) if counts.min() < counts.max() else 0.0


# What heads do to vectors


@dataclass(frozen=True)
class Head:
    """What a head h does to the vectors x of its side, with x cut to as many dimensions as h(x) has.

    Its linear map W is the derivative of h averaged over the vectors, of many over 16,384 of them: of a linear head its
    matrix. Modules other than ``Dense`` have none.
    """

    kind: Literal["none", "linear", "nonlinear"]  # "none" where the side has no head
    layers: str  # their sizes, such as "384 -> 768 -> 384"
    parameters: int
    shared: bool  # whether the other side has the same head
    change: float  # ||h(x) - x|| / ||x|| over all vectors
    turn: float  # mean of 1 - cos(h(x), x): what of the change cosine sees
    largest_turn: float
    map_distance: float | None  # ||W - I|| / ||I||
    # Of the change that W explains; near 1, one linear layer (hidden_features=None) would do.
    linear_share: float | None
    singular_values: tuple[float, ...]  # of W, the largest first


class HeadModules:
    """What comes behind the encoder of a model, up to a last ``Normalize``; a model without is a ``ValueError``."""

    def __init__(self, model: SentenceTransformer) -> None:
        encoder, behind = taken_apart(model)
        names = f"[{', '.join(type(module).__name__ for module in (*encoder, *behind))}]"
        if not behind:
            raise ValueError(
                f"This model has no heads to diagnose: there is no Router among its modules {names}. "
                "st_asym.asymmetric_model(encoder) and st_asym.fit make models with heads; where fit kept the encoder "
                "as it was, its report says so."
            )
        routers = [module for module in behind if isinstance(module, Router)]
        missing = [side for side in SIDES if any(side not in router.sub_modules for router in routers)]
        if missing:
            raise ValueError(f"The Router of this model {names} has no route {missing[0]!r}.")
        self.normalised = isinstance(behind[-1], Normalize)
        self._behind = behind[:-1] if self.normalised else behind
        self._device = model.device
        self._kept = model.truncate_dim

    def on_side(self, side: Side) -> nn.Sequential:
        """The modules that vectors of a side go through."""
        routes: Any = (module.sub_modules[side] if isinstance(module, Router) else [module] for module in self._behind)
        return nn.Sequential(*itertools.chain.from_iterable(routes))

    def __call__(self, vectors: Tensor, side: Side) -> Tensor:
        """What the heads make of vectors of shape ``(n, d)``, before a last ``Normalize``, in float32.

        Of a model with a ``truncate_dim``, those dimensions: truncated before or after Normalize, the direction is one.
        """
        modules = self.on_side(side)
        like = next(modules.parameters(), None)
        dtype, device = (torch.float32, self._device) if like is None else (like.dtype, like.device)
        parts = []
        with evaluating(modules):
            for part in torch.split(vectors, _AT_ONCE):
                features = modules({"sentence_embedding": part.to(device, dtype), "task": side})
                parts.append(features["sentence_embedding"].to(vectors.device).float())
        outputs = torch.cat(parts)
        bad = int((~torch.isfinite(outputs).all(dim=1)).sum())
        if bad:
            raise ValueError(
                f"The {side} head makes {bad} of {len(outputs)} vectors NaN or infinite: {self._why(side)}"
            )
        return outputs[:, : self._kept]

    def _why(self, side: Side) -> str:
        for name, tensor in self.on_side(side).named_parameters():
            if not torch.isfinite(tensor).all():
                return (
                    f"its weight {name} is not finite. Training diverged: go back to an earlier checkpoint and lower "
                    "the learning rate."
                )
        return "its weights are finite but too large for their precision. Load the model in float32."

    def describe(self, side: Side, inputs: Tensor, outputs: Tensor) -> Head:
        """What the head of a side does: makes ``outputs``, shape ``(n, e)``, of ``inputs``, shape ``(n, d)``."""
        modules = self.on_side(side)
        parameters = list(modules.parameters())
        kept = resized(inputs.float(), outputs.shape[1])
        turns = 1.0 - (unit(outputs).double() * unit(kept).double()).sum(dim=1)
        turns[(outputs == 0).all(dim=1) & (kept == 0).all(dim=1)] = 0.0
        like = parameters[0] if parameters else inputs
        few_in, few_out = sample(inputs, _AT_ONCE), sample(outputs, _AT_ONCE)  # the same rows
        matrix = mean_derivative(modules, few_in.to(like.device, like.dtype))
        matrix = None if matrix is None else matrix[:, : outputs.shape[1]]
        start = resized(torch.eye(inputs.shape[1], dtype=torch.float64), outputs.shape[1])
        mine, other = (set(map(id, self.on_side(s).parameters())) for s in SIDES)
        layers = [m for m in modules if isinstance(m, Dense)]
        linear = len(layers) == len(modules) and all(isinstance(m.activation_function, nn.Identity) for m in layers)
        main = [layer for layer in layers if layer.module_output_name == "sentence_embedding"]
        widths = [*(layer.in_features for layer in main[:1]), *(layer.out_features for layer in main)]
        return Head(
            kind="none" if not len(modules) else "linear" if linear else "nonlinear",
            layers=" -> ".join(map(str, widths)),
            parameters=sum(p.numel() for p in parameters),
            shared=len(modules) > 0 and mine == other,
            change=_ratio(outputs - kept, kept),
            turn=max(0.0, float(turns.mean())),
            largest_turn=max(0.0, float(turns.max())),
            map_distance=None if matrix is None else _ratio(matrix - start, start),
            linear_share=None if matrix is None else explained(few_in, few_out, matrix),
            singular_values=() if matrix is None else tuple(torch.linalg.svdvals(matrix).tolist()),
        )


def mean_derivative(modules: nn.Sequential, inputs: Tensor) -> Tensor | None:
    """The derivative of a chain of ``Dense`` modules, averaged over vectors: W of x W, shape ``(d, e)``, float64.

    Layer by layer: the weights, each row times the mean slope of its activation over the vectors. That is exact for
    linear heads and for heads with one hidden layer; in deeper ones it takes the slopes of different layers for
    independent. None where a module is not a ``Dense``.
    """
    vectors = inputs
    matrix = torch.eye(inputs.shape[1], dtype=torch.float64)
    for layer in modules:
        if not isinstance(layer, Dense):
            return None
        step = layer.linear.weight.detach().cpu().double() * _slope(layer, vectors)[:, None]
        if layer.use_residual:
            square = layer.in_features == layer.out_features
            step = step + (torch.eye(len(step)) if square else layer.residual.weight.detach().cpu()).double()
        matrix = matrix @ step.T
        with torch.no_grad():
            vectors = layer({"sentence_embedding": vectors})["sentence_embedding"]
    return matrix


def _slope(layer: Dense, vectors: Tensor) -> Tensor:
    """The mean derivative of each unit's activation, shape ``(units,)``, float64."""
    if isinstance(layer.activation_function, nn.Identity):
        return torch.ones(layer.out_features, dtype=torch.float64)
    with torch.enable_grad():
        before: Tensor = layer.linear(vectors.detach()).detach().requires_grad_()
        slopes: Tensor = torch.autograd.grad(layer.activation_function(before).sum(), before)[0]
    return slopes.mean(dim=0).cpu().double()


def explained(inputs: Tensor, outputs: Tensor, matrix: Tensor) -> float | None:
    """Share of the change that an affine map x W + b with the best b explains, None where nothing changes."""
    x, y = inputs.double(), outputs.double()
    change = y - resized(x, y.shape[1])
    rest = y - x @ matrix
    change, rest = change - change.mean(dim=0), rest - rest.mean(dim=0)
    total = float(change.pow(2).sum())
    return 1.0 - float(rest.pow(2).sum()) / total if total > 1e-12 * float(x.pow(2).sum()) else None


def resized(vectors: Tensor, dimension: int) -> Tensor:
    """The first dimensions of vectors, with zeros for those that they lack."""
    return nn.functional.pad(vectors, (0, dimension - vectors.shape[1]))  # below zero cuts off


def _ratio(difference: Tensor, whole: Tensor) -> float:
    length = float(whole.double().norm())
    return float(difference.double().norm()) / length if length else 0.0
