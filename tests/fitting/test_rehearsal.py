from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitting_helpers import DIMENSION, ONE, QUICK, encoder_of, rotated, vectors_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from st_asym.data import Qrels, RetrievalData
from st_asym.data.holdout import HeldOut, apart
from st_asym.fitting import rehearsal
from st_asym.fitting.candidates import candidates
from st_asym.fitting.gate import Choice
from st_asym.fitting.rehearsal import Rehearsals, alike, cuts, rehearse
from st_asym.fitting.settings import Settings
from st_asym.fitting.vectors import Vectors
from st_asym.retrieval.significance import one_source


def rehearsed(vectors: Vectors, parts: list[HeldOut], wanted: Settings = ONE, deadline: float = math.inf) -> Rehearsals:
    tried = candidates(wanted, 60)
    return rehearse(vectors, parts, tried, 0.5, out_features=vectors.dimension, deadline=deadline)


def test_each_query_is_held_out_once_and_never_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = rotated(60)
    vectors = vectors_of(encoder, data, tmp_path)
    trained: list[set[str]] = []
    train_heads = rehearsal.train_heads

    def spy(candidate: Any, model: Any, vectors: Any, qrels: Qrels, **options: Any) -> Any:
        trained.append(set(qrels))
        return train_heads(candidate, model, vectors, qrels, **options)

    monkeypatch.setattr(rehearsal, "train_heads", spy)
    found = rehearsed(vectors, cuts(data, seed=0))
    judged = [query_id for part in found.judged for query_id in part.queries]
    assert sorted(judged) == sorted(data.queries)
    for names, part in zip(trained, found.judged, strict=True):
        assert not names & set(part.queries)
        assert names | set(part.queries) == set(data.queries)
    (name,) = found.finalists
    expected = {Choice(name, 2), Choice(name, 3), *(Choice(name, 3, dial) for dial in (0.4, 0.7, 0.85))}
    assert set(found.judged[0].scores) == expected


@pytest.mark.parametrize("labels", ["true", "random"])
def test_the_encoder_finds_what_labels_name_more_often_than_by_accident_or_does_not(
    tmp_path: Path, labels: str
) -> None:
    encoder, data = rotated(200, labels=labels)
    found = rehearsed(vectors_of(encoder, data, tmp_path), cuts(data, seed=0)[:1])
    (part,) = found.judged
    assert part.mismatched.shape == part.untouched.shape
    gap, error = part.untouched.mean() - part.mismatched.mean(), np.std(part.untouched) / math.sqrt(len(part.queries))
    assert bool(gap > 3 * error) is (labels == "true")


def test_training_is_logged_by_epoch_as_the_mean_over_the_cuts(tmp_path: Path) -> None:
    encoder, data = rotated(60)
    vectors, parts = vectors_of(encoder, data, tmp_path), cuts(data, seed=0)
    found = rehearsed(vectors, parts)
    (name,) = found.finalists
    log = found.log_of(name)
    assert [entry["epoch"] for entry in log] == [0, 1, 2, 3]
    assert set(log[0]) == {"epoch", "accuracy", "query_std", "document_std"}
    assert set(log[1]) == {"epoch", "loss"}
    assert set(log[3]) == {"epoch", "loss", "accuracy", "query_std", "document_std"}
    losses = [entry["loss"] for entry in log[1:]]
    assert losses == sorted(losses, reverse=True)
    assert log[-1]["accuracy"] > log[0]["accuracy"]
    single = [rehearsed(vectors, [part]).log_of(name) for part in parts]
    for figure, value in log[3].items():
        assert value == pytest.approx(np.mean([own[3][figure] for own in single]), abs=1e-5), figure
    (isotropic,) = candidates(replace(ONE, isotropy_weight=0.5), 60)
    entry = rehearsed(vectors, parts[:1], isotropic.settings).log_of(isotropic.name)[1]
    assert entry["loss"] == pytest.approx(entry["contrastive"] + entry["isotropy"], abs=1e-3)


def test_what_is_clearly_behind_after_a_cut_is_not_rehearsed_on_the_next(tmp_path: Path) -> None:
    encoder, data = rotated(60)
    vectors, parts = vectors_of(encoder, data, tmp_path), cuts(data, seed=0)
    found = rehearsed(vectors, parts, replace(QUICK, learning_rate=3e-2))
    counts = {name: len(logs) for name, logs in found.logs.items()}
    assert len(parts) == 4
    assert {name for name, count in counts.items() if count == 4} == set(found.finalists)
    assert min(counts.values()) == 1
    assert [len(part.queries) for part in found.judged] == [len(part.dev) for part in parts]


