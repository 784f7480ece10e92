"""Rows of texts, (query, document) or (query, positive, negatives), as a collection."""

from __future__ import annotations

import ast
import json
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, fractions_of, spelling_note, whole_number
from st_asym.data.document import Document, is_missing, text_key
from st_asym.data.formats import Row
from st_asym.data.rows import DOCUMENT_NAMES, GRADE_NAMES, QUERY_NAMES, as_list, is_column

# Documents that may have their title in a column beside; what is beside an answer is the title of its question.
_TITLED_NAMES = ("document", "passage", "context", "text")

_NEGATIVE = re.compile(r"neg(ative)?s?(_?\d+)?", re.IGNORECASE)  # negative, negatives, neg, negative_1, ...

# Share of the queries in each split, where the data come without splits.
_SPLITS = {"train": 0.7, "dev": 0.1, "test": 0.2}


class Columns(NamedTuple):
    """Which column is what."""

    query: str
    document: str
    grade: str | None
    title: str | None = None


def columns_of(names: Iterable[str], source: str) -> Columns:
    """Tell columns by their names: :data:`QUERY_NAMES`, :data:`DOCUMENT_NAMES` and :data:`GRADE_NAMES`.

    Raises:
        ValueError: No column, or more than one, is the query or the document. The message names the columns found.
    """
    columns = {str(name).strip().lower(): name for name in names}
    found = f"{source} has the columns {list(columns.values())}"

    def only(accepted: tuple[str, ...], what: str) -> str:
        named = [columns[name] for name in accepted if name in columns]
        if len(named) == 1:
            return named[0]
        if named:
            raise ValueError(f"{found}: {' and '.join(map(repr, named))} could each be the {what}. Keep one of them.")
        raise ValueError(f"{found}: none is the {what}. Name it one of {', '.join(accepted)}.")

    if not columns.keys() & {*QUERY_NAMES, *DOCUMENT_NAMES}:
        raise ValueError(
            f"{found}: none is the query, and none the document. Name the first one of {', '.join(QUERY_NAMES)}, the "
            f"second one of {', '.join(DOCUMENT_NAMES)}."
        )
    grades = [columns[name] for name in GRADE_NAMES if name in columns]
    if len(grades) > 1:
        raise ValueError(f"{found}: {' and '.join(map(repr, grades))} could each be the grade. Keep one of them.")
    document = only(DOCUMENT_NAMES, "document")
    titled = str(document).strip().lower() in _TITLED_NAMES
    return Columns(
        only(QUERY_NAMES, "query"),
        document,
        grades[0] if grades else None,
        columns.get("title") if titled else None,
    )


@dataclass
class PairCollector:
    """Makes a collection of pairs of texts, one by one.

    Equal queries become one. So do documents whose texts are the same by :func:`st_asym.data.text_key`: the first
    spelling stays.

    Attributes:
        source: The name that errors and notes give.
        notes: What was found on reading, a sentence each.
    """

    source: str
    notes: list[str] = field(default_factory=list)
    queries: dict[str, str] = field(default_factory=dict)
    corpus: dict[str, str] = field(default_factory=dict)  # key of the text to the id
    texts: dict[str, str] = field(default_factory=dict)
    spelt_otherwise: dict[str, str] = field(default_factory=dict)  # text to its first place
    judged: Qrels = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    unclear_lists: list[str] = field(default_factory=list)
    not_text: list[str] = field(default_factory=list)
    not_whole: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)

    def add(self, where: str, query: Any, document: Any, grade: Any = 1) -> None:
        """Take a pair; what is wrong with it is kept for :meth:`collection`, which counts it.

        Args:
            where: The place of the pair.
            query: A text. Pairs with an empty or missing text are left out.
            document: A text, or a dict of ``title`` and ``text``.
            grade: A whole number; above zero is relevant.
        """
        found = Document.of(document) if isinstance(document, Mapping) else None
        document = found.joined if found is not None else document
        for text in (query, document):
            if is_missing(text) or (isinstance(text, str) and not text.strip()):
                self.empty.append(where)
                return
            if not isinstance(text, str):
                self.not_text.append(f"{where} ({text!r:.40})")
                return
        try:
            grade = whole_number(grade)
        except ValueError:
            self.not_whole.append(f"{where} ({grade!r:.40})")
            return
        query_id = self.queries.setdefault(query, f"q{len(self.queries)}")
        document_id = self.corpus.setdefault(text_key(document), f"d{len(self.corpus)}")
        if self.texts.setdefault(document_id, document) != document:
            self.spelt_otherwise.setdefault(document, where)
        judged = self.judged.setdefault(query_id, {})
        if judged.setdefault(document_id, grade) != grade:
            self.conflicts.append(where)
            judged[document_id] = max(grade, judged[document_id])

    def add_rows(self, rows: Iterable[Row], columns: Columns, *, of_text: bool = False) -> None:
        """Take rows with named columns. A document column may hold one text or a list of them.

        Args:
            rows: The rows.
            columns: Which column is what.
            of_text: Whether all fields are text, so that a list is one that is written out.

        Raises:
            ValueError: A row lacks the query, the document or the grade.
        """
        for where, row in rows:
            missing = [name for name in (columns.query, columns.document, columns.grade) if name and name not in row]
            if missing:
                raise ValueError(f"{where}: no {' and no '.join(map(repr, missing))}, only {list(row)}.")
            row = self._with_lists(where, row, columns.document) if of_text else row
            self._add_documents(where, row, columns)
            for name in filter(_is_negative, row):
                for document in listed(row[name]):
                    if not is_missing(document):  # rows may have fewer negatives than columns
                        self.add(where, row[columns.query], document, 0)

    def _add_documents(self, where: str, row: Mapping[str, Any], columns: Columns) -> None:
        grade = 1 if columns.grade is None else row[columns.grade]
        title = row.get(columns.title) if columns.title else None
        documents = listed(row[columns.document])
        for document in documents:
            self.add(where, row[columns.query], _titled(title, document), grade)
        if not documents:
            self.empty.append(where)

    def _with_lists(self, where: str, row: Mapping[str, Any], document: str) -> Mapping[str, Any]:
        found = {name: _list_in_text(row[name]) for name in row if name == document or _is_negative(name)}
        if any(map(_looks_like_a_list, found.values())):
            self.unclear_lists.append(where)
        if any(isinstance(value, list) for value in found.values()):
            self.lists.append(where)
            return {**row, **found}
        return row

    def collection(self, split_of: Callable[[str], str] = lambda _: "train") -> RetrievalData:
        """The collection of what was taken.

        Args:
            split_of: Query text to split.

        Raises:
            ValueError: Texts that are not strings, or grades that are not whole numbers; counted, the first ones named.
        """
        if self.not_text:
            rows = counted(len(self.not_text), "row")
            raise ValueError(f"{self.source}: {rows} with something else than text: {first_few(self.not_text)}.")
        if self.not_whole:
            raise ValueError(
                f"{self.source}: {counted(len(self.not_whole), 'grade')} not a whole number: "
                f"{first_few(self.not_whole)}. Grades are 0 for not relevant, 1 or more for relevant."
            )
        notes = [*self.notes, *self._counts()]
        qrels: dict[str, Qrels] = {}
        for text, query_id in self.queries.items():
            qrels.setdefault(split_of(text), {})[query_id] = self.judged[query_id]
        queries = {query_id: text for text, query_id in self.queries.items()}
        return RetrievalData(queries, dict(self.texts), qrels, notes=tuple(notes), numbered=True)

    def _counts(self) -> Iterator[str]:
        """What was left out or read in a way that may surprise, a sentence each."""
        for places, singular, sentence in (
            (self.empty, "pair", "with an empty text left out"),
            (self.conflicts, "pair", "given again with another grade; the highest counts"),
            (self.lists, "row", "with a list written as text, read as a list"),
            (self.unclear_lists, "row", "with what looks like a list that cannot be read, taken as one text"),
        ):
            if places:
                yield f"{self.source}: {counted(len(places), singular)} {sentence} ({first_few(places)})."
        if self.spelt_otherwise:
            yield spelling_note(self.source, list(self.spelt_otherwise.values()))


