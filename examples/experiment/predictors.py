"""What a predictive loss needs beside the head: a predictor, and a slow-moving copy of the head as its target."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from sentence_transformers.base.modules import Dense, Module, Router
from torch import nn

from st_asym.heads.projection import AsymmetricProjection, require_tasks

# Where the modules of a route leave their vectors, beside "sentence_embedding".
PREDICTION = "prediction"
TARGET = "target"


def predictor(features: int, init: Literal["identity", "random"]) -> list[Dense]:
    """Two ``Dense`` layers, features -> 2 x features -> features, with ReLU between them, as a head has.

    Args:
        features: Dimension of the vectors.
        init: As for :func:`st_asym.AsymmetricProjection`.

    Returns:
        The layers.
    """
    return dense_layers(AsymmetricProjection(features, init=init, shared=True), "query")


def add_training_aids(router: Router, init: Literal["identity", "random"]) -> Router:
    """Add a predictor and a target to the shared head of a ``Router``.

    Each route becomes ``[target, head, predictor]``, all of them stock ``Dense`` modules: the target reads the
    encoder's vectors and leaves its own under ``target``, the predictor reads the head's and leaves its own under
    ``prediction``. ``sentence_embedding`` stays what the head makes of it. As they are modules of the model they are
    part of its checkpoints, which is why a run goes on with them where it was killed.

    Args:
        router: Of :func:`st_asym.AsymmetricProjection` with ``shared=True``.
        init: How the predictor starts. The target starts as a copy of the head.

    Returns:
        A new ``Router`` around the same head.
    """
    head = dense_layers(router, "document")
    targets = _renamed(copy.deepcopy(head), TARGET)
    for layer in targets:
        layer.requires_grad_(False)
    aids = _renamed(predictor(head[-1].out_features, init), PREDICTION)
    return _on_both_sides([*targets, *head, *aids])


def drop_training_aids(router: Router) -> Router:
    """The shared head of :func:`add_training_aids` alone.

    Args:
        router: A ``Router`` with or without training aids.

    Returns:
        A new ``Router`` around the same head.
    """
    layers = dense_layers(router, "document")
    return _on_both_sides([layer for layer in layers if layer.module_output_name == "sentence_embedding"])


def target_and_head(modules: Iterable[nn.Module]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Each parameter of the target, beside the head's parameter that it follows.

    Args:
        modules: Where to look for a ``Router`` with training aids, such as ``model.modules()``.

    Returns:
        The pairs; none where there is no target.
    """
    router = next(module for module in modules if isinstance(module, Router))
    layers = dense_layers(router, "document")
    targets = [p for layer in layers if layer.module_output_name == TARGET for p in layer.parameters()]
    heads = [p for layer in layers if layer.module_output_name == "sentence_embedding" for p in layer.parameters()]
    return list(zip(targets, heads, strict=True)) if targets else []


def dense_layers(router: Router, route: str) -> list[Dense]:
    """The ``Dense`` modules of a route.

    Raises:
        TypeError: The route has other modules.
    """
    layers: Any = list(router.sub_modules[route])  # type: ignore[call-overload]
    dense = [layer for layer in layers if isinstance(layer, Dense)]
    if len(dense) < len(layers) or not dense:
        raise TypeError(f"The {route} route must be Dense modules, not {[type(layer).__name__ for layer in layers]}.")
    return dense


def _renamed(layers: Sequence[Dense], name: str) -> list[Dense]:
    """The same layers, leaving their vectors under ``name``, and reading the previous layer's there."""
    for position, layer in enumerate(layers):
        layer.module_input_name = "sentence_embedding" if position == 0 else name
        layer.module_output_name = name
    return list(layers)


def _on_both_sides(layers: Sequence[Dense]) -> Router:
    route: list[Module] = list(layers)
    return require_tasks(Router.for_query_document(route, route))
