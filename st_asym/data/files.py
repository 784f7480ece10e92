"""Files and folders that are whole or not there: written beside their place, then put there; and lines of files."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import gzip
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

CARD_FILE = "README.md"
# What st_asym calls its own files in the folder of a model or a run; loading a model ignores them.
REPORT_FILE = "st_asym_report.json"
PROVENANCE_FILE = "st_asym.json"
ROUTER_FILE = "router_config.json"
PLOT_FILE = "held_out_queries.png"
EVALUATION_FOLDER = "evaluation"
# Where TensorBoard's logs are, in the trainer's folder and in the model's.
LOGS_FOLDER = "runs"

# How often another process may put something into the place just when it was cleared.
_TURNS = 20
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
# What a disk answers, whoever asks it to write.
_DISK = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")} - {None}
_PATIENCE = 0.01
_GZIP = b"\x1f\x8b"

Folder = Path | zipfile.Path


def write_text(path: str | os.PathLike[str], text: str, *, errors: str = "strict") -> Path:
    """Write a file in one step: whoever reads it sees the old text or the new one, never a part.

    Any number of threads and processes may write one file. Nothing is left of one that could not be written. A link is
    replaced, not followed.
    """
    with new_file(path) as beside, beside.open("x", encoding="utf-8", errors=errors) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


@contextlib.contextmanager
def new_file(output: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write beside its place, in a folder that is made if missing; when the block ends it is put there.

    Nothing is left of one that fails.
    """
    target = Path(output)
    if target.is_dir() and not target.is_symlink():
        raise IsADirectoryError(f"{target} is a folder: name a file.")
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.new")
    try:
        with _disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield beside
        for _ in range(_TURNS):  # Windows does not replace a file while somebody reads it
            with contextlib.suppress(PermissionError):
                beside.replace(target)
                return
            time.sleep(_PATIENCE)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 2) -> None:
    """Write a file of JSON in one step."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """What is in a file of JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def plain(value: Any, digits: int = 17) -> Any:
    """What JSON has a name for: None for numbers that are not finite, the others with so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(part, digits) for key, part in value.items()}
    return [plain(part, digits) for part in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def new_folder(
    output: Path, check: Callable[[Path], object], keep: Callable[[Path, Path], object] | None = None
) -> Iterator[Path]:
    """A folder to make beside its place; when the block ends it is put there, in the place of what ``check`` allows.

    Just before that ``check(output)`` raises where it holds what must not be replaced, as hours may have passed since
    it was looked at, and ``keep(output, new)`` takes over what the new folder does not replace, see :func:`take_over`.
    Nothing is left where the block fails, and what was in the place stays there. A finished folder that cannot be put
    into its place is left beside it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with _beside(output) as beside:
        new = beside / "new"
        with _disk_errors(output):
            yield new
            _make_readable(new)
        for turn in range(_TURNS):
            check(output)
            if keep is not None and output.is_dir():
                keep(output, new)
            old = beside / f"old-{turn}"
            try:
                with contextlib.suppress(FileNotFoundError):
                    output.rename(old)
                new.rename(output)
                return
            except BaseException as error:
                if old.exists() and not output.exists():
                    old.rename(output)
                if not isinstance(error, OSError):
                    raise
                if error.errno in _TAKEN and turn < _TURNS - 1:
                    continue  # another process was faster
                place = free_name(output, "new")
                new.rename(place)
                text = (
                    f"{output} could not be replaced ({error.strerror}): a program may have it open. The result is "
                    f"whole, in {place}."
                )
                raise OSError(error.errno, text) from error


def check_place(output: Path, size: int = 0) -> None:
    """Check that a folder of ``size`` bytes can be written, before the hours of work whose result it shall hold.

    A file is written beside the place, and nothing of it is left. An OSError says why it cannot, and what to do.
    """
    output = output.absolute()
    made = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    try:
        for folder in reversed(made):
            folder.mkdir(exist_ok=True)
        if output.exists() and not os.access(output, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output))
        with _beside(output) as beside:
            (beside / "probe").write_bytes(bytes(4096))
            (beside / output.name).mkdir()
        free = shutil.disk_usage(output.parent).free
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"{output} cannot be written: {reason}. Nothing was done yet: name another folder."
        raise OSError(error.errno, text) from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"{output} takes {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there. Nothing was done yet: make "
            "room, or name a folder on another disk.",
        )


