"""Rows, each with its place for errors, out of files and out of whatever has columns in memory.

Files are read by Python's ``csv`` and ``json``, because what is faster has less care: ``pyarrow.csv`` takes a quotation
mark that is never closed, reads ``007`` as 7 and ``NA`` as nothing, drops one of two columns of one name and knows no
line numbers; ``datasets`` reads with pandas, which guesses types too.

Data frames are known by what they can do: neither pandas nor Polars is imported.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from st_asym.data.collection import first_few, noted
from st_asym.data.files import Folder, carriage_return_alone, is_hidden, kind_of, open_lines

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
# The three columns of qrels, in BEIR's words, and what else they are called.
QRELS_COLUMNS = ("query-id", "corpus-id", "score")
QRELS_NAMES = (
    (*QUERY_ID_NAMES, "query", "topic"),
    (*DOCUMENT_ID_NAMES, "corpusid", "doc-id", "passage_id", "document"),
    (*GRADE_NAMES, "rel"),
)
_QRELS_KINDS = (".tsv", ".csv", ".txt", ".trec", ".qrels", ".jsonl", ".json")

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


@lru_cache(maxsize=256)
def qrels_columns(names: tuple[Any, ...]) -> list[Any]:
    """Which of these columns are query id, document id and grade, if each is named once; else nothing."""
    found = [[name for name in names if folded(name) in known] for known in QRELS_NAMES]
    return [own[0] for own in found] if all(len(own) == 1 for own in found) else []


# Rows of files


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
                raise ValueError(carriage_return_alone(file, number)) from error
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
    tabs, records = kind_of(file) == ".tsv", records_of(lines, file)
    is_odd = _in_quotes if tabs else _over_lines
    _, header = next(records, (1, []))
    named = [name for name in header if name.strip()]  # spreadsheets write columns without a name
    if len(set(named)) < len(named):
        raise ValueError(f"{file}: a column name occurs twice in the header {header}.")
    if tabs and header and all(map(_in_quotes, header)):
        raise ValueError(
            f"{file}: the column names {header} are in quotation marks, and a .tsv has no quoting. Save it without, or "
            "as .csv."
        )
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
    notes += noted(again, "row", _HEADER_AGAIN, source=file)
    notes += noted(odd, "row", _IN_QUOTES if tabs else _OVER_LINES, source=file)


def _in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _over_lines(field: str) -> bool:
    """Whether a field holds more than one line end: more often than not, a quotation mark is missing."""
    return len(_LINE_END.findall(field)) > 1


def records_of(lines: Iterable[str], file: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each record that is not blank: of a ``.csv``, a ``.tsv``, or else between spaces."""
    if kind_of(file) == ".csv":
        return _comma_separated(lines, file)
    if kind_of(file) == ".tsv":
        return _tab_separated(lines)
    return ((number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())


def _tab_separated(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not blank, as they are."""
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if line and not _is_blank(row := line.split("\t")) and not (number == 1 and _SEPARATOR_LINE.fullmatch(line)):
            yield number, row


def _is_blank(row: Sequence[str]) -> bool:
    """Whether a line holds nothing but white space, and no separator."""
    return len(row) == 1 and row[0].isspace()


def _comma_separated(lines: Iterable[str], file: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line and the fields of each record of a ``.csv`` that is not blank."""
    lines = iter(lines)
    header, before = next(lines, ""), 0
    delimiter = max(",;\t", key=header.count)
    if said := _SEPARATOR_LINE.fullmatch(header):
        delimiter, header, before = said[1], next(lines, ""), 1
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    number = before + 1
    try:
        for row in reader:
            if row and not _is_blank(row):
                yield number, row
            number = before + reader.line_num + 1
    except csv.Error as error:
        if "new-line character" in str(error):
            raise ValueError(carriage_return_alone(file, number)) from error
        raise ValueError(
            f"{file}, line {number}: {error}. Fields with separators, quotes or line ends must be in double quotes."
        ) from error
    finally:
        csv.field_size_limit(limit)


# BEIR's layout


class BeirFiles(NamedTuple):
    """The files of one collection."""

    corpus: Folder
    queries: Folder | None  # none where there are documents alone
    qrels: dict[str, Folder]  # by split
    notes: list[str]  # what is not read


def beir_files(top: Folder, *, documents: bool = False) -> BeirFiles:
    """The files of the collection in a folder, at the top or in the only folder inside it.

    They are those of documents where there is no more than a corpus; with ``documents``, also where the rest is not
    whole.
    """
    folders = [top]
    if _beir_file(top, "corpus") is None:
        folders = sorted((one for one in top.iterdir() if one.is_dir() and not is_hidden(one.name)), key=str)
    found = [(folder, corpus) for folder in folders if (corpus := _beir_file(folder, "corpus")) is not None]
    if len(found) > 1:
        names = first_few([folder.name for folder, _ in found])
        raise ValueError(f"{top} holds {len(found)} collections: {names}. Give the folder of one.")
    if not found:
        raise FileNotFoundError(
            f"{top} is not in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, at the top or in one "
            "folder."
        )
    root, corpus = found[0]
    queries, judged = _beir_file(root, "queries"), (root / "qrels").is_dir()
    whole = judged and queries is not None
    # In whatever form, so that what is wrong is named.
    begun = any(entry.name.lower().partition(".")[0] in ("queries", "qrels") for entry in root.iterdir())
    if not (whole if documents else begun):
        return BeirFiles(corpus, None, {}, [])
    if queries is None:
        raise FileNotFoundError(f"queries.jsonl is missing from {root}.")
    if not judged:
        raise FileNotFoundError(f"{root} is not in BEIR's layout: the folder qrels is missing.")
    return BeirFiles(corpus, queries, *_qrels_files(root / "qrels"))


def _beir_file(folder: Folder, stem: str) -> Folder | None:
    """``STEM.jsonl`` or ``STEM.jsonl.gz``, in any case; both are a ``ValueError``."""
    wanted = (f"{stem}.jsonl", f"{stem}.jsonl.gz")
    found = sorted((entry for entry in folder.iterdir() if entry.name.lower() in wanted and entry.is_file()), key=str)
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(entry.name for entry in found)}: keep one.")
    return found[0] if found else None


def _qrels_files(folder: Folder) -> tuple[dict[str, Folder], list[str]]:
    """The file of each split, and a note for what is not read."""
    files: dict[str, Folder] = {}
    notes = []
    for file in sorted((entry for entry in folder.iterdir() if not is_hidden(entry.name)), key=str):
        if not file.is_file() or kind_of(file.name) not in _QRELS_KINDS:
            notes.append(f"qrels/{file.name} is not read: qrels are .tsv, .csv, .jsonl, or .txt in TREC's form.")
            continue
        split = Path(file.name.lower().removesuffix(".gz")).stem
        if (other := files.setdefault(split, file)) is not file:
            raise ValueError(f"qrels/{other.name} and qrels/{file.name} are both {split!r}: keep one.")
    if not files:
        missing = f"There is no file in {folder} that holds judgments: qrels/SPLIT.tsv, of each split."
        raise FileNotFoundError(" ".join([missing, *notes]))
    return files, notes


def beir_rows(file: Folder, *strings: str) -> Iterator[Row]:
    """The rows of a corpus or of queries, whose fields of these names must be strings, as ids in qrels are."""
    with open_lines(file) as lines:
        for where, row in json_rows(lines, file.name, "_id", "text"):
            values = tuple(row[name] for name in strings)
            if not all(isinstance(value, str) for value in values):
                raise ValueError(f"{where}: a field of {strings} is not a string: {values!s:.200}.")
            yield where, row


def qrels_rows(file: Folder) -> Iterator[Row]:
    """The rows of a file of qrels: JSON, or a table whose header may be missing."""
    place = f"qrels/{file.name}"
    with open_lines(file) as lines:
        if kind_of(place).startswith(".json"):
            yield from json_rows(lines, place)
            return
        header: list[str] | None = None
        for number, row in records_of(lines, place):
            if header is None:
                header = row if qrels_columns(tuple(row)) else []
                if header or folded(row[-1]) in QRELS_NAMES[2]:
                    continue
            # TREC's form judges nothing in its second column.
            trec = len(row) == 4 and row[1] in ("0", "Q0", "q0") and not header
            names = header or ([QRELS_COLUMNS[0], "", *QRELS_COLUMNS[1:]] if trec else QRELS_COLUMNS)
            if len(row) < len(names) or (len(row) > len(names) and not header):
                raise ValueError(f"{place}, line {number}: expected {', '.join(QRELS_COLUMNS)}, got {row}.")
            yield f"{place}, line {number}", dict(zip(names, row, strict=False))


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
        and getattr(source, "ndim", 1) > 0  # a number of NumPy is none
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
        columns, rows = list(first), chain([first], rows)
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
        rows = _rows_of(source, lambda: zip(*map(as_list, source.values()), strict=True))
        return rows if _has_columns(source) else None
    if hasattr(source, "itertuples"):  # pandas
        # An index that has a name is a column, and so is each level of one that has several.
        index = list(source.index.names) if set(source.index.names).isdisjoint((None, *source.columns)) else []
        return _rows_of(
            [*index, *source.columns],
            lambda: (source.reset_index() if index else source).itertuples(index=False, name=None),
        )
    if hasattr(source, "iter_rows"):  # Polars
        return list(source.columns), lambda: source.iter_rows(named=True)
    if hasattr(source, "column_names") and not hasattr(source, "to_pylist"):
        return _data_set(source)
    names = getattr(getattr(source, "dtype", None), "names", None)
    if isinstance(names, tuple):  # a structured array of NumPy
        return _rows_of(names, source.tolist)
    if hasattr(source, "read_all") or (hasattr(source, "to_pylist") and hasattr(source, "schema")):  # of Arrow
        alone = source if hasattr(source, "read_all") else [source]  # a reader gives its batches one by one
        batches = source.to_batches() if hasattr(source, "to_batches") else alone
        return source.schema.names, lambda: (row for batch in batches for row in batch.to_pylist())
    return None


def _data_set(source: Any) -> tuple[list[Any] | None, Callable[[], Iterable[Any]]]:
    """Of a data set, perhaps one that streams, what it shows of itself."""
    form = getattr(source, "format", None)
    form = form if isinstance(form, Mapping) else {}
    if form.get("type") == "custom":  # a function that makes the rows
        return source.column_names, lambda: source
    all_shown = form.get("output_all_columns", True) or source.column_names is None
    names = source.column_names if all_shown else [one for one in source.column_names if one in form["columns"]]
    features = getattr(source, "features", None) or {}
    texts = names and [name for name in names if not _is_decoded(features.get(name))]

    def rows() -> Any:
        plain = source if form.get("type") is None else source.with_format(None)
        return plain if texts == source.column_names else plain.select_columns(texts)

    return texts, rows


def _is_decoded(feature: Any) -> bool:
    """Whether a column of a data set is, or holds, what each row reads with another package, or from another file."""
    if isinstance(feature, Mapping):
        return any(map(_is_decoded, feature.values()))
    return getattr(feature, "decode", False) is True or (
        hasattr(feature, "feature") and _is_decoded(feature.feature)  # of a list
    )


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
