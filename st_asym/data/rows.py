"""Whatever has columns, row by row: data sets, data frames, Arrow tables, dicts of columns, lists of dicts.

Data frames are known by what they can do: neither pandas nor Polars is imported.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from st_asym.data.collection import counted, first_few
from st_asym.data.document import Document, Documents, is_missing
from st_asym.data.formats import Row

# Column names that say what a column is, in any case.
QUERY_NAMES = ("query", "question", "anchor")
DOCUMENT_NAMES = ("positive", "pos", "document", "passage", "answer", "response", "context", "text")
GRADE_NAMES = ("grade", "score", "relevance", "label")


class Table(NamedTuple):
    """Names of columns, and the rows with their places."""

    columns: list[str]
    rows: Iterator[Row]


def is_table(source: Any) -> bool:
    """Whether something has columns: a data set, a data frame, an Arrow table, or a dict of lists of one length."""
    if isinstance(source, Mapping):
        return bool(source) and all(map(is_column, source.values())) and any(map(_holds_values, source.values()))
    return (
        any(hasattr(source, name) for name in ("column_names", "itertuples", "iter_rows", "read_all"))
        or (hasattr(source, "to_pylist") and hasattr(source, "schema"))
        or _field_names(source) is not None
    )


def is_column(source: Any) -> bool:
    """Whether something is a list, a series or an array."""
    return isinstance(source, list | tuple) or (
        not is_table(source)
        and not isinstance(source, str | Mapping)
        and any(hasattr(source, name) for name in ("to_pylist", "to_list", "tolist"))
    )


def _holds_values(column: Any) -> bool:
    """Whether a list is a column of texts or numbers, rather than one of rows or lists."""
    return not any(isinstance(value, Mapping | Sequence) and not isinstance(value, str) for value in column[:1])


def as_list(values: Any) -> list[Any]:
    """A list, of a series, an array or anything that can be gone through."""
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, name):
            found = getattr(values, name)()
            return found if isinstance(found, list) else [found]
    return list(values)


def columns_known(source: Any) -> list[Any]:
    """The names of a table's columns, without going through its rows; nothing where they are not known."""
    if isinstance(source, Mapping):
        return list(source)
    columns: Any = getattr(source, "column_names", None) or getattr(source, "columns", None)
    if columns is None:
        columns = _field_names(source) or getattr(getattr(source, "schema", None), "names", ())
    return list(columns)


def table_of(source: Any, name: str) -> Table:
    """The columns and rows of what :func:`is_table`, or of a list of dicts.

    Args:
        source: It.
        name: What errors call it.

    Raises:
        TypeError: A row is not a mapping.
        ValueError: A column name occurs twice, columns have different lengths, or there is no row to tell the columns.
    """
    columns: list[Any] | None
    rows: Iterable[Any]
    if isinstance(source, Mapping):
        columns, rows = _of_columns(source, name)
    elif hasattr(source, "column_names") and not hasattr(source, "to_pylist"):
        columns, rows = _of_data_set(source)
    elif isinstance(source, Sequence):
        columns, rows = None, source
    else:
        columns, rows = _of_frame(source)
    if columns is None:
        rows = iter(rows)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{name} is empty.")
        columns, rows = list(first) if isinstance(first, Mapping) else [], chain([first], rows)
    if len(set(columns)) < len(columns):
        raise ValueError(f"{name}: a column name occurs twice among {columns}.")
    return Table(columns, _placed(rows, name))


def _placed(rows: Iterable[Any], name: str) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"{name}, row {number}: expected a dict like the rows before, got {row!r:.80}.")
        yield f"{name}, row {number}", row


