from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fitting_helpers import QUICK, bench_of, rotated

from st_asym.fitting.rehearsing import attempt, cuts
from st_asym.fitting.tuning import check_optuna, tune

pytestmark = pytest.mark.usefixtures("few_objects_to_collect")


def test_the_best_trial_is_taken_and_each_is_named(tmp_path: Path) -> None:
    encoder, data = rotated(60)
    bench, parts = bench_of(encoder, data, tmp_path), cuts(data, seed=0)[:2]
    poor = attempt(bench, parts, replace(QUICK, epochs=1, learning_rate=1e-6))
    best, log = tune(bench, parts, poor, 3)
    assert len(log) == 4
    assert best.gain == max(entry["gain"] for entry in log) > poor.gain
    assert best.stage.settings.as_dict() == max(log, key=lambda entry: entry["gain"])["settings"]
    assert tune(bench, parts, poor, 1)[1] == log[:2], "the same for a seed"


def test_a_trial_that_is_stopped_early_is_logged_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pruners answer with numpy's truth values, which JSON does not know.
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda _: np.bool_(True))
    encoder, data = rotated(20)
    bench, parts = bench_of(encoder, data, tmp_path), cuts(data, seed=0)[:1]
    first = attempt(bench, parts, QUICK)
    best, log = tune(bench, parts, first, 2)
    assert best is first
    assert [entry["stopped early"] for entry in json.loads(json.dumps(log))] == [False, True, True]


def test_without_time_the_first_attempt_stays(tmp_path: Path) -> None:
    encoder, data = rotated(20)
    bench, parts = bench_of(encoder, data, tmp_path, deadline=0.0), cuts(data, seed=0)
    first = attempt(bench, parts, QUICK)
    best, log = tune(bench, parts, first, 3)
    assert best is first
    assert len(log) == 1


def test_what_to_install_is_said_where_optuna_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"trials needs Optuna: pip install 'st_asym\[tune\]'"):
        check_optuna()
