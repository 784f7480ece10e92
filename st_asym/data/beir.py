"""BEIR's layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv`` in a folder or a zip of one."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from st_asym.data.collection import Qrels, RetrievalData, first_few
from st_asym.data.corpus import by_id, read_documents
from st_asym.data.document import Documents
from st_asym.data.files import Row, is_hidden, json_rows, open_lines
from st_asym.data.qrels import read_qrels

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