def _is_negative(name: Any) -> bool:
    return _NEGATIVE.fullmatch(str(name)) is not None


def listed(value: Any) -> Sequence[Any]:
    """The texts of a field that may hold one or a list of them, as FlagEmbedding's ``pos`` and ``neg``."""
    if isinstance(value, str | numbers.Real):
        return [value]
    return as_list(value) if is_column(value) else [value]  # data frames hold arrays where a file had lists


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


def _titled(title: Any, document: Any) -> Any:
    if isinstance(title, str) and isinstance(document, str) and document.strip():
        return Document(title, document).joined
    return document


def collect_tuples(pairs: Iterable[Any], source: str) -> PairCollector:
    """Collect (query, document) and (query, document, grade) tuples.

    Raises:
        TypeError: An item is neither.
    """
    collector = PairCollector(source)
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) not in (2, 3):
            raise TypeError(
                f"{source}, row {number}: expected (query, document) or (query, document, grade), got {pair!r:.80}."
            )
        collector.add(f"{source}, row {number}", *pair)
    return collector


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
    return into_splits(collect_tuples(map(tuple, pairs), "pairs"))


def into_splits(collector: PairCollector) -> RetrievalData:
    """The collection, its queries in train, dev and test by a hash of their text."""
    fractions = fractions_of(collector.queries)
    data = collector.collection(lambda query: _split_of(fractions[query]))
    data.qrels.update({split: {} for split in _SPLITS if split not in data.qrels})
    return data


def with_test_queries_apart(data: RetrievalData) -> RetrievalData:
    """The same data, the queries that :func:`from_pairs` puts into ``test`` taken from ``train``; as it is with a test.

    Raises:
        ValueError: None of the training queries is one of those, or all are.

    Example:
        >>> data = PairCollector("pairs")
        >>> for query in ("how to stop", "how to start", "who is there", "what is new"):
        ...     data.add("", query, f"{query}?")
        >>> {split: len(judged) for split, judged in with_test_queries_apart(data.collection()).qrels.items()}
        {'train': 3, 'test': 1}
    """
    if "test" in data.qrels or "train" not in data.qrels:
        return data
    train: Qrels = {}
    test: Qrels = {}
    fractions = fractions_of(data.queries[query_id] for query_id in data.qrels["train"])
    for query_id, judged in data.qrels["train"].items():
        (test if _split_of(fractions[data.queries[query_id]]) == "test" else train)[query_id] = judged
    if not train or not test:
        raise ValueError(
            f"Of {counted(len(data.queries), 'query', 'queries')}, {len(test)} fall among those for the test by the "
            "hash of their text: give more pairs, or queries of their own to evaluate on."
        )
    return replace(data, qrels={**data.qrels, "train": train, "test": test})


def _split_of(fraction: float) -> str:
    for split, share in _SPLITS.items():
        if fraction < share:
            return split
        fraction -= share
    return "test"
