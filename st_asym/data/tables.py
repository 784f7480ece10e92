"""Whatever has columns, row by row: data sets, data frames, Arrow tables, dicts of columns, lists of dicts.

Data frames are known by what they can do: neither pandas nor Polars is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from st_asym.data.files import Row


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