def _make_readable(folder: Path) -> None:
    """Give files and folders the mode that the umask leaves: safetensors writes its files for their owner alone."""
    probe = folder.with_name("probe")  # goes with what is beside the place
    probe.mkdir()
    of_folders = probe.stat().st_mode
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod((mode | of_folders if path.is_dir() else mode | of_folders & 0o666) & 0o7777)


def take_over(earlier: Path, new: Path, replaced: Collection[str]) -> list[str]:
    """Put into a new folder what is in an earlier one, apart from the files ``replaced`` (paths in it with ``/``).

    Files are linked where the system can, so that nothing is moved before all is well. One that the new folder has
    under the same name gets ``.earlier`` into its own. Returned are the names of what was taken over.
    """
    kept = set()
    for path in sorted(earlier.rglob("*")):
        within = path.relative_to(earlier)
        if within.as_posix() in replaced or (path.is_dir() and not path.is_symlink() and any(path.iterdir())):
            continue
        kept.add(within.parts[0])
        target = new / within
        if are_same(path, target):
            continue
        for folder in reversed(within.parents[:-1]):
            if not (new / folder).is_dir():
                (new / folder).mkdir()
                shutil.copystat(earlier / folder, new / folder)
        target = free_name(target, "earlier")
        if path.is_dir() and not path.is_symlink():
            target.mkdir()
            shutil.copystat(path, target)
            continue
        try:
            os.link(path, target, follow_symlinks=False)
        except (OSError, NotImplementedError):
            shutil.copy2(path, target, follow_symlinks=False)
    return sorted(kept)


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """One line for what the disk does not take, also where safetensors has its own error for that."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has it in its text alone.
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number is None or number not in _DISK:
            raise
        text = f"{output} could not be written: {os.strerror(number)}. Make room, or name a folder on another disk."
        raise OSError(number, text) from error


def free_name(path: Path, word: str) -> Path:
    """A path, or where something has it, one with a word before its suffix."""
    count, free = 1, path
    while os.path.lexists(free):
        free = path.with_name(f"{path.stem}.{word}{'' if count == 1 else f'.{count}'}{path.suffix}")
        count += 1
    return free


def are_same(path: Path, other: Path) -> bool:
    """Whether two are both folders, or files of the same content."""
    if path.is_symlink() or other.is_symlink():
        return path.is_symlink() and other.is_symlink() and path.readlink() == other.readlink()
    if path.is_dir() or other.is_dir():
        return path.is_dir() and other.is_dir()
    return other.is_file() and filecmp.cmp(path, other, shallow=False)


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A folder on the same disk that goes when the block ends, as far as the system lets it."""
    beside = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name[:100]}-"))
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# Lines of files


def kind_of(name: str) -> str:
    """What a file is by its name: the last suffix in lower case, ``.gz`` aside."""
    return Path(name.lower().removesuffix(".gz")).suffix


def is_hidden(name: str) -> bool:
    """Whether a system keeps it to itself: ``._train.tsv`` and ``__MACOSX`` of macOS, ``.ipynb_checkpoints``."""
    return name.startswith(".") or name == "__MACOSX"


@contextlib.contextmanager
def open_lines(file: Folder) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file, of one inside a zip, or of a ``.gz``; line ends stay as they are."""
    binary: IO[bytes]
    with file.open("rb") as binary:
        named, packed = file.name.lower().endswith(".gz"), binary.read(2) == _GZIP
        binary.seek(0)
        if packed and not named:
            raise ValueError(f"{file.name} is packed by gzip: its name must end in .gz.")
        yield _decoded(gzip.GzipFile(fileobj=binary) if named else binary, file.name)


def _decoded(lines: Iterable[bytes], file: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            # Some editors write a byte order mark, which would become part of the first name.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if "\0" in text:
                raise ValueError(
                    f"{file}, line {number}: a NUL, as UTF-16 and files that are no text have. Save it as UTF-8 text."
                )
            if number == 1 and "\r" in text.rstrip("\r\n") and '"' not in text:
                raise ValueError(carriage_return_alone(file, number))
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start}). "
            "Save the file as UTF-8."
        ) from error
    except gzip.BadGzipFile as error:
        raise ValueError(
            f"{file} is not packed by gzip ({error}): it is damaged, or its name must not end in .gz."
        ) from error
    except (EOFError, zlib.error) as error:
        packed = "gzip" if file.lower().endswith(".gz") else "zip"
        raise ValueError(f"{file}, after line {number}: a damaged {packed} file ({error}).") from error


def carriage_return_alone(file: str, number: int) -> str:
    """What is wrong with a line that holds several."""
    return f"{file}, line {number}: lines end in a carriage return alone. Save it with other line ends."
