"""The trainable weights of a model as a whole: kept, put back, and turned back towards where they began."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def heads_state(model: nn.Module) -> State:
    """Copies of all parameters that train, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


def load_heads(model: nn.Module, state: State) -> None:
    """Put the parameters of :func:`heads_state` back, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def dialled(start: State, end: State, weight: float) -> State:
    """The weights on the straight line from ``start`` (0) to ``end`` (1).

    From the identity to trained heads this is a dial: the heads keep their shape, 0 is the untouched encoder and 1 what
    training gave, exactly. Averaging the weights of a model before and after training keeps more of what it could do
    before than stopping early does (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models",
    https://arxiv.org/abs/2109.01903).

    Example:
        >>> dialled({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)["w"]
        tensor([0.2500, 0.2500])
    """
    return {name: torch.lerp(start[name], tensor, weight) for name, tensor in end.items()}
