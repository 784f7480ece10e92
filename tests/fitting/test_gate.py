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

from st_asym.fitting.gate import Choice, Gain, Rehearsal, are_sound, behind, decide, weigh

SHARES = st.sampled_from([0.0, 0.1, 0.5, 1.0])
CHOICES = [Choice("a", 1), Choice("a", 2, 0.5), Choice("b")]


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


@given(st.lists(rehearsals(), min_size=1, max_size=3), SHARES)
def test_nothing_is_kept_where_every_choice_loses_or_changes_nothing(parts: list[Rehearsal], share: float) -> None:
    for worst in (0.0, 0.2):
        losing = [
            replace(part, scores={c: np.minimum(s, part.untouched) - worst for c, s in part.scores.items()})
            for part in parts
        ]
        assert decide(losing, share).chosen is None


@given(st.lists(rehearsals(), min_size=1, max_size=4), SHARES, st.randoms(use_true_random=False))
def test_the_order_of_rehearsals_does_not_matter(parts: list[Rehearsal], share: float, random: Any) -> None:
    shuffled = parts.copy()
    random.shuffle(shuffled)
    one, other = weigh(parts, share), weigh(shuffled, share)
    assert list(one) == list(other)
    for choice, evidence in one.items():
        assert (evidence.gain, evidence.error) == pytest.approx((other[choice].gain, other[choice].error), abs=1e-9)


@given(rehearsals(), SHARES, st.booleans())
def test_what_is_chosen_gains_beyond_chance_and_loses_on_neither_half(
    part: Rehearsal, share: float, sound: bool
) -> None:
    decision = decide([part], share, sound=sound)
    assert 0 < decision.chance <= 1
    if decision.chosen is not None:
        assert decision.chosen.gain > 0
        assert not decision.chosen.seen.loses
        assert not decision.chosen.unseen.loses
        assert decision.chance <= (0.25 if sound and len(part.queries) >= 40 else 0.025)


@given(rehearsals(), SHARES, st.floats(0.01, 0.5))
def test_a_gain_on_every_query_makes_a_choice_no_worse(part: Rehearsal, share: float, more: float) -> None:
    better = replace(part, scores={choice: scores + more for choice, scores in part.scores.items()})
    after = weigh([better], share)
    for choice, before in weigh([part], share).items():
        assert after[choice].gain == pytest.approx(before.gain + more)
        assert after[choice].worth_it or not before.worth_it


@given(st.integers(1, 5), st.floats(0.01, 1.0))
def test_a_few_equal_gains_are_no_certainty(count: int, gain: float) -> None:
    """Two held-out queries that gained the same were once +0.369 ± 0.000."""
    part = rehearsal(np.zeros(count), {CHOICES[0]: np.full(count, gain)})
    decision = decide([part], 0.0)
    assert decision.chosen is None
    assert decision.chance == pytest.approx(2.0**-count)
    assert decision.evidence[0].error > gain / 6


def test_a_loss_on_either_half_refuses_whatever_the_other_gains() -> None:
    for losses in ({"seen": 0.4, "unseen": -0.05}, {"seen": -0.05, "unseen": 0.4}):
        untouched, scores, unseen = halves(50, **losses)
        assert decide([rehearsal(untouched, {CHOICES[0]: scores}, unseen)], 0.5).chosen is None
        assert decide([rehearsal(untouched, {CHOICES[0]: scores}, np.zeros(100))], 0.5).chosen is not None


def test_halves_count_as_the_traffic_to_expect() -> None:
    untouched, scores, unseen = halves(50, seen=0.3, unseen=0.1)
    part = [rehearsal(untouched, {CHOICES[0]: scores}, unseen)]
    for share, expected in ((0.5, 0.2), (1.0, 0.1), (0.0, 0.3), (0.1, 0.28)):
        (evidence,) = weigh(part, share).values()
        assert evidence.gain == pytest.approx(expected)
        assert (evidence.seen.mean, evidence.unseen.mean) == (pytest.approx(0.3), pytest.approx(0.1))
    # How many were held out of each is no matter.
    more = [rehearsal(untouched[:50], {CHOICES[0]: scores[:50]}), *part]
    assert weigh(more, 0.5)[CHOICES[0]].gain == pytest.approx(0.2)


