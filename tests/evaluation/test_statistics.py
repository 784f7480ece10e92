from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_asym.evaluation.comparison import Bar, Group, next_steps, verdict_of
from st_asym.retrieval.significance import Difference, corrected, difference, one_source


def test_few_queries_are_tested_by_all_flips_of_signs() -> None:
    random = np.random.default_rng(0)
    before, after = random.random(8), random.random(8) + 0.2
    gain = after - before
    flipped = [abs(np.mean(gain * np.array(signs))) for signs in product([1, -1], repeat=8)]
    expected = np.mean(np.array(flipped) >= abs(gain.mean()) - 1e-12)
    found = difference([before], [after])
    assert found.p == pytest.approx(expected)
    assert found.points == pytest.approx(gain.mean())
    assert found.relative == pytest.approx(gain.mean() / before.mean())
    assert found.queries == 8


def test_two_samples_are_told_apart_by_their_means_as_often_as_chance_would_have_it() -> None:
    random = np.random.default_rng(0)
    same = [one_source(random.standard_normal((15, 6)), random.standard_normal((40, 6))) for _ in range(100)]
    assert 0.1 <= np.mean(np.array(same) <= 0.2) <= 0.3
    shifted = [one_source(random.standard_normal((15, 6)) + 1, random.standard_normal((40, 6))) for _ in range(10)]
    assert max(shifted) <= 0.01


def test_every_data_set_counts_the_same_whatever_its_number_of_queries() -> None:
    random = np.random.default_rng(1)
    before = [random.random(4), random.random(6)]
    after = [part + random.normal(0.1, 0.3, len(part)) for part in before]
    gains = [new - old for old, new in zip(before, after, strict=True)]
    weighted = np.concatenate([gain / len(gain) / 2 for gain in gains])
    flipped = [abs((weighted * np.array(signs)).sum()) for signs in product([1, -1], repeat=10)]
    found = difference(before, after)
    assert found.points == pytest.approx(np.mean([gain.mean() for gain in gains]))
    assert found.p == pytest.approx(np.mean(np.array(flipped) >= abs(weighted.sum()) - 1e-12))


def test_the_interval_is_that_of_the_mean_over_resampled_queries() -> None:
    random = np.random.default_rng(2)
    before = random.random(400)
    after = before + random.normal(0.05, 0.2, 400)
    found = difference([before], [after])
    error = np.std(after - before, ddof=1) / 20
    assert found.low == pytest.approx(found.points - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.points + 1.96 * error, abs=0.1 * error)
    assert difference([before], [after], seed=0) == found


def test_no_difference_and_a_single_query() -> None:
    scores = np.array([0.2, 0.4, 0.0])
    assert difference([scores], [scores]).p == 1.0
    assert difference([scores], [scores]).points == 0.0
    single = difference([np.array([0.0])], [np.array([1.0])])
    assert (single.low, single.high, single.relative, single.p) == (None, None, None, 1.0)


@given(st.lists(st.floats(0.0001, 1.0), min_size=1, max_size=8))
def test_p_values_are_corrected_by_benjamini_and_hochberg(p_values: list[float]) -> None:
    order = np.argsort(p_values)
    expected = np.empty(len(p_values))
    smallest = 1.0
    for rank in range(len(p_values), 0, -1):
        row = order[rank - 1]
        smallest = min(smallest, p_values[row] * len(p_values) / rank)
        expected[row] = smallest
    assert corrected(p_values) == pytest.approx(list(expected))


def test_nothing_to_correct() -> None:
    assert corrected([]) == []


def gain(relative: float, p: float) -> Difference:
    return Difference(relative / 2, relative, relative / 2 - 0.01, relative / 2 + 0.01, p, p, 100)


@pytest.mark.parametrize(
    ("relative", "p", "verdict", "step"),
    [
        (0.05, 0.01, "works", None),
        (0.05, 0.20, "marginal", "not distinguishable from chance on 100 queries"),
        (0.02, 0.01, "marginal", "less than 3.5%"),
        (-0.05, 0.20, "marginal", "not distinguishable"),
        (-0.05, 0.01, "fails", "worse than the first"),
    ],
)
def test_verdicts(relative: float, p: float, verdict: str, step: str | None) -> None:
    found = gain(relative, p)
    assert verdict_of(found, Bar()) == verdict
    steps = next_steps(verdict_of(found, Bar()), found, Bar(), moved=True, differences={}, groups={})
    assert (step in steps[0]) if step else not steps


def test_a_loss_that_the_average_hides_is_named() -> None:
    losing, unseen = {"b": gain(-0.1, 0.01)}, {"c": {"unseen": Group(100, 0.4, gain(-0.1, 0.01))}}
    steps = next_steps("works", gain(0.05, 0.01), Bar(), moved=True, differences=losing, groups=unseen)
    assert steps[0].startswith("b: worse than the first system (-5.00)")
    assert steps[1].startswith("c: worse where no relevant document was in training. Use more isotropy")


def test_the_bar_can_be_set() -> None:
    assert verdict_of(gain(0.02, 0.01), Bar(at_least=0.01)) == "works"
    assert verdict_of(gain(0.05, 0.01), Bar(significance=0.001)) == "marginal"
    with pytest.raises(ValueError, match="at_least"):
        Bar(at_least=-1)
    with pytest.raises(ValueError, match="significance"):
        Bar(significance=1.5)
