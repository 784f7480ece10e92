"""Functions in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

_SECONDS = 300


def in_a_process(function: Callable[..., None], *arguments: Any, **options: Any) -> int | None:
    """Call it with one thread; the exit code: below 0 the signal that ended it."""
    # A copy of this process need not import everything again.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=_with_one_thread, args=(function, arguments, options))
    process.start()
    process.join(_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    code: int | None = process.exitcode
    return code


def _with_one_thread(function: Callable[..., None], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    function(*arguments, **options)


def in_two_processes(function: Callable[[int, Path], None], folder: Path) -> None:
    """Call it in two processes of a group, as training on two devices has it, with the rank of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not copies of this process, in which what torch's parallel training starts may wait forever.
    context: Any = torch.multiprocessing.spawn(_one_of_two, (function, port, folder), nprocs=2, join=False)
    deadline = time.monotonic() + _SECONDS
    try:
        while not context.join(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"The processes did not end within {_SECONDS} seconds."
    finally:
        for process in context.processes:
            process.kill()


def _one_of_two(rank: int, function: Callable[[int, Path], None], port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    function(rank, folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