def test_a_handful_that_is_rare_does_not_decide() -> None:
    """23 of 1,709 queries were seen, gained .177, and counted as much as the others, which did not gain."""
    random = np.random.default_rng(0)
    unseen = np.arange(1709) >= 23
    scores = 0.3 + np.where(unseen, 0.0, 0.177) + 0.1 * random.standard_normal(1709)
    decision = decide([rehearsal(np.full(1709, 0.3), {CHOICES[0]: scores}, unseen)], 1686 / 1709)
    assert decision.chosen is None
    assert abs(decision.evidence[0].gain) < 0.01


def test_the_number_of_choices_is_paid_for() -> None:
    """Of 40 choices that are worth nothing one is kept in at most a few of a hundred cases."""
    kept = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        scores = {Choice("c", epoch): 0.1 * random.standard_normal(60) for epoch in range(40)}
        kept += decide([rehearsal(np.zeros(60), scores)], 0.0).chosen is not None
    assert kept <= 10
    assert decide([rehearsal(np.zeros(60), scores | {CHOICES[0]: 0.05 + scores[Choice("c", 0)]})], 0.0).chosen


def test_a_loss_on_a_half_counts_three_times() -> None:
    """Within noise it may be kept, where nothing that is sounder gains as much."""
    untouched, better, unseen = halves(50, seen=0.2, unseen=-0.004)
    part = rehearsal(untouched, {CHOICES[0]: better}, unseen)
    assert weigh([part], 0.5)[CHOICES[0]].worth == pytest.approx(0.1 - 0.006)
    for sounder, expected in ((0.197, 2), (0.18, 0)):
        scores = {CHOICES[0]: better, CHOICES[2]: halves(50, seen=sounder, unseen=0.0)[1]}
        assert decide([rehearsal(untouched, scores, unseen)], 0.5).chosen.choice == CHOICES[expected]


def likely_gain(choice: Choice, count: int = 50, changed: int = 50) -> list[Rehearsal]:
    """Two cuts on which a choice gains by more than one standard error, and less than two, in so many of the scores."""
    random = np.random.default_rng(0)
    changed, gains = min(changed, count), np.zeros(count)
    gains[:changed] = 0.025 * count / changed + random.permutation(np.linspace(-0.2, 0.2, changed))
    untouched, better = np.full(count, 0.5), 0.5 + random.permutation(gains)
    parts = [rehearsal(untouched[rows], {choice: better[rows]}) for rows in (slice(0, 25), slice(25, count))]
    (one,) = weigh(parts, 0.0).values()
    assert one.error < one.gain < 2 * one.error
    return parts


@pytest.mark.parametrize("choice", [Choice("b"), Choice("a", 1, 0.7)])
def test_a_likely_gain_is_enough_where_labels_are_sound_and_heads_change_little(choice: Choice) -> None:
    parts = likely_gain(choice)
    assert not decide(parts, 0.0).chosen
    found = decide(parts, 0.0, sound=True)
    assert (found.chosen.choice, found.likely) == (choice, True)
    assert 0.025 < found.chance <= 0.25
    assert not decide(parts, 0.0, dev=True, sound=True).chosen, "dev queries may be of another kind"
    assert decide(parts, 0.0, dev=True, alike=True, sound=True).chosen


@pytest.mark.parametrize("too_far", [Choice("a", 1), Choice("a", 1, 0.85)])
def test_a_likely_gain_is_not_enough_for_heads_that_change_more_or_were_judged_on_few(too_far: Choice) -> None:
    b = Choice("b")
    assert not decide(likely_gain(too_far), 0.0, sound=True).chosen
    assert not decide(likely_gain(b, 39), 0.0, sound=True).chosen
    assert not decide(likely_gain(b), 0.0, ["a"], sound=True).chosen, "it was not rehearsed to the end"
    few_count = [replace(part, seen=np.arange(len(part.queries)) > 3) for part in likely_gain(b)]
    assert not decide(few_count, 1.0, sound=True).chosen, "the traffic to expect is that of eight"
    assert decide(few_count, 0.0, sound=True).chosen
    few_changed = np.zeros(50)
    few_changed[[1, 2, 3, 30, 31]] = 0.1
    assert not decide([rehearsal(np.full(50, 0.5), {b: 0.5 + few_changed})], 0.0, sound=True).chosen


