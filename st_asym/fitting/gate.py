"""The decision whether trained heads are kept: held-out queries, on seen and unseen documents apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from st_asym.ndcg import Scores

Collection = Literal["open", "closed"]

# How many standard errors a gain must be worth. It is the best of several choices, so more than one:
# examples/benchmarks/random_labels.py counts how often heads are kept where there is nothing to learn.
_BEYOND_NOISE = 2.0
# How many standard errors behind the best a choice may be to count as good as it.
_AS_GOOD = 1.0
# Fewer queries on unseen documents than this say nothing by themselves.
_TOO_FEW_TO_TELL = 3
# With fewer queries than this, and than a tenth of all, a half is not weighed by itself.
_HALF = 20


@dataclass(frozen=True, order=True)
class Choice:
    """How far to train, and how far to turn back: epochs, and the weight of what they gave (1 is all of it)."""

    epoch: int
    dial: float


@dataclass(frozen=True)
class Rehearsal:
    """One training run on part of the queries, judged on the others.

    Attributes:
        queries: Ids of the held-out queries.
        seen: Which of them ask for a document that was a training positive, shape ``(n,)``.
        untouched: nDCG@10 of each with the encoder as it is, shape ``(n,)``.
        scores: The same for each choice.
    """

    queries: tuple[str, ...]
    seen: NDArray[np.bool_]
    untouched: Scores
    scores: dict[Choice, Scores]


@dataclass(frozen=True)
class Gain:
    """A difference in mean nDCG@10 to the untouched encoder, paired by query.

    Attributes:
        queries: How many queries.
        untouched: Their mean with the encoder as it is.
        mean: The mean difference.
        error: Its standard error, infinite for one query and 0 for none.
    """

    queries: int
    untouched: float
    mean: float
    error: float

    @classmethod
    def of(cls, untouched: Scores, scores: Scores) -> Gain:
        """The gain from ``untouched`` to ``scores``, both of shape ``(n,)``."""
        difference = scores - untouched
        if not len(difference):
            return cls(0, 0.0, 0.0, 0.0)
        error = float(np.std(difference, ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
        return cls(len(difference), float(untouched.mean()), float(difference.mean()), error)

    def __str__(self) -> str:
        """``.671 -> .819 (+.148 ± .021, 80 queries)``."""
        if not self.queries:
            return "no queries"
        return (
            f"{self.untouched:.3f} -> {self.untouched + self.mean:.3f} ({self.mean:+.3f} ± {self.error:.3f}, "
            f"{self.queries:,} queries)"
        )


@dataclass(frozen=True)
class Evidence:
    """What held-out queries say about one choice.

    Attributes:
        choice: The choice.
        seen: Gain of the queries on documents that training knows.
        unseen: Gain of the others.
        gain: Both, weighed as the collection asks.
        error: Standard error of ``gain``.
    """

    choice: Choice
    seen: Gain
    unseen: Gain
    gain: float
    error: float

    @property
    def costs_unseen(self) -> bool:
        """Whether it loses on unseen documents."""
        return self.unseen.queries >= _TOO_FEW_TO_TELL and self.unseen.mean < 0

    @property
    def worth_it(self) -> bool:
        """Whether it gains, beyond noise, and loses nothing on unseen documents."""
        return not self.costs_unseen and self.gain > _BEYOND_NOISE * self.error


def weigh(rehearsals: Sequence[Rehearsal], collection: Collection | None = None) -> list[Evidence]:
    """Put the rehearsals together, choice by choice.

    Args:
        rehearsals: Runs with the same choices, on different queries.
        collection: ``"open"`` counts the queries on unseen documents alone, ``"closed"`` those on seen ones, None both
            halves equally, however many queries are in each, unless one has less than 20 and a tenth of all.

    Returns:
        One entry per choice that all rehearsals reached, in the order of epochs and dials.
    """
    seen, untouched, scores = _together(rehearsals)
    return [Evidence(choice, *_gains(seen, untouched, own, collection)) for choice, own in sorted(scores.items())]


def choose(rehearsals: Sequence[Rehearsal], collection: Collection | None = None) -> Evidence | None:
    """Pick how far to train and how far to turn back; None where the encoder is better left alone.

    Among the choices that are worth it, the best and those that are not behind it by more than a standard error of the
    difference, paired by query, are as good as each other: of these, the one that moves least from the encoder is
    taken, that of the smallest dial, and among equals that of the first epoch. (The one-standard-error rule of Breiman
    et al. 1984, "Classification and Regression Trees".)

    Args:
        rehearsals: As for :func:`weigh`.
        collection: As for :func:`weigh`.

    Returns:
        What the held-out queries say about the choice.
    """
    evidence = {entry.choice: entry for entry in weigh(rehearsals, collection) if entry.worth_it}
    if not evidence:
        return None
    best = max(evidence.values(), key=lambda entry: entry.gain)
    seen, _, scores = _together(rehearsals)
    as_good = []
    for entry in evidence.values():
        *_, behind, error = _gains(seen, scores[entry.choice], scores[best.choice], collection)
        if behind <= _AS_GOOD * error:
            as_good.append(entry)
    return min(as_good, key=lambda entry: (entry.choice.dial, entry.choice.epoch))


def _together(rehearsals: Sequence[Rehearsal]) -> tuple[NDArray[np.bool_], Scores, dict[Choice, Scores]]:
    choices = set.intersection(*(set(rehearsal.scores) for rehearsal in rehearsals))
    return (
        np.concatenate([rehearsal.seen for rehearsal in rehearsals]),
        np.concatenate([rehearsal.untouched for rehearsal in rehearsals]),
        {choice: np.concatenate([rehearsal.scores[choice] for rehearsal in rehearsals]) for choice in choices},
    )


def _gains(
    seen: NDArray[np.bool_], before: Scores, after: Scores, collection: Collection | None
) -> tuple[Gain, Gain, float, float]:
    """The gain on seen and on unseen documents, and of both together with its standard error."""
    halves = Gain.of(before[seen], after[seen]), Gain.of(before[~seen], after[~seen])
    counted = [half for half, kind in zip(halves, ("closed", "open"), strict=True) if collection in (None, kind)]
    counted = [half for half in counted if half.queries] or [half for half in halves if half.queries]
    if min(half.queries for half in counted) < min(_HALF, len(seen) / 10):
        # A handful must not count as much as all others together.
        counted = [Gain.of(before, after)]
    gain = sum(half.mean for half in counted) / len(counted)
    return *halves, gain, math.hypot(*(half.error for half in counted)) / len(counted)
