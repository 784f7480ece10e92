"""nDCG@10 of vectors that take less room: int8, one bit, and the first 128 dimensions."""

from __future__ import annotations

import numpy as np
from retrieval import Collection, Vectors, unit
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from st_asym import EmbeddingCache

_DIMENSIONS = 128
_RESCORED = 100


def compressed(collection: Collection, model: SentenceTransformer, cache: EmbeddingCache) -> dict[str, float]:
    """Means over the test queries, by the way the vectors are kept.

    ``int8 documents``: documents by ``quantize_embeddings``, against full queries, as the library's searches rescore.
    ``int8, both sides``: queries too, in the ranges of the documents; the products of two such codes are off by what
    each dimension's range is away from the middle, which other encoders of int8 take out. ``binary``: the
    sign of each dimension, compared by how many agree. ``binary, rescored``: of the 100 nearest so, the order by the
    full query against the signs. ``128 dimensions``: the first ones, normalised again.
    """
    queries, documents = collection.vectors(model, cache)
    signs = _signs(documents)
    codes = _int8(documents, documents)
    agreement = _signs(queries) @ signs.T
    similarities = {
        "float32": queries @ documents.T,
        "int8 documents": queries @ codes.T,
        "int8, both sides": _int8(queries, documents) @ codes.T,
        "binary": agreement,
        "binary, rescored": _rescored(agreement, queries @ signs.T),
        f"{_DIMENSIONS} dimensions": unit(queries[:, :_DIMENSIONS]) @ unit(documents[:, :_DIMENSIONS]).T,
    }
    return {name: round(float(collection.ndcg(found).mean()), 4) for name, found in similarities.items()}


def _int8(vectors: Vectors, calibration: Vectors) -> Vectors:
    """Vectors in the steps of int8; in float32, which multiplies them faster and as exactly."""
    return np.asarray(quantize_embeddings(vectors, "int8", calibration_embeddings=calibration), dtype=np.float32)


def _signs(vectors: Vectors) -> Vectors:
    """1 and -1, from the bits of the library."""
    bits = np.unpackbits(np.asarray(quantize_embeddings(vectors, "ubinary")), axis=1)[:, : vectors.shape[1]]
    return bits.astype(np.float32) * 2 - 1


def _rescored(first: Vectors, second: Vectors) -> Vectors:
    """The second similarity for the best of the first, which come before all others."""
    best = np.argpartition(-first, min(_RESCORED, first.shape[1] - 1), axis=1)[:, :_RESCORED]
    result = np.full_like(second, second.min() - 1)
    np.put_along_axis(result, best, np.take_along_axis(second, best, axis=1), axis=1)
    return result
