"""Rows of texts, (query, document) or (query, positive, negatives), as a collection."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, stable_fraction, whole_number
from st_asym.data.files import Row

# Column names that say what a column is, in any case.
QUERY_NAMES = ("query", "question", "anchor")
DOCUMENT_NAMES = ("positive", "pos", "document", "passage", "answer", "response", "context", "text")
GRADE_NAMES = ("grade", "score", "relevance", "label")

_NEGATIVE = re.compile(r"neg(ative)?s?(_?\d+)?", re.IGNORECASE)  # negative, negatives, neg, negative_1, ...

# Share of the queries in each split, where the data come without splits.
_SPLITS = {"train": 0.7, "dev": 0.1, "test": 0.2}


class Columns(NamedTuple):
    """Which column is what."""

    query: str
    document: str
    grade: str | None


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
    return Columns(
        only(QUERY_NAMES, "query"),
        only(DOCUMENT_NAMES, "document"),
        grades[0] if grades else None,
    )


@dataclass
class PairCollector:
    """Makes a collection of pairs of texts, one by one; equal texts become one query or one document.

    Attributes:
        source: The name that errors and notes give.
    """

    source: str
    queries: dict[str, str] = field(default_factory=dict)
    corpus: dict[str, str] = field(default_factory=dict)
    judged: Qrels = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    not_text: list[str] = field(default_factory=list)
    not_whole: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)

    def add(self, where: str, query: Any, document: Any, grade: Any = 1) -> None:
        """Take a pair; what is wrong with it is kept for :meth:`collection`, which counts it.

        Args:
            where: The place of the pair.
            query: A text. Pairs with an empty or missing text are left out.
            document: A text.
            grade: A whole number; above zero is relevant.
        """
        for text in (query, document):
            if _is_missing(text) or (isinstance(text, str) and not text.strip()):
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
        document_id = self.corpus.setdefault(document, f"d{len(self.corpus)}")
        judged = self.judged.setdefault(query_id, {})
        if judged.setdefault(document_id, grade) != grade:
            self.conflicts.append(where)
            judged[document_id] = max(grade, judged[document_id])

    def add_rows(self, rows: Iterable[Row], columns: Columns) -> None:
        """Take rows with named columns. A document column may hold one text or a list of them.

        Raises:
            ValueError: A row lacks the query, the document or the grade.
        """
        for where, row in rows:
            missing = [name for name in (columns.query, columns.document, columns.grade) if name and name not in row]
            if missing:
                raise ValueError(f"{where}: no {' and no '.join(map(repr, missing))}, only {list(row)}.")
            query = row[columns.query]
            grade = 1 if columns.grade is None else row[columns.grade]
            for document in _texts(row[columns.document]):
                self.add(where, query, document, grade)
            for name in filter(_NEGATIVE.fullmatch, row):
                for document in _texts(row[name]):
                    if not _is_missing(document):  # rows may have fewer negatives than columns
                        self.add(where, query, document, 0)

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
        notes = []
        if self.empty:
            pairs = counted(len(self.empty), "pair")
            notes.append(f"{self.source}: {pairs} with an empty text left out ({first_few(self.empty)}).")
        if self.conflicts:
            pairs = counted(len(self.conflicts), "pair")
            notes.append(
                f"{self.source}: {pairs} given again with another grade; the highest counts "
                f"({first_few(self.conflicts)})."
            )
        qrels: dict[str, Qrels] = {}
        for text, query_id in self.queries.items():
            qrels.setdefault(split_of(text), {})[query_id] = self.judged[query_id]
        return RetrievalData(
            {query_id: text for text, query_id in self.queries.items()},
            {document_id: text for text, document_id in self.corpus.items()},
            qrels,
            notes=tuple(notes),
        )


def _texts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_missing(value: Any) -> bool:
    """None, or the NaN that stands for it in data frames."""
    return value is None or (isinstance(value, float) and value != value)


def rows_of(table: Iterable[Mapping[str, Any]], source: str) -> Iterator[Row]:
    """The rows of a ``datasets.Dataset`` or a list of dicts, with their places.

    Raises:
        TypeError: A row is not a mapping.
    """
    for number, row in enumerate(table):
        if not isinstance(row, Mapping):
            raise TypeError(f"{source}, row {number}: expected a dict like the rows before, got {row!r:.80}.")
        yield f"{source}, row {number}", row


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

    Texts that occur several times become one query or one document. A query goes to ``train`` (70 %), ``dev`` (10 %) or
    ``test`` (20 %) by a hash of its text, so that it stays there when pairs are added, and in any order.

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
    data = collector.collection(_split_of)
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
    for query_id, judged in data.qrels["train"].items():
        (test if _split_of(data.queries[query_id]) == "test" else train)[query_id] = judged
    if not train or not test:
        raise ValueError(
            f"Of {counted(len(data.queries), 'query', 'queries')}, {len(test)} fall among those for the test by the "
            "hash of their text: give more pairs, or queries of their own to evaluate on."
        )
    return replace(data, qrels={**data.qrels, "train": train, "test": test})


def _split_of(query: str) -> str:
    fraction = stable_fraction(query)
    for split, share in _SPLITS.items():
        if fraction < share:
            return split
        fraction -= share
    return "test"
