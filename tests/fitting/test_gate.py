"""The decision, as properties of any scores."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from st_asym.fitting.gate import Choice, Gain, Rehearsal, choose, weigh

COLLECTIONS = st.sampled_from([None, "open", "closed"])
CHOICES = [Choice(1, 1.0), Choice(2, 0.5), Choice(2, 1.0)]


def rehearsal(untouched: Any, scores: dict[Choice, Any], unseen: Any = None) -> Rehearsal:
    untouched = np.asarray(untouched, dtype=float)
    seen = np.ones(len(untouched), dtype=bool) if unseen is None else ~np.asarray(unseen, dtype=bool)
    names = tuple(f"q{i}" for i in range(len(untouched)))
    return Rehearsal(names, seen, untouched, {choice: np.asarray(s, dtype=float) for choice, s in scores.items()})


@st.composite
def rehearsals(draw: st.DrawFn) -> Rehearsal:
    count = draw(st.integers(1, 60))
    shares = st.floats(0, 1, width=16)
    untouched = draw(arrays.arrays(float, count, elements=shares))
    scores = {choice: draw(arrays.arrays(float, count, elements=shares)) for choice in CHOICES}
    return rehearsal(untouched, scores, draw(arrays.arrays(bool, count)))


def halves(count: int, seen: float, unseen: float, spread: float = 0.05) -> tuple[Any, Any, Any]:
    """Untouched scores, others that are better by so much on seen and unseen documents, and which are unseen."""
    random = np.random.default_rng(0)
    untouched, which = np.full(2 * count, 0.5), np.repeat([False, True], count)
    noise = random.standard_normal(2 * count) * spread
    noise -= np.where(which, noise[which].mean(), noise[~which].mean())
    return untouched, untouched + np.where(which, unseen, seen) + noise, which


@given(st.lists(rehearsals(), min_size=1, max_size=3), COLLECTIONS)
def test_nothing_is_kept_where_every_choice_loses_or_changes_nothing(parts: list[Rehearsal], collection: Any) -> None:
    for worst in (0.0, 0.2):
        losing = [
            replace(part, scores={c: np.minimum(s, part.untouched) - worst for c, s in part.scores.items()})
            for part in parts
        ]
        assert choose(losing, collection) is None


@given(st.lists(rehearsals(), min_size=1, max_size=4), COLLECTIONS, st.randoms(use_true_random=False))
def test_the_order_of_rehearsals_does_not_matter(parts: list[Rehearsal], collection: Any, random: Any) -> None:
    shuffled = parts.copy()
    random.shuffle(shuffled)
    for one, other in zip(weigh(parts, collection), weigh(shuffled, collection), strict=True):
        assert one.choice == other.choice
        assert (one.gain, one.error) == pytest.approx((other.gain, other.error), abs=1e-9)


@given(rehearsals(), COLLECTIONS)
def test_what_is_chosen_is_worth_it_and_as_good_as_the_best(part: Rehearsal, collection: Any) -> None:
    chosen = choose([part], collection)
    worth_it = [entry for entry in weigh([part], collection) if entry.worth_it]
    assert (chosen is None) == (not worth_it)
    if chosen is not None:
        assert chosen in worth_it
        assert chosen.gain > chosen.error
        assert not chosen.costs_unseen


@given(rehearsals(), COLLECTIONS, st.floats(0.01, 0.5))
def test_a_gain_on_every_query_makes_a_choice_no_worse(part: Rehearsal, collection: Any, more: float) -> None:
    better = replace(part, scores={choice: scores + more for choice, scores in part.scores.items()})
    for before, after in zip(weigh([part], collection), weigh([better], collection), strict=True):
        assert after.gain == pytest.approx(before.gain + more)
        assert after.error == pytest.approx(before.error)
        assert after.worth_it or not before.worth_it


def test_a_loss_on_unseen_documents_refuses_whatever_the_others_gain() -> None:
    untouched, scores, unseen = halves(50, seen=0.4, unseen=-0.05)
    assert choose([rehearsal(untouched, {Choice(1, 1.0): scores}, unseen)]) is None
    assert choose([rehearsal(untouched, {Choice(1, 1.0): scores}, np.zeros(100))]) is not None


def test_open_and_closed_weigh_the_halves() -> None:
    untouched, scores, unseen = halves(50, seen=0.3, unseen=0.1)
    part = [rehearsal(untouched, {Choice(1, 1.0): scores}, unseen)]
    for collection, expected in ((None, 0.2), ("open", 0.1), ("closed", 0.3)):
        (evidence,) = weigh(part, collection)
        assert evidence.gain == pytest.approx(expected)
        assert (evidence.seen.mean, evidence.unseen.mean) == (pytest.approx(0.3), pytest.approx(0.1))
    # Twice as many seen ones: the halves still count equally.
    twice = [rehearsal(untouched[:50], {Choice(1, 1.0): scores[:50]}), *part]
    assert weigh(twice)[0].gain == pytest.approx(0.2)


def test_a_handful_does_not_count_as_much_as_all_others() -> None:
    untouched = np.full(100, 0.5)
    scores = untouched + np.where(np.arange(100) < 2, 0.4, 0.0)
    (evidence,) = weigh([rehearsal(untouched, {Choice(1, 1.0): scores}, np.arange(100) < 2)])
    assert evidence.gain == pytest.approx(0.4 * 2 / 100)


def test_of_choices_that_are_as_good_the_smaller_dial_is_taken_then_the_earlier_epoch() -> None:
    random = np.random.default_rng(0)
    untouched = np.full(100, 0.3)
    near = [random.standard_normal(100) * 0.02 for _ in range(3)]
    scores = {
        Choice(5, 0.2): untouched + 0.1,
        Choice(5, 0.4): untouched + 0.3 + near[0],
        Choice(3, 1.0): untouched + 0.3 + near[1],
        Choice(5, 1.0): untouched + 0.302 + near[2],
    }
    chosen = choose([rehearsal(untouched, scores)])
    assert chosen is not None
    assert chosen.choice == Choice(5, 0.4)  # 0.2 is clearly behind, the others are not ahead
    del scores[Choice(5, 0.4)]
    chosen = choose([rehearsal(untouched, scores | {Choice(5, 0.2): untouched})])
    assert chosen is not None
    assert chosen.choice == Choice(3, 1.0)


def test_only_choices_that_all_rehearsals_reached_are_compared() -> None:
    untouched = np.zeros(10)
    long = rehearsal(untouched, dict.fromkeys(CHOICES, untouched + 0.1))
    short = rehearsal(untouched, {CHOICES[0]: untouched})
    assert [(entry.choice, entry.seen.queries) for entry in weigh([long, short])] == [(CHOICES[0], 20)]


def test_gains() -> None:
    gain = Gain.of(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.2, 0.6]))
    assert gain.mean == pytest.approx(0.4 / 3)
    assert gain.error == pytest.approx(np.std([0.1, 0.0, 0.3], ddof=1) / math.sqrt(3))
    assert str(gain) == "0.200 -> 0.333 (+0.133 ± 0.088, 3 queries)"
    assert Gain.of(np.array([0.1]), np.array([0.9])).error == math.inf
    assert choose([rehearsal([0.1], {Choice(1, 1.0): [0.9]})]) is None, "one query says nothing"
    assert str(Gain.of(np.array([]), np.array([]))) == "no queries"
