from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fitting_helpers import QUICK, rotated, vectors_of

from st_asym.fitting.candidates import candidates
from st_asym.fitting.gate import weigh
from st_asym.fitting.rehearsal import Rehearsals, cuts, rehearse
from st_asym.fitting.tuning import check_optuna, tune

POOR = replace(QUICK, sides="both", init="identity", contrastive="in-batch", epochs=1, learning_rate=1e-6)
GIVEN = replace(POOR, epochs=None, learning_rate=None)


def first(folder: Path, count: int = 60, cut: int = 2) -> Rehearsals:
    encoder, data = rotated(count)
    vectors = vectors_of(encoder, data, folder)
    parts, tried = cuts(data, seed=0)[:cut], candidates(POOR, count)
    return rehearse(vectors, parts, tried, 1.0, out_features=vectors.dimension)


def tuned(found: Rehearsals, trials: int) -> tuple[list, list]:
    return tune(found, candidates(POOR, 60), GIVEN, trials)


def test_each_trial_is_named_and_rehearsed_like_the_candidates(tmp_path: Path) -> None:
    found = first(tmp_path)
    more, log = tuned(found, 3)
    assert [candidate.name for candidate in more] == ["trial 1", "trial 2", "trial 3"]
    assert [candidate.settings.as_dict() for candidate in more] == [entry["settings"] for entry in log]
    assert all(candidate.settings.sides == "both" for candidate in more), "what was asked for stays"
    evidence = weigh(found.judged, 1.0)
    for candidate, entry in zip(more, log, strict=True):
        own = [one.gain for choice, one in evidence.items() if choice.candidate == candidate.name]
        assert entry["gain"] == pytest.approx(max(own))
        assert (candidate.name in found.finalists) != entry["stopped early"]
    assert max(entry["gain"] for entry in log) > 0.01
    again = first(tmp_path)
    assert tuned(again, 1)[1] == log[:1], "the same for a seed"


def test_what_is_given_stays(tmp_path: Path) -> None:
    given = replace(GIVEN, hidden_features=None, temperature=0.06, epochs=2, isotropy_weight=0.5)
    for candidate in tune(first(tmp_path, 20, 1), candidates(given, 20), given, 4)[0]:
        assert candidate.settings.learning_rate != POOR.learning_rate
        for name in ("hidden_features", "temperature", "epochs", "isotropy_weight"):
            assert getattr(candidate.settings, name) == getattr(given, name)


def test_a_trial_that_diverges_is_logged_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_args: object, after_epoch: Callable[[int], bool], **_options: object) -> None:
        after_epoch(1)  # judged once before
        raise ValueError("diverged")

    found = first(tmp_path, 20, 1)
    monkeypatch.setattr("st_asym.fitting.rehearsal.train_heads", diverge)
    more, log = tuned(found, 2)
    assert [entry["error"] for entry in log] == ["diverged"] * 2
    assert {candidate.name for candidate in more} <= found.logs.keys() & found.seconds.keys()


def test_a_trial_that_is_stopped_early_is_logged_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pruners answer with numpy's truth values, which JSON does not know.
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda _: np.bool_(True))
    found = first(tmp_path, 20, 1)
    before = list(found.finalists)
    _, log = tuned(found, 2)
    assert [entry["stopped early"] for entry in json.loads(json.dumps(log))] == [True, True]
    assert found.finalists == before


def test_without_time_nothing_is_tried(tmp_path: Path) -> None:
    found = first(tmp_path, 20)
    found.deadline = 0.0
    assert tuned(found, 3) == ([], [])


def test_what_to_install_is_said_where_optuna_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"trials needs Optuna: pip install 'st_asym\[tune\]'"):
        check_optuna()
