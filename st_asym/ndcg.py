"""nDCG@10 by query, for whoever has the ten nearest documents of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytrec_eval
from numpy.typing import NDArray

from st_asym.data import Qrels

Scores = NDArray[np.float64]

TOP = 10
_MEASURE = f"ndcg_cut_{TOP}"


class Ndcg:
    """nDCG@10 of each query, as ``trec_eval`` computes it from grades.

    Args:
        qrels: The queries to judge, each with its graded documents.

    Example:
        >>> Ndcg({"q": {"a": 1}})(["a", "b"], [[1, 0]], [[0.9, 0.8]]).round(3)
        array([0.631])
    """

    def __init__(self, qrels: Qrels) -> None:
        self.queries: tuple[str, ...] = tuple(qrels)
        # The field counts negative grades as not relevant; trec_eval crashes where a query has no others.
        graded = {q: {d: max(int(grade), 0) for d, grade in judged.items()} for q, judged in qrels.items()}
        self._evaluator = pytrec_eval.RelevanceEvaluator(graded, {f"ndcg_cut.{TOP}"})

    def __call__(self, ids: Sequence[str], positions: Any, similarities: Any) -> Scores:
        """Judge what was found.

        Args:
            ids: The ids of the documents.
            positions: Of the nearest documents of each query among ``ids``, shape ``(n, 10)``, in the order of the
                queries.
            similarities: Their similarities, of the same shape.

        Returns:
            One score per query, shape ``(n,)``.
        """
        run = {
            query_id: {ids[position]: float(similarity) for position, similarity in zip(*best, strict=True)}
            for query_id, *best in zip(self.queries, positions, similarities, strict=True)
        }
        found = self._evaluator.evaluate(run)
        return np.array([found[query_id][_MEASURE] for query_id in self.queries])
