"""Vectors of any source as rows: in memory or on disk, looked at once, read a part at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_asym.data.collection import counted

Array = np.ndarray[Any, np.dtype[Any]]

# Numbers that are read at a time: 32 MiB in float32.
_AT_ONCE = 1 << 23
# Numbers of a row by which it is told from others, before whole rows are compared.
_KEY = 16


class UnitRows:
    """Vectors where they are stored, brought to length 1 as they are read.

    Args:
        source: Of shape ``(n, d)``, float16 to float64: a numpy array, such as a ``numpy.memmap``, a torch tensor, an
            Arrow array or chunked array of fixed-size lists (several chunks are copied into one), or the path of a
            ``.npy`` file, which stays on disk.
        name: What errors call it.

    Attributes:
        shape: ``(n, d)``.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: It is none of these.
        ValueError: It has another shape, or a missing value.
    """

    ndim = 2

    def __init__(self, source: Any, name: str) -> None:
        self._array, self._name = _as_array(source, name), name
        if self._array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"{name} must hold float16, float32 or float64, not {self._array.dtype}: 8-bit and binary vectors have "
                "lost what heads are trained on."
            )
        if self._array.ndim != 2 or not self._array.size:
            raise ValueError(f"{name} must be of shape (n, d), one vector a row, not {self._array.shape}.")
        self.shape: tuple[int, int] = self._array.shape
        self._keys: Array | None = None

    def __len__(self) -> int:
        """The number of vectors."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        """Unit vectors of some rows, float32, shape ``(len(rows), d)``: a copy."""
        found = np.array(self._array[rows], dtype=np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    @property
    def all(self) -> Tensor:
        """Unit vectors of all rows, in memory."""
        found = torch.empty(self.shape)
        for part in self._parts():
            found[part] = torch.from_numpy(self[part])
        return found

    def check(self, ids: Sequence[Any] | Array | None = None) -> None:
        """Look at every vector, a part at a time.

        Args:
            ids: What errors call the rows besides their numbers.

        Raises:
            ValueError: One is not finite, or zero. The message names the first row.
        """
        self._keys = np.empty(len(self), np.uint64)
        for part in self._parts():
            rows = self._array[part]
            with np.errstate(over="ignore", invalid="ignore"):
                lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
            bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
            if len(bad):
                row = part.start + int(bad[0])
                named = "" if ids is None else f" ({ids[row]!r:.80})"
                kind = "zero: it has no direction" if lengths[bad[0]] == 0 else "not finite, or too long for float32"
                raise ValueError(f"Row {row:,} of {self._name}{named} is {kind}. Leave it out, or embed it again.")
            self._keys[part] = _keys(rows)

    def same(self, wanted: Iterable[int]) -> dict[Any, list[Any]]:
        """All rows that hold the vector of a row, itself among them, ascending; for rows that were looked at.

        Args:
            wanted: The rows to compare others with.
        """
        assert self._keys is not None  # noqa: S101 - check() comes first
        rows = list(wanted)
        groups: dict[bytes, list[int]] = {}
        keys = np.unique(self._keys[rows])
        for part in self._parts():
            places = np.minimum(np.searchsorted(keys, self._keys[part]), len(keys) - 1)
            for row in (np.flatnonzero(keys[places] == self._keys[part]) + part.start).tolist():
                groups.setdefault(self._array[row].tobytes(), []).append(row)
        return {row: groups[self._array[row].tobytes()] for row in rows}

    def _parts(self) -> Iterator[slice]:
        size = max(1, _AT_ONCE // self.shape[1])
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def _keys(rows: Array) -> Array:
    """A number for each row that is the same for equal rows: its first bits times random odd numbers, modulo 2^64."""
    bits = np.ascontiguousarray(rows[:, :_KEY]).view(f"u{rows.dtype.itemsize}").astype(np.uint64)
    odd = np.random.default_rng(0).integers(1 << 63, size=bits.shape[1], dtype=np.uint64) * 2 + 1
    found: Array = (bits * odd).sum(axis=1, dtype=np.uint64)
    return found


def _as_array(source: Any, name: str) -> Array:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix != ".npy":
            raise ValueError(f"{name} is the path {path}: only .npy files can be read where they are (numpy.save).")
        return _mapped(path, name)
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    if isinstance(source, np.ndarray):
        return source
    if type(source).__module__.partition(".")[0] == "pyarrow":
        return _from_arrow(source, name)
    raise TypeError(
        f"{name} must be an array of shape (n, d), by numpy, torch or Arrow, or the path of a .npy file, not "
        f"{type(source).__name__}."
    )


def _mapped(path: Path, name: str) -> Array:
    """The array of a ``.npy`` file, which stays on disk."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError):  # whose messages name no file, and advise to unpickle it
        found = None
    if not isinstance(found, np.ndarray):  # an .npz under another name is none either
        raise ValueError(
            f"{name} is the path {path}, which is no whole .npy file of numbers: write it again (numpy.save)."
        )
    return found


def _from_arrow(source: Any, name: str) -> Array:
    import pyarrow

    column = source.combine_chunks() if isinstance(source, pyarrow.ChunkedArray) else source
    if isinstance(column, pyarrow.ChunkedArray):  # of no chunks, or of more than one array holds
        raise ValueError(f"{name} cannot be one Arrow array: write it into a .npy file, part by part.")
    if not isinstance(getattr(column, "type", None), pyarrow.FixedSizeListType):
        kind = getattr(column, "type", type(column).__name__)
        raise TypeError(f"{name} must be an Arrow array of fixed-size lists, not of {kind}: cast it.")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ValueError(f"Row {row:,} of {name} is missing (null). {counted(column.null_count, 'row')} is or are.")
    values, size = column.flatten(), column.type.list_size
    if values.null_count:
        row = values.is_null().to_pylist().index(True) // size
        raise ValueError(f"Row {row:,} of {name} has a missing value (null). Leave it out, or embed it again.")
    found: Array = values.to_numpy(zero_copy_only=False).reshape(-1, size)
    return found
