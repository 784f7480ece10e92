"""nDCG@10 of vectors that take less room: int8, one bit with and without the corpus mean, the first 128 dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scoring import ndcg_of_run
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from st_asym.data import Qrels, RetrievalData

DIMENSIONS = 128
FORMS = ("float32", "int8", "binary", "binary, less the mean", f"{DIMENSIONS} dimensions")
_KEPT = 11  # one more than is judged: the query's own document is left out

Floats = NDArray[np.float32]


def ndcg_by_form(model: SentenceTransformer, data: RetrievalData) -> dict[str, list[float]]:
    """Each of :data:`FORMS` to nDCG@10 of each test query.

    ``int8``: documents in 256 steps of each dimension, read back, against full queries. ``binary``: the sign of each
    dimension on both sides, compared by how many agree, without rescoring. ``binary, less the mean``: the same after
    the mean of the corpus was subtracted from queries and documents. ``128 dimensions``: the first ones, normalised
    again. A document with the id of the query is left out, as in ArguAna.

    Args:
        model: Its encoder best answered from a cache.
        data: With a test split.
    """
    judged = {query: data.qrels["test"][query] for query in data.relevant("test")}
    options: Any = {"batch_size": 1024, "show_progress_bar": False}
    queries = unit(model.encode_query([data.queries[query] for query in judged], **options))
    documents = unit(model.encode_document(list(data.corpus.values()), **options))
    mean = documents.mean(axis=0)
    similarities = {
        "float32": queries @ documents.T,
        "int8": queries @ read_back(documents).T,
        "binary": signs(queries) @ signs(documents).T,
        "binary, less the mean": signs(queries - mean) @ signs(documents - mean).T,
        f"{DIMENSIONS} dimensions": unit(queries[:, :DIMENSIONS]) @ unit(documents[:, :DIMENSIONS]).T,
    }
    ids = np.array(list(data.corpus))
    return {form: ndcg(found, ids, judged) for form, found in similarities.items()}


def ndcg(similarities: Floats, ids: NDArray[Any], judged: Qrels) -> list[float]:
    """nDCG@10 of each query, of similarities of shape ``(queries, documents)``."""
    best = np.argpartition(-similarities, min(_KEPT, similarities.shape[1] - 1), axis=1)[:, :_KEPT]
    run = {
        query: {str(ids[place]): float(row[place]) for place in places if ids[place] != query}
        for query, row, places in zip(judged, similarities, best, strict=True)
    }
    found = ndcg_of_run(judged, run)
    return [found[query] for query in judged]


def unit(vectors: Any) -> Floats:
    """The vectors in float32, of length 1."""
    array = np.asarray(vectors, dtype=np.float32)
    lengths: Floats = np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return array / lengths


def signs(vectors: Floats) -> Floats:
    """1 where a value is above 0, else -1."""
    found: Floats = np.where(vectors > 0, np.float32(1), np.float32(-1))
    return found


def read_back(documents: Floats) -> Floats:
    """What is left of the vectors in int8, of the smallest to the largest value of each dimension."""
    low, high = documents.min(axis=0), documents.max(axis=0)
    codes = np.asarray(quantize_embeddings(documents, "int8", ranges=np.stack([low, high])), dtype=np.float32)
    found: Floats = (codes + 128) * ((high - low) / 255) + low
    return found
