"""Documents alone: rows with a text, and perhaps a title and an id."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from st_asym.data.collection import counted, first_few
from st_asym.data.document import Document, Documents, is_missing
from st_asym.data.files import Row
from st_asym.data.pairs import DOCUMENT_NAMES, QUERY_NAMES

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
