"""The one handle that a process has on an LMDB file: forks, growth, damage and full disks."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import lmdb
import numpy as np

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_FIRST_MAP = 1 << 24
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_READERS = 1024
_INTEGER_KEYS = 8
# Bytes of a file that may stay mapped, and what Linux maps for a record: around its own page, and the one above it.
_MOST_MAPPED = 8 << 20
_MAPPED_PER_RECORD = 2 << 16
_PAGE = 4096
_DONT_NEED = 4


class CacheError(RuntimeError):
    """A vector cache that cannot be read or written: damaged, foreign, full or read-only."""


class Environment:
    """The one handle of this process on a store: LMDB allows no second one, and none that came through a fork."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        self._touched = 0
        self._open()

    def touched(self, records: Sequence[memoryview]) -> None:
        """Say which records were read in this transaction, so that their pages do not add up to a large file.

        Mapped pages count as memory of this process until the system wants them back, which on a machine with memory
        to spare is never. They stay in the system's cache, from where the next reader has them at once.
        """
        self._touched += len(records) * _MAPPED_PER_RECORD
        if self._touched > _MOST_MAPPED:
            self._touched = 0
            if self.used_bytes() > _MOST_MAPPED:
                _give_back(records)

    def used_bytes(self) -> int:
        """Where the last page ends."""
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
        for own in (path, self.directory / "lock.mdb"):
            # What a stranger has packed may lead elsewhere, or never end.
            if own.is_symlink() or (own.exists() and not own.is_file()):
                raise CacheError(f"{own} is no plain file, and a vector cache has no others: use another directory.")
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

    def _check_head(self, path: Path) -> None:
        """Refuse a file whose first pages would send LMDB out of it, and mend one that was cut short."""
        needed, size = self.used_bytes(), path.stat().st_size
        sound = self._handle.stat()["psize"] in _PAGE_SIZES and needed <= self._handle.info()["map_size"]
        if not sound or not _has_plain_databases(path, self._handle.stat()["psize"]):
            self._handle.close()
            raise self._damaged("its first pages make no sense")
        self._fill_map()
        if size >= needed:
            return
        if path.stat().st_size < needed:
            self._handle.close()
            raise self._damaged("its file ends too early")
        logger.warning("%s was cut short. What is lost will be encoded anew.", path)

    def _fill_map(self) -> None:
        """Let the file reach to the end of the map, as a hole that takes no space.

        A damaged page may lead anywhere in the map. Beyond the end of the file that would be the end of the process; in
        the hole there are zeros, which LMDB and the checksums refuse.
        """
        if self.read_only:
            return
        path = self.directory / "data.mdb"
        # Only one process may write in a transaction, so none can be cutting off what another has added meanwhile. A
        # map that has become too small is adopted by the next transaction.
        with contextlib.suppress(OSError, lmdb.MapResizedError), self._handle.begin(write=True):
            size = self._handle.info()["map_size"]
            if path.stat().st_size < size:
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


_ENVIRONMENTS: WeakValueDictionary[Path, Environment] = WeakValueDictionary()
_ENVIRONMENTS_LOCK = threading.Lock()


def open_environment(directory: Path) -> Environment:
    """The handle of this process on ``directory``, shared by all who ask for it."""
    with _ENVIRONMENTS_LOCK:
        environment = _ENVIRONMENTS.get(directory)
        if environment is None:
            environment = _ENVIRONMENTS[directory] = Environment(directory)
        return environment


def _give_back(records: Sequence[memoryview]) -> None:
    """Take the pages between these records of a map, which nothing else lies between, out of this process."""
    addresses = [np.frombuffer(record, np.uint8).__array_interface__["data"][0] for record in records]
    start = min(addresses) // _PAGE * _PAGE
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(max(addresses) - start), _DONT_NEED)


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
