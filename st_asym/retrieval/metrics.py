"""nDCG@10 by query, from the positions of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
TOP = 10
_DISCOUNTS: Scores = 1.0 / np.log2(np.arange(TOP) + 2.0)


class Judgments:
    """The graded documents of some queries, by position: above zero is relevant, anything else is not.

    Judged documents without a position cannot be found, but count in the ideal ranking, as in ``trec_eval``. All scores
    are in the order of ``queries``.

    Example:
        >>> judged = Judgments({"q": {"a": 1}}, {"a": 0, "b": 1})
        >>> judged.ndcg([[1, 0]]).round(3)
        array([0.631])
    """

    def __init__(self, qrels: Mapping[str, Mapping[str, int]], positions: Mapping[str, int]) -> None:
        self.queries: tuple[str, ...] = tuple(qrels)
        self._documents = max(positions.values(), default=-1) + 1
        cells = [
            (row * self._documents + positions[document], grade)
            for row, judged in enumerate(qrels.values())
            for document, grade in judged.items()
            if grade > 0 and document in positions
        ]
        keys, grades = (np.array(part, dtype=np.int64) for part in (zip(*cells, strict=True) if cells else ((), ())))
        order = keys.argsort()
        self._keys, self._grades = keys[order], grades[order]
        self._ideal = np.zeros(len(self.queries))
        for row, judged in enumerate(qrels.values()):
            best = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:TOP]
            self._ideal[row] = np.dot(best, _DISCOUNTS[: len(best)])

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.queries)

    def grades(self, positions: Any) -> NDArray[np.int64]:
        """The grades of what was found, 0 for what is not relevant, for positions of shape ``(n, k)``."""
        wanted = np.arange(len(self.queries))[:, None] * self._documents + np.asarray(positions)
        if not len(self._keys):
            return np.zeros(wanted.shape, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        found: NDArray[np.int64] = np.where(self._keys[places] == wanted, self._grades[places], 0)
        return found

    def relevant(self, positions: Any) -> NDArray[np.bool_]:
        """Whether what was found is relevant; arguments as for :meth:`grades`."""
        return self.grades(positions) > 0

    def ndcg(self, positions: Any) -> Scores:
        """nDCG@10 of each query, as ``trec_eval`` computes it: gain is the grade, 0 without a relevant document.

        Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques". The first ten positions count.
        """
        grades = self.grades(np.asarray(positions)[:, :TOP])
        gained = grades @ _DISCOUNTS[: grades.shape[1]]
        return np.divide(gained, self._ideal, out=np.zeros(len(self)), where=self._ideal > 0)
