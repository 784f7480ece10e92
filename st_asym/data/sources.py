"""Collections out of any source: a file or folder, a data set or frame, pairs, judged queries, or documents alone."""

from __future__ import annotations

import logging
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

import pyarrow as pa
import pyarrow.parquet as pq

from st_asym.data.collection import RetrievalData, into_splits, merged, with_documents, with_test_queries_apart
from st_asym.data.document import MOST_QUERIES, Document, ReadDocuments
from st_asym.data.files import Folder, kind_of, open_lines
from st_asym.data.formats import (
    DOCUMENT_NAMES,
    QUERY_NAMES,
    Row,
    as_list,
    beir_files,
    beir_rows,
    folded,
    is_column,
    is_table,
    json_rows,
    qrels_rows,
    table_of,
    table_rows,
)
from st_asym.data.prepare import DEV_NAMES, check_ids, check_texts, checked
from st_asym.data.pseudo_queries import pseudo_queries
from st_asym.data.rows import (
    are_judgments,
    documents_of,
    holds_documents,
    judgment_tables,
    pairs_of_rows,
    pairs_of_tuples,
    read_documents,
    read_qrels,
    read_splits,
    text_columns,
    texts_by_id,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_READABLE = "a .jsonl, .csv or .tsv file (or .gz of one), a .parquet, a BEIR folder or a zip of one"
# Zips that are no collections.
_ZIPPED = (".xlsx", ".xlsm", ".ods", ".docx", ".npz")
# What the third part of a judged collection is called in one JSON object or dict: by LlamaIndex, and by MTEB at last.
_JUDGED = ("relevant_docs", "qrels", "default")


class Frame(Protocol):
    """A data frame of pandas or Polars, or an Arrow table."""

    @property
    def columns(self) -> Any:
        """Its columns."""


Pairs: TypeAlias = Union[
    str,
    "PathLike[str]",
    RetrievalData,
    "Dataset",
    "DatasetDict",
    Frame,
    Iterable[tuple[str, str] | tuple[str, str, int] | Mapping[str, Any]],
    Mapping[str, Any],
    tuple[Any, Any, Any],
]
Corpus: TypeAlias = Union[str, "PathLike[str]", "Dataset", Frame, Mapping[str, Any], Iterable[str]]


def load_data(path: str | PathLike[str]) -> RetrievalData:
    """Read a BEIR folder, a zip of one, or a file of pairs.

    Args:
        path: A folder or ``.zip`` in BEIR's layout (``corpus.jsonl``, ``queries.jsonl``, and of each split
            ``qrels/SPLIT.tsv``, ``.csv``, ``.jsonl``, or ``.txt`` in TREC's four columns), or a ``.jsonl``, ``.csv`` or
            ``.tsv`` file of pairs, plain or as ``.gz``, or a ``.parquet``, with the columns that
            :func:`as_retrieval_data` accepts. The last suffix decides, in any case. A ``.tsv`` has no quoting; a
            ``.jsonl`` may be one array of objects, or LlamaIndex's object of ``queries``, ``corpus`` and
            ``relevant_docs``.

    Returns:
        The collection. Pairs are split into train, dev and test by :func:`from_pairs`.

    Raises:
        FileNotFoundError: No such file or folder, or a file of the BEIR layout is missing.
        ValueError: A line that is not what it should be, a folder of several collections, or qrels that name a missing
            query or document; the message names the file and line, or the first offenders and their number.
    """
    found = _read_path(Path(path))
    if isinstance(found, ReadDocuments):
        raise ValueError(f"{path} holds documents alone, no queries.")
    return into_splits(found) if found.numbered else found  # the ids of pairs are numbers given on reading


def as_retrieval_data(
    train: Pairs | Corpus | None = None,
    *,
    corpus: Corpus | None = None,
    dev: Pairs | None = None,
    hold_out_test: bool = False,
) -> RetrievalData:
    """Make a collection to train on of whatever holds queries and documents, or documents alone.

    ``train`` is one of

    - a folder, zip or file that :func:`load_data` reads, with the splits that it has;
    - a table of pairs: a data frame of pandas or Polars, an Arrow table, a ``datasets.Dataset``, a dict of columns, or
      a list of dicts. The query is the column ``query``, ``question`` or ``anchor``; the document ``positive``,
      ``pos``, ``document``, ``passage``, ``answer``, ``response``, ``context`` or ``text``, one text or a list of them;
      ``negative``, ``negatives``, ``neg``, ``negative_1`` and so on are documents that are not relevant; ``grade``,
      ``score``, ``relevance`` or ``label``, where there is one, is a whole number, above zero for relevant; beside a
      list of documents it may be a list as long, also as ``labels``. A ``title`` beside ``text``, ``document``,
      ``passage`` or ``context`` is put before it, as in a corpus, and a negative with the text of one such document is
      that document;
    - a mapping of splits to such, as a ``DatasetDict``, with ``train`` and perhaps ``validation``;
    - a list of (query, document) or (query, document, grade) tuples;
    - ``(queries, corpus, qrels)``: id to text, id to text (or to a dict of ``title`` and ``text``), and query id to
      document id to grade, or to a list of ids, or split to that. Each of the three may be a table. They may come as
      a dict of these names, of which MTEB calls the last ``default``;
    - a :class:`RetrievalData`;
    - documents alone: a mapping of id to text, or to a dict of ``title`` and ``text``; a list of texts; a
      ``corpus.jsonl``, alone or in its folder; a table with ``text`` and perhaps ``title``. Then the queries are made
      by :func:`st_asym.data.pseudo_queries`, and ``labels`` of the result says so.

    Documents whose texts are the same by :func:`st_asym.data.text_key` are one, whether they come with pairs or in
    ``corpus``, whose ids and spellings then stay. Documents that come with ids keep them, copies included: those are
    counted in the notes, and named by :func:`st_asym.data.copies`.

    Pairs are all for training: without ``hold_out_test`` no test split is cut. What is wrong but has a remedy, such as
    a query with no relevant document or a training query that is a dev query too, is left out, counted in the ``notes``
    of the result and logged as a warning.

    Args:
        train: See above. None for the documents of ``corpus`` alone.
        corpus: More documents to search among, as documents alone are given above; here, other columns do not matter.
        dev: Queries to judge on, given like ``train``, of which the ``dev`` split is taken, or the only one.
        hold_out_test: Whether to keep the queries out of training that :func:`load_data` puts into ``test``, a fifth of
            a file of pairs, where there is no ``test`` split.

    Returns:
        The collection, with a ``train`` split, and ``dev`` where there was one.

    Raises:
        FileNotFoundError: No such file or folder, or a file of the BEIR layout is missing.
        TypeError: None of these forms.
        ValueError: A broken line, wrong columns, texts that are not strings, grades that are not whole numbers, qrels
            that name missing texts, or nothing left to train or judge on. The message counts and names the first ones.

    Example:
        >>> data = as_retrieval_data(
        ...     [("error E17", "Replace the air filter."), ("error E18", "Restart the pump.")], corpus=["Call us."]
        ... )
        >>> len(data.corpus), data.relevant("train")
        (3, {'q0': {'d0'}, 'q1': {'d1'}})
    """
    if train is None and corpus is None:
        raise TypeError("There is nothing to train on: give pairs, or a corpus to train on without labels.")
    found = read(corpus, "corpus", documents=True) if train is None else read(train, "train")
    if isinstance(found, RetrievalData):
        data = found
        if dev is not None:
            data = _with_dev(data, dev)
        if corpus is not None:
            data = with_documents(data, _corpus_of(corpus))
    else:
        if dev is not None or (train is not None and corpus is not None):
            other = "dev" if dev is not None else "corpus"
            raise ValueError(
                f"train holds documents alone, so {other} cannot be given: pseudo-queries are trained and judged on "
                "documents without the part that became the query."
            )
        data = pseudo_queries(found.by_id)
        data = replace(data, notes=(*found.notes, *data.notes))
    if hold_out_test and data.labels == "judged":
        check_ids(data.queries, data.corpus, data.qrels.get("train", {}), "The train split")
        data = with_test_queries_apart(data)
    data = checked(data)
    for note in data.notes:
        logger.warning("%s", note)
    return data


def _corpus_of(source: Any) -> ReadDocuments:
    found = read(source, "corpus", documents=True)
    if isinstance(found, RetrievalData):
        documents = {key: Document("", text) for key, text in found.corpus.items()}
        found = ReadDocuments(documents, found.notes, numbered=found.numbered)
    if not found.by_id:
        raise ValueError("corpus is empty.")
    return found


def _with_dev(data: RetrievalData, dev: Any) -> RetrievalData:
    other = read(dev, "dev")
    if not isinstance(other, RetrievalData):
        raise ValueError("dev holds documents alone: it needs queries to judge on.")
    candidates = [split for split in DEV_NAMES if split in other.qrels] or list(other.qrels)
    if len(candidates) != 1:
        raise ValueError(f"dev must have one split to judge on, not {sorted(candidates)}.")
    part = replace(other, qrels={"dev": other.qrels[candidates[0]]})
    without = {split: judged for split, judged in data.qrels.items() if split not in DEV_NAMES}
    return merged(replace(data, qrels=without), part, "dev")


def read(source: Any, name: str, *, documents: bool = False) -> RetrievalData | ReadDocuments:
    """Read one source, in any form that :func:`as_retrieval_data` takes: pairs are all for training.

    Errors call it by this name. Where ``documents`` are asked for, columns beside their text do not matter.
    """
    if isinstance(source, RetrievalData):
        check_texts(source.queries, source.corpus)
        return source
    if isinstance(source, str | PathLike):
        return _read_path(Path(fspath(source)), documents=documents)
    if (triple := _triple_of(source)) is not None:
        return read_judged(*triple)
    if is_table(source):
        return _read_rows(*table_of(source, name), name, [], documents=documents)
    if isinstance(source, Mapping):
        return _read_mapping(source, name)
    # What has columns and is no known table would be gone through by their names.
    unread = hasattr(source, "read") or hasattr(source, "columns") or isinstance(source, bytes | bytearray)
    if unread or not isinstance(source, Iterable):
        raise TypeError(
            f"{name} cannot be a {type(source).__name__}: give a path, a data set or data frame, pairs, "
            "(queries, corpus, qrels) or documents."
        )
    return _read_list(as_list(source), name, documents=documents)


def training_data(source: Any) -> RetrievalData | None:
    """What was trained on, where it can be read as queries and documents and is not too long to be worth it."""
    if not isinstance(source, RetrievalData):
        if not hasattr(source, "__len__") or len(source) > MOST_QUERIES:
            return None
        try:
            source = read(source, "train")
        except (TypeError, ValueError):
            return None
    return source if isinstance(source, RetrievalData) and "train" in source.qrels else None


def is_data_set_of_splits(source: Any) -> bool:
    """Whether something is a ``DatasetDict``, the splits of one collection."""
    return isinstance(source, Mapping) and hasattr(source, "column_names")


def is_one_source(source: Any) -> bool:
    """Whether something is one collection, rather than several or none: a table, its splits or parts, or rows."""
    if is_data_set_of_splits(source) or is_table(source) or _triple_of(source) is not None:
        return True
    rows = as_list(source[:1]) if is_column(source) else []
    return bool(rows) and (_is_row(rows[0]) or (isinstance(rows[0], list | tuple) and not is_one_source(rows[0])))


def read_judged(queries: Any, corpus: Any, qrels: Any) -> RetrievalData:
    """Queries, corpus and qrels as a collection; qrels without a split are ``train``.

    Queries and corpus are id to text (or, in a corpus, to a dict of ``title`` and ``text``), a table, or texts, which
    get the ids ``q0``, ``d0`` and so on. Qrels are query id to document id to grade, or to the ids of its relevant
    documents; split to that; or a table with the columns query-id, corpus-id and score.
    """
    notes: list[str] = []
    texts = dict(texts_by_id(queries, "q", "queries"))
    documents = documents_of(texts_by_id(corpus, "d", "corpus")).joined
    check_texts(texts, documents)
    return RetrievalData(texts, documents, read_splits(qrels, notes), notes=tuple(notes))


# Files and rows


def _read_path(path: Path, *, documents: bool = False) -> RetrievalData | ReadDocuments:
    """What a file or folder holds: a collection with splits, pairs all for training, or documents alone."""
    kind = kind_of(path.name)
    if path.is_dir():
        return _read_beir(path, documents=documents)
    if path.is_file() and kind not in _ZIPPED and zipfile.is_zipfile(path):
        return _read_zip(path, documents=documents)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if kind not in _KINDS:
        raise ValueError(
            f"{path.name} is not {_READABLE}. Pass other tables as data frames: pandas.read_excel; or save them as "
            ".csv or .jsonl."
        )
    if kind == ".parquet":
        return _read_rows(*table_of(_parquet_table(path), path.name), path.name, [], documents=documents)
    with open_lines(path) as lines:
        notes: list[str] = []
        of_text = not kind.startswith(".json")
        rows = table_rows(lines, path.name, notes) if of_text else json_rows(lines, path.name)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path.name} is empty.")
        if not of_text and (triple := _triple_of(first[1])) is not None:
            return read_judged(*triple)
        return _read_rows(list(first[1]), chain([first], rows), path.name, notes, documents=documents, of_text=of_text)


