"""Where to go on after a run that was killed."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path


def last_checkpoint(output_dir: str | PathLike[str]) -> str | None:
    """The newest checkpoint of the stock trainer that is whole, for ``trainer.train(resume_from_checkpoint=...)``.

    The trainer's own search takes the newest folder, which a process that was killed may have left half written. The
    trainer's state is the last file that it writes, so a checkpoint that has it has everything.

    Args:
        output_dir: The ``output_dir`` of the training arguments.

    Returns:
        The path of a checkpoint, or None if there is none, which is what ``train`` takes for a fresh start.

    Example:
        >>> last_checkpoint("a folder that does not exist") is None
        True
    """
    whole = [folder for folder in Path(output_dir).glob("checkpoint-*") if _is_whole(folder)]
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None


def _is_whole(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return folder.name.rpartition("-")[2].isdecimal()
