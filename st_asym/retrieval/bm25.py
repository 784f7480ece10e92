"""BM25 over texts, and its scores in a form that can be added to a cosine."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Similarities = NDArray[np.float32]

# A row of similarities has as many numbers as there are documents; so have the postings of a frequent word.
MOST_DOCUMENTS = 1_000_000


def bm25_is_installed() -> bool:
    """Whether ``bm25s`` (extra ``eval``) is there."""
    return importlib.util.find_spec("bm25s") is not None


class Bm25Index:
    """Documents by the words that they share with a query (Robertson et al. 1995), by ``bm25s`` with its defaults.

    Those are k1 1.5 and b 0.75, words of two characters or more in lower case, English stop words, no stemming. A text
    that is written without spaces is one word, so that BM25 says nothing of it.

    Args:
        documents: Texts of the corpus.

    Raises:
        ImportError: ``bm25s`` is not installed.

    Example:
        >>> index = Bm25Index(["a red fox", "a red dog", "blue"])
        >>> index.similarities(["the dog", "the"]).round(2)
        array([[0.  , 0.36, 0.  ],
               [0.  , 0.  , 0.  ]], dtype=float32)
    """

    def __init__(self, documents: Sequence[str]) -> None:
        if not bm25_is_installed():
            raise ImportError("BM25 needs bm25s, which is not installed: pip install 'st_asym[eval]'.")
        import bm25s

        self._bm25s: Any = bm25s
        self._documents = len(documents)
        tokens = bm25s.tokenize(list(documents), show_progress=False)
        self._index = bm25s.BM25()
        self._words = any(map(len, tokens.ids))
        if self._words:  # without any, bm25s cannot index them
            self._index.index(tokens, show_progress=False)

    def similarities(self, queries: Sequence[str]) -> Similarities:
        """Scores from 0, where no word is shared, shape ``(n, m)``, float32, for ``n`` queries and ``m`` documents."""
        found = np.zeros((len(queries), self._documents), dtype=np.float32)
        tokens = self._bm25s.tokenize(list(queries), show_progress=False, return_ids=False)
        for row, own in enumerate(tokens):
            ids = self._index.get_tokens_ids(own) if self._words else []
            if ids:
                found[row] = self._index.get_scores_from_ids(ids)
        return found


def standardised(similarities: Similarities) -> Similarities:
    """Each row of shape ``(m,)`` with mean 0 and standard deviation 1 over the corpus; 0 where all are the same.

    Example:
        >>> standardised(np.array([[0, 0, 3], [2, 2, 2]], dtype=np.float32)).round(3)
        array([[-0.707, -0.707,  1.414],
               [ 0.   ,  0.   ,  0.   ]], dtype=float32)
    """
    deviation = np.maximum(similarities.std(axis=1, keepdims=True), 1e-9)
    return np.asarray((similarities - similarities.mean(axis=1, keepdims=True)) / deviation, dtype=np.float32)
