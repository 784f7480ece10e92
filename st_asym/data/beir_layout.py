"""Corpus, queries and qrels: the rows of each, and BEIR's folder or zip that holds all three."""

from __future__ import annotations

import numbers
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, noted, whole_number
from st_asym.data.document import Document, ReadDocuments, is_missing
from st_asym.data.formats import (
    DOCUMENT_ID_NAMES,
    DOCUMENT_NAMES,
    GRADE_NAMES,
    QUERY_ID_NAMES,
    QUERY_NAMES,
    Row,
    as_list,
    comma_separated,
    folded,
    is_hidden,
    is_table,
    json_rows,
    kind_of,
    open_lines,
    stem_of,
    tab_separated,
    table_of,
)
from st_asym.data.prepare import check_ids

# What a line of a corpus may hold; anything else is more likely a misspelt pair.
_CORPUS_FIELDS = frozenset({"_id", "id", "title", "text", "metadata", "url"})
# What the text is called where rows are known to be documents.
_TEXT_NAMES = (*DOCUMENT_NAMES, "contents", "content", "body", "page_content")
# The three columns of qrels, and the kinds of their files.
_QRELS_NAMES = (
    (*QUERY_ID_NAMES, "query", "topic"),
    (*DOCUMENT_ID_NAMES, "corpusid", "doc-id", "passage_id", "document"),
    (*GRADE_NAMES, "rel"),
)
_QRELS_KINDS = (".tsv", ".csv", ".txt", ".trec", ".qrels", ".jsonl", ".json")
_EXPECTED = "expected query-id, corpus-id, score"

Folder = Path | zipfile.Path
# Place, and query id, document id and grade, which may be more or fewer where the line is broken.
Judgment = tuple[str, Sequence[Any]]


def read_beir(path: Path, *, documents: bool = False) -> RetrievalData | ReadDocuments:
    """The collection in a folder or zip, at the top or in the only folder inside it; or its documents alone.

    It is read as documents where there is no more than a corpus; with ``documents``, also where the rest is not whole.
    """
    with ExitStack() as opened:
        root, corpus = _root(path if path.is_dir() else zipfile.Path(opened.enter_context(zipfile.ZipFile(path))))
        if documents:
            judged = (root / "qrels").is_dir() and _file(root, "queries") is not None
        else:  # in whatever form, so that what is wrong is named
            judged = any(entry.name.lower().partition(".")[0] in ("queries", "qrels") for entry in root.iterdir())
        asked = _file(root, "queries") if judged else None
        if judged and asked is None:
            raise FileNotFoundError(f"queries.jsonl is missing from {root}.")
        if judged and not (root / "qrels").is_dir():
            raise FileNotFoundError(f"{root} is not in BEIR's layout: the folder qrels is missing.")
        with open_lines(corpus) as lines:
            found = read_documents(_with_strings(json_rows(lines, corpus.name, "_id", "text"), "_id"), corpus.name)
        return found if asked is None else _read_judged_by(root, asked, found)


def _root(top: Folder) -> tuple[Folder, Folder]:
    """The folder that holds ``corpus.jsonl``, and that file."""
    folders = [top]
    if _file(top, "corpus") is None:
        inside = (entry for entry in top.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        folders = sorted(inside, key=str)
    found = [(folder, corpus) for folder in folders if (corpus := _file(folder, "corpus")) is not None]
    if len(found) > 1:
        names = first_few([folder.name for folder, _ in found])
        raise ValueError(f"{top} holds {len(found)} collections: {names}. Give the folder of one.")
    if not found:
        raise FileNotFoundError(
            f"{top} is not in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, at the top or in one "
            "folder."
        )
    return found[0]


def _file(folder: Folder, stem: str) -> Folder | None:
    """``STEM.jsonl`` or ``STEM.jsonl.gz``, in any case; both are a ``ValueError``."""
    wanted = (f"{stem}.jsonl", f"{stem}.jsonl.gz")
    found = sorted((entry for entry in folder.iterdir() if entry.name.lower() in wanted and entry.is_file()), key=str)
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(entry.name for entry in found)}: keep one.")
    return found[0] if found else None


