"""Rows of texts, (query, document) or (query, positive, negatives), as a collection."""

from __future__ import annotations

import ast
import json
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, parts_by_hash, spelling_note, whole_number
from st_asym.data.document import Document, is_missing, text_key
from st_asym.data.formats import DOCUMENT_NAMES, GRADE_NAMES, QUERY_NAMES, Row, as_list, folded, is_column

# Documents that may have their title in a column beside; what is beside an answer is the title of its question.
_TITLED_NAMES = ("document", "passage", "context", "text")
# negative, negatives, neg, negative_1, hard_negatives, negative_passages, hard_negative_ctxs, ...
_NEGATIVE = re.compile(r"(hard_)?neg(ative)?s?(_?\d+|_passages|_ctxs)?", re.IGNORECASE)

# What stands in logs for a grade.
_CLICK_NAMES = ("clicked", "click", "clicks")
_YES_NO, _NO = {"true": 1, "false": 0}, ("0", "0.0", "false")

# Where the data come without splits, up to which fraction a query is in which.
_SPLITS = {"train": 0.7, "dev": 0.8, "test": 1.0}

# What is left out or read in a way that may surprise.
_EMPTY = ("pair", "with an empty text left out")
_CONFLICT = ("pair", "given again with another grade; the highest counts")
_LIST = ("row", "with a list written as text, read as a list")
_UNCLEAR_LIST = ("row", "with what looks like a list that cannot be read, taken as one text")
_NOT_SHOWN = ("pair", "neither shown nor clicked left out")
_NOT_TEXT = ("row", "with something else than text")
_NOT_WHOLE = ("grade", "not a whole number")
_COUNTED = (_EMPTY, _NOT_SHOWN, _CONFLICT, _LIST, _UNCLEAR_LIST)


def from_pairs(pairs: Iterable[Iterable[str]]) -> RetrievalData:
    """Make a collection of (query, relevant document) pairs.

    Texts that occur several times become one query or one document, documents also where they differ in white space,
    case or Unicode form alone. A query goes to ``train`` (70 %), ``dev`` (10 %) or ``test`` (20 %) by a hash of its
    text, so that it stays there when pairs are added, and in any order; spellings of one query go together.

    Args:
        pairs: A query and a document text each.

    Returns:
        The collection; the corpus is all documents. Pairs with an empty text are left out, and counted in its notes.

    Raises:
        ValueError: Texts that are not strings.

    Example:
        >>> data = from_pairs([("capital of France?", "Paris is the capital of France."), ("a dog", "A dog barks.")])
        >>> len(data.queries), len(data.corpus), sorted(data.qrels)
        (2, 2, ['dev', 'test', 'train'])
    """
    return into_splits(pairs_of_tuples(map(tuple, pairs), "pairs"))


def into_splits(data: RetrievalData) -> RetrievalData:
    """The collection of pairs, its queries in train, dev and test by a hash of their text."""
    return replace(data, qrels=parts_by_hash(data, _SPLITS))


def with_test_queries_apart(data: RetrievalData) -> RetrievalData:
    """The same data, less those training queries that :func:`from_pairs` puts into ``test``; as it is with a test."""
    if "test" in data.qrels or "train" not in data.qrels:
        return data
    test = into_splits(data).qrels["test"]
    train = {query_id: judged for query_id, judged in data.qrels["train"].items() if query_id not in test}
    if not train or not test:
        raise ValueError(
            f"Of {counted(len(data.queries), 'query', 'queries')}, {len(test)} fall among those for the test by the "
            "hash of their text: give more pairs, or queries of their own to evaluate on."
        )
    return replace(data, qrels={**data.qrels, "train": train, "test": test})


def pairs_of_rows(
    rows: Iterable[Row], names: Iterable[str], source: str, notes: list[str], *, of_text: bool = False
) -> RetrievalData:
    """The pairs in rows with named columns, all for training.

    A document column may hold one text or a list of them; with ``of_text`` all fields are text, so that a list is one
    that is written out. ``notes`` are of the reading of the rows, and come first in those of the collection. Of a log,
    ``clicked`` or ``click`` (0 or 1) is a grade, and ``clicks``, which are added up where a pair is repeated, are a
    grade of 1 for one, 2 from 2 on, 3 from 4 on, 4 from 8 on; what was not clicked is judged not relevant, unless
    ``shown`` is 0.
    """
    names = list(names)
    columns = _pair_columns(names, source)
    if any(folded(name) == "split" for name in names):
        notes.append(f"{source}: the column split is not read. Give the rows of each split apart, as train and dev.")
    pairs = _PairCollector(source, notes)
    for where, row in rows:
        missing = [name for name in (columns.query, columns.document, columns.grade) if name and name not in row]
        if missing:
            raise ValueError(f"{where}: no {' and no '.join(map(repr, missing))}, only {list(row)}.")
        if columns.shown and all(folded(row.get(name)) in _NO for name in (columns.shown, columns.grade)):
            pairs.count(_NOT_SHOWN, where)
        else:
            pairs.add_row(where, row, columns, of_text=of_text)
    if folded(columns.grade) == "clicks":
        for judged in pairs.qrels.values():
            judged.update({document: max(0, clicks).bit_length() for document, clicks in judged.items()})
    return pairs.collection()