@pytest.mark.parametrize(("given", "dropped"), [(3, False), (30, True)])
def test_a_dev_split_that_is_small_beside_the_next_cut_drops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int, dropped: bool
) -> None:
    encoder, data = rotated(60)
    train, dev = (
        dict(part) for part in (list(data.qrels["train"].items())[given:], [*data.qrels["train"].items()][:given])
    )
    monkeypatch.setattr("st_asym.fitting.rehearsal.FEWEST_DEV", 1)
    monkeypatch.setattr("st_asym.fitting.rehearsal._FOLDS_OF_FEW", 2)
    monkeypatch.setattr("st_asym.fitting.rehearsal._FOLDS", 2)
    parts = cuts(replace(data, qrels={"train": train, "dev": dev}), seed=0)
    found = rehearsed(vectors_of(encoder, data, tmp_path), parts, replace(QUICK, learning_rate=3e-2))
    after_dev = {name for name, logs in found.logs.items() if len(logs) > 1}
    assert (after_dev < set(found.logs)) is dropped


def test_starts_that_are_far_behind_in_closed_form_are_not_trained(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    documents = random.standard_normal((200, DIMENSION))
    queries = documents + random.standard_normal((200, DIMENSION)) * np.repeat([3, 0.1], DIMENSION // 2)
    names = [f"q{i}" for i in range(200)], [f"d{i}" for i in range(200)]
    encoder = encoder_of(dict(zip((*names[0], *names[1]), (*queries, *documents), strict=True)))
    qrels: Qrels = {f"q{i}": {f"d{i}": 1} for i in range(200)}
    data = RetrievalData({name: name for name in names[0]}, {name: name for name in names[1]}, {"train": qrels})
    found = rehearsed(vectors_of(encoder, data, tmp_path), cuts(data, seed=0)[:1], replace(QUICK, sides="both"))
    trained = [name for name in found.logs if "start" in name]
    assert trained == ["both sides, whitening 1 start, in-batch and corpus"]


@pytest.mark.parametrize(("given", "folds"), [(4, 0), (5, 4), (999, 4), (1_000, 0)])
def test_training_queries_are_cut_beside_a_small_dev_split(given: int, folds: int) -> None:
    queries = {f"q{i}": f"query {i}" for i in range(given + 60)}
    corpus = {f"d{i}": f"text {i}" for i in range(given + 60)}
    train, dev = ({f"q{i}": {f"d{i}": 1} for i in part} for part in (range(60), range(60, 60 + given)))
    dev["q60"] = {"d0": 1}  # seen
    first, *others = cuts(RetrievalData(queries, corpus, {"train": train, "dev": dev}), seed=0)
    assert (first.train, first.dev, first.seen, first.unseen) == (train, dev, ("q60",), tuple(dev)[1:])
    assert len(others) == folds
    assert sorted(query for part in others for query in part.dev) == (sorted(train) if folds else [])


@pytest.mark.parametrize(
    ("given", "shift", "labels", "expected"),
    [(40, 0.0, "judged", True), (40, 1.0, "judged", False), (19, 0.0, "judged", False), (40, 0.0, "titles", False)],
)
def test_dev_queries_are_like_training_queries_or_not(given: int, shift: float, labels: str, expected: bool) -> None:
    names = [f"q{i}" for i in range(200)]
    vectors = np.random.default_rng(3).standard_normal((200, DIMENSION)).astype(np.float32)
    vectors[:given] += shift
    train, dev = ({name: {f"d{name}": 1} for name in part} for part in (names[given:], names[:given]))
    data = RetrievalData(
        dict.fromkeys(names, "a query"), {f"d{name}": name for name in names}, {"train": train, "dev": dev}, labels
    )
    assert alike(Vectors(names, vectors, [], vectors[:0]), data) is expected


def test_queries_about_one_document_are_compared_once() -> None:
    """A dev split of all queries about some documents is no other kind of query."""
    names = [f"q{i}" for i in range(1_000)]
    random = np.random.default_rng(2)
    about = np.arange(1_000) // 10  # ten queries a document
    vectors = random.standard_normal((100, DIMENSION)).astype(np.float32)[about]
    train, dev = ({n: {f"d{a}": 1} for n, a in zip(names, about, strict=True) if (a < 25) == d} for d in (False, True))
    assert [len(part) for part in apart(train, dev)] == [75, 25]
    data = RetrievalData(
        dict.fromkeys(names, "a query"), {f"d{i}": f"text {i}" for i in range(100)}, {"train": train, "dev": dev}
    )
    of_all = [vectors[[name in part for name in names]] for part in (dev, train)]
    assert one_source(*of_all) < 0.01
    assert alike(Vectors(names, vectors, [], vectors[:0]), data)


def test_queries_are_counted_by_their_text() -> None:
    corpus = {f"d{i}": f"text {i}" for i in range(4)}
    queries = {"a": "One query", "b": "one  query", "c": "another"}
    qrels = {"a": {"d0": 1}, "b": {"d1": 1}}
    assert cuts(RetrievalData(queries, corpus, {"train": qrels}), seed=0) == []
    parts = cuts(RetrievalData(queries, corpus, {"train": {**qrels, "c": {"d2": 1}}}), seed=0)
    assert sorted(sorted(part.dev) for part in parts) == [["a", "b"], ["c"]]


@pytest.mark.parametrize(("count", "held_out"), [(2_000, 400), (12_000, 2_000)])
def test_many_queries_are_cut_once(count: int, held_out: int) -> None:
    queries = {f"q{i}": f"query {i}" for i in range(count)}
    corpus = {f"d{i}": f"text {i}" for i in range(count)}
    data = RetrievalData(queries, corpus, {"train": {f"q{i}": {f"d{i}": 1} for i in range(count)}})
    (part,) = cuts(data, seed=0)
    assert len(part.dev) == held_out


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A second passes each time somebody looks at the clock."""
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    return clock


def test_without_time_whole_cuts_are_compared(tmp_path: Path, ticking: Any) -> None:
    encoder, data = rotated(60)
    vectors, parts = vectors_of(encoder, data, tmp_path), cuts(data, seed=0)
    found = rehearsed(vectors, parts, replace(ONE, epochs=8), 60.0)
    assert 1 <= len(found.judged) < len(parts)
    assert {choice.epoch for part in found.judged for choice in part.scores} == {4, 8}
    assert next(ticking) + found.kept_back <= 60.0, "there is no time left to train"


def test_the_first_rehearsal_may_be_cut_off_and_is_judged_as_far_as_it_went(tmp_path: Path, ticking: Any) -> None:
    encoder, data = rotated(60)
    vectors = vectors_of(encoder, data, tmp_path)
    found = rehearsed(vectors, cuts(data, seed=0), replace(ONE, epochs=500), 60.0)
    (part,) = found.judged
    last = max(choice.epoch for choice in part.scores)
    assert 1 < last < 100
    assert Choice(found.finalists[0], last, 0.7) in part.scores
    assert next(ticking) < 200


def test_a_random_start_has_no_dial(tmp_path: Path) -> None:
    encoder, data = rotated(20)
    found = rehearsed(vectors_of(encoder, data, tmp_path), cuts(data, seed=0), replace(ONE, init="random"))
    assert {choice.dial for choice in found.judged[0].scores} == {1.0}


def test_copies_and_withheld_documents_are_never_negatives(tmp_path: Path) -> None:
    """With all other documents withheld or copies of the relevant one there is nothing to contrast, nor to learn."""
    random = np.random.default_rng(0)
    names = ("q0", "q1", "same", "other")
    encoder = encoder_of({name: random.standard_normal(DIMENSION) for name in names})
    corpus = {"d0": "same", "copy": "same", "other": "other"}
    train: Qrels = {"q0": {"d0": 1}, "q1": {"d0": 1}}
    data = RetrievalData({"q0": "q0", "q1": "q1"}, corpus, {"train": train})
    vectors = vectors_of(encoder, data, tmp_path)
    assert vectors.no_negatives == {"q0": {"copy": 1}, "q1": {"copy": 1}}
    wanted = replace(ONE, contrastive="corpus", unlabelled_weight=1.0)
    for withheld, learns in (({"q0": {"other": 1}, "q1": {"other": 1}}, False), ({}, True)):
        part = HeldOut(train, {"q0": {"other": 1}}, (), ("q0",), withheld, ())
        log = rehearsed(vectors, [part], wanted).log_of(candidates(wanted, 2)[0].name)
        assert (log[1]["loss"] > 0) == learns


def test_where_queries_are_documents_their_own_is_no_result_and_no_negative(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors_by_name = {f"x{i}": random.standard_normal(DIMENSION) for i in range(24)}
    texts = {name: name for name in vectors_by_name}
    qrels: Qrels = {f"x{i}": {f"x{i + 12}": 1} for i in range(12)}
    data = RetrievalData({key: texts[key] for key in qrels}, texts, {"train": qrels})
    vectors = vectors_of(encoder_of(vectors_by_name), data, tmp_path)
    assert vectors.own == {key: key for key in qrels}
    part = HeldOut(qrels, qrels, tuple(qrels), (), {}, ())
    found = rehearsed(vectors, [part])
    array = np.array(list(vectors_by_name.values()))
    array /= np.linalg.norm(array, axis=1, keepdims=True)
    similarities = (array @ array.T)[:12]
    relevance = np.eye(24)[12:]
    similarities[np.arange(12), np.arange(12)] = -2
    expected = [ndcg_score([r], [s], k=10) for r, s in zip(relevance, similarities, strict=True)]
    assert found.judged[0].untouched == pytest.approx(expected, abs=1e-6)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(2, 30), st.integers(0, 999))
def test_scores_are_those_of_scikit_learn(
    tmp_path_factory: pytest.TempPathFactory, draw: Any, documents: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = {f"q{i}": random.standard_normal(DIMENSION) for i in range(3)}
    vectors |= {f"d{i}": random.standard_normal(DIMENSION) for i in range(documents)}
    grades = st.dictionaries(st.integers(0, documents - 1), st.integers(-1, 3), min_size=1)
    qrels: Qrels = {
        f"q{i}": {f"d{d}": grade for d, grade in own.items()}
        for i in range(3)
        if max((own := draw.draw(grades)).values()) > 0
    }
    assume(qrels)
    queries, corpus = ({key: key for key in vectors if key[0] == letter} for letter in "qd")
    data = RetrievalData(queries, corpus, {"train": qrels})
    read = vectors_of(encoder_of(vectors), data, tmp_path_factory.mktemp("cache"))
    found = rehearsed(read, [HeldOut(qrels, qrels, tuple(qrels), (), {}, ())]).judged[0]
    assert found.queries == tuple(qrels)
    for query_id, score in zip(found.queries, found.untouched, strict=True):
        similar = [
            np.dot(vectors[query_id], vectors[d]) / np.linalg.norm(vectors[query_id]) / np.linalg.norm(vectors[d])
            for d in corpus
        ]
        # The discounts of trec_eval are of the grades themselves, and those below zero count as zero.
        relevance = [[max(qrels[query_id].get(d, 0), 0) for d in corpus]]
        assert score == pytest.approx(ndcg_score(relevance, [similar], k=10), abs=1e-5)


def test_accuracy_and_spread_are_those_of_the_vectors(tmp_path: Path) -> None:
    encoder, data = rotated(30, noise=2.0)
    train = data.qrels["train"]
    part = HeldOut(train, train, tuple(train), (), {}, ())
    found = rehearsed(vectors_of(encoder, data, tmp_path), [part])
    figures = found.log_of(found.finalists[0])[0]
    queries = encoder.encode_query(list(data.queries), normalize_embeddings=True)
    documents = encoder.encode_document(list(data.corpus), normalize_embeddings=True)
    nearest = (queries @ documents.T).argmax(axis=1)
    assert 0 < figures["accuracy"] == pytest.approx(np.mean(nearest == np.arange(30)), abs=1e-6)
    for side, own in (("query", queries), ("document", documents)):
        expected = own.std(axis=0, ddof=1).mean() * DIMENSION**0.5
        assert figures[f"{side}_std"] == pytest.approx(expected, abs=1e-5)


def test_heads_that_diverge_are_named(tmp_path: Path) -> None:
    encoder, data = rotated(30)
    with pytest.raises(ValueError, match="diverged"):
        rehearsed(vectors_of(encoder, data, tmp_path), cuts(data, seed=0), replace(ONE, learning_rate=1e30))


@pytest.mark.parametrize(
    ("queries", "temperature", "rate"),
    [(1_999, 0.05, 3e-4), (2_000, 0.04, 3e-4), (9_999, 0.04, 3e-4), (10_000, 0.04, 2e-4)],
)
def test_many_queries_are_followed_more_closely_and_less_far_unless_told_otherwise(
    queries: int, temperature: float, rate: float
) -> None:
    def found(settings: Settings) -> set[tuple[float | None, float | None]]:
        return {(one.settings.temperature, one.settings.learning_rate) for one in candidates(settings, queries)}

    assert found(Settings()) == {(temperature, rate)}
    assert found(Settings(temperature=0.1)) == {(0.1, rate)}
    assert found(Settings(learning_rate=1e-3)) == {(temperature, 1e-3)}
