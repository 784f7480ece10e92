"""Whatever holds queries and documents, as a collection: to look at with splits, or to train on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

from st_asym.data.checks import DEV_NAMES, checked
from st_asym.data.collection import RetrievalData
from st_asym.data.document import Document, Documents
from st_asym.data.merging import merged, with_documents
from st_asym.data.pairs import PairCollector, into_splits, with_test_queries_apart
from st_asym.data.pseudo import pseudo_queries
from st_asym.data.sources import read, read_path

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

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
      by :func:`st_asym.data.pseudo.pseudo_queries`, and ``labels`` of the result says so.

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
