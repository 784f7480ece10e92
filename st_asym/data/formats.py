"""Lines of text, JSON objects and table rows out of files, each with its place, or an error that names it."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from st_asym.data.collection import counted, first_few

Row = tuple[str, Mapping[str, Any]]

# The csv module refuses longer fields, by default from 131,072 characters on.
_LONGEST_FIELD = 2**31 - 1
# What Excel writes before the header, to say what separates the fields.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_LINE_END = re.compile(r"\r\n?|\n")
_BETWEEN_ITEMS = re.compile(r"[\s,]*")  # matches everywhere


def kind_of(name: str) -> str:
    """What a file is by its name: the last suffix in lower case, ``.gz`` aside.

    Example:
        >>> kind_of("my.tsv.export.CSV.GZ")
        '.csv'
    """
    return Path(_unpacked(name)).suffix.lower()


def stem_of(name: str) -> str:
    """The name without the suffix that :func:`kind_of` gives.

    Example:
        >>> stem_of("train.v2.tsv.gz")
        'train.v2'
    """
    return Path(_unpacked(name)).stem


def is_hidden(name: str) -> bool:
    """Whether a system keeps it to itself: ``._train.tsv`` and ``__MACOSX`` of macOS, ``.ipynb_checkpoints``."""
    return name.startswith(".") or name == "__MACOSX"


def _unpacked(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


@contextmanager
def open_lines(file: Path | zipfile.Path) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file, of one inside a zip, or of a ``.gz``; line ends stay as they are.

    Raises:
        ValueError: A line that is not UTF-8, or a damaged ``.gz``.
    """
    binary: IO[bytes]
    with file.open("rb") as binary:
        if file.name.lower().endswith(".gz"):
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
    """The JSON object of each line that is not blank, or each of one array, and its place.

    Args:
        lines: The lines.
        file: The name that errors give.
        names: Fields that each object must have.

    Raises:
        ValueError: A line is not a JSON object, or lacks a field.
    """
    for number, row in _json_values(lines, file, _with(names)):
        place = f"{file}, line {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{place}: not a JSON object{_with(names)}, but {row!r:.80}.")
        for name in names:
            if name not in row:
                raise ValueError(f"{place}: not a JSON object{_with(names)} ({KeyError(name)!r}).")
        yield place, row


def _json_values(lines: Iterable[str], file: str, wanted: str) -> Iterator[tuple[int, Any]]:
    """The JSON value of each line, or those of one array, with the number of its line."""
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not _begins_a_document(line):
                raise ValueError(f"{file}, line {number}: not a JSON object{wanted} ({error!r}).") from error
            yield from _json_document("".join(chain([line], (rest for _, rest in numbered))), number, file, wanted)
            return
        if _is_array_of_objects(value):
            yield from ((number, one) for one in value)
        else:
            yield number, value


def _begins_a_document(line: str) -> bool:
    """Whether this may be the first line of one array or object over many lines."""
    return line.strip() == "{" or line.lstrip().startswith("[")


def _is_array_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _json_document(text: str, number: int, file: str, wanted: str) -> Iterator[tuple[int, Any]]:
    """The objects of one array over many lines, the first of which has this number; or the one object."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        number += getattr(error, "lineno", 1) - 1
        raise ValueError(
            f"{file}, line {number}: not a JSON object{wanted}, nor part of an array ({error})."
        ) from error
    if not _is_array_of_objects(whole):
        yield number, whole
        return
    decoder, end, known = json.JSONDecoder(), text.index("[") + 1, 0
    for _ in whole:  # decoded again, one by one, for their places
        start = _BETWEEN_ITEMS.search(text, end).end()  # type: ignore[union-attr]
        number, known = number + text.count("\n", known, start), start
        row, end = decoder.raw_decode(text, start)
        yield number, row


def _with(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return listed and f" with {listed}"


def table_rows(lines: Iterable[str], file: str, notes: list[str]) -> Iterator[Row]:
    """Rows of a table with a header, by column name, and their places.

    Fields of a ``.tsv`` are separated by tabs, and quotation marks are part of them. Those of a ``.csv`` are separated
    by whichever of comma, semicolon and tab its header has most of, or what a line ``sep=`` before it says; fields with
    separators, quotes or line ends are in double quotes, and a quote inside them is doubled.

    Args:
        lines: The lines.
        file: The name that errors give.
        notes: Receives, after the last row, what looks like a quotation mark too many or too few.

    Raises:
        ValueError: Quotes that do not match, a row with more or fewer fields than the header, or a name twice in it.
    """
    tabs = kind_of(file) == ".tsv"
    records = tab_separated(lines) if tabs else comma_separated(lines, file)
    look = _in_quotes if tabs else _over_lines
    _, header = next(records, (1, []))
    if len(set(header)) < len(header):
        raise ValueError(f"{file}: a column name occurs twice in the header {header}.")
    if tabs and header and all(map(look, header)):
        raise ValueError(
            f"{file}: the column names {header} are in quotation marks, and a .tsv has no quoting. Save it without, or "
            "as .csv."
        )
    odd = []
    for number, row in records:
        if len(row) != len(header):
            raise ValueError(
                f"{file}, line {number}: {len(row)} fields, but the header has {len(header)}: {row!s:.200}."
                + " A field of a .tsv holds no tab or line end." * tabs
            )
        if any(map(look, row)):
            odd.append(f"line {number}")
        yield f"{file}, line {number}", dict(zip(header, row, strict=True))
    if odd:
        notes.append(f"{file}: {counted(len(odd), 'row')} {_ODD[look]} ({first_few(odd)}).")


def _in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _over_lines(field: str) -> bool:
    """Whether a field holds more than one line end: more often than not, a quotation mark is missing."""
    return len(_LINE_END.findall(field)) > 1


_ODD = {
    _in_quotes: "with a field in quotation marks, which are part of it: a .tsv has no quoting",
    _over_lines: "with a quoted field over more than two lines; where that is not meant, a quotation mark is missing",
}


def tab_separated(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not empty, as they are."""
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if line and not (number == 1 and _SEPARATOR_LINE.fullmatch(line)):
            yield number, line.split("\t")


def comma_separated(lines: Iterable[str], file: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line and the fields of each record of a ``.csv`` that is not empty.

    Raises:
        ValueError: Quotes that do not match.
    """
    lines = iter(lines)
    header, before = next(lines, ""), 0
    said = _SEPARATOR_LINE.fullmatch(header)
    if said is not None:
        header, before = next(lines, ""), 1
    delimiter = said[1] if said is not None else max(",;\t", key=header.count)
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    number = 1
    try:
        while True:
            number = before + reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if row:
                yield number, row
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {number}: {error}. Fields with separators, quotes or line ends must be in double quotes."
        ) from error
    finally:
        csv.field_size_limit(limit)
