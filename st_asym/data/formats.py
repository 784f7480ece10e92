"""Rows, each with its place for errors, out of files and out of whatever has columns in memory.

Files are read by Python's ``csv`` and ``json``, because what is faster has less care: ``pyarrow.csv`` takes a quotation
mark that is never closed, reads ``007`` as 7 and ``NA`` as nothing, drops one of two columns of one name and knows no
line numbers; ``datasets`` reads with pandas, which guesses types too.

Data frames are known by what they can do: neither pandas nor Polars is imported.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from st_asym.data.collection import noted

Row = tuple[str, Mapping[str, Any]]

# What columns are called in pairs, in any case; see :func:`folded`.
QUERY_NAMES = ("query", "question", "anchor")
DOCUMENT_NAMES = (
    *("positive", "pos", "document", "passage", "answer", "response", "context", "text"),
    *("positive_passages", "positive_ctxs"),  # of Tevatron and of DPR
)
GRADE_NAMES = ("grade", "score", "relevance", "label")
# And the ids in collections.
QUERY_ID_NAMES = ("query-id", "query_id", "queryid", "qid")
DOCUMENT_ID_NAMES = ("doc_id", "docid", "document_id", "corpus_id", "corpus-id", "pid")

_GZIP = b"\x1f\x8b"
# The csv module refuses longer fields, by default from 131,072 characters on.
_LONGEST_FIELD = 2**31 - 1
# What Excel writes before the header, to say what separates the fields.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_BYTE_ORDER_MARK = "\ufeff"
_LINE_END = re.compile(r"\r\n?|\n")
_BETWEEN_ITEMS = re.compile(r"[\s,]*")  # matches everywhere
_IN_QUOTES = "with a field in quotation marks, which are part of it: a .tsv has no quoting"
_HEADER_AGAIN = "the same as the header left out, as where files were put together"
_OVER_LINES = "with a quoted field over more than two lines; where that is not meant, a quotation mark is missing"


def folded(name: object) -> str:
    """A column's name without what makes no difference: case and white space around it."""
    return str(name).strip().casefold()


# Files


def kind_of(name: str) -> str:
    """What a file is by its name: the last suffix in lower case, ``.gz`` aside."""
    return Path(name.lower().removesuffix(".gz")).suffix


def stem_of(name: str) -> str:
    """The name without the suffix that :func:`kind_of` gives."""
    return Path(name[:-3] if name.lower().endswith(".gz") else name).stem


def is_hidden(name: str) -> bool:
    """Whether a system keeps it to itself: ``._train.tsv`` and ``__MACOSX`` of macOS, ``.ipynb_checkpoints``."""
    return name.startswith(".") or name == "__MACOSX"


