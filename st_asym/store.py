"""Vectors by key in one LMDB file that survives crashes and is shared by processes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import lmdb
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
StoredType = Literal["float32", "float16"]
Result = TypeVar("Result")

KEY_BYTES = 32
GROUP_BYTES = 12

_FORMAT = 1
_FORMAT_KEY = b"format"
_GROUP_PREFIX = b"group:"
_CHECKSUM_BYTES = 4
_FIRST_MAP = 1 << 24
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_READERS = 1024
_INTEGER_KEYS = 8


class CacheError(RuntimeError):
    """A vector cache that cannot be read or written: damaged, foreign, full or read-only."""


@dataclass
class Found:
    """What a look-up gave: ``vectors`` (n, d), with the rows in ``missing`` undefined; None if nothing was found.

    ``damaged`` are those of the missing rows whose record was there, with a checksum that did not fit.
    """

    vectors: Floats | None
    missing: list[int]
    damaged: list[int]


class VectorStore:
    """Vectors by key, on disk.

    A key has 32 bytes; its first twelve name its group (one encoder), and all vectors of a group have one dimension.
    Each record carries a checksum over key and vector, so neither a flipped bit nor a misled pointer gives a wrong
    vector. Any number of processes and threads read while one writes; a second writer waits. What ``put`` has returned
    from survives the end of the process at any moment, and power cuts as far as the disk keeps what it has confirmed.

    Args:
        directory: Where ``data.mdb`` lies, made if missing. Not on a network file system. The file has a hole at its
            end, so it takes less space than its length says.
        dtype: How vectors are stored; None for what the directory has, ``"float32"`` in a new one.
        max_bytes: Space that the file must not exceed, None for no limit.

    Raises:
        CacheError: The file is damaged, of another format, or not one of this library's; or it must be made in a
            directory that cannot be written.
        ValueError: ``dtype`` differs from what the directory has, or ``max_bytes`` is too small to hold anything.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, dtype: StoredType | None = None, max_bytes: int | None = None
    ) -> None:
        if dtype not in (None, "float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}.")
        if max_bytes is not None and max_bytes < 1 << 16:
            raise ValueError(f"max_bytes={max_bytes} holds no vectors: it must be at least {1 << 16}.")
        self.directory = Path(directory).resolve()
        self.max_bytes = max_bytes
        self._environment = _environment(self.directory)
        self.dtype = np.dtype(self._agree_on_format(dtype))

    @property
    def read_only(self) -> bool:
        """Whether this process may only read the directory."""
        return self._environment.read_only

    def get(self, keys: Sequence[bytes]) -> Found:
        """Look up the vectors of keys of one group, in order, as float32."""
        return self._read(lambda txn: self._get(txn, keys))

    def put(self, keys: Sequence[bytes], vectors: Floats, name: str) -> None:
        """Store ``vectors`` (n, d) of one group, all or none; existing keys are overwritten.

        Args:
            keys: One per row, without duplicates.
            vectors: Float32 of shape (n, d).
            name: What the group is called in :meth:`groups`, if it is new.

        Raises:
            CacheError: The directory is read-only, the disk or the permitted size is full, or the group has vectors of
                another dimension. What was stored before remains.
            ValueError: A value is too large for float16.
        """
        if not len(keys):
            return
        with np.errstate(over="ignore"):
            stored = vectors.astype(self.dtype)
        if (np.isinf(stored) & np.isfinite(vectors)).any():
            raise ValueError("A vector has values beyond 65,504, the largest float16: store float32.")
        # Neighbours in key order share pages.
        order = sorted(range(len(keys)), key=keys.__getitem__)
        records = [(keys[row], _pack(keys[row], stored[row].tobytes())) for row in order]
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
            return {key[len(_GROUP_PREFIX) :]: _unpack_json(key, txn.get(key)) for key in keys}

        return self._read(read)

    def records(self, group: bytes, batch: int = 4096) -> Iterator[tuple[list[bytes], Floats]]:
        """All vectors of a group in batches, in the order of their keys; damaged ones are left out."""
        start = group
        while True:
            keys = self._read(lambda txn, start=start: _keys_from(txn, group, start, batch))  # type: ignore[misc]
            if not keys:
                return
            found = self.get(keys)
            missing = set(found.missing)
            rows = [row for row in range(len(keys)) if row not in missing]
            if rows and found.vectors is not None:
                yield [keys[row] for row in rows], found.vectors[rows]
            start = keys[-1] + b"\0"

    def size(self) -> int:
        """Bytes of the file that are in use."""
        return self._read(lambda _: self._environment.used_bytes())

    def __len__(self) -> int:
        """The number of vectors of all groups."""
        return sum(group["vectors"] for group in self.groups().values())

    def _agree_on_format(self, dtype: StoredType | None) -> str:
        def read(txn: Any) -> dict[str, Any] | None:
            value = txn.get(_FORMAT_KEY)
            if value is None:
                if txn.stat()["entries"]:
                    raise CacheError(
                        f"{self.directory} holds an LMDB file that is not a vector cache of this library: use another "
                        "directory."
                    )
                return None
            return _unpack_json(_FORMAT_KEY, value)

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
        return str(found["dtype"])

    def _get(self, txn: Any, keys: Sequence[bytes]) -> Found:
        group = txn.get(_group_key(keys[0][:GROUP_BYTES])) if keys else None
        if group is None:
            return Found(None, list(range(len(keys))), [])
        dimension = _unpack_json(_group_key(keys[0][:GROUP_BYTES]), group)["dimension"]
        size = _CHECKSUM_BYTES + dimension * self.dtype.itemsize
        vectors = np.empty((len(keys), dimension), dtype=np.float32)
        missing, damaged = [], []
        for row, key in enumerate(keys):
            record = txn.get(key)
            # The size comes first: a damaged one may point beyond the file.
            if record is not None and len(record) == size and _is_whole(key, record):
                vectors[row] = np.frombuffer(record, self.dtype, offset=_CHECKSUM_BYTES)
                continue
            missing.append(row)
            if record is not None:
                damaged.append(row)
        return Found(vectors if len(missing) < len(keys) else None, missing, damaged)

    def _put(self, txn: Any, records: Sequence[tuple[bytes, bytes]], dimension: int, name: str) -> None:
        key = _group_key(records[0][0][:GROUP_BYTES])
        value = txn.get(key)
        new = {"name": name, "dimension": dimension, "vectors": 0}
        group: dict[str, Any] = new if value is None else _unpack_json(key, value)
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
        for key in keys:
            txn.delete(key)
        value = txn.get(_group_key(group))
        if value is not None:
            settings = _unpack_json(_group_key(group), value)
            settings["vectors"] -= len(keys)
            txn.put(_group_key(group), _pack_json(_group_key(group), settings))
        return len(keys)

    def _read(self, job: Callable[[Any], Result]) -> Result:
        return self._environment.run(job, write=False)

    def _write(self, job: Callable[[Any], Result]) -> Result:
        if self.read_only:
            raise CacheError(f"{self.directory} cannot be written to, so nothing can be added to it or removed.")
        return self._environment.run(job, write=True, max_bytes=self.max_bytes)


