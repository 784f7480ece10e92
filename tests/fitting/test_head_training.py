from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting_helpers import DIMENSION, QUICK, bench_of, both_sides, encoder_of, rotated

from st_asym.data import RetrievalData
from st_asym.fitting import Settings, training
from st_asym.fitting.training import train_heads
from st_asym.systems import get_system

pytestmark = pytest.mark.usefixtures("few_objects_to_collect")


def test_after_each_epoch_training_goes_on_until_it_is_told_to_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder, data = rotated(40)
    bench = bench_of(encoder, data, tmp_path)
    stage = bench.stage(QUICK)
    for last, expected in ((9, [1, 2, 3]), (2, [1, 2])):
        epochs: list[int] = []

        def after_epoch(epoch: int, epochs: list[int] = epochs, last: int = last) -> bool:
            epochs.append(epoch)
            return epoch >= last

        train_heads(bench, stage, data.qrels["train"], after_epoch=after_epoch)
        assert epochs == expected
    assert capfd.readouterr() == ("", ""), "training runs say nothing"


def test_copies_and_ignored_documents_are_never_negatives(tmp_path: Path) -> None:
    """With all other documents ignored or copies of the relevant one, there is nothing to contrast, nor to learn."""
    random = np.random.default_rng(0)
    vectors = {name: random.standard_normal(DIMENSION) for name in ("q0", "q1", "same", "other")}
    queries = {"q0": "q0", "q1": "q1"}
    corpus = {"d0": "same", "copy": "same", "other": "other"}
    data = RetrievalData(queries, corpus, {"train": {"q0": {"d0": 1}, "q1": {"d0": 1}}})
    bench = bench_of(encoder_of(vectors), data, tmp_path)
    assert bench.twins == {"q0": {"copy": 1}, "q1": {"copy": 1}}
    for ignored, learns in (({"q0": {"other": 1}, "q1": {"other": 1}}, False), ({}, True)):
        stage = bench.stage(QUICK)
        train_heads(bench, stage, data.qrels["train"], ignored=ignored)
        end = dict(stage.model.named_parameters())
        assert any(not torch.equal(end[name], start) for name, start in stage.start.items()) == learns


def test_the_frozen_encoder_and_its_prompts_are_left_as_they_are(tmp_path: Path) -> None:
    encoder, data = rotated(30)
    before = both_sides(encoder, data)
    bench = bench_of(encoder, data, tmp_path)
    one, other = bench.stage(QUICK), bench.stage(QUICK)
    train_heads(bench, one, data.qrels["train"])
    assert np.array_equal(both_sides(encoder, data), before)
    np.testing.assert_allclose(
        both_sides(other.model, data), before / np.linalg.norm(before, axis=1)[:, None], atol=1e-6
    )
    train_heads(bench, other, data.qrels["train"])
    assert np.array_equal(both_sides(one.model, data), both_sides(other.model, data)), (
        "nothing is left of the first run"
    )


@pytest.mark.parametrize("sides", ["query", "document"])
def test_a_side_without_a_head_stays_as_it_is(tmp_path: Path, sides: Any) -> None:
    encoder, data = rotated(30)
    bench = bench_of(encoder, data, tmp_path)
    stage = bench.stage(replace(QUICK, sides=sides))
    before = both_sides(stage.model, data)
    train_heads(bench, stage, data.qrels["train"])
    moved = np.abs(both_sides(stage.model, data) - before).max(axis=1) > 1e-4
    assert moved[:30].all() == moved[:30].any() == (sides == "query")
    assert moved[30:].all() == moved[30:].any() == (sides == "document")


@pytest.mark.parametrize("options", [{"isotropy_weight": 0.3}, {"contrastive": "in-batch"}, {"hidden_features": None}])
def test_settings_reach_training(tmp_path: Path, options: dict[str, Any]) -> None:
    encoder, data = rotated(30)
    bench = bench_of(encoder, data, tmp_path)
    found = []
    for settings in (QUICK, replace(QUICK, **options)):
        stage = bench.stage(settings)
        train_heads(bench, stage, data.qrels["train"])
        found.append(both_sides(stage.model, data))
    assert np.abs(found[0] - found[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": "left"}, "sides must be one of 'both', 'query', 'document', 'shared', got 'left'"),
        ({"contrastive": "all"}, "contrastive must be one of"),
        ({"isotropy_kind": "round"}, "isotropy_kind must be one of"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"batch_size": 0.5}, "batch_size must be a whole number"),
        ({"isotropy_weight": -1.0}, "isotropy_weight must be a finite number, 0 or more"),
    ],
)
def test_settings_that_no_training_can_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_the_other_systems_have_the_settings_of_the_original() -> None:
    settings = Settings.of(get_system("iso_pred"), "random")
    assert (settings.isotropy_weight, settings.batch_size, settings.epochs) == (1.5, 64, 3)
    assert Settings.of(get_system("asymmetric"), "identity") == Settings()


def test_documents_of_several_parts_are_joined() -> None:
    assert training._joined({"a": {"x": 1}}, {"a": {"y": 1}, "b": {}}) == {"a": {"x": 1, "y": 1}, "b": {}}
