"""What training sees of a collection: vectors and judgments, no texts and no encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_asym.cache import EmbeddingCache
from st_asym.cache.encoding import Precision
from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import own_documents
from st_asym.heads.anatomy import Side, side_prompt

# The largest corpus whose vectors are held in memory, and the most documents that held-out queries are judged on.
_IN_MEMORY, SEARCHED = 100_000, 50_000
# Texts that are looked up at a time.
_PORTION = 8_192


@dataclass(frozen=True)
class Vectors:
    """The encoder's vectors of a collection, by id.

    Attributes:
        query_ids: Ids of the queries, in the order of their vectors.
        queries: Shape ``(n, d)``, float32: a tensor, or rows on disk that are float32 as they are read.
        document_ids: Ids of the documents.
        documents: Shape ``(m, d)``, the same, or a ``numpy.memmap`` where there are many texts.
        no_negatives: Query id to documents that are neither relevant to it nor not: copies of relevant ones, and the
            query itself where queries are documents. This is where equal documents are treated: see
            :func:`st_asym.data.document.copies`; :func:`st_asym.fit_vectors` goes by equal vectors.
        own: Query id to document id, of queries that are documents themselves, which are no results of their own.
        seed: Of what is drawn.
        by_dot: Whether the encoder, as it is, compares by the inner product of vectors of any length, not by cosine.
    """

    query_ids: Sequence[Any]
    queries: Any
    document_ids: Sequence[Any]
    documents: Any
    no_negatives: Qrels = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    by_dot: bool = False

    @cached_property
    def query_rows(self) -> Any:
        """Query id to row: a dict, or the ids themselves where these are the rows."""
        return _rows(self.query_ids)

    @cached_property
    def document_rows(self) -> Any:
        """Document id to row, in the same way."""
        return _rows(self.document_ids)

    @property
    def dimension(self) -> int:
        """The dimension of the vectors."""
        return int(self.queries.shape[1])

    def of_queries(self, ids: Iterable[str]) -> Tensor:
        """The vectors of some queries, in their order."""
        return taken(self.queries, [self.query_rows[key] for key in ids])

    def unit_stretches(self) -> Iterator[tuple[int, Tensor]]:
        """The unit vectors of all documents, some at a time, with the row of the first."""
        for start in range(0, len(self.document_ids), _PORTION):
            rows = range(start, min(start + _PORTION, len(self.document_ids)))
            yield start, torch.nn.functional.normalize(taken(self.documents, rows))

    def pairs(self, qrels: Qrels) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of queries, rows of their relevant documents, and weights, one in all for each query."""
        rows: list[int] = []
        columns: list[int] = []
        weights: list[float] = []
        for query_id, judged in qrels.items():
            relevant = [self.document_rows[key] for key, grade in judged.items() if grade > 0]
            rows += [self.query_rows[query_id]] * len(relevant)
            columns += relevant
            weights += [1.0 / len(relevant)] * len(relevant)
        return torch.tensor(rows), torch.tensor(columns), torch.tensor(weights)

    def searched(self, qrels: Qrels) -> Sequence[int]:
        """Rows of documents that held-out queries are judged on: all, or of a large corpus a part that has theirs."""
        count = len(self.document_ids)
        if count <= SEARCHED:
            return range(count)
        wanted = dict.fromkeys(self.document_rows[key] for judged in qrels.values() for key in judged)
        room = max(0, SEARCHED - len(wanted))
        drawn = np.random.default_rng(self.seed).choice(count, SEARCHED, replace=False)
        return sorted([*wanted, *[row for row in drawn.tolist() if row not in wanted][:room]])


def taken(vectors: Any, rows: Any) -> Tensor:
    """Some rows of a tensor, or of an array that may be on disk, float32, in memory."""
    places = slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else np.asarray(rows)
    if isinstance(vectors, Tensor):
        return vectors[places]
    return torch.from_numpy(np.asarray(vectors[places], dtype=np.float32))


def _rows(ids: Sequence[Any]) -> Any:
    return ids if isinstance(ids, range) else {key: row for row, key in enumerate(ids)}


def read_vectors(
    encoder: SentenceTransformer,
    data: RetrievalData,
    cache: EmbeddingCache,
    copies: Qrels,
    *,
    precision: Precision = "fp32",
    seed: int = 0,
    show_progress_bar: bool = False,
) -> Vectors:
    """Encode what the cache misses of the judged queries and the corpus, with the encoder's prompts; read the vectors.

    ``copies`` are, by query, documents with the text of a relevant one. Vectors of more than 100,000 documents are in a
    temporary file.

    Raises:
        ValueError: A vector is not finite. The message names the text.
    """
    judged = list(dict.fromkeys(query_id for split in data.qrels.values() for query_id in split))
    parts = []
    sides: dict[Side, list[str]] = {"query": [data.queries[key] for key in judged], "document": [*data.corpus.values()]}
    for side, texts in sides.items():
        options: dict[str, Any] = {"prompt": side_prompt(encoder, side), "task": side, "precision": precision}
        cache.fill(encoder, texts, show_progress_bar=show_progress_bar, **options)
        parts.append(_read(cache, encoder, texts, options))
    own = {key for split in data.qrels.values() for key in own_documents(data.corpus, split)}
    no_negatives = {query_id: dict(documents) for query_id, documents in copies.items()}
    for key in own:
        no_negatives.setdefault(key, {})[key] = 1
    return Vectors(
        judged,
        torch.from_numpy(np.asarray(parts[0])),
        list(data.corpus),
        parts[1] if isinstance(parts[1], np.memmap) else torch.from_numpy(parts[1]),
        no_negatives,
        {key: key for key in own},
        seed,
        encoder.similarity_fn_name == "dot",
    )


def _read(cache: EmbeddingCache, encoder: SentenceTransformer, texts: Sequence[str], options: dict[str, Any]) -> Any:
    """All vectors, in memory, or of many texts in a file that is gone with the process."""
    if len(texts) <= _IN_MEMORY:
        return cache.get(encoder, texts, **options)
    first = cache.get(encoder, texts[:1], **options)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = np.memmap(Path(folder) / "vectors", dtype=np.float32, mode="w+", shape=(len(texts), first.shape[1]))
        for start in range(0, len(texts), _PORTION):
            portion = texts[start : start + _PORTION]
            found[start : start + len(portion)] = cache.get(encoder, portion, **options)
    return found
