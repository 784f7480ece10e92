"""What several processes share: rows, of which each may hold another number, sums and random draws."""

from __future__ import annotations

import torch
import torch.distributed
from sentence_transformers.util import get_world_size
from torch import Tensor


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, shape ``(sum of n, ...)``, the own ones with their gradient.

    A loss that each process computes over all rows then has its whole gradient with respect to the own rows, and
    nothing is sent on the way back. Every process must call it, with rows of the same shape.
    """
    world = get_world_size()
    if world == 1:
        return tensor
    counts = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world)]
    torch.distributed.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
    longest = max(int(count) for count in counts)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    rows = [part[: int(count)] for part, count in zip(parts, counts, strict=True)]
    rows[torch.distributed.get_rank()] = tensor
    return torch.cat(rows)


def total(number: int, device: torch.device) -> int:
    """The sum of a number over all processes."""
    if get_world_size() == 1:
        return number
    summed = torch.tensor(number, device=device)
    torch.distributed.all_reduce(summed)
    return int(summed)


def uniform(count: int, device: torch.device) -> Tensor:
    """Numbers from 0 to 1, float64, the same on every process.

    They come from torch's CPU generator, whose state the trainer saves with each checkpoint.
    """
    draws = torch.rand(count, dtype=torch.float64)
    if get_world_size() == 1:
        return draws
    shared = draws.to(device)
    torch.distributed.broadcast(shared, src=0)
    return shared.cpu()