class _Environment:
    """The one handle of this process on a store: LMDB allows no second one, and none that came through a fork."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        self._open()

    def used_bytes(self) -> int:
        return int((self._handle.info()["last_pgno"] + 1) * self._handle.stat()["psize"])

    def run(self, job: Callable[[Any], Result], *, write: bool, max_bytes: int | None = None) -> Result:
        """Run ``job`` in a transaction, on as large a map as it takes."""
        with self._lock:
            if self._pid != os.getpid():
                self._handle.close()
                self._open()
            while True:
                try:
                    if write and max_bytes is not None and self._handle.info()["map_size"] > max_bytes:
                        self._handle.set_mapsize(_whole_pages(max_bytes))
                    with self._handle.begin(write=write, buffers=True) as txn:
                        return job(txn)
                except lmdb.MapFullError as error:
                    self._grow(max_bytes, error)
                except lmdb.MapResizedError:
                    self._handle.set_mapsize(0)
                except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError) as error:
                    raise self._damaged(error) from error
                except lmdb.Error as error:
                    # LMDB may refuse to go on with a handle that failed to write.
                    self._handle.close()
                    self._open()
                    # It calls a write that stopped half way an input/output error.
                    full = shutil.disk_usage(self.directory).free < 1 << 16
                    reason = "the disk is full" if full or isinstance(error, lmdb.DiskError) else str(error)
                    raise CacheError(
                        f"{self.directory} could not be {'written' if write else 'read'}: {reason}. Everything that "
                        "was committed before is intact."
                    ) from error

    def _open(self) -> None:
        path = self.directory / "data.mdb"
        exists = path.exists()
        if not exists:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CacheError(f"{self.directory} cannot be made: {error}.") from error
        self.read_only = not os.access(self.directory, os.W_OK) or (exists and not os.access(path, os.W_OK))
        if self.read_only and not exists:
            raise CacheError(f"{self.directory} is empty and cannot be written to: there is nothing to read.")
        size = path.stat().st_size if exists else 0
        try:
            self._handle = lmdb.open(
                str(self.directory),
                map_size=max(_FIRST_MAP, _whole_pages(size)),
                readonly=self.read_only,
                # Without its lock file a store can only be read while nobody writes, as is so on read-only media.
                lock=not self.read_only or os.access(self.directory / "lock.mdb", os.W_OK),
                max_readers=_READERS,
                readahead=False,
                meminit=False,
            )
        except lmdb.DiskError as error:
            raise CacheError(f"{self.directory} could not be opened: the disk is full.") from error
        except lmdb.Error as error:
            raise self._damaged(error) from error
        self._pid = os.getpid()
        # Processes that were killed while reading would keep old pages from being used again.
        self._handle.reader_check()
        self._check_head(path)
        self._fill_map()

    def _check_head(self, path: Path) -> None:
        """Refuse a file whose first pages would send LMDB out of it, and mend one that was cut short."""
        needed, size = self.used_bytes(), path.stat().st_size
        sound = self._handle.stat()["psize"] in _PAGE_SIZES and needed <= self._handle.info()["map_size"]
        if not sound or not _has_plain_databases(path, self._handle.stat()["psize"]):
            self._handle.close()
            raise self._damaged("its first pages make no sense")
        if size >= needed:
            return
        if self.read_only:
            self._handle.close()
            raise self._damaged("its file ends too early")
        logger.warning("%s was cut short. What is lost will be encoded anew.", path)
        os.truncate(path, needed)

    def _fill_map(self) -> None:
        """Let the file reach to the end of the map, as a hole that takes no space.

        A damaged page may lead anywhere in the map. Beyond the end of the file that would be the end of the process; in
        the hole there are zeros, which LMDB and the checksums refuse.
        """
        path, size = self.directory / "data.mdb", self._handle.info()["map_size"]
        if not self.read_only and path.stat().st_size < size:
            with contextlib.suppress(OSError):
                os.truncate(path, size)

    def _grow(self, max_bytes: int | None, error: lmdb.Error) -> None:
        """Make room in the address space for a file twice as long."""
        size = self._handle.info()["map_size"]
        if max_bytes is not None and size >= _whole_pages(max_bytes):
            raise CacheError(
                f"The vector cache in {self.directory} has reached its limit, max_bytes={max_bytes}: raise it, or make "
                "room with EmbeddingCache.remove(model). Everything that was committed before is intact."
            ) from error
        self._handle.set_mapsize(2 * size if max_bytes is None else min(2 * size, _whole_pages(max_bytes)))
        self._fill_map()

    def _damaged(self, reason: object) -> CacheError:
        return CacheError(
            f"The vector cache in {self.directory} is damaged ({reason}). Delete {self.directory / 'data.mdb'} and "
            "lock.mdb next to it: the vectors are encoded anew."
        )


_ENVIRONMENTS: WeakValueDictionary[Path, _Environment] = WeakValueDictionary()
_ENVIRONMENTS_LOCK = threading.Lock()


def _environment(directory: Path) -> _Environment:
    with _ENVIRONMENTS_LOCK:
        environment = _ENVIRONMENTS.get(directory)
        if environment is None:
            environment = _ENVIRONMENTS[directory] = _Environment(directory)
        return environment


def _has_plain_databases(path: Path, page_size: int) -> bool:
    """Whether both heads of an LMDB file say that it has the two kinds of tree that a store has.

    Another kind would end the process. This is the layout of LMDB's data format 1, 64 bits: page header of 16 bytes,
    magic number, version, two addresses, and two trees of 48 bytes that begin with their page size and flags.
    """
    with path.open("rb") as file:
        for start in (0, page_size):
            file.seek(start)
            head = file.read(96)
            if len(head) == 96 and struct.unpack_from("<I", head, 20)[0] & 0xFFFF == 1:
                free, main = struct.unpack_from("<H", head, 44)[0], struct.unpack_from("<H", head, 92)[0]
                if free & ~_INTEGER_KEYS or main:
                    return False
    return True


def _whole_pages(size: int) -> int:
    return size // 4096 * 4096


def _keys_from(txn: Any, prefix: bytes, start: bytes, limit: int | None, size: int = KEY_BYTES) -> list[bytes]:
    """Up to ``limit`` keys of ``size`` bytes that begin with ``prefix``, from ``start`` on."""
    keys: list[bytes] = []
    cursor = txn.cursor()
    if cursor.set_range(start):
        for key in map(bytes, cursor.iternext(values=False)):
            if not key.startswith(prefix) or (limit is not None and len(keys) == limit):
                break
            if len(key) == size:
                keys.append(key)
    return keys


def _group_key(group: bytes) -> bytes:
    return _GROUP_PREFIX + group


def _checksum(key: bytes, payload: Any) -> bytes:
    return zlib.crc32(payload, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "little")


def _pack(key: bytes, payload: bytes) -> bytes:
    return _checksum(key, payload) + payload


def _is_whole(key: bytes, record: Any) -> bool:
    return bool(_checksum(key, record[_CHECKSUM_BYTES:]) == record[:_CHECKSUM_BYTES])


def _pack_json(key: bytes, settings: dict[str, Any]) -> bytes:
    return _pack(key, json.dumps(settings).encode())


def _unpack_json(key: bytes, record: Any) -> dict[str, Any]:
    if len(record) > 1 << 16 or not _is_whole(key, record):
        # Run in a transaction, which names the directory and the way out.
        raise lmdb.CorruptedError(f"record {key!r} does not fit its checksum")
    settings: dict[str, Any] = json.loads(bytes(record[_CHECKSUM_BYTES:]))
    return settings
