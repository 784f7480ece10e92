"""A folder that a stranger may have packed: its plain files, JSON and weights, and what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from st_asym.data.files import EVALUATION_FOLDER, LOGS_FOLDER

_CHUNK = 1 << 20
MOST_JSON = 2 << 20
_MOST_FILES = 10_000
_MOST_FINDINGS = 50
_MOST_LEVELS = 8
_MOST_NESTED = 64
_MOST_DIGITS = 20
_MOST_LETTERS = 120
_NO_LIMIT = str(int(1e30))  # the number by which a tokenizer says that it cuts nothing off
# Windows has neither of the first two, and no other system the last.
_OPEN = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
# Left by git, by downloads of the Hub's client and by evaluations, and logs; nothing is loaded from them.
_PASSED_OVER = frozenset({".git", ".cache", EVALUATION_FOLDER, LOGS_FOLDER})
# Bytes of a value by the type's name in safetensors; and what floats are read as, since numpy has no bfloat16.
_SIZES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SIZES |= {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# A value beyond it overflows in float32 where it is squared for the length of a vector; float16 ends far below it.
_LARGEST = np.float32(1e15)


class VerificationError(ValueError):
    """A saved model, or heads alone, that must not be used.

    Attributes:
        findings: What is wrong, where, and what to do, a sentence or two each.
    """

    def __init__(self, path: object, findings: Sequence[str]) -> None:
        self.findings = tuple(findings)
        count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
        super().__init__(f"{path} did not pass verification ({count}):\n" + "\n".join(f"- {one}" for one in findings))


class FindingError(Exception):
    """What is wrong with a file, raised where nothing more can be read of it: where, and what."""


class Weights(NamedTuple):
    """A safetensors file: its digest, and type and shape of each tensor."""

    digest: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]


class Folder:
    """The plain files of a folder, ``sizes`` with their bytes, and ``findings``: what is wrong with them.

    A snapshot in the cache of ``huggingface_hub`` consists of links to the blobs beside it, which are files of it. With
    ``links`` any file may be a link, and what is no file is passed over.
    """

    def __init__(self, path: str | os.PathLike[str], *, links: bool = False) -> None:
        self.path = Path(path).resolve()
        if not self.path.exists():
            raise FileNotFoundError(f"{path} does not exist: name the folder of a saved model.")
        if not self.path.is_dir():
            raise NotADirectoryError(f"{path} is a file: name the folder of a saved model.")
        self._findings: dict[str, None] = {}
        self.weights = cache(self._read_weights)  # read once, unless it is not whole
        self.sizes: dict[str, int] = {}
        snapshot = self.path.parent.name == "snapshots" and self.path.parent.parent.name.startswith("models--")
        self._blobs = self.path.parent.parent / "blobs" if snapshot else None
        self._links = links
        self._walk()

    def add(self, where: str, what: str) -> None:
        """Note what is wrong with a file of the folder, in words that may come from outside."""
        self._findings[f"{shown(where)}: {what}"] = None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note what stops the block, and go on behind it."""
        try:
            yield
        except FindingError as error:
            self.add(*error.args)

    @property
    def findings(self) -> list[str]:
        """What was found; beyond some, counted alone."""
        more = len(self._findings) - _MOST_FINDINGS
        return [*self._findings][:_MOST_FINDINGS] + ([f"and {more} more."] if more > 0 else [])

    def check(self, path: object) -> None:
        """Raise what was found, if anything was."""
        if self._findings:
            raise VerificationError(path, self.findings)

    def within(self, folder: str) -> list[str]:
        """The files of a folder in it and below; all for ``""``."""
        return [name for name in self.sizes if not folder or name.startswith(f"{folder}/")]

    def open(self, name: str) -> BinaryIO:
        """Open a plain file, and nothing that has taken its place since; a ``FindingError`` where there was none."""
        if name not in self.sizes:
            raise FindingError(name, "is missing. Save or download the model again.")
        path = self.path / name
        if (self._links or self._blobs is not None) and path.is_symlink():
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
        """SHA-256 of a file, as ``sha256sum`` and the Hub give it; of weights, only where they are whole."""
        if name.endswith(".safetensors"):
            return self.weights(name).digest
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def json(self, name: str, kind: type = dict) -> Any:
        """Parse a small JSON file of this kind; a ``FindingError`` where it is missing or anything else."""
        with self.open(name) as file:
            content = file.read(MOST_JSON)
        if len(content) == MOST_JSON:
            size = self.sizes[name]
            raise FindingError(name, f"is {size:,} bytes long, and that is longer than any configuration.")
        try:
            value = parsed(content)
        except ValueError as error:
            why = f"is not JSON that can be trusted ({shown(str(error))}). Save or download it again."
            raise FindingError(name, why) from error
        if not isinstance(value, kind):
            expected = "no JSON object" if kind is dict else "no list"
            raise FindingError(name, f"holds {expected}, but {type(value).__name__}. Save or download it again.")
        return value

    def _read_weights(self, name: str) -> Weights:
        """What is in a safetensors file, read a megabyte at a time; a ``FindingError`` where it is not whole.

        Values that are not finite are noted. The header is read by the library that loads the file, which allows no
        holes, overlaps or bytes too many.
        """
        with self.open(name) as file:
            try:
                tensors, header = _header(self.path / name, file)
            except (SafetensorError, ValueError) as error:
                why = f"is no whole safetensors file: {shown(str(error))}. Save or download the model again."
                raise FindingError(name, why) from error
            digest = hashlib.sha256(header)
            for key, (dtype, shape) in tensors.items():
                if dtype not in _SIZES:
                    what = f"tensor {shown(key)!r} is of type {dtype}, which cannot be checked. "
                    raise FindingError(name, what + "Save the model in float32, float16 or bfloat16.")
                left, sound = math.prod(shape) * _SIZES[dtype], True
                while left:
                    chunk = file.read(min(left, _CHUNK))
                    if not chunk:
                        raise FindingError(name, "became shorter while it was read.")
                    digest.update(chunk)
                    left -= len(chunk)
                    if dtype in FLOATS:  # NaN is not below it
                        sound = sound and bool((np.abs(floats(chunk, dtype)) <= _LARGEST).all())
                if not sound:
                    what = f"tensor {shown(key)!r} has values that are not finite, or beyond {_LARGEST:.0e}: "
                    self.add(name, what + "its vectors would be NaN. Train again.")
        return Weights(digest.hexdigest(), tensors)

    def _walk(self) -> None:
        below = [("", 0)]
        while below:
            folder, level = below.pop()
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if not folder and entry.name in _PASSED_OVER and is_folder:
                        continue
                    if len(self.sizes) + len(below) >= _MOST_FILES or level >= _MOST_LEVELS:
                        what = f"has more than {_MOST_FILES:,} files or {_MOST_LEVELS} levels: no model has."
                        self.add(folder or ".", what)
                        return
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if is_folder:
                        below.append((name, level + 1))
                        continue
                    with contextlib.suppress(FindingError) if self._links else self.noting():
                        self.sizes[name] = self._size(name)

    def _size(self, name: str) -> int:
        """The bytes of a plain file."""
        path = self.path / name
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = path.resolve()
            blob = self._blobs is not None and target.parent == self._blobs.resolve()
            if not (self._links or blob) or not target.is_file():
                what = f"is a link to {shown(str(path.readlink()))}. A saved model has files alone: copy it there."
                raise FindingError(name, what)
            status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FindingError(name, "is neither a file nor a folder. Remove it.")
        return status.st_size


