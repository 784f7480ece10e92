"""What is in the fields of rows: which column is what, and lists, perhaps written out as text."""

from __future__ import annotations

import ast
import json
import numbers
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple

from st_asym.data.formats import DOCUMENT_NAMES, GRADE_NAMES, QUERY_NAMES, as_list, folded, is_column

# What stands in logs for a grade.
CLICK_NAMES = ("clicked", "click", "clicks")
# Documents that may have their title in a column beside; what is beside an answer is the title of its question.
_TITLED_NAMES = ("document", "passage", "context", "text")


class PairColumns(NamedTuple):
    """Which column is what."""

    query: str
    document: str
    grade: str  # empty where there is none, as are those below
    title: str
    shown: str


def pair_columns(names: Iterable[str], source: str) -> PairColumns:
    """Tell columns by their names: ``QUERY_NAMES``, ``DOCUMENT_NAMES`` and ``GRADE_NAMES``."""
    names = list(names)
    columns = set(map(folded, names))
    found = f"{source} has the columns {names}"

    def only(accepted: tuple[str, ...], what: str, *, required: bool = True) -> str:
        named = [name for one in accepted for name in names if folded(name) == one]
        if len(named) > 1:
            raise ValueError(f"{found}: {' and '.join(map(repr, named))} could each be the {what}. Keep one of them.")
        if required and not named:
            raise ValueError(f"{found}: none is the {what}. Name it one of {', '.join(accepted)}.")
        return named[0] if named else ""

    if not columns & {*QUERY_NAMES, *DOCUMENT_NAMES}:
        raise ValueError(
            f"{found}: none is the query, and none the document. Name the first one of {', '.join(QUERY_NAMES)}, the "
            f"second one of {', '.join(DOCUMENT_NAMES)}."
            + " Fields of a .tsv are separated by tabs alone."
            * (source.lower().endswith(".tsv") and len(columns) == 1)
        )
    grade = only(GRADE_NAMES, "grade", required=False) or only(CLICK_NAMES, "grade", required=False)
    shown = only(("shown",), "mark of what was shown", required=False)
    if shown and not grade:
        raise ValueError(f"{found}: {shown!r} says what was shown, and none what was clicked. Add clicked or clicks.")
    document = only(DOCUMENT_NAMES, "document")
    title = (only(("title",), "title", required=False) or "title") if folded(document) in _TITLED_NAMES else ""
    return PairColumns(only(QUERY_NAMES, "query"), document, grade, title, shown)


def listed(value: Any) -> Sequence[Any]:
    """The texts of a field that may hold one or a list of them, as FlagEmbedding's ``pos`` and ``neg``."""
    if isinstance(value, str | numbers.Real) or not is_column(value):
        return [value]
    return as_list(value)  # data frames hold arrays where a file had lists


def list_in_text(value: Any, kind: type = str) -> Any:
    """The list, of texts or of another kind, that a field was made of, as pandas and ``json`` write it; else itself."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(value)
                is_whole = read is json.loads or repr(found) == value
                if is_whole and isinstance(found, list) and all(isinstance(one, kind) for one in found):
                    return found
    return value


def grades_beside(row: Mapping[str, Any], documents: Any, grade: str, where: str, *, alone: bool) -> list[Any] | None:
    """A grade for each of a list of documents, out of a list of as many numbers in the column ``grade`` or ``labels``.

    So the library's ``mine_hard_negatives`` writes a positive and its negatives (``output_format="labeled-list"``).
    With ``output_scores=True`` it writes ``scores``, which do not say what is relevant: an error. Both are read where
    the list is ``alone``, without a column of negatives.
    """
    if isinstance(documents, str) or not is_column(documents):
        return None
    names = {folded(name): name for name in row}
    count, labels, scores = len(as_list(documents)), names.get("labels"), names.get("scores")
    if grade or not alone:  # where negatives stand apart, labels are of something else
        return _numbers(row[grade], count) if grade else None
    if labels is not None and (found := _numbers(row[labels], count)):
        return found
    if labels is not None and count > 1 and _are_grades(row[labels]):
        raise ValueError(f"{where}: {labels!r} is {row[labels]!r:.80}, and not a number for each of {count} documents.")
    if count > 1 and scores is not None and _numbers(row[scores], count):
        raise ValueError(
            f"{where}: {scores!r} has a number for each of a list of documents, and nothing says which are relevant. "
            "Mine them with output_scores=False, which writes labels of 1 and 0; or, where all are relevant, leave "
            f"{scores!r} out."
        )
    return None


def _numbers(value: Any, count: int) -> list[Any] | None:
    """A list of so many numbers, perhaps written out as text; else None."""
    found = listed(list_in_text(value, numbers.Real))
    return (
        list(found) if len(found) == count and all(isinstance(one, numbers.Real | Decimal) for one in found) else None
    )


def _are_grades(value: Any) -> bool:
    """Whether a list has numbers, or there is none where other rows have one."""
    if value is None:
        return True
    found = list_in_text(value, object)
    return is_column(found) and any(folded(one).isdigit() for one in as_list(found))
