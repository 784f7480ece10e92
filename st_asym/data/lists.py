"""Lists in the fields of rows: of documents, perhaps written out as text, and of a grade for each of them."""

from __future__ import annotations

import ast
import json
import numbers
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from st_asym.data.formats import as_list, folded, is_column


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
    With ``output_scores=True`` it writes ``scores``, which do not say what is relevant: an error where the list is
    ``alone``, without negatives of its own.
    """
    if isinstance(documents, str) or not is_column(documents):
        return None
    names = {folded(name): name for name in row}
    count, graded_by, scores = len(as_list(documents)), grade or names.get("labels"), names.get("scores")
    if graded_by is not None and (found := _numbers(row[graded_by], count)):
        return found
    if alone and not grade and count > 1 and scores is not None and _numbers(row[scores], count):
        raise ValueError(
            f"{where}: {scores!r} has a number for each of a list of documents, and nothing says which are relevant. "
            "Mine them with output_scores=False, which writes labels of 1 and 0; or, where all are relevant, leave "
            f"{scores!r} out."
        )
    return None


def _numbers(value: Any, count: int) -> list[Any] | None:
    """A list of so many numbers, perhaps written out as text; else None."""
    found = listed(list_in_text(value, numbers.Real))
    return list(found) if len(found) == count and all(isinstance(one, numbers.Real) for one in found) else None
