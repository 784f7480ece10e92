"""Whether a difference between two systems is more than chance, on the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, false_discovery_control, permutation_test

Floats = NDArray[np.float64]

RESAMPLES = 9_999
CONFIDENCE = 0.95
# Resamples that are held in memory at a time.
_BATCH = 1_000


class Interval(NamedTuple):
    """A difference in points, of which 100 are a score of 1, and the ends of its interval, None where it has none."""

    points: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """``+1.20 [+0.40, +2.00]``."""
        return f"{self.points:+.2f} {self.ends}".rstrip()

    @property
    def ends(self) -> str:
        """``[+0.40, +2.00]``; nothing where there are none."""
        return "" if self.low is None or self.high is None else f"[{self.low:+.2f}, {self.high:+.2f}]"


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
        points = f"{100 * self.points:+.2f} points {self.interval.ends}".rstrip()
        return f"{points}, p {p_value(self.p, '= ')}"

    @property
    def interval(self) -> Interval:
        """In points, with the ends of its 95 % interval."""
        return Interval(100 * self.points, *(None if end is None else 100 * end for end in (self.low, self.high)))


def p_value(value: float, sign: str = "") -> str:
    """``0.012``, with ``sign`` before it, or ``< .001``."""
    return "< .001" if value < 0.001 else f"{sign}{value:.3f}"


def difference(before: Sequence[Floats], after: Sequence[Floats], seed: int = 0) -> Difference:
    """Compare two systems on one or several data sets, each of which counts the same.

    The test is Fisher's randomisation test, which flips the sign of each query's difference (Smucker, Allan and
    Carterette 2007, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation"), by
    :func:`scipy.stats.permutation_test`: all flips where there are few queries, 9,999 random ones otherwise. The
    interval is the percentile bootstrap of :func:`scipy.stats.bootstrap`, drawing from the queries of each data set.

    Args:
        before: Scores of the first system by query, shape ``(n,)`` for each data set.
        after: The same of the other system, for the same queries.
        seed: The random seed.
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


def one_source(first: NDArray[Any], second: NDArray[Any], seed: int = 0) -> float:
    """The p-value that both samples come from one distribution, by the distance of their means.

    It is the permutation test of two samples by the distance of their means (the linear kernel of Gretton et al. 2012,
    "A Kernel Two-Sample Test"), by :func:`scipy.stats.permutation_test` with 499 random permutations.

    Args:
        first: Vectors of the first sample, shape ``(n, d)``.
        second: Of the second, shape ``(m, d)``.
        seed: The random seed.
    """
    both = np.concatenate([first, second])
    both = both - both.mean(axis=0)  # of which the two means are multiples

    def distance(rows: NDArray[Any], _: NDArray[Any]) -> float:
        return float(np.linalg.norm(both[rows].mean(axis=0)))

    places = np.split(np.arange(len(both)), [len(first)])
    return float(permutation_test(places, distance, alternative="greater", n_resamples=499, rng=seed).pvalue)


def corrected(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, by Benjamini and Hochberg 1995 (false discovery rate)."""
    return [float(p) for p in false_discovery_control(p_values, method="bh")] if len(p_values) else []


def _interval(gains: Sequence[Floats], seed: int) -> tuple[float | None, float | None]:
    if any(len(gain) < 2 for gain in gains):
        return None, None

    def mean_of_means(*samples: Floats, axis: int = -1) -> Floats:
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
