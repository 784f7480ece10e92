"""BEIR's layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv`` in a folder or a zip of one."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, whole_number
from st_asym.data.document import Document
from st_asym.data.files import json_rows, open_lines

# What a line of a corpus may hold; anything else is more likely a misspelt pair.
_CORPUS_FIELDS = frozenset({"_id", "id", "title", "text", "metadata", "url"})


@contextmanager
def beir_root(path: Path) -> Iterator[Path | zipfile.Path]:
    """The folder that holds ``corpus.jsonl``: this one or the zip's top, or the only one inside it.

    Raises:
        FileNotFoundError: There is none.
    """
    if path.is_dir():
        yield _root(path)
        return
    with zipfile.ZipFile(path) as archive:
        yield _root(zipfile.Path(archive))


def _root(top: Path | zipfile.Path) -> Path | zipfile.Path:
    for folder in (top, *(entry for entry in top.iterdir() if entry.is_dir())):
        if (folder / "corpus.jsonl").is_file():
            return folder
    raise FileNotFoundError(
        f"{top} is not in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, at the top or in one folder."
    )


def read_beir(root: Path | zipfile.Path) -> RetrievalData:
    """Read the collection in a folder that :func:`beir_root` has found.

    Raises:
        FileNotFoundError: ``queries.jsonl`` or ``qrels`` is missing.
        ValueError: A broken line, an id with two different texts, or qrels that name a missing query or document.
    """
    if not (root / "queries.jsonl").is_file():
        raise FileNotFoundError(f"queries.jsonl is missing from {root}.")
    if not (root / "qrels").is_dir():
        raise FileNotFoundError(f"{root} is not in BEIR's layout: the folder qrels is missing.")
    notes: list[str] = []
    with open_lines(root / "corpus.jsonl") as lines:
        corpus = {key: document.joined for key, document in read_documents(lines, "corpus.jsonl", notes).items()}
    with open_lines(root / "queries.jsonl") as lines:
        rows = json_rows(lines, "queries.jsonl", "_id", "text")
        queries = _by_id(((where, *_strings(where, row, "_id", "text")) for where, row in rows), "queries.jsonl", notes)
    qrels = {}
    for table in sorted((file for file in (root / "qrels").iterdir() if file.name.endswith(".tsv")), key=str):
        with open_lines(table) as lines:
            qrels[table.name.removesuffix(".tsv")] = _read_qrels(lines, table.name, notes)
    for split, judged in qrels.items():
        check_ids(queries, corpus, judged, f"qrels/{split}.tsv")
    return RetrievalData(queries, corpus, qrels, notes=tuple(notes))


def is_corpus_row(names: Iterable[str]) -> bool:
    """Whether these fields are those of a line of ``corpus.jsonl``."""
    return "text" in names and _CORPUS_FIELDS.issuperset(names)


def read_documents(lines: Iterable[str], file: str, notes: list[str]) -> dict[str, Document]:
    """Document id to title and text of each line of a ``corpus.jsonl``.

    Raises:
        ValueError: A broken line, or an id with two different texts.
    """
    rows = json_rows(lines, file, "_id", "text")
    documents = ((where, *_strings(where, {"title": "", **row}, "_id", "title", "text")) for where, row in rows)
    return _by_id(((where, key, Document(title, text)) for where, key, title, text in documents), file, notes)


def _strings(where: str, row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    values = tuple(row[name] for name in names)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: a field of {names} is not a string: {values}.")
    return values


def _by_id(rows: Iterable[tuple[Any, ...]], file: str, notes: list[str]) -> dict[str, Any]:
    """``(place, id, value)`` as a dict; an id may come again with the same value."""
    found: dict[str, Any] = {}
    repeated = 0
    different = []
    for where, key, value in rows:
        repeated += key in found
        if found.setdefault(key, value) != value:
            different.append(f"{key} ({where.rpartition(', ')[2]})")
    if different:
        raise ValueError(
            f"{file}: {counted(len(different), 'id')} given again to a different text: {first_few(different)}."
        )
    if repeated:
        notes.append(f"{file}: {counted(repeated, 'repeated line')} left out.")
    return found


def _read_qrels(lines: Iterable[str], file: str, notes: list[str]) -> Qrels:
    qrels: Qrels = {}
    conflicts = []
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, start=1):
        if (number == 1 and row[-1:] == ["score"]) or not row:
            continue
        try:
            query_id, document_id, relevance = row
            grade = whole_number(relevance)
        except ValueError as error:
            raise ValueError(f"qrels/{file}, line {number}: expected query-id, corpus-id, score, got {row}.") from error
        judged = qrels.setdefault(query_id, {})
        if judged.setdefault(document_id, grade) != grade:
            conflicts.append(f"line {number}")
            judged[document_id] = max(grade, judged[document_id])
    if conflicts:
        pairs = counted(len(conflicts), "pair")
        notes.append(
            f"qrels/{file}: {pairs} judged again with another grade; the highest counts ({first_few(conflicts)})."
        )
    return qrels


def check_ids(queries: Mapping[str, str], corpus: Mapping[str, str], judged: Qrels, source: str) -> None:
    """Refuse qrels that name queries or documents that do not exist."""
    missing = [f"query {query_id}" for query_id in judged if query_id not in queries]
    missing += [f"document {d}" for documents in judged.values() for d in documents if d not in corpus]
    if missing:
        raise ValueError(f"{source} names {len(missing)} queries or documents that do not exist: {first_few(missing)}.")
