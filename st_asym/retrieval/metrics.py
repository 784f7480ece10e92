"""nDCG@10 by query, from the positions of what was found; and whether a difference between systems is chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, false_discovery_control, permutation_test

Scores = NDArray[np.float64]
TOP = 10
RESAMPLES = 9_999
CONFIDENCE = 0.95
# Resamples that are held in memory at a time.
_BATCH = 1_000
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


@dataclass(frozen=True)
class Difference:
    """A difference in mean score to the first system, paired by query.

    Attributes:
        points: The difference of the means.
        relative: The same as a share of the first system's mean, None where that is 0.
        low: Lower end of the 95 % interval, None for fewer than two queries.
        high: Its upper end.
        p: Of the randomisation test, two-sided.
        p_corrected: The same, corrected for the number of comparisons where there are several.
        queries: On how many queries.
    """

    points: float
    relative: float | None
    low: float | None
    high: float | None
    p: float
    p_corrected: float
    queries: int

    def __str__(self) -> str:
        """``+1.20 points [+0.31, +2.10], p = 0.009``, of which 100 are a score of 1; p is not corrected."""
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"
        return f"{100 * self.points:+.2f} points{interval}, p {'< .001' if self.p < 0.001 else f'= {self.p:.3f}'}"


def difference(before: Sequence[Scores], after: Sequence[Scores], seed: int = 0) -> Difference:
    """Compare two systems on one or several data sets, each of which counts the same.

    The test is Fisher's randomisation test, which flips the sign of each query's difference (Smucker, Allan and
    Carterette 2007, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation"), by
    :func:`scipy.stats.permutation_test`: all flips where there are few queries, 9,999 random ones otherwise. The
    interval is the percentile bootstrap of :func:`scipy.stats.bootstrap`, drawing from the queries of each data set.

    Args:
        before: Scores of the first system by query, shape ``(n,)`` for each data set.
        after: The same of the other system, for the same queries.
        seed: Of what is drawn at random.
    """
    gains = [new - old for old, new in zip(before, after, strict=True)]
    base = float(np.mean([old.mean() for old in before]))
    points = float(np.mean([gain.mean() for gain in gains]))
    low, high = _interval(gains, seed)
    # Each query counts as much as it does in the mean over data sets.
    weighted = np.concatenate([gain / (len(gain) * len(gains)) for gain in gains])
    p = 1.0
    if weighted.any() and len(weighted) > 1:
        test = permutation_test(
            (weighted,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, batch=_BATCH, rng=seed
        )
        p = float(test.pvalue)
    return Difference(points, points / base if base else None, low, high, p, p, len(weighted))


def corrected(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, by Benjamini and Hochberg 1995 (false discovery rate)."""
    return [float(p) for p in false_discovery_control(p_values, method="bh")] if len(p_values) else []


def _interval(gains: Sequence[Scores], seed: int) -> tuple[float | None, float | None]:
    if any(len(gain) < 2 for gain in gains):
        return None, None

    def mean_of_means(*samples: Scores, axis: int = -1) -> Scores:
        return np.asarray(sum(sample.mean(axis=axis) for sample in samples) / len(samples))

    interval = bootstrap(
        tuple(gains),
        mean_of_means,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)