@contextmanager
def open_lines(file: Path | zipfile.Path) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file, of one inside a zip, or of a ``.gz``; line ends stay as they are."""
    binary: IO[bytes]
    with file.open("rb") as binary:
        named, packed = file.name.lower().endswith(".gz"), binary.read(2) == _GZIP
        binary.seek(0)
        if packed and not named:
            raise ValueError(f"{file.name} is packed by gzip: its name must end in .gz.")
        if named:
            with gzip.open(binary, "rb") as unpacked:
                yield _decoded(unpacked, file.name)
        else:
            yield _decoded(binary, file.name)


def _decoded(lines: Iterable[bytes], file: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            # Some editors write a byte order mark, which would become part of the first name.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if "\0" in text:
                raise ValueError(
                    f"{file}, line {number}: a NUL, as UTF-16 and files that are no text have. Save it as UTF-8 text."
                )
            if number == 1 and "\r" in text.rstrip("\r\n") and '"' not in text:
                raise ValueError(_alone(file, number))
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start}). "
            "Save the file as UTF-8."
        ) from error
    except gzip.BadGzipFile as error:
        raise ValueError(
            f"{file} is not packed by gzip ({error}): it is damaged, or its name must not end in .gz."
        ) from error
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{file}, after line {number}: a damaged gzip file ({error}).") from error


def _alone(file: str, number: int) -> str:
    return f"{file}, line {number}: lines end in a carriage return alone. Save it with other line ends."


def json_rows(lines: Iterable[str], file: str, *names: str) -> Iterator[Row]:
    """The JSON object of each line that is not blank, or each of one array, which must have these fields."""
    wanted = f" with {', '.join(names)}" if names else ""
    for number, row in _json_values(lines, file, wanted):
        place = f"{file}, line {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{place}: not a JSON object{wanted}, but {row!r:.80}.")
        for name in names:
            if name not in row:
                raise ValueError(f"{place}: not a JSON object{wanted} ({KeyError(name)!r}).")
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
            if line.strip() == "{" or line.lstrip().startswith("["):  # one object or array over many lines
                yield from _json_document("".join([line, *(rest for _, rest in numbered)]), number, file, wanted)
                return
            if "\r" in line.strip():  # white space in JSON, so that this is one line of several objects
                raise ValueError(_alone(file, number)) from error
            raise ValueError(f"{file}, line {number}: not a JSON object{wanted} ({error!r}).") from error
        yield from ((number, one) for one in (value if _is_array_of_objects(value) else [value]))


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


def table_rows(lines: Iterable[str], file: str, notes: list[str]) -> Iterator[Row]:
    """Rows of a table with a header, by column name.

    Fields of a ``.tsv`` are separated by tabs, and quotation marks are part of them. Those of a ``.csv`` are separated
    by whichever of comma, semicolon and tab its header has most of, or what a line ``sep=`` before it says; fields with
    separators, quotes or line ends are in double quotes, and a quote inside them is doubled. After the last row,
    ``notes`` receives what looks like a quotation mark too many or too few.
    """
    tabs = kind_of(file) == ".tsv"
    records = tab_separated(lines) if tabs else comma_separated(lines, file)
    is_odd = _in_quotes if tabs else _over_lines
    _, header = next(records, (1, []))
    _check_header(header, file, tabs=tabs)
    odd, again = [], []
    for number, row in records:
        if [row[0].removeprefix(_BYTE_ORDER_MARK), *row[1:]] == header:
            again.append(f"line {number}")
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{file}, line {number}: {len(row)} fields, but the header has {len(header)}: {row!s:.200}."
                + " A field of a .tsv holds no tab or line end." * tabs
            )
        if any(map(is_odd, row)):
            odd.append(f"line {number}")
        yield f"{file}, line {number}", dict(zip(header, row, strict=True))
    found = noted(again, "row", _HEADER_AGAIN) + noted(odd, "row", _IN_QUOTES if tabs else _OVER_LINES)
    notes += [f"{file}: {note}" for note in found]


def _check_header(header: Sequence[str], file: str, *, tabs: bool) -> None:
    named = [name for name in header if name.strip()]  # spreadsheets write columns without a name
    if len(set(named)) < len(named):
        raise ValueError(f"{file}: a column name occurs twice in the header {header}.")
    if tabs and header and all(map(_in_quotes, header)):
        raise ValueError(
            f"{file}: the column names {header} are in quotation marks, and a .tsv has no quoting. Save it without, or "
            "as .csv."
        )


def _in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _over_lines(field: str) -> bool:
    """Whether a field holds more than one line end: more often than not, a quotation mark is missing."""
    return len(_LINE_END.findall(field)) > 1


def tab_separated(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not blank, as they are."""
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if line and not _is_blank(row := line.split("\t")) and not (number == 1 and _SEPARATOR_LINE.fullmatch(line)):
            yield number, row


def _is_blank(row: Sequence[str]) -> bool:
    """Whether a line holds nothing but white space, and no separator."""
    return len(row) == 1 and row[0].isspace()


