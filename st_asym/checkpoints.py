"""The checkpoints of the stock trainer: which are whole, and where to go on after a run that was killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        path: Its folder, ``checkpoint-STEP``.
        step: After how many steps it was saved.
        state: The trainer's state then, as in ``trainer_state.json``.
    """

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``checkpoint-STEP``."""
        return self.path.name


def checkpoints(output_dir: str | PathLike[str]) -> list[Checkpoint]:
    """The checkpoints that are whole, by step.

    The trainer's state is the last file that it writes, so a checkpoint that has it has everything.

    Args:
        output_dir: The ``output_dir`` of the training arguments.

    Example:
        >>> checkpoints("a folder that does not exist")
        []
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step, state = folder.name.rpartition("-")[2], read_state(folder)
        if step.isdecimal() and state is not None:
            found.append(Checkpoint(folder, int(step), state))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def read_state(folder: str | PathLike[str]) -> Mapping[str, Any] | None:
    """The trainer's state in a folder, None where there is none or it is being written."""
    try:
        state = json.loads(Path(folder, STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, Mapping) else None


def last_checkpoint(output_dir: str | PathLike[str]) -> str | None:
    """The newest checkpoint of the stock trainer that is whole, for ``trainer.train(resume_from_checkpoint=...)``.

    The trainer's own search takes the newest folder, which a process that was killed may have left half written.

    Args:
        output_dir: The ``output_dir`` of the training arguments.

    Returns:
        The path of a checkpoint, or None if there is none, which is what ``train`` takes for a fresh start.

    Example:
        >>> last_checkpoint("a folder that does not exist") is None
        True
    """
    whole = checkpoints(output_dir)
    return str(whole[-1].path) if whole else None
