"""Queries, documents and which answers which: read from BEIR folders and pairs, given as ``datasets.Dataset``."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

Qrels = dict[str, dict[str, int]]

# Share of the queries in each split, where the data come without splits.
_SPLITS = {"train": 0.7, "dev": 0.1, "test": 0.2}


@dataclass(frozen=True)
class RetrievalData:
    """A retrieval collection.

    Attributes:
        queries: Query id to text.
        corpus: Document id to text (title, one space, text).
        qrels: For each split, query id to document id to relevance: above zero is relevant.
    """

    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: dict[str, Qrels]

    def pairs(self, split: str) -> Dataset:
        """The relevant (query, document) pairs of a split, as the contrastive losses take them.

        Args:
            split: A key of ``qrels``.

        Returns:
            A data set with the text columns ``query`` and ``document``.

        Raises:
            KeyError: No such split.
        """
        from datasets import Dataset  # only training needs it

        rows = [
            (self.queries[query_id], self.corpus[document_id])
            for query_id, documents in self._split(split).items()
            for document_id, relevance in documents.items()
            if relevance > 0
        ]
        return Dataset.from_dict({"query": [query for query, _ in rows], "document": [text for _, text in rows]})

    def labelled_queries(self, split: str) -> Dataset:
        """The queries of a split that have a relevant document, as :class:`st_asym.CorpusContrastiveLoss` takes them.

        Args:
            split: A key of ``qrels``.

        Returns:
            A data set with the text column ``query`` and the integer column ``label``, the position of the query in
            ``qrels[split]``, which the loss gets as ``relevant``.

        Raises:
            KeyError: No such split.
        """
        from datasets import Dataset  # only training needs it

        answered = self.relevant(split)
        rows = [(self.queries[key], label) for label, key in enumerate(self._split(split)) if key in answered]
        return Dataset.from_dict({"query": [text for text, _ in rows], "label": [label for _, label in rows]})

    def relevant(self, split: str) -> dict[str, set[str]]:
        """Query id to the ids of its relevant documents, as ``InformationRetrievalEvaluator`` takes them.

        Args:
            split: A key of ``qrels``.

        Returns:
            A dict without queries that have no relevant document.

        Raises:
            KeyError: No such split.
        """
        sets = {
            query_id: {document_id for document_id, relevance in documents.items() if relevance > 0}
            for query_id, documents in self._split(split).items()
        }
        return {query_id: documents for query_id, documents in sets.items() if documents}

    def with_dev_split(self, share: float = 0.2) -> RetrievalData:
        """The same data with a ``dev`` split, cut from the training queries by a stable hash where there is none.

        Args:
            share: Share of the training queries to hold out.

        Returns:
            A collection with ``dev`` and ``train`` splits that have no query in common.

        Raises:
            KeyError: There is neither a ``dev`` nor a ``train`` split.
        """
        if "dev" in self.qrels:
            return self
        held_out = {query_id for query_id in self._split("train") if _stable_fraction(self.queries[query_id]) < share}
        train = {q: documents for q, documents in self.qrels["train"].items() if q not in held_out}
        dev = {q: documents for q, documents in self.qrels["train"].items() if q in held_out}
        return RetrievalData(self.queries, self.corpus, {**self.qrels, "train": train, "dev": dev})

    def _split(self, split: str) -> Qrels:
        if split not in self.qrels:
            raise KeyError(f"There is no split {split!r}: this collection has {sorted(self.qrels)}.")
        return self.qrels[split]


def load_data(path: str | PathLike[str]) -> RetrievalData:
    """Read a BEIR folder, a zip of one, or a JSONL file of pairs.

    Args:
        path: A folder or ``.zip`` in BEIR's layout (``corpus.jsonl``, ``queries.jsonl``, ``qrels/SPLIT.tsv``), or a
            ``.jsonl`` or ``.jsonl.gz`` with a ``query`` and a ``positive`` in each line.

    Returns:
        The collection. Pairs are split into train, dev and test by :func:`from_pairs`.

    Raises:
        FileNotFoundError: No such file or folder, or a file of the BEIR layout is missing.
        ValueError: A line that is not what it should be, or qrels that name a missing query or document; the message
            names the file and line, or the first offenders and their number.
    """
    path = Path(path)
    if path.is_dir():
        return _load_beir(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _load_beir(zipfile.Path(archive))
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return from_pairs(_fields(lines, path.name, "query", "positive"))


def from_pairs(pairs: Iterable[Iterable[str]]) -> RetrievalData:
    """Make a collection of (query, relevant document) pairs.

    Texts that occur several times become one query or one document. A query goes to ``train`` (70 %), ``dev`` (10 %) or
    ``test`` (20 %) by a hash of its text, so that it stays there when pairs are added, and in any order.

    Args:
        pairs: A query and a document text each.

    Returns:
        The collection; the corpus is all documents.

    Example:
        >>> data = from_pairs([("capital of France?", "Paris is the capital of France."), ("a dog", "A dog barks.")])
        >>> len(data.queries), len(data.corpus), sorted(data.qrels)
        (2, 2, ['dev', 'test', 'train'])
    """
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    qrels: dict[str, Qrels] = {split: {} for split in _SPLITS}
    for query, document in pairs:
        query_id = queries.setdefault(query, f"q{len(queries)}")
        document_id = corpus.setdefault(document, f"d{len(corpus)}")
        qrels[_split_of(query)].setdefault(query_id, {})[document_id] = 1
    return RetrievalData(
        {query_id: text for text, query_id in queries.items()},
        {document_id: text for text, document_id in corpus.items()},
        qrels,
    )


def _split_of(query: str) -> str:
    fraction = _stable_fraction(query)
    for split, share in _SPLITS.items():
        if fraction < share:
            return split
        fraction -= share
    return "test"


def _stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def _load_beir(root: Path | zipfile.Path) -> RetrievalData:
    root = _beir_root(root)
    with _open(root, "corpus.jsonl") as lines:
        corpus = {
            key: f"{title} {text}".strip()
            for key, title, text in _fields(lines, "corpus.jsonl", "_id", "title?", "text")
        }
    with _open(root, "queries.jsonl") as lines:
        queries = {row[0]: row[1] for row in _fields(lines, "queries.jsonl", "_id", "text")}
    tables = sorted((file for file in (root / "qrels").iterdir() if file.name.endswith(".tsv")), key=lambda f: f.name)
    qrels = {}
    for table in tables:
        with _open(root / "qrels", table.name) as lines:
            qrels[table.name.removesuffix(".tsv")] = _read_qrels(lines, table.name)
    _check_qrels(queries, corpus, qrels)
    return RetrievalData(queries, corpus, qrels)


def _beir_root(root: Path | zipfile.Path) -> Path | zipfile.Path:
    """The folder that holds ``corpus.jsonl``: this one, or the only one inside it."""
    folders = [root, *(entry for entry in root.iterdir() if entry.is_dir())]
    for folder in folders:
        if (folder / "corpus.jsonl").is_file() and (folder / "qrels").is_dir():
            return folder
    raise FileNotFoundError(
        f"{root} is not in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, at the top or in one folder."
    )


@contextmanager
def _open(folder: Path | zipfile.Path, name: str) -> Iterator[Iterable[str]]:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{name} is missing from {folder}.")
    binary: IO[bytes]
    with file.open("rb") as binary, TextIOWrapper(binary, encoding="utf-8") as lines:
        yield lines


def _fields(lines: Iterable[str], file: str, *names: str) -> Iterator[tuple[str, ...]]:
    """The named string fields of each JSON line; a name that ends in ``?`` may be missing, and is then empty."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            values = tuple(row.get(name[:-1], "") if name.endswith("?") else row[name] for name in names)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = ", ".join(name.removesuffix("?") for name in names)
            raise ValueError(f"{file}, line {number}: not a JSON object with {wanted} ({error!r}).") from error
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{file}, line {number}: a field of {names} is not a string: {values}.")
        yield values


def _read_qrels(lines: Iterable[str], file: str) -> Qrels:
    qrels: Qrels = {}
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, start=1):
        if number == 1 and row[-1:] == ["score"]:
            continue
        try:
            query_id, document_id, relevance = row
            qrels.setdefault(query_id, {})[document_id] = int(relevance)
        except ValueError as error:
            raise ValueError(f"qrels/{file}, line {number}: expected query-id, corpus-id, score, got {row}.") from error
    return qrels


def _check_qrels(queries: dict[str, str], corpus: dict[str, str], qrels: dict[str, Qrels]) -> None:
    for split, judged in qrels.items():
        missing = [f"query {query_id}" for query_id in judged if query_id not in queries]
        missing += [f"document {d}" for documents in judged.values() for d in documents if d not in corpus]
        if missing:
            raise ValueError(
                f"qrels/{split}.tsv names {len(missing)} queries or documents that do not exist: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
            )