def test_a_likely_gain_on_the_few_queries_that_count_is_not_enough() -> None:
    random = np.random.default_rng(0)
    differences = random.permutation(np.linspace(-0.1, 0.1, 50))
    differences[:10] = 0.05 + random.permutation(np.linspace(-0.15, 0.15, 10))
    part = rehearsal(np.full(50, 0.5), {Choice("b"): 0.5 + differences}, np.arange(50) < 10)
    found = decide([part], 1.0, sound=True)
    assert 0.025 < found.chance <= 0.25
    assert not found.chosen, "50 were judged, and the ten on unseen documents count"


def test_a_likely_gain_is_not_enough_for_a_dev_split_of_another_kind_though_it_bears_it_out() -> None:
    noise = np.random.default_rng(0).permutation(np.linspace(-0.2, 0.2, 25))
    b = Choice("b")
    dev, train = (rehearsal(np.full(25, 0.5), {b: 0.5 + gain + noise}) for gain in (0.045, 0.0))
    assert 0.025 < decide([dev], 0.0).chance <= 0.05
    together = decide([dev, train], 0.0, sound=True)
    assert together.likely
    assert not decide([dev, train], 0.0, dev=True, sound=True).chosen


def test_what_is_certain_comes_before_what_is_likely() -> None:
    parts = likely_gain(Choice("b"))
    sure = [replace(part, scores={**part.scores, CHOICES[0]: part.untouched + 0.01}) for part in parts]
    found = decide(sure, 0.0, sound=True)
    assert (found.chosen.choice, found.likely) == (CHOICES[0], False)


def test_labels_are_sound_where_the_encoder_finds_its_own_documents_for_each_query() -> None:
    untouched = np.random.default_rng(0).permutation(np.linspace(0, 1, 40))
    part = rehearsal(untouched, {})
    assert not are_sound([part])
    assert not are_sound([replace(part, mismatched=np.random.default_rng(1).permutation(untouched))])
    assert are_sound([replace(part, mismatched=0.1 * untouched)])
    close = replace(
        part, mismatched=untouched - 0.1 - np.random.default_rng(2).permutation(np.linspace(-0.25, 0.25, 40))
    )
    gap = Gain.of(close.mismatched, untouched)
    assert 3 < gap.mean / gap.error < 5
    assert not are_sound([close])
    assert not are_sound([part, replace(part, mismatched=0.1 * untouched)])


def test_only_finalists_are_chosen_and_the_others_are_paid_for() -> None:
    random = np.random.default_rng(0)
    untouched = np.full(80, 0.3)
    better, best = (untouched + gain + 0.02 * random.standard_normal(80) for gain in (0.1, 0.2))
    parts = [rehearsal(untouched, {CHOICES[0]: better, CHOICES[2]: best}), rehearsal(untouched, {CHOICES[0]: better})]
    assert decide(parts, 0.0).chosen.choice == CHOICES[2]
    decision = decide(parts, 0.0, ["a"])
    assert decision.chosen.choice == CHOICES[0]
    assert [entry.seen.queries for entry in decision.evidence] == [160, 80]
    assert behind(CHOICES[0], CHOICES[2], parts, 0.0)[0] == pytest.approx((best - better).mean())


@pytest.mark.parametrize(("gain", "kept"), [(0.013, True), (0.008, False)])
def test_training_queries_add_evidence_to_a_small_dev_split_that_bears_it_out(gain: float, kept: bool) -> None:
    a, _, b = CHOICES
    untouched, better, unseen = halves(100, seen=0.03, unseen=0.03, spread=0.1)
    train = rehearsal(untouched, {a: better, b: better - 0.005}, unseen)
    few = 0.5 + gain + np.random.default_rng(1).permutation(np.linspace(-0.05, 0.05, 20))
    dev = rehearsal(np.full(20, 0.5), {a: few, b: few})
    assert decide([dev], 0.5).chosen is None, "they are too few to tell"
    together = decide([dev, train], 0.5, ["a"], dev=True)
    assert together.by_dev is not kept
    assert (together.chosen is not None) is kept
    if kept:
        assert together.chosen.choice == a
        assert together.chosen.seen.queries + together.chosen.unseen.queries == 220