def _of_columns(source: Mapping[Any, Any], name: str) -> tuple[list[Any], Iterable[Any]]:
    columns = {key: as_list(values) for key, values in source.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: columns of different lengths, {lengths!s:.200}.")
    return list(columns), (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _of_data_set(source: Any) -> tuple[list[str] | None, Iterable[Any]]:
    """A ``datasets.Dataset``, its rows as dicts of Python's own types; one that streams may not know its columns."""
    form = getattr(source, "format", None)
    if isinstance(form, Mapping) and form.get("type") not in (None, "custom"):
        source = source.with_format(None)
    return source.column_names, source


def _of_frame(source: Any) -> tuple[list[str], Iterable[Any]]:
    if hasattr(source, "itertuples"):  # pandas
        if getattr(source.index, "name", None) not in (None, *source.columns):
            source = source.reset_index()  # an index that has a name is a column
        columns = list(source.columns)
        return columns, (dict(zip(columns, row, strict=True)) for row in source.itertuples(index=False, name=None))
    if hasattr(source, "iter_rows"):  # Polars
        return list(source.columns), source.iter_rows(named=True)
    names = _field_names(source)
    if names is not None:  # a structured array of NumPy
        return names, (dict(zip(names, row, strict=True)) for row in source.tolist())
    if hasattr(source, "read_all"):
        source = source.read_all()
    batches = source.to_batches() if hasattr(source, "to_batches") else [source]
    return list(source.schema.names), chain.from_iterable(batch.to_pylist() for batch in batches)


def _field_names(source: Any) -> list[str] | None:
    names = getattr(getattr(source, "dtype", None), "names", None)
    return list(names) if isinstance(names, tuple) else None


# What a line of a corpus may hold; anything else is more likely a misspelt pair.
_FIELDS = frozenset({"_id", "id", "title", "text", "metadata", "url"})
_ID_NAMES = ("_id", "id", "doc_id", "docid", "document_id", "corpus_id", "corpus-id", "pid")
# What else the text is called where rows are known to be documents.
_TEXT_NAMES = (*DOCUMENT_NAMES, "contents", "content", "body", "page_content")


class _Columns(NamedTuple):
    name: str | None
    title: str | None
    text: str | None


def holds_documents(names: Iterable[str], *, wanted: bool = False) -> bool:
    """Whether rows with these fields are documents: those of a line of ``corpus.jsonl``, in any case.

    Args:
        names: The fields.
        wanted: Whether documents are asked for. Then other fields do not matter, and the text may have another name,
            unless there is a query.

    Example:
        >>> holds_documents(["_id", "Text"]), holds_documents(["text", "lang"])
        (True, False)
        >>> holds_documents(["text", "lang"], wanted=True), holds_documents(["query", "text"], wanted=True)
        (True, False)
    """
    found = {_folded(name) for name in names}
    if wanted:
        return not found.intersection(QUERY_NAMES) and _columns(tuple(names)).text is not None
    return "text" in found and found <= _FIELDS


def read_documents(rows: Iterable[Row], source: str) -> Documents:
    """Document id to title and text of each row.

    A missing title or text is an empty one. Rows without an id get ``d0``, ``d1`` and so on.

    Raises:
        ValueError: A title or text that is not a string, a row without a text, or an id with two different texts.
    """
    notes: list[str] = []
    numbered: list[bool] = []
    found = by_id(_documents(rows, numbered), source, notes)
    return Documents(found, tuple(notes), numbered=all(numbered))


def by_id(rows: Iterable[tuple[str, str, Any]], source: str, notes: list[str]) -> dict[str, Any]:
    """``(place, id, value)`` as a dict; an id may come again with the same value.

    Raises:
        ValueError: An id with two different values.
    """
    found: dict[str, Any] = {}
    repeated = 0
    different = []
    for where, key, value in rows:
        repeated += key in found
        if found.setdefault(key, value) != value:
            different.append(f"{key} ({where.rpartition(', ')[2]})")
    if different:
        raise ValueError(
            f"{source}: {counted(len(different), 'id')} given again to a different text: {first_few(different)}."
        )
    if repeated:
        notes.append(f"{source}: {counted(repeated, 'repeated line')} left out.")
    return found


def _documents(rows: Iterable[Row], numbered: list[bool]) -> Iterator[tuple[str, str, Document]]:
    for number, (where, row) in enumerate(rows):
        name, title, text = _columns(tuple(row))
        if text is None:
            raise ValueError(f"{where}: no 'text', only {list(row)}.")
        values = {"title": row[title] if title else None, "text": row[text]}
        document = Document.of(values)
        if document is None:
            raise ValueError(f"{where}: title and text must be strings, got {values!s:.100}.")
        given = None if name is None or is_missing(row[name]) else row[name]
        numbered.append(given is None)
        yield where, f"d{number}" if given is None else text_id(given), document


def text_id(value: Any) -> str:
    """An id as text; data frames make floats of numbers where one is missing."""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and float(value).is_integer():
        return str(int(float(value)))
    return str(value)


@lru_cache(maxsize=256)
def _columns(names: tuple[str, ...]) -> _Columns:
    folded = {_folded(name): name for name in reversed(names)}
    name, title = (
        next((folded[one] for one in accepted if one in folded), None) for accepted in (_ID_NAMES, ("title",))
    )
    texts = [folded[one] for one in _TEXT_NAMES if one in folded]
    text = folded.get("text", texts[0] if len(texts) == 1 else None)
    return _Columns(name, title, text)


def _folded(name: object) -> str:
    return str(name).strip().casefold()
