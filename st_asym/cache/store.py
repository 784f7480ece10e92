"""Vectors by key in one LMDB file that survives crashes and is shared by processes."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lmdb
import numpy as np
from numpy.typing import NDArray

from st_asym.cache.lmdb_file import CacheError, Result, open_environment

Floats = NDArray[np.float32]
StoredType = Literal["float32", "float16"]

KEY_BYTES = 32
GROUP_BYTES = 12

_FORMAT = 1
_FORMAT_KEY = b"format"
_GROUP_PREFIX = b"group:"
_CHECKSUM_BYTES = 4
# How often the directory may be deleted just when it is written to.
TURNS = 5
# Vectors that are in memory at a time where many are read or written.
PORTION = 4096


class Found(NamedTuple):
    """What a look-up gave: ``vectors`` (n, d), with the rows in ``missing`` undefined; (0, 0) if nothing was found.

    ``damaged`` are those of the missing rows whose record was there, with a checksum that did not fit.
    """

    vectors: Floats
    missing: list[int]
    damaged: list[int]


class VectorStore:
    """Vectors by key, on disk; its arguments and errors are those of :class:`st_asym.EmbeddingCache`.

    A key has 32 bytes; its first twelve name its group (one encoder), and all vectors of a group have one dimension.
    Each record carries a checksum over key and vector, so neither a flipped bit nor a misled pointer gives a wrong
    vector. Any number of processes and threads read while one writes; a second writer waits. What ``put`` has returned
    from survives the end of the process at any moment, and power cuts as far as the disk keeps what it has confirmed.
    The file has a hole at its end, so it takes less space than its length says.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, dtype: StoredType | None = None, max_bytes: int | None = None
    ) -> None:
        if dtype not in (None, "float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}.")
        if not os.fspath(directory):
            raise ValueError("directory is empty: name a folder ('.' is the one that the process runs in).")
        if max_bytes is not None and not isinstance(max_bytes, int | float | np.number):
            raise TypeError(f"max_bytes must be a number of bytes, such as {10**9:_}, got {max_bytes!r}.")
        if max_bytes is not None and not max_bytes >= 1 << 16:
            raise ValueError(f"max_bytes={max_bytes} holds no vectors: it must be at least {1 << 16}.")
        self.directory = Path(directory).resolve()
        self.max_bytes = None if max_bytes is None or max_bytes == float("inf") else int(max_bytes)
        self._environment = open_environment(self.directory)
        # How often the directory was deleted or replaced while it was open, which loses what it held.
        self.replaced = self._environment.follow()
        self.dtype = np.dtype(dtype or "float32")
        self.dtype = self._agree_on_format(dtype)

    @property
    def read_only(self) -> bool:
        """Whether this process may only read the directory."""
        return self._environment.read_only

    def get(self, keys: Sequence[bytes]) -> Found:
        """Look up the vectors of keys of one group, in order, as float32."""
        return self._read(lambda txn: self._get(txn, keys))

    def put(self, keys: Sequence[bytes], vectors: Floats, name: str) -> None:
        """Store ``vectors`` (n, d) of one group, all or none; existing ones are overwritten.

        A new group is called ``name`` in :meth:`groups`. A disk or a size that is full, another dimension than that of
        the group, and values that are too large for float16 are errors, and what was stored before remains.
        """
        if not len(keys):
            return
        with np.errstate(over="ignore"):
            stored = vectors.astype(self.dtype)
        if (np.isinf(stored) & np.isfinite(vectors)).any():
            raise ValueError("A vector has values beyond 65,504, the largest float16: store float32.")
        # Neighbours in key order share pages.
        rows = sorted({key: row for row, key in enumerate(keys)}.items())
        records = [(key, _checksum(key, values := stored[row].tobytes()) + values) for key, row in rows]
        self._write(lambda txn: self._put(txn, records, stored.shape[1], name))

    def remove(self, group: bytes) -> int:
        """Delete all vectors of a group and say how many; the file keeps its size and uses the space again."""
        removed = 0
        # In portions, since one transaction that frees everything would need as much again.
        while count := self._write(lambda txn: self._remove(txn, group, 10_000)):
            removed += count
        self._write(lambda txn: txn.delete(_group_key(group)))
        return removed

    def groups(self) -> dict[bytes, dict[str, Any]]:
        """``{group: {"name", "dimension", "vectors"}}``."""

        def read(txn: Any) -> dict[bytes, dict[str, Any]]:
            keys = _keys_from(txn, _GROUP_PREFIX, _GROUP_PREFIX, None, size=len(_GROUP_PREFIX) + GROUP_BYTES)
            return {key[len(_GROUP_PREFIX) :]: _json_of(txn, key) for key in keys}

        return self._read(read)

    def records(self, group: bytes) -> Iterator[tuple[list[bytes], Floats]]:
        """All vectors of a group in batches, in the order of their keys; damaged ones are left out."""
        start = group
        while True:
            keys = self._read(lambda txn, start=start: _keys_from(txn, group, start, PORTION))  # type: ignore[misc]
            if not keys:
                return
            found = self.get(keys)
            missing = set(found.missing)
            rows = [row for row in range(len(keys)) if row not in missing]
            if rows:
                yield [keys[row] for row in rows], found.vectors[rows]
            start = keys[-1] + b"\0"

    def size(self) -> int:
        """Bytes of the file that are in use."""
        return self._read(lambda _: self._environment.used_bytes())

    def __len__(self) -> int:
        """The number of vectors of all groups."""
        return sum(group["vectors"] for group in self.groups().values())

    def _agree_on_format(self, dtype: str | None) -> np.dtype[Any]:
        def read(txn: Any) -> Any:
            found = _json_of(txn, _FORMAT_KEY)
            if found is None and txn.stat()["entries"]:
                raise CacheError(
                    f"{self.directory} holds an LMDB file that is not a vector cache of this library: use another "
                    "directory."
                )
            return found

        found = self._read(read)
        if found is None:
            # Another process may be ahead: whoever comes first decides.
            settings = {"version": _FORMAT, "dtype": dtype or "float32"}
            self._write(lambda txn: txn.put(_FORMAT_KEY, _pack_json(_FORMAT_KEY, settings), overwrite=False))
            found = self._read(read) or settings
        if found.get("version") != _FORMAT:
            raise CacheError(
                f"{self.directory} holds vectors in format {found.get('version')}, this st_asym reads format "
                f"{_FORMAT}: use another directory, where they are encoded anew, or the st_asym that wrote them "
                "(its EmbeddingCache.export_parquet writes what import_parquet here reads)."
            )
        if dtype is not None and dtype != found["dtype"]:
            raise ValueError(
                f"{self.directory} holds {found['dtype']} vectors, so it cannot be opened with dtype={dtype!r}: leave "
                "dtype out, or use another directory."
            )
        return np.dtype(str(found["dtype"]))

    def _get(self, txn: Any, keys: Sequence[bytes]) -> Found:
        group = _json_of(txn, _group_key(keys[0])) if keys else None
        if group is None:
            return Found(np.empty((0, 0), np.float32), list(range(len(keys))), [])
        size = _CHECKSUM_BYTES + group["dimension"] * self.dtype.itemsize
        filler = bytes(size)
        records: list[Any] = []
        missing, damaged = [], []
        for row, key in enumerate(keys):
            record = txn.get(key)
            # The size comes first: a damaged one may point beyond the file.
            if record is None or len(record) != size or not _is_whole(key, record):
                missing.append(row)
                if record is not None:
                    damaged.append(row)
                record = filler
            records.append(record)
        if len(missing) == len(keys):
            return Found(np.empty((0, 0), np.float32), missing, damaged)
        # One copy for all: a training step looks up twice, and one by one takes as long as the heads.
        joined = np.frombuffer(b"".join(records), np.uint8).reshape(len(keys), size)[:, _CHECKSUM_BYTES:]
        self._environment.touched([record for record in records if record is not filler])
        return Found(joined.copy().view(self.dtype).astype(np.float32, copy=False), missing, damaged)

    def _put(self, txn: Any, records: Sequence[tuple[bytes, bytes]], dimension: int, name: str) -> None:
        key = _group_key(records[0][0])
        group = _json_of(txn, key) or {"name": name, "dimension": dimension, "vectors": 0}
        if group["dimension"] != dimension:
            raise CacheError(
                f"{self.directory} has vectors of {group['dimension']} dimensions for this encoder, and now it gave "
                f"{dimension}: remove them with EmbeddingCache.remove(model)."
            )
        cursor = txn.cursor()
        group["vectors"] += sum(not cursor.set_key(record_key) for record_key, _ in records)
        cursor.putmulti(records)
        txn.put(key, _pack_json(key, group))

    def _remove(self, txn: Any, group: bytes, portion: int) -> int:
        keys = _keys_from(txn, group, group, portion)
        removed = sum(bool(txn.delete(key)) for key in keys)
        key = _group_key(group)
        if (facts := _json_of(txn, key)) is not None:
            facts["vectors"] -= removed
            txn.put(key, _pack_json(key, facts))
        return removed

    def _read(self, job: Callable[[Any], Result]) -> Result:
        self._follow()
        return self._environment.run(job, write=False)

    def _write(self, job: Callable[[Any], Result]) -> Result:
        for _ in range(TURNS):
            self._follow()
            if self.read_only:
                raise CacheError(f"{self.directory} cannot be written to, so nothing can be added to it or removed.")
            result = self._environment.run(job, write=True, max_bytes=self.max_bytes)
            if self._environment.is_in_place:
                return result
        raise self.cleared_error()

    def cleared_error(self) -> CacheError:
        """What is raised where there is no use in another try."""
        return CacheError(
            f"{self.directory} is deleted or replaced again and again while it is written to: use a directory that "
            "nobody clears."
        )

    def _follow(self) -> None:
        """Where the directory was deleted or replaced, go on with what stands there now, in the format it has."""
        replaced = self._environment.follow()
        if replaced != self.replaced:
            self.replaced = replaced
            self._agree_on_format(self.dtype.name)


