"""Whether next week's model replaces this week's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import with_heads
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from st_asym import Comparison, save_provenance
from st_asym.cli import app
from st_asym.data import as_retrieval_data
from st_asym.evaluation.comparison import Row
from st_asym.evaluation.evaluate import replacement


def compared(
    last: Sequence[float], following: Sequence[float], *, seen: Sequence[int] | None = None, trained: Sequence[int] = ()
) -> Comparison:
    """Two models by their nDCG@10 of each query."""
    week = {
        "ids": [f"q{row}" for row in range(len(last))],
        "seen": None if seen is None else [f"q{row}" for row in seen],
        "trained on": [f"q{row}" for row in trained],
        "scores": {"last": {"ndcg@10": [list(last)]}, "next": {"ndcg@10": [list(following)]}},
    }
    rows = tuple(Row(name, (name,), None, {}, {}) for name in ("last", "next"))
    return Comparison(rows, {}, {"week": week}, {}, {})


def test_the_better_mean_replaces_and_the_sentence_says_by_how_much() -> None:
    found = replacement(compared([0.5] * 30, [0.5] * 29 + [0.8]), "last", "next")
    assert found.replaces
    assert str(found).startswith("Replace last by next: nDCG@10 +1.00 points [+0.00, +3.00], p = 0.99")
    assert str(found).endswith(", on 30 queries that neither was trained on.")
    found = replacement(compared([0.5] * 30, [0.5] * 30), "last", "next")
    assert str(found).startswith("Keep last: nDCG@10 +0.00 points")
    assert "Fewer than 20 say little" in str(replacement(compared([0.5] * 3, [0.6] * 3), "last", "next"))


def test_a_gain_does_not_pay_for_a_loss_on_new_documents() -> None:
    comparison = compared([0.5] * 40, [0.9] * 20 + [0.3] * 20, seen=range(20))
    found = replacement(comparison, "last", "next")
    assert found.gain is not None
    assert found.gain.points == pytest.approx(0.1)
    assert not found.replaces
    assert "-20.00 points [-20.00, -20.00], p < .001" in str(found)
    assert "on unseen documents, which is beyond noise" in str(found)


def test_what_was_trained_on_is_no_evidence() -> None:
    found = replacement(compared([0.5, 0.5, 0.5], [1.0, 1.0, 0.4], trained=[0, 1]), "last", "next")
    assert not found.replaces
    assert found.gain is not None
    assert found.gain.queries == 1
    everything = compared([0.5], [1.0], trained=[0])
    assert str(replacement(everything, "last", "next")) == "Keep last: it or next was trained on every query."
    unknown = replacement(compared([0.5], [1.0]), "last", "next", unknown=["next"])
    assert str(unknown) == "Keep last: it is not known which queries next learnt from."
    with pytest.raises(KeyError, match="no system 'first'"):
        replacement(everything, "first", "next")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_two_models_never_replace_each_other(rows: list[tuple[float, float, bool]]) -> None:
    last, following, _ = zip(*rows, strict=True)
    seen = [row for row, (_, _, known) in enumerate(rows) if known]
    here = replacement(compared(last, following, seen=seen), "last", "next")
    back = replacement(compared(following, last, seen=seen), "last", "next")
    assert not (here.replaces and back.replaces)
    assert here.replaces <= (np.mean(following) > np.mean(last))


def test_a_pipeline_reads_the_exit_status(make_encoder: Callable[..., SentenceTransformer], tmp_path: Path) -> None:
    encoder = make_encoder()
    weeks = [tmp_path / f"{name}.csv" for name in ("first", "second")]
    for number, week in enumerate(weeks):
        rows = (
            f"query {i} {word},answers {word} {i}\n"
            for i in range(4)
            for word in ("big red", "text", "vector")[number:]
        )
        week.write_text("query,document\n" + "".join(rows), encoding="utf-8")
    for seed, name in enumerate(("current", "next"), start=1):
        model = with_heads(encoder, seed)
        model.save_pretrained(str(tmp_path / name))
        save_provenance(tmp_path / name, model, data=as_retrieval_data(weeks[1]))
    options = ["--split", "all", "--baselines", "none", "--results", str(tmp_path / "results"), "--quiet"]
    models = [f"{name}={tmp_path / folder}" for name, folder in (("last", "current"), ("next", "next"))]

    def asked(*more: str) -> tuple[int, str]:
        arguments = ["evaluate", str(weeks[0]), *options, *more]
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.output.splitlines()[0]

    there = asked("--decide", "-m", models[0], "-m", models[1])
    back = asked("--decide", "-m", models[1], "-m", models[0])
    assert "on 4 queries that neither was trained on" in there[1]
    for code, line in (there, back):
        assert (code, line.partition(" ")[0]) in ((0, "Replace"), (3, "Keep"))
    assert (there[0], back[0]) != (0, 0)
    assert asked("-m", models[0], "-m", models[1]) == there, "of two models of fit it is always asked"
    assert asked("-m", models[1], "-m", models[0]) == back
    # Whether the second one learnt from these queries is not known without its digests.
    (tmp_path / "next" / "st_asym.json").unlink()
    line = "Keep last: it is not known which queries next learnt from."
    assert asked("--decide", "-m", models[0], "-m", models[1]) == (3, line)
    code, line = asked("--decide", "-m", models[0])
    assert code == 2
    assert "--decide is between two models" in line
    beside = ["evaluate", str(tmp_path / "next"), "--on", str(weeks[0]), "-m", models[0], "-m", models[1]]
    found = CliRunner().invoke(app, [*beside, "--decide"])
    assert (found.exit_code, "--decide is between two models" in found.output) == (2, True)


def test_an_encoder_that_fit_kept_is_a_model_of_fit(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    encoder = make_encoder()
    pairs = [(f"query {i}", f"big text {i}") for i in range(4)]
    week = tmp_path / "week.csv"
    week.write_text("query,document\n" + "".join(f"{q},{d}\n" for q, d in pairs), encoding="utf-8")
    for name, model in (("current", with_heads(encoder, 1)), ("kept", encoder)):
        model.save_pretrained(str(tmp_path / name))
        save_provenance(tmp_path / name, model, data=as_retrieval_data([("red", "small"), ("big", "text")]))
    options = ["--split", "all", "--baselines", "none", "--results", str(tmp_path / "results"), "--quiet"]
    models = ["-m", f"last={tmp_path / 'current'}", "-m", f"next={tmp_path / 'kept'}"]
    asked = CliRunner().invoke(app, ["evaluate", str(week), *options, *models])
    assert (asked.exit_code, asked.output.partition(" ")[0]) in ((0, "Replace"), (3, "Keep"))
    assert "on 4 queries that neither was trained on" in asked.output.splitlines()[0]