def _read_judged_by(root: Folder, asked: Folder, documents: ReadDocuments) -> RetrievalData:
    """The documents with queries, which are in the file ``asked``, and the qrels of all splits."""
    notes = list(documents.notes)
    with open_lines(asked) as lines:
        rows = _with_strings(json_rows(lines, asked.name, "_id", "text"), "_id", "text")
        queries = _by_id(((where, row["_id"], row["text"]) for where, row in rows), asked.name, notes)
    corpus = documents.joined
    qrels: dict[str, Qrels] = {}
    files = _qrels_files(root / "qrels", notes)
    for split, file in files.items():
        with open_lines(file) as lines:
            qrels[split] = _gathered(_judgments(lines, file.name), f"qrels/{file.name}", notes)
    for split, file in files.items():
        check_ids(queries, corpus, qrels[split], f"qrels/{file.name}")
    return RetrievalData(queries, corpus, qrels, notes=tuple(notes))


def _with_strings(rows: Iterable[Row], *names: str) -> Iterator[Row]:
    """The rows, whose fields of these names must be strings: an id is one in the qrels too."""
    for where, row in rows:
        values = tuple(row[name] for name in names)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where}: a field of {names} is not a string: {values!s:.200}.")
        yield where, row


# Queries and documents


@lru_cache(maxsize=256)
def _document_columns(names: tuple[str, ...]) -> tuple[str | None, str | None, str | None]:
    """Which columns are id, title and text."""
    known = {folded(name): name for name in reversed(names)}
    name = next((known[one] for one in ("_id", "id", *DOCUMENT_ID_NAMES) if one in known), None)
    texts = [known[one] for one in _TEXT_NAMES if one in known]
    return name, known.get("title"), known.get("text", texts[0] if len(texts) == 1 else None)


def holds_documents(names: Iterable[str], *, wanted: bool = False) -> bool:
    """Whether rows with these fields are documents: those of a line of ``corpus.jsonl``, in any case.

    Where documents are ``wanted``, other fields do not matter, and the text may have another name, unless there is a
    query.
    """
    found = {folded(name) for name in names}
    if wanted:
        return not found.intersection(QUERY_NAMES) and _document_columns(tuple(names))[2] is not None
    return "text" in found and found <= _CORPUS_FIELDS


def read_texts(source: Any, letter: str, name: str) -> Mapping[str, Any]:
    """Queries (``"q"``) or documents (``"d"``) by id: a mapping as it is, a table, or texts, which are numbered."""
    if isinstance(source, str):
        raise TypeError(f"{name} is one text: give [text].")
    if isinstance(source, Mapping) and not is_table(source):
        return source
    if not is_table(source):
        return {f"{letter}{number}": text for number, text in enumerate(as_list(source))}
    columns, rows = table_of(source, name)
    own = _query_columns(columns) if letter == "q" else {column: column for column in columns}
    if not holds_documents(own, wanted=True):
        raise ValueError(f"{name} has the columns {columns}: none is the text. Name it text.")
    return read_documents(((where, {key: row[own[key]] for key in own}) for where, row in rows), name).joined


def _query_columns(columns: list[str]) -> dict[str, str]:
    """What the text and the id would be called in a corpus, and which of the columns of queries they are."""
    known = {folded(column): column for column in columns}
    called = {"text": ("text", *QUERY_NAMES), "_id": ("_id", "id", *QUERY_ID_NAMES)}
    return {one: known[own[0]] for one, names in called.items() if (own := [name for name in names if name in known])}


def read_documents(rows: Iterable[Row], source: str) -> ReadDocuments:
    """Document id to title and text of each row; those without an id get ``d0``, ``d1`` and so on."""
    found: list[tuple[str, str, Document]] = []
    notes: list[str] = []
    numbered = True
    for number, (where, row) in enumerate(rows):
        name, title, text = _document_columns(tuple(row))
        if text is None:
            raise ValueError(f"{where}: no 'text', only {list(row)}.")
        values = {"title": row[title] if title else None, "text": row[text]}
        document = Document.of(values)
        if document is None:
            raise ValueError(f"{where}: title and text must be strings, got {values!s:.100}.")
        given = None if name is None or is_missing(row[name]) else row[name]
        numbered = numbered and given is None
        found.append((where, f"d{number}" if given is None else _text_id(given), document))
    return ReadDocuments(_by_id(found, source, notes), tuple(notes), numbered=numbered)