def _keys_from(txn: Any, prefix: bytes, start: bytes, limit: int | None, size: int = KEY_BYTES) -> list[bytes]:
    """Up to ``limit`` keys of ``size`` bytes that begin with ``prefix``, from ``start`` on."""
    keys: list[bytes] = []
    cursor = txn.cursor()
    last = b""
    if cursor.set_range(start):
        for key in map(bytes, cursor.iternext(values=False)):
            # A damaged tree may lead in a circle.
            if key < start or key <= last:
                raise lmdb.CorruptedError("its keys are not in order")
            last = key
            if not key.startswith(prefix) or (limit is not None and len(keys) == limit):
                break
            if len(key) == size:
                keys.append(key)
    return keys


def _group_key(key: bytes) -> bytes:
    """Where the facts about the group of a key lie."""
    return _GROUP_PREFIX + key[:GROUP_BYTES]


def _checksum(key: bytes, payload: Any) -> bytes:
    return zlib.crc32(payload, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "little")


def _is_whole(key: bytes, record: Any) -> bool:
    return _checksum(key, record[_CHECKSUM_BYTES:]) == bytes(record[:_CHECKSUM_BYTES])


def _pack_json(key: bytes, settings: dict[str, Any]) -> bytes:
    payload = json.dumps(settings).encode()
    return _checksum(key, payload) + payload


def _json_of(txn: Any, key: bytes) -> Any:
    """The settings under a key, None where there are none."""
    record = txn.get(key)
    if record is None:
        return None
    if len(record) > 1 << 16 or not _is_whole(key, record):
        # The transaction adds the directory and the way out.
        raise lmdb.CorruptedError(f"record {key!r} does not fit its checksum")
    return json.loads(bytes(record[_CHECKSUM_BYTES:]))
