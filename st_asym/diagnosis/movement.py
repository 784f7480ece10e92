"""The heads of a model as functions: what they make of vectors, and how far that is from leaving them alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from torch import Tensor, nn

from st_asym.heads.anatomy import Side, encoder_modules
from st_asym.losses.isotropy import unit

SIDES: tuple[Side, Side] = ("query", "document")

_AT_ONCE = 16_384


@dataclass(frozen=True)
class Head:
    """What a head does to the vectors of its side.

    Attributes:
        kind: ``"none"`` where the side has no head, ``"linear"`` or ``"nonlinear"``.
        layers: Sizes of its layers, such as ``"384 -> 768 -> 384"``.
        parameters: How many it has.
        shared: Whether the other side has the same head.
        change: How much it changes its input x, ||h(x) - x|| / ||x|| over all vectors. Where h(x) has fewer
            dimensions, x is cut off to them, as an identity start does.
        turn: Mean of 1 - cos(h(x), x): what of the change cosine sees.
        largest_turn: The largest of them.
        map_distance: Distance of its linear map W from the identity, ||W - I|| / ||I|| in the Frobenius norm. W is the
            derivative of h averaged over the vectors (see :func:`mean_derivative`): of a linear head its matrix.
        linear_share: Share of the change that W explains: 1 for linear heads; None without change. Near 1, one linear
            layer (``hidden_features=None``) would do.
        singular_values: Of W, the largest first; none, and no distance or share, for modules other than ``Dense``.
    """

    kind: Literal["none", "linear", "nonlinear"]
    layers: str
    parameters: int
    shared: bool
    change: float
    turn: float
    largest_turn: float
    map_distance: float | None
    linear_share: float | None
    singular_values: tuple[float, ...]


class HeadModules:
    """What comes behind the encoder of a model, up to a last ``Normalize``.

    Raises:
        ValueError: The model has no ``Router`` behind its encoder, or one without routes for queries and documents.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        modules = list(model.children())
        names = f"[{', '.join(type(module).__name__ for module in modules)}]"
        routers = [module for module in modules if isinstance(module, Router)]
        if not routers:
            raise ValueError(
                f"This model has no heads to diagnose: there is no Router among its modules {names}. "
                "st_asym.asymmetric_model(encoder) and st_asym.fit make models with heads; where fit kept the encoder "
                "as it was, its report says so."
            )
        missing = [side for side in SIDES if any(side not in router.sub_modules for router in routers)]
        if missing:
            raise ValueError(f"The Router of this model {names} has no route {missing[0]!r}.")
        before = encoder_modules(model)
        behind = [module for name, module in model.named_children() if name not in before]
        self.normalised = isinstance(behind[-1], Normalize)
        self._modules = behind[:-1] if self.normalised else behind
        self._device = model.device
        self._kept = model.truncate_dim

    def on_side(self, side: Side) -> list[nn.Module]:
        """The modules that vectors of a side go through."""
        found: list[nn.Module] = []
        for module in self._modules:
            route: Any = module.sub_modules[side] if isinstance(module, Router) else [module]
            found += list(route)
        return found

    @torch.no_grad()
    def __call__(self, vectors: Tensor, side: Side) -> Tensor:
        """What the heads make of vectors of shape ``(n, d)``, before a last ``Normalize``, in float32.

        Of a model with a ``truncate_dim``, those dimensions: truncated before or after Normalize, the direction is one.

        Raises:
            ValueError: A vector that comes out is not finite. The message names the weights that are not.
        """
        like = next((p for module in self.on_side(side) for p in module.parameters()), None)
        dtype, device = (torch.float32, self._device) if like is None else (like.dtype, like.device)
        parts = []
        with _evaluating(self._modules):
            for part in torch.split(vectors, _AT_ONCE):
                features: dict[str, Any] = {"sentence_embedding": part.to(device, dtype), "task": side}
                for module in self._modules:
                    features = module(features, task=side) if isinstance(module, Router) else module(features)
                parts.append(features["sentence_embedding"].to(vectors.device).float())
        outputs = torch.cat(parts)
        bad = int((~torch.isfinite(outputs).all(dim=1)).sum())
        if bad:
            raise ValueError(
                f"The {side} head makes {bad} of {len(outputs)} vectors NaN or infinite: {self._why(side)}"
            )
        return outputs[:, : self._kept]

    def _why(self, side: Side) -> str:
        for position, module in enumerate(self.on_side(side)):
            for name, tensor in module.named_parameters():
                if not torch.isfinite(tensor).all():
                    return (
                        f"its weight {position}.{name} is not finite. Training diverged: go back to an earlier "
                        "checkpoint and lower the learning rate."
                    )
        return "its weights are finite but too large for their precision. Load the model in float32."

    def describe(self, side: Side, inputs: Tensor, outputs: Tensor) -> Head:
        """What the head of a side does: makes ``outputs``, shape ``(n, e)``, of ``inputs``, shape ``(n, d)``."""
        modules = self.on_side(side)
        kept = resized(inputs.float(), outputs.shape[1])
        turns = 1.0 - (unit(outputs).double() * unit(kept).double()).sum(dim=1)
        turns[(outputs == 0).all(dim=1) & (kept == 0).all(dim=1)] = 0.0
        like = next((p for module in modules for p in module.parameters()), inputs)
        matrix = mean_derivative(modules, inputs.to(like.device, like.dtype))
        matrix = None if matrix is None else matrix[:, : outputs.shape[1]]
        start = resized(torch.eye(inputs.shape[1], dtype=torch.float64), outputs.shape[1])
        mine, other = ({id(p) for module in self.on_side(s) for p in module.parameters()} for s in SIDES)
        layers = [m for m in modules if isinstance(m, Dense)]
        linear = len(layers) == len(modules) and all(isinstance(m.activation_function, nn.Identity) for m in layers)
        main = [layer for layer in layers if layer.module_output_name == "sentence_embedding"]
        widths = [*(layer.in_features for layer in main[:1]), *(layer.out_features for layer in main)]
        return Head(
            kind="none" if not modules else "linear" if linear else "nonlinear",
            layers=" -> ".join(map(str, widths)),
            parameters=sum(p.numel() for module in modules for p in module.parameters()),
            shared=bool(modules) and mine == other,
            change=_ratio(outputs - kept, kept),
            turn=max(0.0, float(turns.mean())),
            largest_turn=max(0.0, float(turns.max())),
            map_distance=None if matrix is None else _ratio(matrix - start, start),
            linear_share=None if matrix is None else explained(inputs, outputs, matrix),
            singular_values=() if matrix is None else tuple(torch.linalg.svdvals(matrix).tolist()),
        )


def mean_derivative(modules: Sequence[nn.Module], inputs: Tensor) -> Tensor | None:
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
    kept = vectors[:, :dimension]
    return torch.nn.functional.pad(kept, (0, dimension - kept.shape[1]))


def _ratio(difference: Tensor, whole: Tensor) -> float:
    length = float(whole.double().norm())
    return float(difference.double().norm()) / length if length else 0.0


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Without dropout; afterwards each module is in the mode that it was in."""
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)
