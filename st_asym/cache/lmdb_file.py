"""One LMDB file: the handle of this process on it, and what its first pages say before LMDB follows them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import lmdb
import numpy as np

DATA, LOCK = "data.mdb", "lock.mdb"

_FIRST_MAP = 1 << 24
_READERS = 1024
# How long LMDB makes the lock file for so many readers.
_LOCK_BYTES = 64 * _READERS + 128
# Bytes of a file that may stay mapped, and what Linux maps for a record: around its own page, and the one above it.
_MOST_MAPPED = 8 << 20
_MAPPED_PER_RECORD = 2 << 16
_PAGE = 4096
_DONT_NEED = 4

# A head of LMDB's data format 1, 64 bits: behind the page header and the magic number the version; behind two addresses
# the two trees of 48 bytes, each of which begins with the size of its pages and its flags.
_HEAD = struct.Struct("<20xI20xH46xH")
_VERSION = 1
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_INTEGER_KEYS = 8

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
File: TypeAlias = tuple[int, int]


class CacheError(RuntimeError):
    """A vector cache that cannot be read or written: damaged, foreign, full or read-only."""


class Environment:
    """The one handle of this process on a store: LMDB allows no second one, and none that came through a fork."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reopened = self._needed = 0
        self.files: tuple[File | None, File | None] | None = None
        self._lock = threading.RLock()
        self._touched = 0
        self._open()

    @property
    def is_in_place(self) -> bool:
        """Whether what this handle reads and writes is what stands in the directory, as long as it was."""
        return self.files == _which_files(self.directory) and not self._is_cut()

    def follow(self) -> int:
        """Open what stands in the directory now, where it was deleted or replaced; how often that was so.

        Writes to a deleted file are lost without an error; a new lock file does not exclude those who hold the old one.
        """
        with self._lock:
            if self._pid != os.getpid() or not self.is_in_place:
                if self.files is None or self.files[0] != _which_file(self.directory / DATA) or self._is_cut():
                    logger.warning("%s was deleted or replaced while it was open: it is opened anew.", self.directory)
                    self.reopened += 1
                self._reopen()
            return self.reopened

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
            while True:
                try:
                    if write and max_bytes is not None and self._handle.info()["map_size"] > max_bytes:
                        self._resize(_whole_pages(max_bytes))
                    with self._handle.begin(write=write, buffers=True) as txn:
                        result = job(txn)
                    if write:
                        self._needed = self.used_bytes()
                    return result
                except lmdb.MapFullError as error:
                    self._grow(max_bytes, error)
                except lmdb.MapResizedError:
                    self._resize(0)
                except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError) as error:
                    raise self._damaged(error) from error
                except lmdb.Error as error:
                    # LMDB may refuse to go on with a handle that failed to write.
                    self._reopen()
                    # It calls a write that stopped half way an input/output error.
                    full = shutil.disk_usage(self.directory).free < 1 << 16
                    reason = "the disk is full" if full or isinstance(error, lmdb.DiskError) else str(error)
                    raise CacheError(
                        f"{self.directory} could not be {'written' if write else 'read'}: {reason}. Everything that "
                        "was committed before is intact."
                    ) from error

    def _is_cut(self) -> bool:
        """Whether the file ends before what it had: reading on in its map would be the end of the process."""
        try:
            return (self.directory / DATA).stat().st_size < self._needed
        except OSError:
            return True

    def _reopen(self) -> None:
        self._close()
        self._open()

    def _close(self) -> None:
        self._handle.close()
        self.files = None

    def _open(self) -> None:
        path = self.directory / DATA
        try:
            exists = path.exists()
            if not exists:
                self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = "it is a file, and a cache is a folder" if isinstance(error, FileExistsError) else error
            raise CacheError(f"{self.directory} cannot be made or looked into: {why}.") from error
        self.read_only = not os.access(self.directory, os.W_OK) or (exists and not os.access(path, os.W_OK))
        if self.read_only and not exists:
            raise CacheError(f"{self.directory} is empty and cannot be written to: there is nothing to read.")
        for one in (path, self.directory / LOCK):  # what a stranger has packed may lead elsewhere, or never end
            if one.is_symlink() or (one.exists() and not one.is_file()):
                raise CacheError(f"{one} is no plain file, and a vector cache has no others: use another directory.")
        # The binding sees this itself from 3.0 on. One file with two locks would let two write at once. What is opened
        # here is closed, so it is not among them.
        data = _which_file(path)
        open_here = [one for one in list(_ENVIRONMENTS.values()) if one.files and one.files[0] == data is not None]
        if open_here:
            raise self._open_under(" or ".join(sorted({str(one.directory) for one in open_here})))
        self._reserve_lock()
        try:
            self._handle = lmdb.open(
                str(self.directory),
                map_size=max(_FIRST_MAP, _whole_pages(path.stat().st_size if exists else 0)),
                readonly=self.read_only,
                # Without its lock file a store can only be read while nobody writes, as is so on read-only media.
                lock=not self.read_only or os.access(self.directory / LOCK, os.W_OK),
                # As any other file: what the umask leaves.
                mode=0o666,
                max_readers=_READERS,
                readahead=False,
                meminit=False,
            )
        except lmdb.Error as error:
            raise self._not_opened(error) from error
        self._pid = os.getpid()
        self.files = _which_files(self.directory)
        # Processes that were killed while reading would keep old pages from being used again.
        self._handle.reader_check()
        self._check_head(path)

    def _reserve_lock(self) -> None:
        """Give a new lock file its space.

        LMDB makes it as a hole and writes through its map: on a full disk, that is the end of the process.
        """
        lock = self.directory / LOCK
        if self.read_only or not hasattr(os, "posix_fallocate"):
            return
        try:
            if not lock.exists() or not lock.stat().st_blocks:  # closing one that is in use would end its locks
                with lock.open("ab") as file:
                    os.posix_fallocate(file.fileno(), 0, lock.stat().st_size or _LOCK_BYTES)
        except OSError as error:  # whatever else is wrong, LMDB says when it opens it
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(f"{self._could_not_be_opened()}: the disk is full.") from error

    def _could_not_be_opened(self) -> str:
        return f"The vector cache in {self.directory} could not be opened"

    def _check_head(self, path: Path) -> None:
        """Refuse a file whose first pages would send LMDB out of it, and one that was cut short."""
        needed, size = self.used_bytes(), path.stat().st_size
        self._needed = 0
        if self._handle.info()["map_size"] < needed <= size:
            self._resize(0)  # another process has just made it longer
        sound = _has_plain_trees(path, self._handle.stat()["psize"])
        if not sound or needed > self._handle.info()["map_size"]:
            self._close()
            raise self._damaged("its first pages make no sense")
        if size < needed:  # any page may be missing, also one that leads to all others
            self._close()
            raise self._damaged("its file ends too early")
        self._fill_map()
        self._needed = needed

    def _fill_map(self) -> None:
        """Let the file reach to the end of the map, as a hole that takes no space.

        A damaged page may lead anywhere in the map. Beyond the end of the file that would be the end of the process; in
        the hole there are zeros, which LMDB and the checksums refuse.
        """
        if self.read_only:
            return
        path = self.directory / DATA
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
        self._resize(2 * size if max_bytes is None else min(2 * size, _whole_pages(max_bytes)))
        self._fill_map()

    def _resize(self, size: int) -> None:
        """Map so many bytes of address space, or with 0 as many as another process has made it."""
        try:
            self._handle.set_mapsize(size)
        except lmdb.MemoryError as error:
            self._reopen()  # LMDB has closed it
            raise self._no_address_space(size, error) from error

    def _not_opened(self, error: lmdb.Error) -> CacheError:
        """Why LMDB has not opened it. Only what is damaged is called so, as users then delete the file."""
        path = self.directory / DATA
        if isinstance(error, lmdb.MemoryError):
            return self._no_address_space(path.stat().st_size if path.exists() else 0, error)
        begin = self._could_not_be_opened()
        if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError) and self._opens_without_lock():
            return CacheError(
                f"{begin}: {error}. It was opened by another version of LMDB. If no program uses it any more, delete "
                f"{self.directory / LOCK}, and nothing else."
            )
        if isinstance(error, lmdb.InvalidError | lmdb.CorruptedError | lmdb.PageNotFoundError):
            return self._damaged(error)
        if isinstance(error, lmdb.DiskError):
            return CacheError(f"{begin}: the disk is full.")
        if "already open" in str(error):
            return self._open_under("elsewhere")
        return CacheError(f"{begin}: {error}. That says nothing against its files: leave them where they are.")

    def _opens_without_lock(self) -> bool:
        """Whether the data are those of LMDB, in the format that this version reads, or there are none yet."""
        path = self.directory / DATA
        try:
            if path.exists() and path.stat().st_size:
                lmdb.open(str(self.directory), readonly=True, lock=False).close()
        except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError):
            return False
        except lmdb.Error:  # says nothing against them
            pass
        return True

    def _open_under(self, others: str) -> CacheError:
        return CacheError(
            f"{self._could_not_be_opened()}: this process has its {DATA} open under another "
            f"path, {others}. Use one path for one cache."
        )

    def _no_address_space(self, size: int, error: lmdb.Error) -> CacheError:
        return CacheError(
            f"The vector cache in {self.directory} needs {max(_FIRST_MAP, size):,} bytes of address space, and the "
            f"system refuses them ({error}). Its files are intact: raise the limit of this process (ulimit -v, or the "
            "memory of the job)."
        )

    def _damaged(self, reason: object) -> CacheError:
        return CacheError(
            f"The vector cache in {self.directory} is damaged ({reason}). Delete {self.directory / DATA} and "
            f"{LOCK} next to it: the vectors are encoded anew."
        )


