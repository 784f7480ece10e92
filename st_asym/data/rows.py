"""What rows mean: pairs of texts, which make a collection, documents, and judgments."""

from __future__ import annotations

import numbers
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain, product
from typing import Any

from st_asym.data.collection import (
    Qrels,
    RetrievalData,
    add_judgment,
    counted,
    first_few,
    into_splits,
    noted,
    respelt_notes,
    whole_number,
)
from st_asym.data.document import Document, ReadDocuments, is_missing, text_key
from st_asym.data.formats import (
    DOCUMENT_ID_NAMES,
    DOCUMENT_NAMES,
    GRADE_NAMES,
    QRELS_COLUMNS,
    QUERY_ID_NAMES,
    QUERY_NAMES,
    Row,
    as_list,
    columns_known,
    folded,
    is_column,
    is_table,
    qrels_columns,
    table_of,
)
from st_asym.data.lists import CLICK_NAMES, PairColumns, grades_beside, list_in_text, listed, pair_columns

# What a line of a corpus may hold; anything else is more likely a misspelt pair.
_CORPUS_FIELDS = frozenset({"_id", "id", "title", "text", "metadata", "url"})
# What the text is called where rows are known to be documents.
_TEXT_NAMES = (*DOCUMENT_NAMES, "contents", "content", "body", "page_content")

# negative, negatives, neg, negative_1, hard_negatives, negative_passages, hard_negative_ctxs, ...
_NEGATIVE = re.compile(r"(hard_)?neg(ative)?s?(_?\d+|_passages|_ctxs)?", re.IGNORECASE)
# As NumPy writes it, without commas, so that it cannot be read.
_ARRAY_IN_TEXT = re.compile(r"""\[['"].*['"]\]""", re.DOTALL)

_QRELS = "qrels map query id to document id to grade, or are a table with the columns query-id, corpus-id and score"

# What a row that has it has in every row of its file.
_IN_EVERY_ROW = {*GRADE_NAMES, *CLICK_NAMES, "shown"}
_YES_NO = {"true": 1, "false": 0}

# What is left out or read in a way that may surprise.
_EMPTY = ("pair", "with an empty text left out")
_CONFLICT = ("pair", "given again with another grade; the highest counts")
_LIST = ("row", "with a list written as text, read as a list")
_UNCLEAR_LIST = ("row", "with what looks like a list that cannot be read, taken as one text")
_NOT_SHOWN = ("pair", "neither shown nor clicked left out")
_TITLED = ("negative", "taken as the document with a title that has its text")
_NOT_TEXT = ("row", "with something else than text")
_NOT_WHOLE = ("grade", "not a whole number")
_COUNTED = (_EMPTY, _NOT_SHOWN, _CONFLICT, _TITLED, _LIST, _UNCLEAR_LIST)
_GRADES = (
    " Grades are 0 for not relevant, 1 or more for relevant; negatives are given as a list, (query, positive, "
    "[negative]), or in a column negative."
)

_Pair = tuple[str, Any, Any, Any]  # place, query, document, grade
_Places = defaultdict[tuple[str, str], list[str]]  # of what is counted, such as _EMPTY


def from_pairs(pairs: Iterable[Sequence[str]]) -> RetrievalData:
    """Make a collection of (query, relevant document) pairs.

    Texts that occur several times become one query or one document, documents also where they differ in white space,
    case or Unicode form alone. A query goes to ``train`` (70 %), ``dev`` (10 %) or ``test`` (20 %) by a hash of its
    text, so that it stays there when others are added, and in any order; spellings of one query go together, by the
    first in alphabetical order.

    Args:
        pairs: A tuple or list of a query and a document text each.

    Returns:
        The collection; the corpus is all documents. Pairs with an empty text are left out, and counted in its notes.

    Raises:
        TypeError: Something else than tuples and lists, such as dicts.
        ValueError: Texts that are not strings.

    Example:
        >>> data = from_pairs([("capital of France?", "Paris is the capital of France."), ("a dog", "A dog barks.")])
        >>> len(data.queries), len(data.corpus), sorted(data.qrels)
        (2, 2, ['dev', 'test', 'train'])
    """
    return into_splits(pairs_of_tuples(pairs, "pairs"))


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
    columns = pair_columns(names, source)
    if any(folded(name) == "split" for name in names):
        notes.append(f"{source}: the column split is not read. Give the rows of each split apart, as train and dev.")
    places: _Places = defaultdict(list)
    pairs: Iterable[_Pair] = _pairs_in(rows, names, columns, places, of_text=of_text)
    if columns.title and any(_NEGATIVE.fullmatch(str(name)) for name in names):
        pairs = _with_titles(pairs, places)
    return _collection(pairs, source, places, notes, clicks=folded(columns.grade) == "clicks")