def pairs_of_tuples(rows: Iterable[Any], source: str) -> RetrievalData:
    """(query, document), (query, document, grade) and (query, positive, list of negatives) tuples, all for training."""
    pairs = _PairCollector(source)
    for number, row in enumerate(rows):
        if not isinstance(row, tuple | list) or len(row) not in (2, 3):
            raise TypeError(
                f"{source}, row {number}: expected (query, document) or (query, document, grade), got {row!r:.80}."
            )
        where, (query, document, *rest) = f"{source}, row {number}", row
        negatives = rest.pop() if rest and isinstance(rest[0], list | tuple) else ()
        pairs.add(where, query, document, *rest)
        for negative in negatives:
            pairs.add(where, query, negative, 0)
    return pairs.collection()


class _PairColumns(NamedTuple):
    """Which column is what."""

    query: str
    document: str
    grade: str  # empty where there is none, as are those below
    title: str
    shown: str


def _pair_columns(names: Iterable[str], source: str) -> _PairColumns:
    """Tell columns by their names: ``QUERY_NAMES``, ``DOCUMENT_NAMES`` and ``GRADE_NAMES``."""
    columns = {folded(name): name for name in names}
    found = f"{source} has the columns {list(columns.values())}"

    def only(accepted: tuple[str, ...], what: str, *, required: bool = True) -> str:
        named = [columns[name] for name in accepted if name in columns]
        if len(named) > 1:
            raise ValueError(f"{found}: {' and '.join(map(repr, named))} could each be the {what}. Keep one of them.")
        if required and not named:
            raise ValueError(f"{found}: none is the {what}. Name it one of {', '.join(accepted)}.")
        return named[0] if named else ""

    if not columns.keys() & {*QUERY_NAMES, *DOCUMENT_NAMES}:
        raise ValueError(
            f"{found}: none is the query, and none the document. Name the first one of {', '.join(QUERY_NAMES)}, the "
            f"second one of {', '.join(DOCUMENT_NAMES)}."
            + " Fields of a .tsv are separated by tabs alone."
            * (source.lower().endswith(".tsv") and len(columns) == 1)
        )
    grade = only(GRADE_NAMES, "grade", required=False) or only(_CLICK_NAMES, "grade", required=False)
    shown = columns.get("shown", "")
    if shown and not grade:
        raise ValueError(f"{found}: {shown!r} says what was shown, and none what was clicked. Add clicked or clicks.")
    document = only(DOCUMENT_NAMES, "document")
    title = columns.get("title", "") if folded(document) in _TITLED_NAMES else ""
    return _PairColumns(only(QUERY_NAMES, "query"), document, grade, title, shown)