def parsed(content: bytes) -> Any:
    """JSON without what parsers disagree on or choke on: doubled keys, NaN, huge numbers, deep nesting."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    for level, _, part in parts(value):
        if level >= _MOST_NESTED and isinstance(part, dict | list):
            raise ValueError("it is nested too deeply")
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"it has the number {part}, which JSON has not, or one that is too large")
    return value


def parts(value: Any) -> Iterator[tuple[int, str, Any]]:
    """What is in a parsed JSON value and not empty, itself first: how deep it lies, the last key above it, the part."""
    below = [(0, "", value)]
    while below:
        level, key, part = below.pop()
        yield level, key, part
        if isinstance(part, dict):
            below += [(level + 1, name, one) for name, one in part.items() if one]
        elif isinstance(part, list):
            below += [(level + 1, key, one) for one in part if one]


def shown(value: object) -> str:
    """A name or value from a file on one line, without control characters, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    plain = "".join(one if one.isprintable() else "?" for one in text[: _MOST_LETTERS + 1])
    return plain if len(plain) <= _MOST_LETTERS else plain[:_MOST_LETTERS] + "..."


def floats(content: bytes, dtype: str) -> Any:
    """The values of a tensor of one of :data:`FLOATS`, in one dimension."""
    values = np.frombuffer(content, FLOATS[dtype])
    # Of bfloat16, the upper half of a float32.
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, tuple[str, tuple[int, ...]]], bytes]:
    """Type and shape of the tensors in the order in which they lie in the file, and the bytes before the first."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > os.fstat(file.fileno()).st_size - 8:
        raise ValueError("it ends within its header")
    if length > MOST_JSON:
        raise ValueError(f"its header would be {length:,} bytes long, more than {MOST_JSON:,}")
    try:
        library: Any = safe_open(path, "numpy")
    except (MemoryError, OSError) as error:
        raise ValueError(f"the system does not map it ({error})") from error
    with library:
        entries = {name: library.get_slice(name) for name in library.offset_keys()}
        tensors = {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in entries.items()}
    return tensors, first + file.read(length)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS and digits != _NO_LIMIT:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)
