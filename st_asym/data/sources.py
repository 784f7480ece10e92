"""Reading of one source, whatever its form: a collection whose pairs are all for training, or documents alone."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from st_asym.data.beir import beir_root, is_corpus_row, read_beir, read_documents
from st_asym.data.checks import check_texts
from st_asym.data.collection import Qrels, RetrievalData
from st_asym.data.document import Document
from st_asym.data.files import json_rows, open_lines, table_rows
from st_asym.data.merging import merged
from st_asym.data.pairs import PairCollector, collect_tuples, columns_of, rows_of

Documents = dict[str, Document]


def read(source: Any, name: str) -> RetrievalData | Documents:
    """A collection, or documents alone."""
    if isinstance(source, RetrievalData):
        check_texts(source.queries, source.corpus)
        return source
    if isinstance(source, str | PathLike):
        found = read_path(Path(fspath(source)))
        return found.collection() if isinstance(found, PairCollector) else found
    if isinstance(source, Mapping):
        return _read_mapping(source, name)
    if hasattr(source, "column_names"):
        return _read_table(source, source.column_names, name)
    if _is_triple(source):
        return _read_triple(*source)
    if isinstance(source, Iterable):
        return _read_list(list(source), name)
    raise TypeError(f"{name} cannot be a {type(source).__name__}: give a path, a data set, pairs or documents.")


def read_path(path: Path) -> RetrievalData | PairCollector | Documents:
    """What a file or folder holds: a collection with splits, pairs without, or documents alone.

    Raises:
        FileNotFoundError: There is none, or a file of the BEIR layout is missing.
        ValueError: An unknown kind of file, an empty one, a broken line or wrong columns.
    """
    if path.is_dir() or (path.is_file() and zipfile.is_zipfile(path)):
        with beir_root(path) as root:
            if (root / "qrels").is_dir() or (root / "queries.jsonl").is_file():
                return read_beir(root)
            with open_lines(root / "corpus.jsonl") as lines:
                return read_documents(lines, "corpus.jsonl", [])
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind not in {".jsonl", ".json", ".csv", ".tsv"}:
        raise ValueError(
            f"{path.name} is not a .jsonl, .csv or .tsv file (or .gz of one), a BEIR folder or a zip of one."
        )
    with open_lines(path) as lines:
        rows = json_rows(lines, path.name) if kind.startswith(".json") else table_rows(lines, path.name)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path.name} is empty.")
        rows = chain([first], rows)
        if is_corpus_row(first[1]):
            return _documents(rows)
        collector = PairCollector(path.name)
        collector.add_rows(rows, columns_of(first[1], path.name))
        return collector


def _documents(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Documents:
    """Rows with ``text``, and perhaps ``title`` and ``_id`` or ``id``."""
    documents: Documents = {}
    for number, (where, row) in enumerate(rows):
        title, text = row.get("title") or "", row.get("text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise ValueError(f"{where}: title and text must be strings, got {title!r:.40} and {text!r:.40}.")
        key = str(row.get("_id", row.get("id", f"d{number}")))
        if documents.setdefault(key, Document(title, text)) != (title, text):
            raise ValueError(f"{where}: the id {key!r} is given again to a different text.")
    return documents


def _read_mapping(source: Mapping[Any, Any], name: str) -> RetrievalData | Documents:
    if source and all(hasattr(part, "column_names") for part in source.values()):
        splits = {split: _read_table(part, part.column_names, f"{name}[{split!r}]") for split, part in source.items()}
        return _join_splits(splits, name)
    if not source:
        raise ValueError(f"{name} is empty.")
    return {key: _as_document(key, value) for key, value in source.items()}


def _as_document(key: Any, value: Any) -> Document:
    if isinstance(value, str):
        return Document("", value)
    if isinstance(value, Mapping):
        title, text = value.get("title") or "", value.get("text")
        if isinstance(title, str) and isinstance(text, str):
            return Document(title, text)
    raise ValueError(f"Document {key!r} is neither a text nor a dict of title and text: {value!r:.80}.")


def _join_splits(splits: Mapping[str, RetrievalData | Documents], name: str) -> RetrievalData:
    joined: RetrievalData | None = None
    for split, part in splits.items():
        if not isinstance(part, RetrievalData):
            raise ValueError(f"{name}[{split!r}] holds documents alone: give them as corpus.")
        part = replace(part, qrels={split: part.qrels.get("train", {})})
        joined = part if joined is None else merged(joined, part, split)
    if joined is None:
        raise ValueError(f"{name} is empty.")
    return joined


def _read_table(table: Any, columns: list[str] | None, name: str) -> RetrievalData | Documents:
    if columns is None:
        raise ValueError(f"{name} is a {type(table).__name__} without column names.")
    if is_corpus_row(columns):
        return _documents(rows_of(table, name))
    collector = PairCollector(name)
    collector.add_rows(rows_of(table, name), columns_of(columns, name))
    return collector.collection()


def _read_list(items: list[Any], name: str) -> RetrievalData | Documents:
    if not items:
        raise ValueError(f"{name} is empty.")
    if isinstance(items[0], Mapping):
        return _read_table(items, list(items[0]), name)
    if isinstance(items[0], str):
        return {f"d{number}": _as_document(f"d{number}", text) for number, text in enumerate(items)}
    return collect_tuples(items, name).collection()


def _is_triple(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 3 and all(isinstance(part, Mapping) for part in source)


def _read_triple(
    queries: Mapping[str, str], corpus: Mapping[str, Any], qrels: Mapping[str, Mapping[str, Any]]
) -> RetrievalData:
    if not all(isinstance(part, Mapping) for part in qrels.values()):
        raise TypeError("qrels in (queries, corpus, qrels) must map query id to document id to grade.")
    by_split = any(isinstance(inner, Mapping) for outer in qrels.values() for inner in outer.values())
    splits: Mapping[str, Any] = qrels if by_split else {"train": qrels}
    copied: dict[str, Qrels] = {
        split: {query_id: dict(documents) for query_id, documents in judged.items()} for split, judged in splits.items()
    }
    documents = {key: _as_document(key, value) for key, value in corpus.items()}
    check_texts(queries, documents)
    return RetrievalData(dict(queries), joined(documents), copied)


def joined(documents: Documents) -> dict[str, str]:
    """Document id to what is encoded."""
    return {key: document.joined for key, document in documents.items()}