def _read_zip(path: Path, *, documents: bool) -> RetrievalData | ReadDocuments:
    try:
        with zipfile.ZipFile(path) as opened:
            return _read_beir(zipfile.Path(opened), documents=documents)
    except (zipfile.BadZipFile, RuntimeError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the system, and not of bz2
            raise
        raise ValueError(
            f"{path.name} is damaged, encrypted or packed in a way that Python does not read ({error}): give the "
            "unpacked folder."
        ) from error


def _parquet_table(path: Path) -> pa.Table:
    try:
        return pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not {_READABLE}, or it is damaged: {error}") from error


def _read_beir(folder: Folder, *, documents: bool) -> RetrievalData | ReadDocuments:
    """The collection in BEIR's layout, or its documents alone."""
    files = beir_files(folder, documents=documents)
    found = read_documents(beir_rows(files.corpus, "_id"), files.corpus.name)
    if files.queries is None:
        return found
    asked = read_documents(beir_rows(files.queries, "_id", "text"), files.queries.name)
    queries, corpus = {key: query.text for key, query in asked.by_id.items()}, found.joined
    notes = [*found.notes, *asked.notes, *files.notes]
    qrels = {split: read_qrels(qrels_rows(file), f"qrels/{file.name}", notes) for split, file in files.qrels.items()}
    for split, judged in qrels.items():
        check_ids(queries, corpus, judged, f"qrels/{files.qrels[split].name}")
    return RetrievalData(queries, corpus, qrels, notes=tuple(notes))


def _read_rows(
    columns: list[str], rows: Iterable[Row], name: str, notes: list[str], *, documents: bool, of_text: bool = False
) -> RetrievalData | ReadDocuments:
    """Rows as documents, or else as pairs; the reading of the rows may add to the notes."""
    if holds_documents(columns, wanted=documents):
        return read_documents(rows, name, notes=notes)
    return pairs_of_rows(rows, columns, name, notes, of_text=of_text)


def _read_mapping(source: Mapping[Any, Any], name: str) -> RetrievalData | ReadDocuments:
    """Splits, or id to document."""
    if not source:
        raise ValueError(f"{name} is empty.")
    if not all(map(is_one_source, source.values())):
        return documents_of(source)
    splits = {}
    for split, part in source.items():
        found = read(part, f"{name}[{split!r}]")
        if not isinstance(found, RetrievalData):
            raise ValueError(f"{name}[{split!r}] holds documents alone: give them as corpus.")
        splits[split] = replace(found, qrels={split: found.qrels.get("train", {})})
    (_, joined), *others = splits.items()
    for split, data in others:
        joined = merged(joined, data, split)
    return joined


def _read_list(items: list[Any], name: str, *, documents: bool) -> RetrievalData | ReadDocuments:
    if not items:
        raise ValueError(f"{name} is empty.")
    if _is_row(items[0]):
        rows = [item._asdict() if hasattr(item, "_asdict") else item for item in items]
        return _read_rows(*table_of(rows, name), name, [], documents=documents)
    if isinstance(items[0], str):
        if all(isinstance(text, str) and kind_of(text[-20:]) in _KINDS and Path(text).is_file() for text in items):
            raise TypeError(f"{name} is a list of paths, {items!s:.80}: give the path of one file.")
        return documents_of({f"d{number}": text for number, text in enumerate(items)}, numbered=True)
    if documents:
        raise TypeError(
            f"{name}, row 0: expected a text, or a dict with text and perhaps title, got a {type(items[0]).__name__}. "
            "Give documents that have ids as {id: text}."
        )
    return pairs_of_tuples(items, name)


def _is_row(item: Any) -> bool:
    """Whether this is a row with names: a dict, or a named tuple whose names say what is what."""
    names = getattr(item, "_fields", ())
    columns = [text_columns(names, letter) for letter in "dq"]  # ids or titles, beside documents or queries
    known = set(map(folded, names))
    are_pairs = known.intersection(QUERY_NAMES) and known.intersection(DOCUMENT_NAMES)
    return isinstance(item, Mapping) or bool(are_pairs) or any(text and (key or title) for key, title, text in columns)


# Queries, corpus and qrels


def _triple_of(source: Any) -> tuple[Any, Any, Any] | None:
    """Queries, corpus and qrels, where something holds these three; None for anything else, three rows among it."""
    if isinstance(source, Mapping):
        name = next((key for key in _JUDGED if key in source), "")
        parts = [source[key] for key in ("queries", "corpus", name) if key in source]
    elif all(hasattr(source, key) for key in ("queries", "corpus", "relevant_docs")):  # LlamaIndex's object
        parts = [source.queries, source.corpus, source.relevant_docs]
    else:
        parts = list(source) if isinstance(source, list | tuple) else []
    if len(parts) != 3 or not all(isinstance(part, Mapping) or is_table(part) for part in parts[:2]):
        return None
    queries, corpus, judged = parts
    are_qrels = judgment_tables(judged) or (isinstance(judged, Mapping) and all(map(are_judgments, judged.values())))
    return (queries, corpus, judged) if are_qrels or _are_wrong_qrels(parts) else None


def _are_wrong_qrels(parts: list[Any]) -> bool:
    """Whether the third part is neither qrels nor a row like the others, nor one more data set."""
    if isinstance(parts[2], list | tuple) and not is_one_source(parts[0]):  # of tuples, beside texts by id
        return all(isinstance(text, str) for part in parts[:2] for text in part.values())
    names = set(map(folded, parts[2])) if isinstance(parts[2], Mapping) else set()
    if not names or names & {*QUERY_NAMES, *DOCUMENT_NAMES}:
        return False
    return list(parts[2]) != list(parts[0]) and all(isinstance(value, str | int | float) for value in parts[2].values())
