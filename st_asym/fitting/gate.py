"""The decision whether trained heads are kept, by held-out queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_asym.retrieval import Scores

# The largest p-value at which heads are kept: examples/benchmarks/random_labels.py counts how often they are where
# there is nothing to learn.
_CHANCE = 0.025
# The largest p-value where labels are sound: the encoder ranks a query's own documents above another query's, by so
# many standard errors.
_LIKELY, _SOUND = 0.25, 5.0
# What a choice with such a p-value needs besides: so many judged queries, an effective sample of so many, so many
# changed scores, by groups of queries, and for trained heads at most this dial.
_FEWEST_LIKELY, _FEWEST_COUNTED, _FEWEST_CHANGED, _FURTHEST = 40, 30, 6, 0.7
# The largest p-value on dev queries alone of a choice that was picked on training queries too, and the fewest dev
# queries that can have it: with n of them the smallest p-value is 0.5 to the power of n.
_CHANCE_ON_DEV, FEWEST_DEV = 0.05, 5
# By how many standard errors the gain on training queries may exceed a loss on dev queries that are like them.
_CONTRADICTED = 3.0
# All sign flips of so many queries are tried, and as many random ones of more, some at a time.
_ALL_FLIPS, _FLIPS, _AT_ONCE = 12, 5_000, 250
# How many standard errors the seen or the unseen queries may lose, and how often a loss on either counts.
_NOISE, _LOSS = 2.0, 3.0
# Fewer queries than this say nothing by themselves.
_TOO_FEW_TO_TELL = 3


@dataclass(frozen=True, order=True)
class Choice:
    """Which heads: a candidate, how long it is trained, and how far it is turned back.

    Attributes:
        candidate: Its name.
        epoch: After how many epochs; 0 for heads in closed form.
        dial: The weight of the heads, from 0, the identity, to 1, all of what they are.
    """

    candidate: str
    epoch: int = 0
    dial: float = 1.0


@dataclass(frozen=True)
class Rehearsal:
    """Training on part of the queries, judged on the others.

    Attributes:
        queries: Ids of the held-out queries.
        seen: Which of them ask for a document that was a training positive, shape ``(n,)``.
        untouched: nDCG@10 of each with the encoder as it is, shape ``(n,)``.
        scores: The same for each choice.
        mismatched: The same with the encoder as it is, if each query had what is found for another; None if not known.
    """

    queries: tuple[str, ...]
    seen: NDArray[np.bool_]
    untouched: Scores
    scores: dict[Choice, Scores]
    mismatched: Scores | None = None


@dataclass(frozen=True)
class Gain:
    """A difference in mean nDCG@10 to the untouched encoder, paired by query.

    Attributes:
        queries: How many queries.
        untouched: Their mean with the encoder as it is.
        mean: The mean difference.
        error: Its standard error, computed with one extra zero, so that a few equal gains do not give 0. 0 for no
            queries.
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
        error = float(np.std([*difference, 0.0], ddof=1)) / math.sqrt(len(difference))
        return cls(len(difference), float(untouched.mean()), float(difference.mean()), error)

    @property
    def loses(self) -> bool:
        """Whether it is a loss beyond noise."""
        return self.queries >= _TOO_FEW_TO_TELL and self.mean < -_NOISE * self.error

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
        gain: Both, in the proportion of the traffic to expect.
        error: Standard error of ``gain``.
        worth: The same with a loss on either counted three times: new documents do not pay for old ones.
    """

    choice: Choice
    seen: Gain
    unseen: Gain
    gain: float
    error: float
    worth: float

    @property
    def loses(self) -> bool:
        """Whether it loses on seen or on unseen documents, beyond noise."""
        return self.seen.loses or self.unseen.loses

    @property
    def worth_it(self) -> bool:
        """Whether it gains, and loses neither on seen nor on unseen documents beyond noise."""
        return self.gain > 0 and not self.loses

    @property
    def rank(self) -> tuple[bool, float]:
        """Larger is better: what is worth it comes first, then what is worth more."""
        return self.worth_it, self.worth


@dataclass(frozen=True)
class Decision:
    """What the held-out queries decide.

    Attributes:
        chosen: What they say about the choice; None where the encoder is better left alone.
        evidence: The same for all choices, in their order.
        chance: How likely some choice would gain as much, in standard errors, if none were worth anything.
        by_dev: Whether the dev split decided alone, as it did not bear out what all held-out queries say together; then
            ``evidence`` is of its queries.
        likely: Whether what is chosen is likely to gain, and no more than that.
    """

    chosen: Evidence | None
    evidence: tuple[Evidence, ...]
    chance: float
    by_dev: bool = False
    likely: bool = False


def weigh(rehearsals: Sequence[Rehearsal], expected_unseen: float) -> dict[Choice, Evidence]:
    """Put rehearsals on different queries together, choice by choice, in their order.

    ``expected_unseen`` is the share of queries on unseen documents in the traffic to expect, from 0 to 1. Where no
    such query was held out, the seen ones count alone, and the other way round. A choice counts where it was judged.
    """
    choices = sorted({choice for rehearsal in rehearsals for choice in rehearsal.scores})
    return {choice: _evidence(choice, rehearsals, expected_unseen) for choice in choices}


def decide(
    rehearsals: Sequence[Rehearsal],
    expected_unseen: float,
    finalists: Iterable[str] | None = None,
    *,
    dev: bool = False,
    alike: bool = False,
    sound: bool = False,
    groups: Mapping[str, int] | None = None,
) -> Decision:
    """Pick the heads, or leave the encoder alone.

    A choice may be kept if it loses neither on seen nor on unseen documents beyond noise, and its gain is more than the
    largest of as many choices would be by chance: the signs of all held-out queries' differences are flipped together,
    at random, and the largest gain of all choices in standard errors is compared with what was found. (The
    randomisation test of Fisher, for retrieval Smucker, Allan and Carterette 2007; the largest of several statistics,
    Westfall and Young 1993, "Resampling-Based Multiple Testing".) So the number of choices is paid for, however alike
    they are, and six queries that all gain are the least that can be evidence. Queries of one of the ``groups``, see
    :func:`st_asym.data.holdout.groups`, count as one. Of these, the one that is worth most is taken; choices of
    ``finalists``, candidates that were rehearsed to the end, come before the others.

    A choice is kept if that p-value is at most .025. If there is none and labels are ``sound``, see :func:`are_sound`,
    .25 is enough, as 50 queries cannot prove a gain that most heads have then: for finalists in closed form, or trained
    and at a dial of 0.7 or less, that were judged on at least 40 queries and change the score of six or more.

    With ``dev`` the first rehearsal is on queries that were given to judge on, and the others are on training queries.
    What all pick together is kept if the given ones bear it out: on these alone it may be kept, its gain is more than
    chance would give this one choice, and it is not behind what is best on them, beyond noise. Where they are ``alike``
    the training queries, these are evidence for them too: it is enough that they lose nothing beyond noise, and nothing
    at all where these gain more by three standard errors.
    Otherwise the given ones decide alone, also where all together pick nothing. A p-value of .25 is enough only where
    all count alike.
    """
    together = _decide(rehearsals, expected_unseen, finalists, groups, sound=sound and (alike or not dev))
    if not dev or len(rehearsals) == 1:
        return together
    given = rehearsals[:1]
    alone = replace(_decide(given, expected_unseen, None, groups), by_dev=True)
    if together.chosen is None:
        return together if alone.chosen is None else alone
    picked = together.chosen.choice
    on_given = {entry.choice: entry for entry in alone.evidence}
    if picked not in on_given:  # training was cut off, after an epoch that was not judged before
        return alone
    if alike:
        contradicted = _is_contradicted(on_given[picked], rehearsals[1:], expected_unseen)
        return alone if on_given[picked].loses or contradicted else together
    gap, error = behind(picked, max(on_given.values(), key=lambda entry: entry.rank).choice, given, expected_unseen)
    confirmed = _chances([picked], given, expected_unseen, groups)[picked] <= _CHANCE_ON_DEV
    return together if on_given[picked].worth_it and confirmed and gap <= _NOISE * error else alone


def are_sound(rehearsals: Sequence[Rehearsal], groups: Mapping[str, int] | None = None) -> bool:
    """Whether labels are no accident: the encoder finds a query's documents far more often than those of another query.

    Labels dealt out at random are not; so are labels that mean something to which the encoder is blind. Queries of one
    group count as one.
    """
    pairs = [(part.mismatched, part.untouched) for part in rehearsals if part.mismatched is not None]
    if not pairs or len(pairs) < len(rehearsals):
        return False
    numbers = _group_numbers(rehearsals, groups)
    means = (np.bincount(numbers, np.concatenate(part)) / np.bincount(numbers) for part in zip(*pairs, strict=True))
    found = Gain.of(*means)
    return found.mean > _SOUND * found.error


def _is_contradicted(given: Evidence, others: Sequence[Rehearsal], expected_unseen: float) -> bool:
    """Whether dev queries lose by a choice where training queries gain, far beyond noise, or these were not judged."""
    if not any(given.choice in part.scores for part in others):
        return True
    found = _evidence(given.choice, others, expected_unseen)
    return given.gain < 0 and found.gain - given.gain > _CONTRADICTED * math.hypot(found.error, given.error)


def _decide(
    rehearsals: Sequence[Rehearsal],
    expected_unseen: float,
    finalists: Iterable[str] | None,
    groups: Mapping[str, int] | None,
    *,
    sound: bool = False,
) -> Decision:
    evidence = weigh(rehearsals, expected_unseen)
    allowed = {choice.candidate for choice in evidence} if finalists is None else set(finalists)
    chances = _chances(list(evidence), rehearsals, expected_unseen, groups)
    eligible = [entry for entry in evidence.values() if entry.worth_it]
    # What was not rehearsed to the end counts where nothing else may be kept.
    to_the_end = [entry for entry in eligible if entry.choice.candidate in allowed]
    beyond_chance = [entry for entry in to_the_end or eligible if chances[entry.choice] <= _CHANCE]
    likely = [
        entry
        for entry in to_the_end
        if sound and chances[entry.choice] <= _LIKELY and _is_careful(entry, rehearsals, expected_unseen, groups)
    ]
    best = max(beyond_chance or likely or to_the_end or eligible, key=lambda entry: entry.rank, default=None)
    return Decision(
        best if beyond_chance or likely else None,
        tuple(evidence.values()),
        1.0 if best is None else chances[best.choice],
        likely=bool(likely and not beyond_chance),
    )


def _is_careful(
    entry: Evidence, rehearsals: Sequence[Rehearsal], expected_unseen: float, groups: Mapping[str, int] | None
) -> bool:
    """Whether a choice that is likely to gain changes little, and was judged on enough groups of queries that tell."""
    choice, parts = entry.choice, [part for part in rehearsals if entry.choice in part.scores]
    numbers = _group_numbers(parts, groups)
    sizes = np.bincount(numbers)
    if len(sizes) < _FEWEST_LIKELY or (choice.epoch and choice.dial > _FURTHEST):
        return False
    seen, counts = np.concatenate([part.seen for part in parts]), 1.0 / sizes[numbers]
    halves = float(counts[seen].sum()), float(counts[~seen].sum())
    shares = _shares(*halves, expected_unseen)
    # As many equal queries would leave as much to chance (Kish 1965, "Survey Sampling").
    counted = 1 / sum(share**2 / count for share, count in zip(shares, halves, strict=True) if count)
    changed = np.concatenate([part.scores[choice] != part.untouched for part in parts])
    return counted >= _FEWEST_COUNTED and len(np.unique(numbers[changed])) >= _FEWEST_CHANGED


def best_of_each(evidence: Iterable[Evidence]) -> dict[str, Evidence]:
    """Each candidate at its best, by name."""
    best: dict[str, Evidence] = {}
    for entry in evidence:
        name = entry.choice.candidate
        if name not in best or entry.rank > best[name].rank:
            best[name] = entry
    return best


def behind(one: Choice, other: Choice, rehearsals: Sequence[Rehearsal], expected_unseen: float) -> tuple[float, float]:
    """How far a choice is behind another on the queries where both were judged, and the standard error of that.

    Not at all where there are none, as where training was cut off.
    """
    both = [rehearsal for rehearsal in rehearsals if one in rehearsal.scores and other in rehearsal.scores]
    if not both:
        return 0.0, 0.0
    pairs = [Rehearsal(part.queries, part.seen, part.scores[one], {other: part.scores[other]}) for part in both]
    found = _evidence(other, pairs, expected_unseen)
    return found.gain, found.error


def _evidence(choice: Choice, rehearsals: Sequence[Rehearsal], expected_unseen: float) -> Evidence:
    parts = [rehearsal for rehearsal in rehearsals if choice in rehearsal.scores]
    seen = np.concatenate([part.seen for part in parts])
    before = np.concatenate([part.untouched for part in parts])
    after = np.concatenate([part.scores[choice] for part in parts])
    gains = Gain.of(before[seen], after[seen]), Gain.of(before[~seen], after[~seen])
    shares = _shares(gains[0].queries, gains[1].queries, expected_unseen)
    weighted = list(zip(shares, gains, strict=True))
    gain = sum(share * half.mean for share, half in weighted)
    error = math.hypot(*(share * half.error for share, half in weighted))
    worth = sum(share * half.mean * (_LOSS if half.mean < 0 else 1) for share, half in weighted)
    return Evidence(choice, *gains, gain, error, worth)


def _shares(seen: float, unseen: float, expected_unseen: float) -> tuple[float, float]:
    """What so many seen and so many unseen queries count."""
    if not unseen:
        return 1.0, 0.0
    if not seen:
        return 0.0, 1.0
    return 1.0 - expected_unseen, expected_unseen


def _group_numbers(rehearsals: Sequence[Rehearsal], groups: Mapping[str, int] | None) -> NDArray[np.int_]:
    """The group of each query, from 0 on; each is one of its own where there are none."""
    ids = [query for part in rehearsals for query in part.queries]
    if groups is None:
        return np.arange(len(ids))
    return np.unique([groups[query] for query in ids], return_inverse=True)[1]


def _chances(
    choices: Sequence[Choice],
    rehearsals: Sequence[Rehearsal],
    expected_unseen: float,
    groups: Mapping[str, int] | None,
) -> dict[Choice, float]:
    """How often flipped signs give some choice at least the gain, in standard errors, that a choice has."""
    seen = np.concatenate([part.seen for part in rehearsals])
    numbers = _group_numbers(rehearsals, groups)
    # A group counts as one query: by their sum, the queries of a large one would hide what all others say.
    counts = 1.0 / np.bincount(numbers)[numbers]
    shares = _shares(int(seen.sum()), int((~seen).sum()), expected_unseen)
    halves = zip(shares, (seen, ~seen), strict=True)
    weights = counts * np.where(seen, *(share / (counts[half].sum() or 1.0) for share, half in halves))
    differences = np.array(
        [
            np.concatenate([part.scores.get(choice, part.untouched) - part.untouched for part in rehearsals])
            for choice in choices
        ]
    )
    weighted = np.array([np.bincount(numbers, own) for own in differences * weights])
    lengths = np.linalg.norm(weighted, axis=1, keepdims=True)
    directions = np.divide(weighted, lengths, out=np.zeros_like(weighted), where=lengths > 0)
    largest = np.sort(np.concatenate([(signs @ directions.T).max(axis=1) for signs in _flips(weighted.shape[1])]))
    rarer = len(largest) - np.searchsorted(largest, directions.sum(axis=1) - 1e-9)
    return dict(zip(choices, (rarer / len(largest)).tolist(), strict=True))


def _flips(count: int) -> Iterator[NDArray[Any]]:
    """Signs for so many groups, 1 and -1, some draws at a time, of shape ``(n, count)``; the first are all 1."""
    if count <= _ALL_FLIPS:
        yield 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return
    yield np.ones((1, count))
    random = np.random.default_rng(0)
    for _ in range(_FLIPS // _AT_ONCE):
        yield 1.0 - 2.0 * random.integers(0, 2, size=(_AT_ONCE, count))
