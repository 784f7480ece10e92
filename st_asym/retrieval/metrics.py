"""nDCG@10 by query, from the positions of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

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
        cells = [
            (grade, row, positions[document])
            for row, judged in enumerate(qrels.values())
            for document, grade in judged.items()
            if grade > 0 and document in positions
        ]
        grades, rows, columns = np.array(cells, dtype=np.int64).reshape(-1, 3).T
        shape = len(self.queries), max(positions.values(), default=-1) + 1
        self._grades = csr_array((grades, (rows, columns)), shape=shape)
        self._ideal = np.zeros(len(self.queries))
        for row, judged in enumerate(qrels.values()):
            best = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:TOP]
            self._ideal[row] = np.dot(best, _DISCOUNTS[: len(best)])

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.queries)

    def grades(self, positions: Any) -> NDArray[np.int64]:
        """The grades of what was found, 0 for what is not relevant, for positions of shape ``(n, k)``."""
        rows = np.arange(len(self.queries))[:, None]
        found: NDArray[np.int64] = self._grades[rows, np.asarray(positions).copy()].toarray()
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