def comma_separated(lines: Iterable[str], file: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line and the fields of each record of a ``.csv`` that is not blank."""
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
            if row and not _is_blank(row):
                yield number, row
    except csv.Error as error:
        if "new-line character" in str(error):
            raise ValueError(_alone(file, number)) from error
        raise ValueError(
            f"{file}, line {number}: {error}. Fields with separators, quotes or line ends must be in double quotes."
        ) from error
    finally:
        csv.field_size_limit(limit)


# What has columns in memory


def is_table(source: Any) -> bool:
    """Whether something has columns: a data set, a data frame, an Arrow table, or a dict of lists of one length."""
    return _table(source) is not None


def is_column(source: Any) -> bool:
    """Whether something is a list, a series or an array."""
    return isinstance(source, list | tuple) or (
        not is_table(source)
        and not isinstance(source, str | Mapping)
        and any(hasattr(source, name) for name in ("to_pylist", "to_list", "tolist"))
    )


def as_list(values: Any) -> list[Any]:
    """A list, of a series, an array or anything that can be gone through."""
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, name):
            found = getattr(values, name)()
            return found if isinstance(found, list) else [found]
    return list(values)


def columns_known(source: Any) -> list[Any]:
    """The names of a table's columns, without going through its rows; nothing where they are not known."""
    found = _table(source)
    return [] if found is None else found[0] or []


def table_of(source: Any, name: str) -> tuple[list[str], Iterator[Row]]:
    """The columns and rows of what :func:`is_table`, or of a list of dicts; errors call it by this name."""
    if isinstance(source, Mapping):
        lengths = {key: len(as_list(values)) for key, values in source.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name}: columns of different lengths, {lengths!s:.200}.")
    found = _table(source)
    columns, rows = (None, iter(source)) if found is None else (found[0], iter(found[1]()))
    if columns is None:
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{name} is empty.")
        columns, rows = list(first) if isinstance(first, Mapping) else [], chain([first], rows)
    if len(set(columns)) < len(columns):
        raise ValueError(f"{name}: a column name occurs twice among {columns}.")
    return columns, _placed(rows, name)


def _placed(rows: Iterable[Any], name: str) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"{name}, row {number}: expected a dict like the rows before, got {row!r:.80}.")
        yield f"{name}, row {number}", row


def _table(source: Any) -> tuple[list[Any] | None, Callable[[], Iterable[Any]]] | None:
    """The columns, None where only the rows know them, and what gives the rows, as dicts of Python's own types."""
    if isinstance(source, Mapping):
        return (
            _rows_of(source, lambda: zip(*map(as_list, source.values()), strict=True)) if _has_columns(source) else None
        )
    if hasattr(source, "itertuples"):  # pandas
        index = list(source.index.names)
        if not set(index).isdisjoint((None, *source.columns)):
            return _rows_of(source.columns, lambda: source.itertuples(index=False, name=None))
        # An index that has a name is a column, and so is each level of one that has several.
        return _rows_of([*index, *source.columns], lambda: source.reset_index().itertuples(index=False, name=None))
    if hasattr(source, "iter_rows"):  # Polars
        return list(source.columns), lambda: source.iter_rows(named=True)
    if hasattr(source, "column_names") and not hasattr(source, "to_pylist"):  # a data set, perhaps one that streams
        form = getattr(source, "format", None)
        plain = not isinstance(form, Mapping) or form.get("type") in (None, "custom")
        return source.column_names, lambda: source if plain else source.with_format(None)
    names = getattr(getattr(source, "dtype", None), "names", None)
    if isinstance(names, tuple):  # a structured array of NumPy
        return _rows_of(names, source.tolist)
    if hasattr(source, "read_all") or (hasattr(source, "to_pylist") and hasattr(source, "schema")):  # of Arrow
        return source.schema.names, lambda: _arrow_rows(source)
    return None


def _has_columns(source: Mapping[Any, Any]) -> bool:
    """Whether a dict holds lists of texts or numbers: where all lists hold rows or lists, these are splits or qrels."""

    def is_nested(value: Any) -> bool:
        return (isinstance(value, Mapping | Sequence) and not isinstance(value, str)) or getattr(value, "ndim", 0) > 0

    lists = all(map(is_column, source.values()))
    return lists and any(not any(map(is_nested, column[:1])) for column in source.values())


def _rows_of(
    columns: Iterable[Any], rows: Callable[[], Iterable[Sequence[Any]]]
) -> tuple[list[Any], Callable[[], Iterable[Any]]]:
    names = list(columns)
    return names, lambda: (dict(zip(names, row, strict=True)) for row in rows())


def _arrow_rows(source: Any) -> Iterator[Any]:
    table = source.read_all() if hasattr(source, "read_all") else source
    batches = table.to_batches() if hasattr(table, "to_batches") else [table]
    return chain.from_iterable(batch.to_pylist() for batch in batches)
