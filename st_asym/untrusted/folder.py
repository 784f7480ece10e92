"""A folder that is read as if a stranger had packed it: no links, no special files, nothing large at once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from st_asym.names import EVALUATION_FOLDER
from st_asym.untrusted.findings import Findings, shown

CHUNK = 1 << 20
MOST_JSON = 2 << 20

# Windows has neither of the first two, and no other system the last.
_OPEN = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_MOST_FILES = 10_000
_MOST_LEVELS = 8
_MOST_NESTED = 64
_MOST_DIGITS = 20
# Left by git, by downloads of the Hub's client and by evaluations; nothing is loaded from them.
_PASSED_OVER = frozenset({".git", ".cache", EVALUATION_FOLDER})


class Folder:
    """The plain files of a folder.

    A snapshot in the cache of ``huggingface_hub`` consists of links to the blobs beside it, which are files of it.

    Args:
        path: The folder.
        findings: What is no plain file goes there.

    Attributes:
        sizes: Path in the folder, with ``/``, to bytes.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """

    def __init__(self, path: str | os.PathLike[str], findings: Findings) -> None:
        self.path = Path(path).resolve()
        if not self.path.exists():
            raise FileNotFoundError(f"{path} does not exist: name the folder of a saved model.")
        if not self.path.is_dir():
            raise NotADirectoryError(f"{path} is a file: name the folder of a saved model.")
        self.findings = findings
        self.sizes: dict[str, int] = {}
        snapshot = self.path.parent.name == "snapshots" and self.path.parent.parent.name.startswith("models--")
        self._blobs = self.path.parent.parent / "blobs" if snapshot else None
        self._walk()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.sizes

    def within(self, folder: str) -> list[str]:
        """The files of a folder in it and below; all for ``""``."""
        return [name for name in self.sizes if not folder or name.startswith(f"{folder}/")]

    def open(self, name: str) -> BinaryIO:
        """Open a plain file, and nothing that has taken its place since."""
        path = self.path / name
        if self._blobs is not None and path.is_symlink():
            path = path.resolve()
        before = path.lstat()
        if stat.S_ISREG(before.st_mode):
            file = os.fdopen(os.open(path, _OPEN), "rb")
            # Where the system follows links, what was opened is compared with what lay there.
            if os.path.samestat(before, os.fstat(file.fileno())):
                return file
            file.close()
        raise OSError(f"{path} is no longer a plain file.")

    def digest(self, name: str) -> str:
        """SHA-256 of a file, as ``sha256sum`` and the Hub give it."""
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def json(self, name: str, kind: type = dict) -> Any:
        """Parse a small JSON file; None, and a finding, where it is missing or not of this kind."""
        if not self.has(name):
            self.findings.add(name, "is missing. Save or download the model again.")
            return None
        if self.sizes[name] > MOST_JSON:
            self.findings.add(
                name, f"is {self.sizes[name]:,} bytes long, and no configuration is: at most {MOST_JSON:,}."
            )
            return None
        with self.open(name) as file:
            content = file.read(MOST_JSON + 1)
        try:
            value = parsed(content)
        except ValueError as error:
            self.findings.add(
                name, f"is not JSON that can be trusted ({shown(str(error))}). Save or download it again."
            )
            return None
        if not isinstance(value, kind):
            expected = "an object" if kind is dict else "a list"
            self.findings.add(name, f"holds {type(value).__name__}, not {expected}. Save or download it again.")
            return None
        return value

    def _walk(self) -> None:
        below = [("", 0)]
        while below:
            folder, level = below.pop()
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if not folder and entry.name in _PASSED_OVER and entry.is_dir(follow_symlinks=False):
                        continue
                    if len(self.sizes) + len(below) >= _MOST_FILES or level >= _MOST_LEVELS:
                        self.findings.add(
                            folder or ".",
                            f"has more than {_MOST_FILES:,} files or {_MOST_LEVELS} levels: no model has.",
                        )
                        return
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        below.append((name, level + 1))
                    else:
                        self._note(name)

    def _note(self, name: str) -> None:
        path = self.path / name
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = path.resolve()
            if self._blobs is None or target.parent != self._blobs.resolve() or not target.is_file():
                self.findings.add(
                    name, f"is a link to {shown(str(path.readlink()))}. A saved model has files alone: copy it there."
                )
                return
            status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            self.findings.add(name, "is neither a file nor a folder. Remove it.")
            return
        self.sizes[name] = status.st_size


def parsed(content: bytes) -> Any:
    """JSON without what parsers disagree on or choke on: doubled keys, NaN, huge numbers, deep nesting.

    Raises:
        ValueError: It has such a thing, or is not JSON.
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_deep(value):
        raise ValueError("it is nested too deeply")
    return value


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """All texts in a parsed JSON value, each with the last key above it."""
    below = [("", value)]
    while below:
        key, part = below.pop()
        if isinstance(part, str):
            yield key, part
        elif part and isinstance(part, dict):
            below.extend(part.items())
        elif isinstance(part, list):
            below.extend((key, one) for one in part if one and isinstance(one, str | dict | list))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"it has {name}, which JSON has not")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {digits[:20]}, which is too large")
    return value


def _is_deep(value: Any) -> bool:
    parts = [value]
    for _ in range(_MOST_NESTED):
        parts = [
            one
            for part in parts
            for one in (part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())
            if one and isinstance(one, dict | list)
        ]
        if not parts:
            return False
    return True