_ENVIRONMENTS: WeakValueDictionary[Path, Environment] = WeakValueDictionary()
_ENVIRONMENTS_LOCK = threading.Lock()


def open_environment(directory: Path) -> Environment:
    """The handle of this process on ``directory``, shared by all who ask for it, under whatever path."""
    with _ENVIRONMENTS_LOCK:
        environment = _ENVIRONMENTS.get(directory)
        if environment is None:
            files = _which_files(directory)
            same = (one for one in list(_ENVIRONMENTS.values()) if None not in files and one.files == files)
            environment = _ENVIRONMENTS[directory] = next(same, None) or Environment(directory)
        return environment


def _which_file(path: Path) -> File | None:
    """Device and number of a file, which stay with it under another name; None where there is none."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def _which_files(directory: Path) -> tuple[File | None, File | None]:
    return _which_file(directory / DATA), _which_file(directory / LOCK)


def _has_plain_trees(path: Path, page_size: int) -> bool:
    """Whether both heads say that there are the two kinds of tree that a store has: another would end the process."""
    if page_size not in _PAGE_SIZES:
        return False
    with path.open("rb") as file:
        for start in (0, page_size):
            file.seek(start)
            head = file.read(_HEAD.size)
            if len(head) == _HEAD.size:
                version, free, main = _HEAD.unpack(head)
                if version & 0xFFFF == _VERSION and (free & ~_INTEGER_KEYS or main):
                    return False
    return True


def _give_back(records: Sequence[memoryview]) -> None:
    """Take the pages between these records of a map, which nothing else lies between, out of this process."""
    addresses = [np.frombuffer(record, np.uint8).__array_interface__["data"][0] for record in records]
    start = min(addresses) // _PAGE * _PAGE
    # Windows has no such call, and no library that stands for the process itself.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(max(addresses) - start), _DONT_NEED)


def _whole_pages(size: int) -> int:
    return size // _PAGE * _PAGE