def pairs_of_tuples(rows: Iterable[Any], source: str) -> RetrievalData:
    """(query, document), (query, document, grade) and (query, positive, list of negatives) tuples, all for training."""

    def pairs() -> Iterator[_Pair]:
        for number, row in enumerate(rows):
            where = f"{source}, row {number}"
            if not isinstance(row, tuple | list) or len(row) not in (2, 3):
                raise TypeError(f"{where}: expected (query, document) or (query, document, grade), got {row!r:.80}.")
            query, document, *rest = row
            negatives = rest.pop() if rest and isinstance(rest[0], list | tuple) else ()
            yield where, query, document, rest[0] if rest else 1
            yield from ((where, query, negative, 0) for negative in negatives)

    return _collection(pairs(), source, defaultdict(list), [])


def _pairs_in(
    rows: Iterable[Row], names: Iterable[str], columns: PairColumns, places: _Places, *, of_text: bool
) -> Iterator[_Pair]:
    """The query of each row with each of its documents, and with each that is not relevant."""
    first = set(names)
    for where, row in rows:
        _check_names(where, row, first, columns)
        if columns.shown and all(_is_no(row.get(name)) for name in (columns.shown, columns.grade)):
            places[_NOT_SHOWN].append(where)
            continue
        fields = {name: row[name] for name in row if name == columns.document or _NEGATIVE.fullmatch(str(name))}
        if of_text:
            fields = _with_lists(fields, where, places)
        query, title = row[columns.query], row.get(columns.title) if columns.title else None
        own = fields.pop(columns.document)
        documents = listed(own)
        grades = grades_beside(row, own, columns.grade, where, alone=not fields)
        if grades is None:
            grades = [row[columns.grade] if columns.grade else 1] * len(documents)
        if not documents:
            places[_EMPTY].append(where)
        for document, grade in zip(documents, grades, strict=True):
            yield where, query, _titled(title, document), _YES_NO.get(folded(grade), grade)
        negatives = chain.from_iterable(map(listed, fields.values()))  # rows may have fewer than columns
        for negative in (one for one in negatives if not is_missing(one)):
            marked = columns.title and isinstance(negative, str)  # as one that may have a title elsewhere
            yield where, query, Document("", negative) if marked else negative, 0


def _is_no(value: Any) -> bool:
    """Whether what a row says of being shown or clicked is 0 or false, in whatever spelling."""
    with suppress(TypeError, ValueError):
        return whole_number(_YES_NO.get(folded(value), value)) == 0
    return False


def _titled(title: Any, document: Any) -> Any:
    """A document with its title, where both are texts."""
    if not isinstance(title, str) or not isinstance(document, str) or not document.strip():
        return document
    return Document(title, document) if title else document.strip()


def _with_titles(pairs: Iterable[_Pair], places: _Places) -> Iterator[_Pair]:
    """The pairs of rows, in which a negative without a title is the one document that has its text and a title."""
    pairs = list(pairs)
    known: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for _, _, document, _ in pairs:
        if isinstance(document, str):  # one of its own
            known[text_key(document)][""] = document
        elif isinstance(document, Document) and document.title:
            known[text_key(document.text)].setdefault(text_key(document.joined), document.joined)
    for where, query, document, grade in pairs:
        if isinstance(document, Document) and not document.title:
            titled = known.get(text_key(document.text), {})
            found = len(titled) == 1 and "" not in titled
            document = next(iter(titled.values())) if found else document.text
            places[_TITLED] += [where] * found
        yield where, query, document, grade


