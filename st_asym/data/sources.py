"""Reading of one source, whatever its form: a collection whose pairs are all for training, or documents alone."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

from st_asym.data.collection import Qrels, RetrievalData, merged, with_documents
from st_asym.data.document import Document, Documents
from st_asym.data.formats import Row, json_rows, kind_of, open_lines, table_rows
from st_asym.data.judgments import (
    QUERY_ID_NAMES,
    are_judgments,
    beir_root,
    has_queries,
    is_complete,
    qrels_of_rows,
    read_beir,
    read_corpus,
)
from st_asym.data.pairs import (
    PairCollector,
    collect_tuples,
    columns_of,
    into_splits,
    with_test_queries_apart,
)
from st_asym.data.prepare import DEV_NAMES, check_texts, checked
from st_asym.data.pseudo_queries import pseudo_queries
from st_asym.data.rows import (
    DOCUMENT_NAMES,
    QUERY_NAMES,
    as_list,
    columns_known,
    holds_documents,
    is_column,
    is_table,
    read_documents,
    table_of,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_KINDS = (".jsonl", ".json", ".csv", ".tsv")
_READABLE = "a .jsonl, .csv or .tsv file (or .gz of one), a BEIR folder or a zip of one"
# Zips that are no collections.
_ZIPPED = (".xlsx", ".xlsm", ".ods", ".docx", ".npz")
# What the third part of a judged collection is called in one JSON object or dict; the first is LlamaIndex's name.
_JUDGED = ("relevant_docs", "qrels")
_QRELS = "qrels map query id to document id to grade, or are a table with the columns query-id, corpus-id and score"


def read(source: Any, name: str, *, documents: bool = False) -> RetrievalData | Documents:
    """A collection, or documents alone.

    Args:
        source: In any form that :func:`st_asym.data.as_retrieval_data` takes.
        name: What errors call it.
        documents: Whether documents are asked for, so that columns beside their text do not matter.

    Raises:
        FileNotFoundError: No such file or folder.
        TypeError: None of these forms.
        ValueError: It is empty, broken, or has wrong columns.
    """
    if isinstance(source, RetrievalData):
        check_texts(source.queries, source.corpus)
        return source
    if isinstance(source, str | PathLike):
        found = read_path(Path(fspath(source)), documents=documents)
        return found.collection() if isinstance(found, PairCollector) else found
    triple = triple_of(source)
    if triple is not None:
        return read_judged(*triple)
    if is_table(source):
        return _collected(_read_rows(*table_of(source, name), name, documents=documents))
    if isinstance(source, Mapping):
        return _read_mapping(source, name)
    if not isinstance(source, Iterable) or hasattr(source, "read") or isinstance(source, bytes | bytearray):
        raise TypeError(
            f"{name} cannot be a {type(source).__name__}: give a path, a data set or data frame, pairs, "
            "(queries, corpus, qrels) or documents."
        )
    return _read_list(as_list(source), name, documents=documents)


def is_one_source(source: Any) -> bool:
    """Whether a list, tuple or mapping is one collection, rather than several."""
    if is_table(source) or triple_of(source) is not None:
        return True
    if not isinstance(source, list | tuple) or not source:
        return False
    return _are_rows(source[0]) or (isinstance(source[0], list | tuple) and not is_one_source(source[0]))


def read_path(path: Path, *, documents: bool = False) -> RetrievalData | PairCollector | Documents:
    """What a file or folder holds: a collection with splits, pairs without, or documents alone.

    Raises:
        FileNotFoundError: There is none, or a file of the BEIR layout is missing.
        ValueError: An unknown kind of file, an empty one, a broken line or wrong columns.
    """
    kind = kind_of(path.name)
    if path.is_dir() or (path.is_file() and kind not in _ZIPPED and zipfile.is_zipfile(path)):
        with beir_root(path) as root:
            judged = is_complete(root) if documents else has_queries(root)
            return read_beir(root) if judged else read_corpus(root)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if kind not in _KINDS:
        raise ValueError(f"{path.name} is not {_READABLE}.")
    with open_lines(path) as lines:
        notes: list[str] = []
        of_text = not kind.startswith(".json")
        rows = table_rows(lines, path.name, notes) if of_text else json_rows(lines, path.name)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path.name} is empty.")
        triple = None if of_text else triple_of(first[1])
        if triple is not None:
            return read_judged(*triple)
        found = _read_rows(list(first[1]), chain([first], rows), path.name, documents=documents, of_text=of_text)
    if isinstance(found, Documents):
        return replace(found, notes=(*found.notes, *notes))
    found.notes += notes
    return found


def read_texts(source: Any, letter: str, name: str) -> Mapping[str, Any]:
    """Texts by their ids: a mapping as it is, the rows of a table, or texts, with the ids ``q0``, ``q1`` and so on.

    Args:
        source: Queries or documents.
        letter: ``"q"`` or ``"d"``.
        name: What errors call them.

    Raises:
        TypeError: One text alone.
        ValueError: A table without a text.
    """
    if isinstance(source, str):
        raise TypeError(f"{name} is one text: give [text].")
    if not is_table(source):
        return (
            source if isinstance(source, Mapping) else {f"{letter}{i}": text for i, text in enumerate(as_list(source))}
        )
    columns, rows = table_of(source, name)
    own = _query_columns(columns) if letter == "q" else {column: column for column in columns}
    if not holds_documents(own.values(), wanted=True):
        raise ValueError(f"{name} has the columns {columns}: none is the text. Name it text.")
    return read_documents(((where, {own[key]: row[key] for key in own}) for where, row in rows), name).joined


def _query_columns(columns: list[str]) -> dict[str, str]:
    """The columns of queries that are the id and the text, and what those of documents would be called."""
    folded = {str(column).strip().lower(): column for column in columns}
    found = {}
    for accepted, called in ((("text", *QUERY_NAMES), "text"), (("_id", "id", *QUERY_ID_NAMES), "_id")):
        found.update({folded[one]: called for one in accepted[::-1] if one in folded and folded[one] not in found})
    return {column: called for called, column in {called: column for column, called in found.items()}.items()}


def _read_rows(
    columns: list[str], rows: Iterable[Row], name: str, *, documents: bool, of_text: bool = False
) -> PairCollector | Documents:
    if holds_documents(columns, wanted=documents):
        return read_documents(rows, name)
    collector = PairCollector(name)
    collector.add_rows(rows, columns_of(columns, name), of_text=of_text)
    return collector


def _collected(found: PairCollector | Documents) -> RetrievalData | Documents:
    return found.collection() if isinstance(found, PairCollector) else found


def _read_mapping(source: Mapping[Any, Any], name: str) -> RetrievalData | Documents:
    if not source:
        raise ValueError(f"{name} is empty.")
    if all(is_table(part) or _is_list_of_rows(part) for part in source.values()):
        splits = {split: read(part, f"{name}[{split!r}]") for split, part in source.items()}
        return _join_splits(splits, name)
    return Documents({key: _document(key, value) for key, value in source.items()})


def _is_list_of_rows(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and (isinstance(part[0], list | tuple) or _are_rows(part[0]))


def _document(key: Any, value: Any) -> Document:
    document = Document.of(value)
    if document is None:
        raise ValueError(f"Document {key!r} is neither a text nor a dict of title and text: {value!r:.80}.")
    return document


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


def _read_list(items: list[Any], name: str, *, documents: bool) -> RetrievalData | Documents:
    if not items:
        raise ValueError(f"{name} is empty.")
    if isinstance(items[0], Mapping):
        return _collected(_read_rows(*table_of(items, name), name, documents=documents))
    if _are_rows(items[0]):
        return _read_list([item._asdict() for item in items], name, documents=documents)
    if isinstance(items[0], str):
        if all(isinstance(text, str) and kind_of(text[-20:]) in _KINDS and Path(text).is_file() for text in items):
            raise TypeError(f"{name} is a list of paths, {items!s:.80}: give the path of one file.")
        found = {f"d{number}": _document(f"d{number}", text) for number, text in enumerate(items)}
        return Documents(found, numbered=True)
    return collect_tuples(items, name).collection()


def _are_rows(item: Any) -> bool:
    """Whether this is a row with names: a dict, or a named tuple whose names say what is what."""
    names = {str(name).lower() for name in getattr(item, "_fields", ())}
    named = bool(names.intersection(QUERY_NAMES) and names.intersection(DOCUMENT_NAMES))
    return isinstance(item, Mapping) or named


def triple_of(source: Any) -> tuple[Any, Any, Any] | None:
    """Queries, corpus and qrels, where something holds these three; None for anything else, three rows among it."""
    if isinstance(source, Mapping):
        judged = next((key for key in _JUDGED if key in source), "")
        parts = [source[key] for key in ("queries", "corpus", judged) if key in source]
    elif all(hasattr(source, key) for key in ("queries", "corpus", "relevant_docs")):  # LlamaIndex's object
        parts = [source.queries, source.corpus, source.relevant_docs]
    else:
        parts = list(source) if isinstance(source, list | tuple) else []
    if len(parts) != 3 or not all(isinstance(part, Mapping) or is_table(part) for part in parts):
        return None
    return (parts[0], parts[1], parts[2]) if _are_qrels(parts[2]) or _are_wrong_qrels(parts) else None


def _are_wrong_qrels(parts: list[Any]) -> bool:
    """Whether the third part is neither qrels nor a row like the others, nor one more data set."""
    names = {str(key).lower() for key in parts[2]} if isinstance(parts[2], Mapping) else set()
    if not names or names.intersection(QUERY_NAMES) or names.intersection(DOCUMENT_NAMES):
        return False
    return list(parts[2]) != list(parts[0]) and all(isinstance(value, str | int | float) for value in parts[2].values())


def _are_qrels(part: Any) -> bool:
    """Whether this may be qrels, rather than a row of texts or one more data set."""
    if not isinstance(part, Mapping) or hasattr(part, "column_names"):
        return are_judgments(columns_known(part))
    return all(isinstance(value, Mapping | set | frozenset) or is_column(value) for value in part.values())


def read_judged(queries: Any, corpus: Any, qrels: Any) -> RetrievalData:
    """Queries, corpus and qrels as a collection; qrels without a split are ``train``.

    Args:
        queries: As for :func:`read_texts`.
        corpus: The same, or id to a dict of ``title`` and ``text``.
        qrels: Query id to document id to grade, or to the ids of its relevant documents; split to that; or a table
            with the columns query-id, corpus-id and score.

    Raises:
        TypeError: Something else.
        ValueError: Texts that are not strings, or broken qrels.
    """
    notes: list[str] = []
    queries = dict(read_texts(queries, "q", "queries"))
    documents = {key: _document(key, value) for key, value in read_texts(corpus, "d", "corpus").items()}
    check_texts(queries, documents)
    return RetrievalData(queries, Documents(documents).joined, _read_splits(qrels, notes), notes=tuple(notes))


def _read_splits(qrels: Any, notes: list[str]) -> dict[str, Qrels]:
    if is_table(qrels) and (not isinstance(qrels, Mapping) or are_judgments(columns_known(qrels))):
        return {"train": qrels_of_rows(table_of(qrels, "qrels").rows, "qrels", notes)}
    if not isinstance(qrels, Mapping):
        raise TypeError(f"qrels cannot be a {type(qrels).__name__}: {_QRELS}.")
    parts = [part for part in qrels.values() if isinstance(part, Mapping)]
    by_split = any(isinstance(inner, Mapping) for part in parts for inner in part.values())
    splits: Mapping[str, Any] = qrels if by_split else {"train": qrels}
    return {split: {query: _graded(query, own) for query, own in judged.items()} for split, judged in splits.items()}


def _graded(query_id: Any, documents: Any) -> dict[str, int]:
    if isinstance(documents, Mapping):
        return dict(documents)
    if isinstance(documents, set | frozenset) or is_column(documents):
        return dict.fromkeys(sorted(documents) if isinstance(documents, set | frozenset) else as_list(documents), 1)
    raise TypeError(f"The qrels of query {query_id!r} are {documents!r:.80}: {_QRELS}.")


logger = logging.getLogger(__name__)


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
    Iterable[tuple[str, str]],
    Iterable[tuple[str, str, int]],
    Iterable[Mapping[str, Any]],
    Mapping[str, Any],
    tuple[Any, Any, Any],
]
Corpus: TypeAlias = Union[str, "PathLike[str]", "Dataset", Frame, Mapping[str, Any], Iterable[str]]


def load_data(path: str | PathLike[str]) -> RetrievalData:
    """Read a BEIR folder, a zip of one, or a file of pairs.

    Args:
        path: A folder or ``.zip`` in BEIR's layout (``corpus.jsonl``, ``queries.jsonl``, and of each split
            ``qrels/SPLIT.tsv``, ``.csv``, ``.jsonl``, or ``.txt`` in TREC's four columns), or a ``.jsonl``, ``.csv`` or
            ``.tsv`` file of pairs, plain or as ``.gz``, with the columns that :func:`as_retrieval_data` accepts. The
            last suffix decides, in any case. A ``.tsv`` has no quoting; a ``.jsonl`` may be one array of objects, or
            LlamaIndex's object of ``queries``, ``corpus`` and ``relevant_docs``.

    Returns:
        The collection. Pairs are split into train, dev and test by :func:`from_pairs`.

    Raises:
        FileNotFoundError: No such file or folder, or a file of the BEIR layout is missing.
        ValueError: A line that is not what it should be, a folder of several collections, or qrels that name a missing
            query or document; the message names the file and line, or the first offenders and their number.
    """
    found = read_path(Path(path))
    if isinstance(found, RetrievalData):
        return found
    if isinstance(found, PairCollector):
        return into_splits(found)
    raise ValueError(f"{path} holds documents alone, no queries.")


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
      ``score``, ``relevance`` or ``label``, where there is one, is a whole number, above zero for relevant. A ``title``
      beside ``text``, ``document``, ``passage`` or ``context`` is put before it, as in a corpus;
    - a mapping of splits to such, as a ``DatasetDict``, with ``train`` and perhaps ``validation``;
    - a list of (query, document) or (query, document, grade) tuples;
    - ``(queries, corpus, qrels)``: id to text, id to text (or to a dict of ``title`` and ``text``), and query id to
      document id to grade, or to a list of ids, or split to that. Each of the three may be a table;
    - a :class:`RetrievalData`;
    - documents alone: a mapping of id to text, or to a dict of ``title`` and ``text``; a list of texts; a
      ``corpus.jsonl``, alone or in its folder; a table with ``text`` and perhaps ``title``. Then the queries are made
      by :func:`st_asym.data.pseudo_queries.pseudo_queries`, and ``labels`` of the result says so.

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
        if corpus is not None:
            data = with_documents(data, _read_documents(corpus))
        if dev is not None:
            data = _with_dev(data, dev)
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
        data = with_test_queries_apart(data)
    data = checked(data)
    for note in data.notes:
        logger.warning("%s", note)
    return data


def _read_documents(source: Any) -> Documents:
    found = read(source, "corpus", documents=True)
    if isinstance(found, RetrievalData):
        documents = {key: Document("", text) for key, text in found.corpus.items()}
        found = Documents(documents, found.notes, numbered=found.numbered)
    if not found.by_id:
        raise ValueError("corpus is empty.")
    return found


def _with_dev(data: RetrievalData, dev: Any) -> RetrievalData:
    other = read(dev, "dev")
    if not isinstance(other, RetrievalData):
        raise ValueError("dev holds documents alone: it needs queries to judge on.")
    candidates = [split for split in DEV_NAMES if split in other.qrels]
    candidates = candidates or list(other.qrels)
    if len(candidates) != 1:
        raise ValueError(f"dev must have one split to judge on, not {sorted(candidates)}.")
    part = replace(other, qrels={"dev": other.qrels[candidates[0]]})
    without = {split: judged for split, judged in data.qrels.items() if split not in DEV_NAMES}
    return merged(replace(data, qrels=without), part, "dev")
