from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitting_helpers import QUICK, bench_of, rotated

from st_asym.data import RetrievalData
from st_asym.fitting import rehearsing
from st_asym.fitting.gate import Choice
from st_asym.fitting.rehearsing import attempt, cuts

pytestmark = pytest.mark.usefixtures("few_objects_to_collect")


def test_each_query_is_held_out_once_and_never_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = rotated(60)
    trained: list[set[str]] = []
    train_heads = rehearsing.train_heads

    def spy(bench: Any, stage: Any, qrels: Any, **options: Any) -> Any:
        trained.append(set(qrels))
        return train_heads(bench, stage, qrels, **options)

    monkeypatch.setattr(rehearsing, "train_heads", spy)
    parts = cuts(data, seed=0)
    found = attempt(bench_of(encoder, data, tmp_path), parts, QUICK)
    judged = [query_id for rehearsal in found.rehearsals for query_id in rehearsal.queries]
    assert sorted(judged) == sorted(data.queries)
    for queries, rehearsal in zip(trained, found.rehearsals, strict=True):
        assert not queries & set(rehearsal.queries)
        assert queries | set(rehearsal.queries) == set(data.queries)
    dials = {choice.dial for choice in found.rehearsals[0].scores}
    assert dials == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    assert found.last_epoch == QUICK.epochs


def test_training_is_logged_by_epoch_as_the_mean_over_the_cuts(tmp_path: Path) -> None:
    encoder, data = rotated(60)
    bench, parts = bench_of(encoder, data, tmp_path), cuts(data, seed=0)
    found = attempt(bench, parts, QUICK)
    assert [entry["epoch"] for entry in found.log] == [0, 1, 2, 3]
    assert set(found.log[0]) == {"epoch", "accuracy", "query_std", "document_std"}
    assert set(found.log[1]) == {"epoch", "loss", "accuracy", "query_std", "document_std"}
    losses = [entry["loss"] for entry in found.log[1:]]
    assert losses == sorted(losses, reverse=True)
    assert found.log[-1]["accuracy"] > found.log[0]["accuracy"]
    single = [attempt(bench, [part], QUICK).log for part in parts]
    for name, value in found.log[3].items():
        assert value == pytest.approx(np.mean([log[3][name] for log in single]), abs=1e-5), name
    # A trial that is stopped has seen fewer epochs.
    assert [entry["epoch"] for entry in attempt(bench, parts, QUICK, progress=lambda *_: True).log] == [0, 1]
    parts_of_loss = attempt(bench, parts[:1], replace(QUICK, isotropy_weight=0.5)).log[1]
    assert parts_of_loss["loss"] == pytest.approx(parts_of_loss["contrastive"] + parts_of_loss["isotropy"], abs=1e-3)


def test_the_dev_split_is_what_is_judged_where_there_is_one() -> None:
    _, data = rotated(10)
    train, dev = {"q0": {"d0": 1}, "q1": {"d1": 1}}, {"q2": {"d0": 1}, "q3": {"d3": 1}}
    (part,) = cuts(replace(data, qrels={"train": train, "dev": dev}), seed=0)
    assert (part.train, part.dev, part.seen, part.unseen) == (train, dev, ("q2",), ("q3",))


def test_queries_are_counted_by_their_text() -> None:
    corpus = {f"d{i}": f"text {i}" for i in range(4)}
    queries = {"a": "One query", "b": "one  query", "c": "another"}
    qrels = {"a": {"d0": 1}, "b": {"d1": 1}}
    assert cuts(RetrievalData(queries, corpus, {"train": qrels}), seed=0) == []
    parts = cuts(RetrievalData(queries, corpus, {"train": {**qrels, "c": {"d2": 1}}}), seed=0)
    assert sorted(sorted(part.dev) for part in parts) == [["a", "b"], ["c"]]


def test_many_queries_are_cut_once() -> None:
    queries = {f"q{i}": f"query {i}" for i in range(2000)}
    corpus = {f"d{i}": f"text {i}" for i in range(2000)}
    data = RetrievalData(queries, corpus, {"train": {f"q{i}": {f"d{i}": 1} for i in range(2000)}})
    (part,) = cuts(data, seed=0)
    assert len(part.dev) == 400


def test_without_time_a_rehearsal_that_was_cut_off_does_not_count_beside_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = rotated(60)
    bench = bench_of(encoder, data, tmp_path, deadline=100.0)
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    parts = cuts(data, seed=0)
    found = attempt(bench, parts, replace(QUICK, epochs=8))
    assert 1 <= len(found.rehearsals) < len(parts)
    assert {max(rehearsal.scores).epoch for rehearsal in found.rehearsals} == {8}
    assert {entry.choice for entry in found.evidence} == set(found.rehearsals[0].scores)
    assert next(clock) + bench.seconds_kept_back <= 100.0, "there is no time left to train"


def test_the_first_rehearsal_may_be_cut_off_and_is_judged_as_far_as_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = rotated(60)
    bench = bench_of(encoder, data, tmp_path, deadline=60.0)
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    found = attempt(bench, cuts(data, seed=0), replace(QUICK, epochs=50))
    (rehearsal,) = found.rehearsals
    assert 1 < found.last_epoch < 30
    assert Choice(found.last_epoch, 0.5) in rehearsal.scores


def test_a_random_start_has_no_dial_and_is_the_same_for_a_seed(tmp_path: Path) -> None:
    encoder, data = rotated(20)
    scores = []
    for seed in (0, 0, 1):
        bench = bench_of(encoder, data, tmp_path, init="random", seed=seed)
        found = attempt(bench, cuts(data, seed=0), QUICK)
        assert {choice.dial for choice in found.rehearsals[0].scores} == {1.0}
        scores.append(found.rehearsals[0].scores[Choice(1, 1.0)])
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_an_attempt_ends_where_progress_says_so(tmp_path: Path) -> None:
    encoder, data = rotated(60)
    calls: list[int] = []

    def progress(epoch: int, _: float) -> bool:
        calls.append(epoch)
        return epoch == 5

    attempt(bench_of(encoder, data, tmp_path), cuts(data, seed=0), QUICK, progress=progress)
    assert calls == [1, 2, 3, 4, 5]