def _check_names(where: str, row: Mapping[str, Any], first: set[str], columns: PairColumns) -> None:
    """Refuse a row without a column that it needs, and a grade or a second text that the first row has not."""
    missing = [name for name in (columns.query, columns.document, columns.grade) if name and name not in row]
    if missing:
        raise ValueError(f"{where}: no {' and no '.join(map(repr, missing))}, only {list(row)}.")
    if row.keys() <= first:
        return
    known = {*_IN_EVERY_ROW, folded(columns.query), folded(columns.document)}
    if late := [name for name in row if name not in first and folded(name) in known]:
        raise ValueError(f"{where}: {late[0]!r}, which the first row has not. Give it in every row, or in none.")


def _collection(
    pairs: Iterable[_Pair], source: str, places: _Places, notes: list[str], *, clicks: bool = False
) -> RetrievalData:
    """A collection of pairs: equal queries become one, and so do documents with the same text.

    Texts are the same by :func:`st_asym.data.text_key`: the first spelling stays. Where a pair is repeated, the highest
    grade counts, or with ``clicks`` their sum. What is wrong with pairs is counted and named together.
    """
    query_ids: dict[str, str] = {}  # by text
    document_ids: dict[str, str] = {}  # by the key of the text
    corpus: dict[str, str] = {}
    qrels: Qrels = {}
    respelt: dict[str, str] = {}  # text to its first place
    for where, query, document, grade in pairs:
        if isinstance(document, Mapping | Document) and (found := Document.of(document)) is not None:
            document = found.joined
        if (fault := _fault_of(query, document, grade)) is not None:
            places[fault[0]].append(where + fault[1])
            continue
        query_id = query_ids.setdefault(query, f"q{len(query_ids)}")
        document_id = document_ids.setdefault(text_key(document), f"d{len(document_ids)}")
        if corpus.setdefault(document_id, document) != document:
            respelt.setdefault(document, where)
        before = qrels.get(query_id, {}).get(document_id, 0) if clicks else 0
        if add_judgment(qrels, query_id, document_id, before + whole_number(grade)) and not clicks:
            places[_CONFLICT].append(where)
    notes = [*notes, *_notes_on(places, source), *respelt_notes(list(respelt.values()), source)]
    if clicks:
        qrels = {q: {d: max(0, count).bit_length() for d, count in judged.items()} for q, judged in qrels.items()}
    queries = {query_id: text for text, query_id in query_ids.items()}
    return RetrievalData(queries, corpus, {"train": qrels} if qrels else {}, notes=tuple(notes), numbered=True)


def _fault_of(query: Any, document: Any, grade: Any) -> tuple[tuple[str, str], str] | None:
    """What is wrong with a pair, and what of it."""
    for text in (query, document):
        if is_missing(text) or (isinstance(text, str) and not text.strip()):
            return _EMPTY, ""
        if not isinstance(text, str):
            return _NOT_TEXT, f" ({text!r:.40})"
    try:
        whole_number(grade)
    except ValueError:
        return _NOT_WHOLE, f" ({grade!r:.40})"
    return None


def _notes_on(places: _Places, source: str) -> list[str]:
    """A note for each thing that was counted; an error where that has no remedy."""
    for what, remedy in ((_NOT_TEXT, ""), (_NOT_WHOLE, _GRADES)):
        if names := places[what]:
            raise ValueError(f"{source}: {counted(len(names), what[0])} {what[1]}: {first_few(names)}.{remedy}")
    return [note for what in _COUNTED for note in noted(places[what], *what, source=source)]