@dataclass
class _PairCollector:
    """Pairs of texts, taken one by one: equal queries become one, and so do documents with the same text.

    Texts are the same by :func:`st_asym.data.text_key`: the first spelling stays.
    """

    source: str
    notes: list[str] = field(default_factory=list)
    queries: dict[str, str] = field(default_factory=dict)  # text to the id
    documents: dict[str, str] = field(default_factory=dict)  # key of the text to the id
    corpus: dict[str, str] = field(default_factory=dict)
    qrels: Qrels = field(default_factory=dict)
    spelt_otherwise: dict[str, str] = field(default_factory=dict)  # text to its first place
    places: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # of what is counted, such as _EMPTY

    def add(self, where: str, query: Any, document: Any, grade: Any = 1, *, add_up: bool = False) -> None:
        """Take a pair; what is wrong with it is kept for :meth:`collection`, which counts it.

        Where a pair is repeated, the highest grade counts; with ``add_up``, their sum.
        """
        found = Document.of(document) if isinstance(document, Mapping) else None
        document = found.joined if found is not None else document
        for text in (query, document):
            if is_missing(text) or (isinstance(text, str) and not text.strip()):
                self.count(_EMPTY, where)
                return
            if not isinstance(text, str):
                self.count(_NOT_TEXT, f"{where} ({text!r:.40})")
                return
        try:
            grade = whole_number(grade)
        except ValueError:
            self.count(_NOT_WHOLE, f"{where} ({grade!r:.40})")
            return
        query_id = self.queries.setdefault(query, f"q{len(self.queries)}")
        document_id = self.documents.setdefault(text_key(document), f"d{len(self.documents)}")
        if self.corpus.setdefault(document_id, document) != document:
            self.spelt_otherwise.setdefault(document, where)
        judged = self.qrels.setdefault(query_id, {})
        if add_up:
            judged[document_id] = judged.get(document_id, 0) + grade
        elif judged.setdefault(document_id, grade) != grade:
            self.count(_CONFLICT, where)
            judged[document_id] = max(grade, judged[document_id])

    def add_row(self, where: str, row: Mapping[str, Any], columns: _PairColumns, *, of_text: bool) -> None:
        """Take the pairs of a row: its query with each of its documents, and with each that is not relevant."""
        fields = {name: row[name] for name in row if name == columns.document or _NEGATIVE.fullmatch(str(name))}
        if of_text:
            fields = self._with_lists(where, fields)
        query, grade = row[columns.query], row[columns.grade] if columns.grade else 1
        grade = _YES_NO.get(folded(grade), grade)
        add_up = folded(columns.grade) == "clicks"
        title = row.get(columns.title) if columns.title else None
        documents = _listed(fields.pop(columns.document))
        for document in documents:
            if isinstance(title, str) and isinstance(document, str) and document.strip():
                document = Document(title, document).joined
            self.add(where, query, document, grade, add_up=add_up)
        if not documents:
            self.count(_EMPTY, where)
        for negatives in fields.values():
            for document in _listed(negatives):
                if not is_missing(document):  # rows may have fewer negatives than columns
                    self.add(where, query, document, 0)

    def _with_lists(self, where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of text, with a list where one is written out."""
        found = {name: _list_in_text(value) for name, value in fields.items()}
        if any(map(_looks_like_a_list, found.values())):
            self.count(_UNCLEAR_LIST, where)
        if any(isinstance(value, list) for value in found.values()):
            self.count(_LIST, where)
        return found

    def count(self, what: tuple[str, str], where: str) -> None:
        """Remember a place."""
        self.places.setdefault(what, []).append(where)

    def collection(self) -> RetrievalData:
        """The collection of what was taken, or an error that counts and names what is no pair."""

        def told(what: tuple[str, str]) -> str:
            return f"{self.source}: {counted(len(self.places[what]), what[0])} {what[1]}"

        if wrong := self.places.get(_NOT_TEXT):
            raise ValueError(f"{told(_NOT_TEXT)}: {first_few(wrong)}.")
        if wrong := self.places.get(_NOT_WHOLE):
            grades = (
                "Grades are 0 for not relevant, 1 or more for relevant; negatives are given as a list, "
                "(query, positive, [negative]), or in a column negative."
            )
            raise ValueError(f"{told(_NOT_WHOLE)}: {first_few(wrong)}. {grades}")
        notes = [*self.notes]
        notes += [f"{told(what)} ({first_few(self.places[what])})." for what in _COUNTED if what in self.places]
        if self.spelt_otherwise:
            notes.append(spelling_note(self.source, list(self.spelt_otherwise.values())))
        queries = {query_id: text for text, query_id in self.queries.items()}
        qrels = {"train": self.qrels} if self.qrels else {}
        return RetrievalData(queries, self.corpus, qrels, notes=tuple(notes), numbered=True)


def _listed(value: Any) -> Sequence[Any]:
    """The texts of a field that may hold one or a list of them, as FlagEmbedding's ``pos`` and ``neg``."""
    if isinstance(value, str | numbers.Real) or not is_column(value):
        return [value]
    return as_list(value)  # data frames hold arrays where a file had lists


def _list_in_text(value: Any) -> Any:
    """The list of texts that a field of a ``.csv`` was made of, as pandas and ``json`` write it; else the field."""
    if not isinstance(value, str) or not (value.startswith("[") and value.endswith("]")):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
        if repr(found) != value:
            return value
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else value


def _looks_like_a_list(value: Any) -> bool:
    """As NumPy writes it, without commas, so that it cannot be read."""
    return isinstance(value, str) and value.startswith(("['", '["')) and value.endswith(("']", '"]'))