def _by_id(rows: Iterable[tuple[str, str, Any]], source: str, notes: list[str]) -> dict[str, Any]:
    """``(place, id, value)`` as a dict; an id may come again with the same value, not with another."""
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


def _text_id(value: Any) -> str:
    """An id as text; data frames make floats of numbers where one is missing."""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and float(value).is_integer():
        return str(int(float(value)))
    return str(value)


# Judgments


def are_judgments(columns: Iterable[Any]) -> bool:
    """Whether these columns name a query's id, a document's and a grade."""
    return bool(_qrels_columns(columns))


def qrels_of_rows(rows: Iterable[Row], source: str, notes: list[str]) -> Qrels:
    """The judgments in the rows of a table with the columns query-id, corpus-id and score."""
    return _gathered(_of_rows(rows), source, notes)


def _qrels_files(folder: Folder, notes: list[str]) -> dict[str, Folder]:
    """The file of each split; what is not read is noted."""
    files: dict[str, Folder] = {}
    inside: list[Folder] = sorted(folder.iterdir(), key=str)
    for file in inside:
        if is_hidden(file.name):
            continue
        if not file.is_file() or kind_of(file.name) not in _QRELS_KINDS:
            notes.append(f"qrels/{file.name} is not read: qrels are .tsv, .csv, .jsonl, or .txt in TREC's form.")
            continue
        split = stem_of(file.name).lower()
        other = files.setdefault(split, file)
        if other is not file:
            raise ValueError(f"qrels/{other.name} and qrels/{file.name} are both {split!r}: keep one.")
    if not files:
        passed = "".join(f" {note}" for note in notes if note.startswith("qrels/"))
        raise FileNotFoundError(
            f"There is no file in {folder} that holds judgments: qrels/SPLIT.tsv, of each split.{passed}"
        )
    return files


def _gathered(judgments: Iterable[Judgment], source: str, notes: list[str]) -> Qrels:
    """Judgments as a dict; of a pair that is judged again, the highest grade."""
    qrels: Qrels = {}
    conflicts = []
    for place, row in judgments:
        try:
            query_id, document_id, relevance = row
            grade = whole_number(relevance)
        except ValueError as error:
            raise ValueError(f"{place}: {_EXPECTED}, got {list(row)}.") from error
        judged = qrels.setdefault(_text_id(query_id), {})
        document_id = _text_id(document_id)
        if judged.setdefault(document_id, grade) != grade:
            conflicts.append(place.rpartition(", ")[2])
            judged[document_id] = max(grade, judged[document_id])
    again = noted(conflicts, "pair", "judged again with another grade; the highest counts")
    notes += [f"{source}: {note}" for note in again]
    return qrels


def _judgments(lines: Iterable[str], file: str) -> Iterator[Judgment]:
    """The judgments of a file of qrels: JSON, or a table whose header may be missing."""
    kind, place = kind_of(file), f"qrels/{file}"
    if kind.startswith(".json"):
        yield from _of_rows(json_rows(lines, place))
        return
    if kind == ".csv":
        records = comma_separated(lines, place)
    elif kind == ".tsv":
        records = tab_separated(lines)
    else:
        records = ((number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())
    first = next(records, None)
    if first is None:
        return
    columns = _qrels_columns(first[1])
    is_header = columns or folded(first[1][-1]) in _QRELS_NAMES[2]
    for number, row in records if is_header else chain([first], records):
        fields: Sequence[str] = row
        if columns and len(row) > max(columns):
            fields = [row[place] for place in columns]
        elif len(row) == 4 and row[1] in ("0", "Q0", "q0"):  # TREC's, which judges nothing in its second column
            fields = [row[0], row[2], row[3]]
        yield f"{place}, line {number}", fields


def _of_rows(rows: Iterable[Row]) -> Iterator[Judgment]:
    for place, row in rows:
        names = list(row)
        columns = _qrels_columns(names)
        if not columns:
            raise ValueError(f"{place}: {_EXPECTED}, got the columns {names}.")
        yield place, [row[names[index]] for index in columns]


def _qrels_columns(row: Iterable[Any]) -> list[int]:
    """Where query id, document id and grade are, if this row names each of them once; else nothing."""
    columns = [folded(name) for name in row]
    found = [[place for place, name in enumerate(columns) if name in names] for names in _QRELS_NAMES]
    return [places[0] for places in found] if all(len(places) == 1 for places in found) else []
