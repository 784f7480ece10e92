"""Searching, by vectors and by words: arrays in, arrays out."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Of a matrix of similarities, by the rows of queries and the columns of documents.
Cells = Tensor | tuple[Tensor, Tensor]

# How many numbers a block of similarities may have: 16 MiB in float32.
_BLOCK = 1 << 22
# Of BM25, a row of similarities has as many numbers as there are documents; so have the postings of a frequent word.
MOST_DOCUMENTS = 1_000_000


@torch.no_grad()
def nearest(
    queries: Tensor,
    documents: Tensor | Iterable[tuple[int, Tensor]],
    k: int,
    *,
    excluded: Cells | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` most similar documents of each query, by inner product: the cosine, of unit vectors.

    Documents of shape ``(m, d)``, or stretches of them, each with the position of its first one, such as a corpus that
    is too large for memory. Rows of queries and positions of documents in ``excluded`` are no results; where nothing
    else is left, their similarity is minus infinity. Both results have the shape ``(n, min(k, m))``, the most similar
    first.

    Example:
        >>> nearest(torch.tensor([[0.6, 0.0, 0.8]]), torch.eye(3), 2)
        (tensor([[0.8000, 0.6000]]), tensor([[2, 0]]))
    """
    best = queries.new_empty(len(queries), 0)
    positions = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    rows, columns = torch.empty(2, 0, dtype=torch.int64, device="cpu") if excluded is None else excluded
    for first, part in [(0, documents)] if isinstance(documents, Tensor) else documents:
        here = (columns >= first) & (columns < first + len(part))
        own_rows, own_columns = rows[here], columns[here] - first
        size = max(1, _BLOCK // max(1, len(part)))
        values, places = [best.new_empty(0, min(k, len(part)))], [positions.new_empty(0, min(k, len(part)))]
        for start in range(0, len(queries), size):
            block = queries[start : start + size] @ part.to(queries.dtype).T
            inside = (own_rows >= start) & (own_rows < start + len(block))
            block[own_rows[inside] - start, own_columns[inside]] = -torch.inf
            top = block.topk(min(k, len(part)), dim=1)
            values.append(top.values)
            places.append(top.indices + first)
        best, positions = torch.cat([best, torch.cat(values)], dim=1), torch.cat([positions, torch.cat(places)], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        positions = positions.gather(1, order)
    return best, positions


def bm25_is_installed() -> bool:
    """Whether ``bm25s`` (extra ``eval``) is there."""
    return importlib.util.find_spec("bm25s") is not None


class Bm25Index:
    """Documents by the words that they share with a query (Robertson et al. 1995), by ``bm25s`` with its defaults.

    Those are k1 1.5 and b 0.75, words of two characters or more in lower case, English stop words, no stemming. A text
    that is written without spaces is one word, so that BM25 says nothing of it.

    Example:
        >>> Bm25Index(["a red fox", "a red dog", "blue"]).similarities(["the dog", "the"]).round(2)
        array([[0.  , 0.36, 0.  ],
               [0.  , 0.  , 0.  ]], dtype=float32)
    """

    def __init__(self, documents: Sequence[str]) -> None:
        if not bm25_is_installed():
            raise ImportError("BM25 needs bm25s, which is not installed: pip install 'st_asym[eval]'.")
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.INFO)  # on import it asks for its debugging messages
        self._bm25s: Any = bm25s
        self._documents = len(documents)
        tokens = bm25s.tokenize(list(documents), show_progress=False)
        self._index = bm25s.BM25()
        self._words = any(map(len, tokens.ids))
        if self._words:  # without any, bm25s cannot index them
            self._index.index(tokens, show_progress=False)

    def similarities(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Scores from 0, where no word is shared, shape ``(n, m)``, float32, for ``n`` queries and ``m`` documents."""
        found = np.zeros((len(queries), self._documents), dtype=np.float32)
        tokens = self._bm25s.tokenize(list(queries), show_progress=False, return_ids=False)
        for row, own in enumerate(tokens):
            ids = self._index.get_tokens_ids(own) if self._words else []
            if ids:
                found[row] = self._index.get_scores_from_ids(ids)
        return found


def standardised(similarities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row of shape ``(m,)`` with mean 0 and standard deviation 1 over the corpus; 0 where all are the same."""
    deviation = np.maximum(similarities.std(axis=1, keepdims=True), 1e-9)
    return np.asarray((similarities - similarities.mean(axis=1, keepdims=True)) / deviation, dtype=np.float32)