def _with_lists(fields: Mapping[str, Any], where: str, places: _Places) -> dict[str, Any]:
    """Fields of text, with a list where one is written out."""
    found = {name: list_in_text(value) for name, value in fields.items()}
    if any(isinstance(value, str) and _ARRAY_IN_TEXT.fullmatch(value) for value in found.values()):
        places[_UNCLEAR_LIST].append(where)
    if any(isinstance(value, list) for value in found.values()):
        places[_LIST].append(where)
    return found


# Documents and judgments


@lru_cache(maxsize=256)
def text_columns(names: tuple[str, ...], letter: str = "d") -> tuple[str | None, str | None, str | None]:
    """Which columns are id, title and text of documents (``"d"``), or id and text of queries (``"q"``)."""
    known = {folded(name): name for name in reversed(names)}
    ids, called = (QUERY_ID_NAMES, QUERY_NAMES) if letter == "q" else (DOCUMENT_ID_NAMES, _TEXT_NAMES)
    texts = [known[one] for one in called if one in known]
    name = next((known[one] for one in ("_id", "id", *ids) if one in known), None)
    text = known.get("text", texts[0] if len(texts) == 1 or (texts and letter == "q") else None)
    chosen = (name, known.get("title") if letter == "d" else None, text)
    for one, other in product(names, filter(None, chosen)):
        if one != other and folded(one) == folded(other):
            raise ValueError(f"Of the columns {list(names)}, {other!r} and {one!r} have one name. Keep one of them.")
    return chosen


def holds_documents(names: Iterable[str], *, wanted: bool = False) -> bool:
    """Whether rows with these fields are documents: those of a line of ``corpus.jsonl``, in any case.

    Where documents are ``wanted``, other fields do not matter, and the text may have another name, unless there is a
    query.
    """
    found = {folded(name) for name in names}
    if wanted:
        return not found.intersection(QUERY_NAMES) and text_columns(tuple(names))[2] is not None
    return "text" in found and found <= _CORPUS_FIELDS


def read_documents(rows: Iterable[Row], source: str, letter: str = "d", notes: Iterable[str] = ()) -> ReadDocuments:
    """Id to title and text of each row; those without an id get ``d0``, ``d1`` and so on.

    An id may come again with the same text, not with another. ``notes`` are of the reading of the rows.
    """
    documents: dict[str, Document] = {}
    repeated, different, numbered = 0, [], True
    for number, (where, row) in enumerate(rows):
        name, title, text = text_columns(tuple(row), letter)
        if text is None:
            raise ValueError(f"{where}: no 'text', only {list(row)}.")
        values = {"title": row[title] if title else None, "text": row[text]}
        document = Document.of(values)
        if document is None:
            raise ValueError(f"{where}: title and text must be strings, got {values!s:.100}.")
        given = None if name is None or is_missing(row[name]) else row[name]
        numbered = numbered and given is None
        key = f"{letter}{number}" if given is None else _text_id(given)
        repeated += key in documents
        if documents.setdefault(key, document) != document:
            different.append(f"{key} ({where.rpartition(', ')[2]})")
    if different:
        raise ValueError(
            f"{source}: {counted(len(different), 'id')} given again to a different text: {first_few(different)}."
        )
    again = [f"{source}: {counted(repeated, 'repeated line')} left out."] if repeated else []
    return ReadDocuments(documents, (*again, *notes), numbered=numbered)


def read_qrels(rows: Iterable[Row], source: str, notes: list[str]) -> Qrels:
    """The judgments in rows with the columns query-id, corpus-id and score; of a pair judged again, the highest."""
    qrels: Qrels = {}
    conflicts = []
    expected = f"expected {', '.join(QRELS_COLUMNS)}"
    for place, row in rows:
        columns = qrels_columns(tuple(row))
        if not columns:
            raise ValueError(f"{place}: {expected}, got the columns {list(row)}.")
        query_id, document_id, relevance = values = [row[name] for name in columns]
        try:
            grade = whole_number(relevance)
        except ValueError as error:
            raise ValueError(f"{place}: {expected}, got {values}.") from error
        if add_judgment(qrels, _text_id(query_id), _text_id(document_id), grade):
            conflicts.append(place.rpartition(", ")[2])
    notes += noted(conflicts, "pair", "judged again with another grade; the highest counts", source=source)
    return qrels