def test_dev_queries_that_are_like_training_queries_need_not_show_a_gain_by_themselves() -> None:
    untouched, gains, unseen = halves(500, seen=0.2, unseen=0.2)
    train = rehearsal(untouched, {CHOICES[0]: gains}, unseen)
    saturated = rehearsal(np.ones(50), {CHOICES[0]: np.ones(50)})
    assert decide([saturated, train], 0.5, dev=True).chosen is None
    found = decide([saturated, train], 0.5, dev=True, alike=True)
    assert (found.chosen.choice, found.by_dev) == (CHOICES[0], False)


def test_dev_queries_that_lose_within_noise_refuse_what_only_training_queries_gain_by() -> None:
    untouched, gains, unseen = halves(500, seen=0.2, unseen=0.2)
    train = rehearsal(untouched, {CHOICES[0]: gains}, unseen)
    noise = np.random.default_rng(0).permutation(np.linspace(-0.2, 0.2, 20))
    for loss, kept in ((0.02, False), (-0.02, True)):
        few = rehearsal(np.full(20, 0.5), {CHOICES[0]: 0.5 - loss + noise})
        (one,) = weigh([few], 0.5).values()
        assert not one.loses
        assert (decide([few, train], 0.5, dev=True, alike=True).chosen is not None) is kept


@pytest.mark.parametrize("alike", [False, True])
def test_dev_queries_that_lose_refuse_whatever_training_queries_gain(alike: bool) -> None:
    untouched, gains, unseen = halves(500, seen=0.2, unseen=0.2)
    loses = rehearsal(np.full(20, 0.5), {CHOICES[0]: np.linspace(0.3, 0.68, 20)})
    found = decide([loses, rehearsal(untouched, {CHOICES[0]: gains}, unseen)], 0.5, dev=True, alike=alike)
    assert (found.chosen, found.by_dev) == (None, True)
    assert [entry.seen.queries for entry in found.evidence] == [20]


def test_dev_queries_decide_alone_where_the_choice_is_not_theirs() -> None:
    a, _, b = CHOICES
    untouched, gains, unseen = halves(500, seen=0.2, unseen=0.2)
    train = rehearsal(untouched, {a: gains, b: gains - 0.1}, unseen)
    few = halves(50, seen=0.1, unseen=0.1)[1] - 0.2
    given_queries = rehearsal(np.full(100, 0.3), {a: few - 0.05, b: few})
    assert decide([given_queries, train], 0.5, dev=False).chosen.choice == a
    found = decide([given_queries, train], 0.5, dev=True)
    assert (found.chosen.choice, found.by_dev) == (b, True)


def test_dev_queries_decide_alone_where_nothing_is_picked_or_they_did_not_judge_it() -> None:
    a, cut_off, _ = CHOICES
    untouched, better, unseen = halves(100, seen=0.2, unseen=0.2)
    _, worse, _ = halves(100, seen=-0.3, unseen=-0.3)
    dev = rehearsal(np.full(12, 0.5), {a: np.linspace(0.6, 0.7, 12)})
    loses = decide([dev, rehearsal(untouched, {a: worse}, unseen)], 0.5, dev=True)
    assert (loses.chosen.choice, loses.by_dev) == (a, True)
    found = decide([dev, rehearsal(untouched, {cut_off: better}, unseen)], 0.5, dev=True)
    assert (found.chosen.choice, found.by_dev) == (a, True)


@given(st.lists(rehearsals(), min_size=1, max_size=3), SHARES)
def test_what_dev_queries_do_not_gain_by_is_never_kept(parts: list[Rehearsal], share: float) -> None:
    first = replace(parts[0], scores={c: np.minimum(s, parts[0].untouched) for c, s in parts[0].scores.items()})
    assert decide([first, *parts[1:]], share, dev=True).chosen is None


