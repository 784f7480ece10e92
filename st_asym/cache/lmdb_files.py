"""The two files of an LMDB store on disk: which ones they are, whether they are plain, and what their heads say."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TypeAlias

DATA, LOCK = "data.mdb", "lock.mdb"

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_META = 0x08
_INTEGER_KEYS = 8

File: TypeAlias = tuple[int, int]


def which_file(path: Path) -> File | None:
    """Device and number of a file, which stay with it under another name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def which_files(directory: Path) -> tuple[File | None, File | None]:
    """Data and lock of a store."""
    return which_file(directory / DATA), which_file(directory / LOCK)


def first_that_is_not_plain(directory: Path) -> Path | None:
    """What a stranger has packed may lead elsewhere, or never end."""
    for path in (directory / DATA, directory / LOCK):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return path
    return None


def has_head(directory: Path) -> bool:
    """Whether the data begin as those of LMDB do, in the format that this version reads: both heads, or none yet."""
    path = directory / DATA
    if not path.is_file() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        for size in _PAGE_SIZES:
            heads = []
            for start in (0, size):
                file.seek(start)
                heads.append(file.read(24))
            if all(_is_head(head) for head in heads):
                return True
    return False


def has_plain_databases(path: Path, page_size: int) -> bool:
    """Whether both heads of an LMDB file say that it has the two kinds of tree that a store has.

    Another kind would end the process. This is the layout of LMDB's data format 1, 64 bits: page header of 16 bytes,
    magic number, version, two addresses, and two trees of 48 bytes that begin with their page size and flags.
    """
    if page_size not in _PAGE_SIZES:
        return False
    with path.open("rb") as file:
        for start in (0, page_size):
            file.seek(start)
            head = file.read(96)
            if len(head) == 96 and struct.unpack_from("<I", head, 20)[0] & 0xFFFF == _VERSION:
                free, main = struct.unpack_from("<H", head, 44)[0], struct.unpack_from("<H", head, 92)[0]
                if free & ~_INTEGER_KEYS or main:
                    return False
    return True


def _is_head(page: bytes) -> bool:
    if len(page) < 24 or not struct.unpack_from("<H", page, 10)[0] & _META:
        return False
    magic, version = struct.unpack_from("<II", page, 16)
    return (magic, version & 0xFFFF) == (_MAGIC, _VERSION)
