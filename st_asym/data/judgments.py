"""Judgments, a line each: BEIR's .tsv, .csv, TREC's four columns, JSON lines; or the rows of a data frame."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, whole_number
from st_asym.data.document import Documents
from st_asym.data.formats import Row, comma_separated, is_hidden, json_rows, kind_of, open_lines, stem_of, tab_separated
from st_asym.data.rows import by_id, read_documents, text_id

# Names of the three columns, in any case; the first of each are BEIR's.
QUERY_ID_NAMES = ("query-id", "query_id", "queryid", "qid")
_NAMES = (
    (*QUERY_ID_NAMES, "query", "topic"),
    ("corpus-id", "corpus_id", "corpusid", "doc-id", "doc_id", "docid", "document_id", "passage_id", "pid", "document"),
    ("score", "relevance", "grade", "label", "rel"),
)
_EXPECTED = "expected query-id, corpus-id, score"
_KINDS = (".tsv", ".csv", ".txt", ".trec", ".qrels", ".jsonl", ".json")

# Place, and query id, document id and grade, which may be more or fewer where the line is broken.
Judgment = tuple[str, Sequence[Any]]


def read_qrels(folder: Path | zipfile.Path, notes: list[str]) -> dict[str, tuple[str, Qrels]]:
    """The file and the judgments of each split.

    Args:
        folder: The folder ``qrels``.
        notes: Receives what was left out or changed.

    Raises:
        FileNotFoundError: No file that can be read.
        ValueError: A broken line, or two files of one split.
    """
    files: dict[str, Path | zipfile.Path] = {}
    inside: list[Path | zipfile.Path] = sorted(folder.iterdir(), key=str)
    for file in inside:
        if is_hidden(file.name):
            continue
        if not file.is_file() or kind_of(file.name) not in _KINDS:
            notes.append(f"qrels/{file.name} is not read: qrels are .tsv, .csv, .jsonl, or .txt in TREC's form.")
            continue
        other = files.setdefault(stem_of(file.name), file)
        if other is not file:
            raise ValueError(f"qrels/{other.name} and qrels/{file.name} are both {stem_of(file.name)!r}: keep one.")
    if not files:
        raise FileNotFoundError(f"There is no file in {folder} that holds judgments: qrels/SPLIT.tsv, of each split.")
    found = {}
    for split, file in files.items():
        with open_lines(file) as lines:
            name = f"qrels/{file.name}"
            found[split] = name, gathered(_judgments(lines, file.name), name, notes)
    return found


def are_judgments(columns: Iterable[Any]) -> bool:
    """Whether these columns name a query's id, a document's and a grade."""
    return bool(_places(columns))


def qrels_of_rows(rows: Iterable[Row], name: str, notes: list[str]) -> Qrels:
    """The judgments in the rows of a table with the columns query-id, corpus-id and score.

    Raises:
        ValueError: A row without these, or a grade that is not a whole number.
    """
    return gathered(_of_rows(rows), name, notes)


def gathered(judgments: Iterable[Judgment], source: str, notes: list[str]) -> Qrels:
    """Judgments as a dict; of a pair that is judged again, the highest grade.

    Raises:
        ValueError: A line without three fields, or a grade that is not a whole number.
    """
    qrels: Qrels = {}
    conflicts = []
    for place, row in judgments:
        try:
            query_id, document_id, relevance = row
            grade = whole_number(relevance)
        except ValueError as error:
            raise ValueError(f"{place}: {_EXPECTED}, got {list(row)}.") from error
        judged = qrels.setdefault(text_id(query_id), {})
        document_id = text_id(document_id)
        if judged.setdefault(document_id, grade) != grade:
            conflicts.append(place.rpartition(", ")[2])
            judged[document_id] = max(grade, judged[document_id])
    if conflicts:
        pairs = counted(len(conflicts), "pair")
        notes.append(f"{source}: {pairs} judged again with another grade; the highest counts ({first_few(conflicts)}).")
    return qrels


def _judgments(lines: Iterable[str], file: str) -> Iterator[Judgment]:
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
    first = next(records, (1, []))
    places = _places(first[1])
    for number, row in records if places or _is_header(first[1]) else chain([first] if first[1] else [], records):
        yield f"{place}, line {number}", _in_order(row, places)


def _is_header(row: Sequence[str]) -> bool:
    return bool(row) and row[-1].strip().casefold() in _NAMES[2]


def _places(row: Iterable[Any]) -> list[int]:
    """Where query id, document id and grade are, if this row names them; else nothing."""
    columns = [str(name).strip().casefold() for name in row]
    found = [[place for place, name in enumerate(columns) if name in names] for names in _NAMES]
    return [places[0] for places in found] if all(len(places) == 1 for places in found) else []


def _in_order(row: Sequence[str], places: Sequence[int]) -> Sequence[str]:
    if places and len(row) > max(places):
        return [row[place] for place in places]
    if len(row) == 4 and row[1] in ("0", "Q0", "q0"):  # TREC's, which judges nothing in its second column
        return [row[0], row[2], row[3]]
    return row


def _of_rows(rows: Iterable[Row]) -> Iterator[Judgment]:
    for place, row in rows:
        names = list(row)
        places = _places(names)
        if not places:
            raise ValueError(f"{place}: {_EXPECTED}, got the columns {names}.")
        yield place, [row[names[index]] for index in places]


Folder = Path | zipfile.Path


@contextmanager
def beir_root(path: Path) -> Iterator[Folder]:
    """The folder that holds ``corpus.jsonl``: this one or the zip's top, or the only one inside it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several.
    """
    if path.is_dir():
        yield _root(path)
        return
    with zipfile.ZipFile(path) as archive:
        yield _root(zipfile.Path(archive))


def _root(top: Folder) -> Folder:
    if _file(top, "corpus") is not None:
        return top
    inside = sorted((entry for entry in top.iterdir() if entry.is_dir() and not is_hidden(entry.name)), key=str)
    found = [folder for folder in inside if _file(folder, "corpus") is not None]
    if len(found) > 1:
        names = first_few([folder.name for folder in found])
        raise ValueError(f"{top} holds {len(found)} collections: {names}. Give the folder of one.")
    if not found:
        raise FileNotFoundError(
            f"{top} is not in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, at the top or in one "
            "folder."
        )
    return found[0]


def _file(folder: Folder, stem: str) -> Folder | None:
    """``STEM.jsonl`` or ``STEM.jsonl.gz``, in any case.

    Raises:
        ValueError: There are both.
    """
    wanted = (f"{stem}.jsonl", f"{stem}.jsonl.gz")
    found = sorted((entry for entry in folder.iterdir() if entry.name.lower() in wanted and entry.is_file()), key=str)
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(entry.name for entry in found)}: keep one.")
    return found[0] if found else None


def has_queries(root: Folder) -> bool:
    """Whether a folder that :func:`beir_root` has found holds more than documents, in whatever form."""
    return any(entry.name.lower().partition(".")[0] in ("queries", "qrels") for entry in root.iterdir())


def is_complete(root: Folder) -> bool:
    """Whether it holds queries and judgments as they should be."""
    return (root / "qrels").is_dir() and _file(root, "queries") is not None


def read_beir(root: Folder) -> RetrievalData:
    """Read the collection in a folder that :func:`beir_root` has found.

    Raises:
        FileNotFoundError: ``queries.jsonl`` or ``qrels`` is missing.
        ValueError: A broken line, an id with two different texts, or qrels that name a missing query or document.
    """
    asked = _file(root, "queries")
    if asked is None:
        raise FileNotFoundError(f"queries.jsonl is missing from {root}.")
    if not (root / "qrels").is_dir():
        raise FileNotFoundError(f"{root} is not in BEIR's layout: the folder qrels is missing.")
    documents = read_corpus(root)
    notes = list(documents.notes)
    with open_lines(asked) as lines:
        rows = _with_ids(json_rows(lines, asked.name, "_id", "text"), "text")
        queries = by_id(((where, row["_id"], row["text"]) for where, row in rows), asked.name, notes)
    found = read_qrels(root / "qrels", notes)
    corpus = documents.joined
    for file, judged in found.values():
        check_ids(queries, corpus, judged, file)
    return RetrievalData(queries, corpus, {split: judged for split, (_, judged) in found.items()}, notes=tuple(notes))


def read_corpus(root: Folder) -> Documents:
    """The documents of a folder that :func:`beir_root` has found.

    Raises:
        ValueError: A broken line, or an id with two different texts.
    """
    file = _file(root, "corpus")
    if file is None:
        raise FileNotFoundError(f"corpus.jsonl is missing from {root}.")
    with open_lines(file) as lines:
        return read_documents(_with_ids(json_rows(lines, file.name, "_id", "text")), file.name)


def _with_ids(rows: Iterable[Row], *names: str) -> Iterator[Row]:
    """Rows whose id is a string, as it is in the qrels, and whose other fields are too."""
    for where, row in rows:
        values = tuple(row[name] for name in ("_id", *names))
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where}: a field of {('_id', *names)} is not a string: {values!s:.200}.")
        yield where, row


def check_ids(queries: Mapping[str, str], corpus: Mapping[str, str], judged: Qrels, source: str) -> None:
    """Refuse qrels that name queries or documents that do not exist."""
    missing = [f"query {query_id}" for query_id in judged if query_id not in queries]
    missing += [f"document {d}" for documents in judged.values() for d in documents if d not in corpus]
    if missing:
        raise ValueError(f"{source} names {len(missing)} queries or documents that do not exist: {first_few(missing)}.")
