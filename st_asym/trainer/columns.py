"""Which way a text takes through a model: columns of a data set for ``router_mapping``, and plain ``encode``."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from st_asym.data.formats import DOCUMENT_NAMES, QUERY_NAMES
from st_asym.heads.anatomy import side_prompt

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# A first column that has one of these words is no query.
_DOCUMENT_WORDS = {*DOCUMENT_NAMES, "chunk", "corpus", "doc", "negative"}
# What the library's data collators do not treat as text.
_NOT_TEXT = frozenset({"label", "labels", "score", "scores", "dataset_name"})
_ROUTES = ("query", "document")


def router_mapping(
    dataset: Dataset | DatasetDict | IterableDataset | Mapping[str, Any], *, query: str | Iterable[str] | None = None
) -> dict[str, Any]:
    """Make the ``router_mapping`` for ``SentenceTransformerTrainingArguments`` from the columns of a data set.

    Columns are told by name: with the word query, question or anchor in it, such as ``query_text`` or ``questions``, it
    is a query. Where no name has one, the first column is the query, as the library's losses expect, with a warning.
    What was decided is logged at ``INFO``.

    Args:
        dataset: A data set with column names, or a dict of them by name, as the trainer takes them.
        query: The column or columns that hold queries, where the names do not tell.

    Returns:
        ``{column: "query" or "document"}``; for a dict of data sets, one such mapping per data set.

    Raises:
        ValueError: No column is a query, ``query`` names a column that does not exist, or the data set does not say
            what columns it has.

    Example:
        >>> from datasets import Dataset
        >>> router_mapping(Dataset.from_dict({"question": ["a"], "positive": ["b"], "negative_1": ["c"]}))
        {'question': 'query', 'positive': 'document', 'negative_1': 'document'}
    """
    if isinstance(dataset, Mapping):
        return {name: router_mapping(part, query=query) for name, part in dataset.items()}
    columns = _text_columns(dataset)
    if query is None:
        queries = _guessed_queries(columns)
    else:
        queries = {query} if isinstance(query, str) else set(query)
        if missing := sorted(queries.difference(columns)):
            raise ValueError(f"query={missing[0]!r} is not a column of the data set: it has {columns}.")
    mapping = {column: "query" if column in queries else "document" for column in columns}
    logger.info("Columns: %s.", ", ".join(f"{column} is a {route}" for column, route in mapping.items()))
    return mapping


def check_router_mapping(
    mapping: Mapping[str, Any], dataset: Dataset | DatasetDict | IterableDataset | Mapping[str, Any]
) -> None:
    """Refuse a mapping that would send a column of the data set down the wrong way.

    :func:`st_asym.watch` calls it for the training and evaluation data of a trainer.

    Args:
        mapping: The ``router_mapping`` of the training arguments.
        dataset: A data set, or a dict of them by name.

    Raises:
        ValueError: A column is not in the mapping, or mapped to something other than ``query`` and ``document``. The
            message names the column, and the misspelt key that was probably meant for it.

    Example:
        >>> from datasets import Dataset
        >>> check_router_mapping({"qeury": "query", "positive": "document"},
        ...                      Dataset.from_dict({"query": ["a"], "positive": ["b"]}))
        Traceback (most recent call last):
            ...
        ValueError: router_mapping has no route for column 'query' (a misspelt 'qeury'?). ...
    """
    if isinstance(dataset, Mapping):
        for name, part in dataset.items():
            nested = any(isinstance(value, Mapping) for value in mapping.values())
            check_router_mapping(mapping.get(name, {}) if nested else mapping, part)
        return
    columns = _text_columns(dataset)
    strangers = [key for key in mapping if key not in columns]
    for column in columns:
        if column not in mapping:
            close = difflib.get_close_matches(column, strangers, n=1)
            hint = f" (a misspelt {close[0]!r}?)" if close else ""
            raise ValueError(
                f"router_mapping has no route for column {column!r}{hint}. Without one it would train the document "
                f"head, silently. The columns are {columns}; st_asym.router_mapping(dataset) names them all."
            )
        if mapping[column] not in _ROUTES:
            raise ValueError(
                f"router_mapping sends column {column!r} to {mapping[column]!r}: it must be one of {_ROUTES}."
            )
    routes = {mapping[column] for column in columns}
    if "query" not in routes:
        logger.warning("router_mapping sends every column of %s to the document head: no queries are trained.", columns)
    # The corpus loss has labels in the place of documents.
    elif "document" not in routes and _NOT_TEXT.isdisjoint(dataset.column_names or ()):
        logger.warning("router_mapping sends every column of %s to the query head: no documents are trained.", columns)


def column_prompts(model: SentenceTransformer, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The ``prompts`` for ``SentenceTransformerTrainingArguments``, so that training reads what encoding will.

    The trainer leaves a model's prompts out unless it is given them by column.

    Args:
        model: The model, with its prompts for ``query`` and ``document``.
        mapping: Column to route, or data set to such a mapping, as of :func:`router_mapping`.

    Returns:
        ``{column: prompt}``, without columns whose prompt is empty; for several data sets, one such dict for each.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> model = SentenceTransformer(modules=[BoW(["a", "b"])], prompts={"query": "query: "})
        >>> column_prompts(model, {"question": "query", "positive": "document"})
        {'question': 'query: '}
    """
    if any(isinstance(route, Mapping) for route in mapping.values()):
        return {name: column_prompts(model, part) for name, part in mapping.items()}
    return {column: prompt for column, route in mapping.items() if (prompt := side_prompt(model, route))}


def encode_caveat(side: str = "document") -> str:
    """What to know before calling ``encode``, which sends texts to this side, and the remedy, in a line of Markdown."""
    other, plural = ("query", "queries") if side == "document" else ("document", "documents")
    return (
        f"Plain `encode` sends every text through the {side} side, and Haystack, LangChain, Chroma and DSPy call it "
        f'for {plural} too: `encode(texts, task="{other}", prompt_name="{other}")` equals `encode_{other}(texts)`.'
    )


def _text_columns(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    if names is None:
        raise ValueError(
            f"A {type(dataset).__name__} without column names cannot be mapped: give a datasets.Dataset, or an "
            "IterableDataset with features."
        )
    return [name for name in names if name not in _NOT_TEXT]


def _guessed_queries(columns: list[str]) -> set[str]:
    queries = {column for column in columns if _words(column) & {*QUERY_NAMES}}
    if queries:
        return queries
    if not columns or _words(columns[0]) & _DOCUMENT_WORDS:
        raise ValueError(
            f"None of the columns {columns} looks like a query: name it, router_mapping(dataset, query=...)."
        )
    logger.warning("Taking the first column, %r, for the query and the rest of %s for documents.", columns[0], columns)
    return {columns[0]}


def _words(column: str) -> set[str]:
    """``Negatives_12`` -> ``{"negatives", "negative"}``."""
    words = re.findall("[a-z]+", column.lower())
    return {*words, *(word.removesuffix("s") for word in words), *(f"{word.removesuffix('ies')}y" for word in words)}