def test_gains() -> None:
    gain = Gain.of(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.2, 0.6]))
    assert gain.mean == pytest.approx(0.4 / 3)
    assert gain.error == pytest.approx(np.std([0.1, 0.0, 0.3, 0.0], ddof=1) / math.sqrt(3))
    assert str(gain) == "0.200 -> 0.333 (+0.133 ± 0.082, 3 queries)"
    assert decide([rehearsal([0.1], {CHOICES[0]: [0.9]})], 0.0).chosen is None, "one query says nothing"
    assert str(Gain.of(np.array([]), np.array([]))) == "no queries"


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_queries_of_one_group_are_no_more_evidence_than_one(shared: float) -> None:
    kept, random = {True: 0, False: 0}, np.random.default_rng(0)
    groups = {f"q{i}": i // 5 for i in range(100)}
    for _ in range(60):
        of_group, own = random.standard_normal((4, 20)).repeat(5, axis=1), random.standard_normal((4, 100))
        noise = 0.1 * (math.sqrt(shared) * of_group + math.sqrt(1 - shared) * own)
        part = rehearsal(np.full(100, 0.5), {Choice(f"c{i}"): 0.5 + row for i, row in enumerate(noise)})
        for known in kept:
            kept[known] += decide([part], 0.0, groups=groups if known else None).chosen is not None
    assert kept[True] <= 5
    assert kept[False] > 10 or shared < 0.5


def test_a_large_group_does_not_hide_what_the_others_say() -> None:
    noise = 0.15 * np.random.default_rng(0).standard_normal((11, 487))
    gains = np.where(np.arange(487) < 17, 0.9, 0.03 + noise[0])
    others = {Choice("noise", epoch): row for epoch, row in enumerate(noise[1:])}
    part = rehearsal(np.zeros(487), {CHOICES[0]: gains, **others})
    found = decide([part], 0.0, groups={f"q{i}": max(16, i) for i in range(487)})
    assert found.chosen
    assert (found.chosen.choice, found.chance < 0.001) == (CHOICES[0], True), "by their sum it would be .1"
    alone = rehearsal(np.zeros(17), {CHOICES[0]: gains[:17]})
    assert not decide([alone], 0.0, groups=dict.fromkeys(alone.queries, 0)).chosen, "queries about one document"


def test_labels_are_sound_by_groups() -> None:
    found = np.where(np.arange(60) < 30, 0.8, 0.0)
    part = replace(rehearsal(found, {}), mismatched=np.zeros(60))
    assert are_sound([part])
    assert not are_sound([part], {f"q{i}": i // 30 for i in range(60)}), "thirty queries about one document"
    assert are_sound([part], {f"q{i}": i for i in range(60)})


def test_a_likely_gain_on_a_few_groups_is_not_enough() -> None:
    b = Choice("b")
    parts = [
        replace(part, queries=tuple(f"{place}{q}" for q in part.queries)) for place, part in enumerate(likely_gain(b))
    ]
    names = [query for part in parts for query in part.queries]
    for count, kept in ((50, True), (45, True), (39, False)):
        groups = {query: min(row, count - 1) for row, query in enumerate(names)}
        found = decide(parts, 0.0, sound=True, groups=groups)
        assert 0.025 < found.chance <= 0.25
        assert (found.chosen is not None) is kept
    gains = np.where(np.arange(60) < 15, np.tile([0.1, 0.2, 0.3], 20), 0.0)
    part = rehearsal(np.full(60, 0.5), {b: 0.5 + gains})
    alike = {query: min(row // 3, 5) if row < 15 else row for row, query in enumerate(part.queries)}
    assert decide([part], 0.0, sound=True).chosen
    assert not decide([part], 0.0, sound=True, groups=alike).chosen, "five groups change"


def test_choices_that_were_never_judged_together_are_not_behind_each_other() -> None:
    parts = [rehearsal(np.zeros(5), {CHOICES[0]: np.ones(5)}), rehearsal(np.zeros(5), {CHOICES[1]: np.ones(5)})]
    assert behind(CHOICES[0], CHOICES[1], parts, 0.0) == (0.0, 0.0)
