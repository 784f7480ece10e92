"""Lines of text, JSON objects and table rows out of files, each with its place, or an error that names it."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

Row = tuple[str, Mapping[str, Any]]

# The csv module refuses longer fields, by default from 131,072 characters on.
_LONGEST_FIELD = 2**31 - 1


@contextmanager
def open_lines(file: Path | zipfile.Path) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file, of one inside a zip, or of a ``.gz``; line ends stay as they are.

    Raises:
        ValueError: A line that is not UTF-8, or a damaged ``.gz``.
    """
    binary: IO[bytes]
    with file.open("rb") as binary:
        if file.name.endswith(".gz"):
            with gzip.open(binary, "rb") as unpacked:
                yield _decoded(unpacked, file.name)
        else:
            yield _decoded(binary, file.name)


def _decoded(lines: Iterable[bytes], file: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            # Some editors write a byte order mark, which would become part of the first name.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start}). "
            "Save the file as UTF-8."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file}, after line {number}: a damaged gzip file ({error}).") from error


def json_rows(lines: Iterable[str], file: str, *names: str) -> Iterator[Row]:
    """The JSON object of each line that is not blank, and its place.

    Args:
        lines: The lines.
        file: The name that errors give.
        names: Fields that each object must have.

    Raises:
        ValueError: A line is not a JSON object, or lacks a field.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            for name in names:
                row[name]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: not a JSON object{_with(names)} ({error!r}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: not a JSON object{_with(names)}, but {row!r:.80}.")
        yield f"{file}, line {number}", row


def _with(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return listed and f" with {listed}"


def table_rows(lines: Iterable[str], file: str) -> Iterator[Row]:
    """Rows of a table with a header, by column name, and their places.

    A ``.tsv`` is separated by tabs, a ``.csv`` by whichever of comma, semicolon and tab its header has most of. Fields
    with separators, quotes or line ends are in double quotes, and a quote inside them is doubled.

    Args:
        lines: The lines.
        file: The name that errors give.

    Raises:
        ValueError: Quotes that do not match, a row with more or fewer fields than the header, or a name twice in it.
    """
    lines = iter(lines)
    first = next(lines, "")
    delimiter = "\t" if ".tsv" in file else max(",;\t", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    number = 1
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{file}: a column name occurs twice in the header {header}.")
        while True:
            number = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                break
            if row and len(row) != len(header):
                raise ValueError(f"{file}, line {number}: {len(row)} fields, but the header has {len(header)}: {row}.")
            if row:
                yield f"{file}, line {number}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {number}: {error}. Fields with separators, quotes or line ends must be in double quotes."
        ) from error
    finally:
        csv.field_size_limit(limit)
