"""Files and folders that are whole or not there: written beside their place, then put there."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# How often another process may put something into the place just when it was cleared.
_TURNS = 20
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def write_text(path: str | os.PathLike[str], text: str, *, errors: str = "strict") -> Path:
    """Write a file in one step: whoever reads it sees the old text or the new one, never a part.

    Nothing is left of one that could not be written.

    Args:
        path: The file, replaced if it is there; a link is replaced, not followed.
        text: What it shall hold, written as UTF-8.
        errors: As for :func:`open`.

    Returns:
        The path.

    Raises:
        OSError: It cannot be written there.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.new")
    beside.unlink(missing_ok=True)
    try:
        with beside.open("x", encoding="utf-8", errors=errors) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(output: Path, check: Callable[[Path], object]) -> Iterator[Path]:
    """A folder to make beside its place; when the block ends it is put there, in the place of what ``check`` allows.

    Nothing is left where the block fails, and what was in the place stays there.

    Args:
        output: The place.
        check: Is called with ``output`` just before, and raises where it holds what must not be replaced: hours may
            have passed since the place was looked at.

    Yields:
        A path that does not exist yet, for the block to make.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as beside:
        yield Path(beside, "new")
        for turn in range(_TURNS):
            if _put(Path(beside), f"old-{turn}", output, check, last=turn == _TURNS - 1):
                return


def _put(beside: Path, aside: str, output: Path, check: Callable[[Path], object], *, last: bool) -> bool:
    """Put the new folder into its place; False where another process was faster."""
    check(output)
    old = beside / aside
    with contextlib.suppress(FileNotFoundError):
        output.rename(old)
    try:
        (beside / "new").rename(output)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _TAKEN and not last:
            return False
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    return True
