"""Evaluation that leaves no trace in the process it runs in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the random state, which MTEB seeds anew for each task, and the progress bars of its data sets quiet."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - what MTEB seeds
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        if shown:
            datasets.enable_progress_bars()
