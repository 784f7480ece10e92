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


def of_the_first(own: T) -> T:
    """What the first process holds."""
    shared = [own]
    if get_world_size() > 1:
        torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def random_source() -> torch.Generator | None:
    """Where random draws come from: where there is a gradient, from torch's generator, which each checkpoint has.

    An evaluation leaves that as it is, and draws the same every time, so that its loss can be compared.
    """
    return None if torch.is_grad_enabled() else torch.Generator(torch.get_default_device()).manual_seed(0)


def one_of_each(size: int, count: int) -> tuple[Tensor, Tensor]:
    """A place of each of ``count`` equal stretches of ``size`` places, drawn anew, and the lengths of the stretches.

    The places ascend, and are the same on every process; there are ``size`` of them where ``count`` is more. They come
    from :func:`random_source`.
    """
    count = min(count, size)
    bounds = torch.arange(count + 1) * size // max(count, 1)
    draws = of_the_first(torch.rand(count, dtype=torch.float64, generator=random_source()))
    return bounds[:-1] + (draws * bounds.diff()).long(), bounds.diff()
