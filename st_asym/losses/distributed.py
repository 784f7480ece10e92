"""What several processes share: rows, of which each may hold another number, sums and random draws."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed
from sentence_transformers.util import get_rank, get_world_size
from torch import Tensor

T = TypeVar("T")


def gathered(own: T) -> list[T]:
    """What each process holds, in the order of their ranks; every process must call it. Tensors come by the CPU."""
    world = get_world_size()
    if world == 1:
        return [own]
    found: list[Any] = [None] * world
    torch.distributed.all_gather_object(found, own)
    return found


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all processes, shape ``(sum of n, ...)``, the own ones with their gradient.

    A loss that each process computes over all rows then has its whole gradient with respect to the own rows, and
    nothing is sent on the way back.
    """
    if get_world_size() == 1:
        return tensor
    rows = [part.to(tensor.device) for part in gathered(tensor.detach().cpu())]
    rows[get_rank()] = tensor
    return torch.cat(rows)


def total(number: int) -> int:
    """The sum of a number over all processes."""
    return sum(gathered(number))


def uniform(count: int) -> Tensor:
    """Numbers from 0 to 1, float64, the same on every process: those of the first.

    They come from torch's CPU generator, whose state the trainer saves with each checkpoint.
    """
    return gathered(torch.rand(count, dtype=torch.float64))[0]