# Queries, corpus and qrels in memory


def texts_by_id(source: Any, letter: str, name: str) -> Mapping[str, Any]:
    """Queries (``"q"``) or documents (``"d"``) by id: a mapping as it is, a table, alone or in a mapping, or texts.

    Texts are numbered.
    """
    if isinstance(source, str):
        raise TypeError(f"{name} is one text: give [text].")
    if isinstance(source, Mapping) and not is_table(source) and source and all(map(is_table, source.values())):
        if len(source) > 1:
            raise ValueError(f"{name} has the splits {list(source)}: give one of them.")
        (source,) = source.values()
    if not is_table(source):
        return source if isinstance(source, Mapping) else {f"{letter}{i}": one for i, one in enumerate(as_list(source))}
    columns, rows = table_of(source, name)
    if not (holds_documents(columns, wanted=True) if letter == "d" else text_columns(tuple(columns), letter)[2]):
        raise ValueError(f"{name} has the columns {columns}: none is the text. Name it text.")
    return read_documents(rows, name, letter).joined


def documents_of(source: Mapping[Any, Any], *, numbered: bool = False) -> ReadDocuments:
    """Documents of id to a text, or to a dict of title and text."""
    documents: dict[str, Document] = {}
    for key, value in source.items():
        document = Document.of(value)
        if document is None:
            raise ValueError(f"Document {key!r} is neither a text nor a dict of title and text: {value!r:.80}.")
        documents[key] = document
    return ReadDocuments(documents, numbered=numbered)


def judgment_tables(part: Any) -> dict[str, Any]:
    """Tables of judgments by split, as in the ``DatasetDict`` of a collection on the Hub; one alone is ``train``."""
    tables = {"train": part} if is_table(part) else dict(part) if isinstance(part, Mapping) else {}
    return tables if all(qrels_columns(tuple(columns_known(table))) for table in tables.values()) else {}


def are_judgments(value: Any) -> bool:
    """Whether these may be the judgments of a query: document id to grade, or ids."""
    return isinstance(value, Mapping | set | frozenset) or is_column(value)


def read_splits(qrels: Any, notes: list[str]) -> dict[str, Qrels]:
    """Qrels by split, in the forms of :func:`st_asym.data.sources.read_judged`; without a split they are ``train``."""
    tables = judgment_tables(qrels)
    if not isinstance(qrels, Mapping):
        if not is_table(qrels):
            raise TypeError(f"qrels cannot be a {type(qrels).__name__}: {_QRELS}.")
        tables = {"train": qrels}
    if tables:
        named = {split: "qrels" if part is qrels else f"qrels[{split!r}]" for split, part in tables.items()}
        return {split: read_qrels(table_of(tables[split], name)[1], name, notes) for split, name in named.items()}
    parts = [part for part in qrels.values() if isinstance(part, Mapping)]
    by_split = any(are_judgments(inner) for part in parts for inner in part.values())
    splits: Mapping[str, Any] = qrels if by_split else {"train": qrels}
    return {split: {query: _graded(query, own) for query, own in judged.items()} for split, judged in splits.items()}


def _graded(query_id: Any, documents: Any) -> dict[str, int]:
    if hasattr(documents, "to_dict") and not any(isinstance(one, str) for one in documents):
        documents = documents.to_dict()  # a series of pandas whose index is the ids
    if isinstance(documents, Mapping):
        return dict(documents)
    if isinstance(documents, set | frozenset):
        documents = sorted(documents)
    if is_column(documents):
        return dict.fromkeys(as_list(documents), 1)
    raise TypeError(f"The qrels of query {query_id!r} are {documents!r:.80}: {_QRELS}.")


def _text_id(value: Any) -> str:
    """An id as text; data frames make floats of numbers where one is missing."""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and float(value).is_integer():
        return str(int(float(value)))
    return str(value)
