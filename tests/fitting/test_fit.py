"""From texts to a saved model, end to end."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fitting_helpers import DIMENSION, ONE, QUICK, both_sides, encoder_of, rotated
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from transformers import TrainerCallback, set_seed

from st_asym import EmbeddingCache, FitResult, Settings, fit, verify
from st_asym.data import RetrievalData
from st_asym.data.files import REPORT_FILE
from st_asym.fitting import loop, vectors
from st_asym.fitting.candidates import Candidate
from st_asym.retrieval import Judgments

SHORT = replace(ONE, epochs=1)
BOTH_SIDES = replace(QUICK, sides="both", epochs=1)  # in closed form, and trained from each start
# Enough training that a few dozen held-out queries are evidence.
SURE = replace(QUICK, epochs=12, init="identity", contrastive="in-batch")
main = sys.modules["st_asym.fitting.fit"]  # the name is that of the function


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., FitResult]:
    """A fit of few epochs into tmp_path/model."""

    def run(encoder: SentenceTransformer, train: Any = None, name: str = "model", **options: Any) -> FitResult:
        options = {"settings": QUICK, "cache": tmp_path / "vectors", "show_progress_bar": False} | options
        return fit(encoder, train, output_dir=tmp_path / name, **options)

    return run


def triple(data: RetrievalData) -> tuple[Any, Any, Any]:
    return data.queries, data.corpus, data.qrels["train"]


def spied(patch: pytest.MonkeyPatch) -> list[set[str]]:
    """The queries of each training run from now on."""
    found: list[set[str]] = []
    loss = Candidate.loss

    def spy(candidate: Candidate, model: Any, own: Any, qrels: Any, withheld: Any) -> Any:
        found.append(set(qrels))
        return loss(candidate, model, own, qrels, withheld)

    patch.setattr(Candidate, "loss", spy)
    return found


class Count(TrainerCallback):
    """How many steps the stock trainer took."""

    steps = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1


def states() -> Any:
    """Those of the generators that a caller may use."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


class Won(NamedTuple):
    """A fit whose heads are kept, and what was seen of it."""

    data: RetrievalData
    result: FitResult
    folder: Path
    trained: list[set[str]]
    steps: int
    states: tuple[Any, Any]


@pytest.fixture(scope="module")
def won(tmp_path_factory: pytest.TempPathFactory) -> Won:
    encoder, data = rotated(60)
    set_seed(1)  # another state than fit begins with
    folder, count, before = tmp_path_factory.mktemp("won"), Count(), states()
    options: dict[str, Any] = {"settings": QUICK, "cache": folder / "vectors", "show_progress_bar": False}
    with pytest.MonkeyPatch.context() as patch:
        trained = spied(patch)
        callbacks = {"callbacks": [count], "report_to": ["tensorboard"]}
        result = fit(encoder, data, output_dir=folder / "model", **options, **callbacks)
    return Won(data, result, folder, trained, count.steps, (before, states()))


def test_heads_that_win_are_kept_and_the_saved_model_is_stock(
    won: Won, run_without_st_asym: Callable[..., str]
) -> None:
    tmp_path, data, result = won.folder, won.data, won.result
    assert result.report.kept
    assert result.report.first_line.startswith("Trained heads are kept")
    assert result.report.refitted
    assert not result.model.training
    loaded = run_without_st_asym(
        "import json, sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "queries, documents = map(json.loads, sys.argv[2:])\n"
        "print(json.dumps([*model.encode_query(queries).tolist(), *model.encode_document(documents).tolist()]))",
        str(tmp_path / "model"),
        *(json.dumps(list(texts.values())) for texts in (data.queries, data.corpus)),
    )
    np.testing.assert_allclose(json.loads(loaded), both_sides(result.model, data), atol=1e-6)
    report = json.loads((tmp_path / "model" / "st_asym_report.json").read_text())
    assert report["first_line"] == result.report.first_line
    assert "/" not in json.dumps({key: value for key, value in report.items() if key != "evidence"})
    card = (tmp_path / "model" / "README.md").read_text()
    assert result.report.first_line in card
    for telling in (str(tmp_path), "dataset_size", "widget", "generated_from_trainer"):
        assert telling not in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "vectors"]


def test_where_nothing_can_be_learned_the_model_is_the_untouched_encoder(
    tmp_path: Path, quick: Callable[..., FitResult]
) -> None:
    encoder, data = rotated(60, labels="random", seed=1)
    before = both_sides(encoder, data)
    result = quick(encoder, data)
    assert not result.report.kept
    assert str(result.report).startswith("The model is the untouched encoder: no trained heads beat it")
    assert result.model is encoder
    for model in (result.model, SentenceTransformer(str(tmp_path / "model"), device="cpu")):
        np.testing.assert_allclose(both_sides(model, data), before, atol=1e-6)
    assert result.report.first_line in (tmp_path / "model" / "README.md").read_text()


def test_the_last_training_is_on_all_training_queries(won: Won) -> None:
    result = won.result
    assert result.report.refitted
    assert [entry["epoch"] for entry in result.report.training] == list(range(1, result.report.chosen.choice.epoch + 1))
    *rehearsed, last = won.trained
    assert last == set(won.data.qrels["train"])
    assert rehearsed
    assert all(fold < last for fold in rehearsed)


def test_callbacks_and_report_to_reach_the_trainer(won: Won) -> None:
    # 60 queries, 16 a step.
    assert won.steps == 4 * won.result.report.chosen.choice.epoch
    assert list((won.folder / "model" / "runs").rglob("*tfevents*")), "TensorBoard's log is beside the model"
    assert verify(won.folder / "model").kind == "model"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"report_to": "tensorbord"}, ValueError, "tensorbord is not supported"),
        ({"report_to": ["wandb"]}, ValueError, "WandbCallback requires wandb"),
        ({"callbacks": Count()}, TypeError, "callbacks must be a list of TrainerCallback, got a Count"),
        ({"callbacks": ["log"]}, TypeError, "callbacks must be a list of TrainerCallback, got 'log' in it"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_anything_is_read(
    quick: Callable[..., FitResult], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    encoder, _ = rotated(20)
    with pytest.raises(error, match=message):
        quick(encoder, None, **options)


def test_settings_of_numpy_and_of_the_environment_change_nothing(
    tmp_path: Path, quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = rotated(60)
    plain = quick(encoder, data, settings=SURE, expected_unseen=0.5, callbacks=None, report_to=["none"])
    assert plain.report.kept
    numbers = {"epochs": np.int64(12), "batch_size": np.int32(16), "learning_rate": np.float64(1e-2)}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    torch.set_default_dtype(torch.float64)
    try:
        again = quick(encoder, data, "again", settings=replace(SURE, **numbers), expected_unseen=np.float32(0.5))
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.report.settings == plain.report.settings
    assert np.array_equal(both_sides(again.model, data), both_sides(plain.model, data))
    assert json.loads((tmp_path / "again" / REPORT_FILE).read_text())["expected_unseen"] == 0.5


def test_a_truncation_that_cuts_nothing_is_none(quick: Callable[..., FitResult]) -> None:
    encoder, data = rotated(20)
    encoder.truncate_dim = DIMENSION
    assert quick(encoder, data, settings=replace(SHORT, sides="query")).report.settings.sides == "query"


def test_a_refit_replaces_the_log_of_the_earlier_model(
    tmp_path: Path, quick: Callable[..., FitResult], caplog: pytest.LogCaptureFixture
) -> None:
    encoder, data = rotated(60)
    logs = []
    for epochs in (12, 13):
        quick(encoder, data, settings=replace(SURE, epochs=epochs), report_to="tensorboard")
        logs.append({path.name for path in (tmp_path / "model" / "runs").rglob("*tfevents*")})
    assert len(logs[0]) == len(logs[1]) == 1
    assert logs[0] != logs[1]
    assert "Kept beside the new result" not in caplog.text


def test_the_generators_of_the_caller_stay_as_they_are(won: Won) -> None:
    before, after = won.states
    assert before == after


@pytest.mark.parametrize(("dtype", "contrastive"), [(torch.float16, "in-batch"), (torch.bfloat16, "corpus")])
def test_an_encoder_in_half_precision_is_fitted_in_float32(
    quick: Callable[..., FitResult],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
    contrastive: Any,
) -> None:
    encoder, data = rotated(60)
    result = quick(encoder.to(dtype), data, settings=replace(QUICK, contrastive=contrastive))
    assert result.report.kept
    assert "rounded away" not in caplog.text
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(both_sides(saved, data), both_sides(result.model, data), atol=1e-2)
    queries, documents = saved.encode_query(list(data.queries)), saved.encode_document(list(data.corpus))
    assert ((queries.astype(float) @ documents.T.astype(float)).argmax(axis=1) == np.arange(60)).mean() > 0.8


def test_a_seed_gives_the_same_model_whatever_ran_before_and_prints_nothing(
    won: Won, quick: Callable[..., FitResult], capfd: pytest.CaptureFixture[str]
) -> None:
    encoder, data = rotated(60)
    torch.manual_seed(99)
    quick(encoder, data, "other", seed=5, settings=replace(SHORT, sides="query"))
    assert np.array_equal(both_sides(quick(encoder, data, "again").model, data), both_sides(won.result.model, data))
    assert capfd.readouterr().out == ""


def test_queries_of_an_own_dev_set_never_train(
    quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = spied(monkeypatch)
    encoder, data = rotated(60)
    queries, corpus, qrels = triple(data)
    dev = {query_id: qrels[query_id] for query_id in list(qrels)[:30]}
    result = quick(encoder, (queries, corpus, qrels), dev=(queries, corpus, dev), settings=SURE)
    assert set.union(*trained) == set(qrels) - set(dev)
    assert result.report.counts == {"documents": 60, "train": 30, "dev": 30}
    assert result.report.kept
    assert result.report.refitted
    given, cut, both = result.report.held_out
    assert given == "30 dev queries: 0 seen, 30 whose documents are no training positives."
    assert cut.startswith("30 training queries were held out, each once, in 5 cuts")
    assert both.startswith("The dev queries may be unlike the training queries, but bear out")
    assert result.report.chosen.unseen.queries == 60
    assert result.report.expected_unseen == 1.0, "that of dev"
    assert any("30 queries of train left out, in dev too" in note for note in result.report.notes)
    assert result.report.chosen.choice.epoch <= SURE.epochs


@pytest.mark.parametrize(
    ("options", "share"),
    [({}, 1.0), ({"collection": "closed"}, 0.0), ({"collection": "open"}, 1.0), ({"expected_unseen": 0.3}, 0.3)],
)
def test_the_traffic_to_expect(quick: Callable[..., FitResult], options: dict[str, Any], share: float) -> None:
    encoder, data = rotated(30)
    report = quick(encoder, data, settings=SHORT, **options).report
    assert report.expected_unseen == share
    # As each document has one query.
    assert ("No query on seen documents could be held out" in str(report)) is (share < 1)


# A third of all are quick: each pair of sides and contrastive is among them, and each init.
COMBINATIONS = list(
    product(["both", "query", "document", "shared"], ["corpus", "in-batch"], ["identity", "pairs", "random"])
)


@pytest.mark.parametrize(
    ("sides", "contrastive", "init"),
    [
        pytest.param(*one, marks=pytest.mark.slow if place % 3 != place // 3 % 3 else ())
        for place, one in enumerate(COMBINATIONS)
    ],
)
def test_settings_narrow_the_candidates(
    quick: Callable[..., FitResult], tmp_path: Path, init: Any, contrastive: Any, sides: Any
) -> None:
    encoder, data = rotated(40)
    wanted = replace(QUICK, init=init, contrastive=contrastive, sides=sides, whitening=1.0)
    result = quick(encoder, data, settings=wanted)
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(both_sides(saved, data), both_sides(result.model, data), atol=1e-6)
    trained = [one for one in result.report.candidates if one.evidence.choice.epoch]
    assert len(trained) == 1
    assert len(result.report.candidates) == (2 if init == "pairs" else 1)
    if result.report.kept:
        assert result.report.settings.sides == sides


def test_without_time_it_stops_soon_and_is_sound(tmp_path: Path, quick: Callable[..., FitResult]) -> None:
    encoder, data = rotated(60)
    started = time.perf_counter()
    result = quick(encoder, data, settings=replace(QUICK, epochs=10_000), max_seconds=2.0)
    assert time.perf_counter() - started < 12
    assert "There was no time for 3 of 4 cuts." in str(result.report)
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.isfinite(both_sides(saved, data)).all()
    np.testing.assert_allclose(both_sides(saved, data), both_sides(result.model, data), atol=1e-6)


def test_a_folder_of_something_else_is_refused_before_anything_is_encoded(
    tmp_path: Path, quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = rotated(20)
    monkeypatch.setattr(EmbeddingCache, "fill", lambda *_, **__: pytest.fail("encoded"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("all of it")
    with pytest.raises(FileExistsError, match=r"model exists and is not an earlier result of fit \(it has no st_asym"):
        quick(encoder, data)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        quick(encoder, data, "file")
    assert (tmp_path / "model" / "thesis.tex").read_text() == "all of it"


def test_a_cache_in_the_place_of_the_model_is_refused_before_anything_is_encoded(
    tmp_path: Path, quick: Callable[..., FitResult]
) -> None:
    encoder, data = rotated(20)
    with pytest.raises(FileExistsError, match="is not an earlier result of fit"):
        quick(encoder, data, cache=tmp_path / "model" / "vectors")
    assert len(EmbeddingCache(tmp_path / "model" / "vectors")) == 0


def test_what_came_into_the_place_while_it_fitted_stays(
    tmp_path: Path, quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = rotated(20)
    save_fit = main._save

    def save(*arguments: Any) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "thesis.tex").write_text("all of it")
        save_fit(*arguments)

    monkeypatch.setattr(main, "_save", save)
    with pytest.raises(FileExistsError, match="is not an earlier result of fit"):
        quick(encoder, data, settings=SHORT)
    assert (tmp_path / "model" / "thesis.tex").read_text() == "all of it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "vectors"]


def test_an_error_leaves_an_earlier_result_as_it_was(
    tmp_path: Path, quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = rotated(40)
    quick(encoder, data, settings=ONE)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "model").rglob("*")) if path.is_file()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    for owner, name in ((main, "rehearse"), (main, "refit"), (SentenceTransformer, "save_pretrained")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="no space left"):
                quick(encoder, data, seed=1, settings=ONE)
    # The last step of all: the new folder cannot be put in the place of the old one.
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, to: fail() if path.name == "new" else rename(path, to))
        with pytest.raises(OSError, match="no space left"):
            quick(encoder, data, seed=1, settings=ONE)
    assert {path: path.read_bytes() for path in sorted((tmp_path / "model").rglob("*")) if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "vectors"]
    quick(encoder, data, seed=1, settings=ONE)
    assert json.loads((tmp_path / "model" / REPORT_FILE).read_text())["seed"] == 1


def test_a_corpus_larger_than_memory_is_judged_on_a_part_that_has_all_relevant_documents(
    quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data = rotated(80)
    few = replace(data, qrels={"train": dict(list(data.qrels["train"].items())[:30])})
    monkeypatch.setattr(vectors, "_IN_MEMORY", 50)
    monkeypatch.setattr(vectors, "SEARCHED", 50)
    monkeypatch.setattr("st_asym.fitting.report.SEARCHED", 50)
    monkeypatch.setattr(vectors, "_PORTION", 7)
    parts: list[list[str]] = []
    searched = vectors.Vectors.searched

    def spy(own: Any, qrels: Any) -> Any:
        assert isinstance(own.documents, np.memmap)
        rows = searched(own, qrels)
        ids = [own.document_ids[row] for row in rows]
        assert {key for judged in qrels.values() for key in judged} <= set(ids)
        np.testing.assert_array_equal(vectors.taken(own.documents, rows), own.documents[rows])
        parts.append(ids)
        return rows

    monkeypatch.setattr(vectors.Vectors, "searched", spy)
    found = quick(encoder, few, settings=replace(SURE, sides="both")).report
    assert found.counts["train"] == 30
    assert found.held_out[-1] == "Judged among 50 of 80 documents: scores over all of them are lower."
    assert parts
    assert all(len(part) == len(set(part)) == 50 for part in parts)


def test_documents_with_the_same_text_are_no_negatives_of_each_other(quick: Callable[..., FitResult]) -> None:
    encoder, data = rotated(40)
    copies = {f"copy{i}": f"d{i}" for i in range(40)}
    result = quick(encoder, replace(data, corpus=data.corpus | copies), settings=replace(QUICK, sides="both"))
    assert result.report.kept
    assert result.report.counts["documents"] == 80


@pytest.mark.slow
def test_trials(quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = rotated(24)
    result = quick(encoder, data, trials=3, settings=replace(QUICK, epochs=1, learning_rate=1e-5))
    assert len(result.report.trials) == 3
    if result.report.kept:
        assert result.report.chosen.choice.candidate in [one.name for one in result.report.candidates]
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match="pip install 'st_asym"):
        quick(encoder, data, "other", trials=1)


def test_without_labels_titles_stand_for_queries(quick: Callable[..., FitResult], tmp_path: Path) -> None:
    encoder, _ = rotated(60)
    documents = {f"x{i}": {"title": f"q{i}", "text": f"d{i}"} for i in range(60)}
    result = quick(encoder, corpus=documents, settings=ONE)
    assert result.report.labels == "titles"
    assert "There were no labels: queries are the documents' own titles." in str(result.report)
    assert result.report.kept
    assert (tmp_path / "model" / "modules.json").is_file()


def test_settings_and_dial_of_the_choice_make_the_model(
    quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last training ends at the chosen epoch, and its heads are turned back by the chosen dial."""
    encoder, data = rotated(60)
    dials: list[float] = []
    set_dial = loop.set_dial
    monkeypatch.setattr(loop, "set_dial", lambda *given: dials.append(given[-1]) or set_dial(*given))
    result = quick(encoder, data, settings=replace(SURE, sides="query"), collection="open")
    choice = result.report.chosen.choice
    assert dials == ([choice.dial] if choice.epoch and choice.dial != 1.0 else [])
    assert result.report.settings.sides == "query"
    untouched = encoder.encode_document(list(data.corpus.values()), normalize_embeddings=True)
    np.testing.assert_allclose(result.model.encode_document(list(data.corpus.values())), untouched, atol=1e-6)


@pytest.mark.slow
def test_the_real_encoder(real_encoder: SentenceTransformer, shared_data: Path, tmp_path: Path) -> None:
    from st_asym.data import load_data

    scifact = load_data(next(path for path in shared_data.iterdir() if path.name.startswith("scifact")))
    qrels = dict(list(scifact.relevant("train").items())[:60])
    relevant = {document_id for documents in qrels.values() for document_id in documents}
    chosen = [*relevant, *(key for key in scifact.corpus if key not in relevant)][:300]
    corpus = {document_id: scifact.corpus[document_id][:200] for document_id in chosen}
    train = {query_id: dict.fromkeys(documents, 1) for query_id, documents in qrels.items()}
    data = RetrievalData(scifact.queries, corpus, {"train": train})
    untouched = real_encoder.encode_document(list(corpus.values())[:5])
    settings = replace(Settings(), epochs=5)
    result = fit(real_encoder, data, output_dir=tmp_path / "model", cache=tmp_path, settings=settings)
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    found = saved.encode_document(list(corpus.values())[:5])
    np.testing.assert_allclose(found, result.model.encode_document(list(corpus.values())[:5]), atol=1e-6)
    assert (untouched * found).sum(axis=1).min() > 0.5
    shown = result.report.candidates[0].evidence
    assert shown.seen.queries + shown.unseen.queries == 60
    assert 0.5 < shown.unseen.untouched < 1


# Bad input.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": "3e-4"}, "learning_rate must be a number, got '3e-4'"),
        ({"isotropy_weight": "1"}, "isotropy_weight must be a number, got '1'"),
        ({"bias": "no"}, "bias must be True or False, got 'no'"),
        ({"epochs": 0}, "epochs must be a finite number above 0, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
    ],
)
def test_a_setting_that_no_training_can_have_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**setting)


def changed(**changes: Any) -> tuple[SentenceTransformer, tuple[Any, Any, Any]]:
    encoder, data = rotated(12)
    queries, corpus, qrels = triple(data)
    return encoder, (
        queries | changes.get("queries", {}),
        corpus,
        changes.get("only", qrels | changes.get("qrels", {})),
    )


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"qrels": {"q0": {}, "q1": {"d1": 0}}}, "2 queries of train without a relevant document left out (q0, q1)."),
        ({"qrels": {"q0": {"d0": -1, "d1": 1}}}, "1 grade below zero in train taken as not relevant (q0 d0)."),
        ({"qrels": {"q0": {f"d{i}": 1 for i in range(12)}}}, "1 query of train for which every document is relevant"),
        ({"only": {"q0": {"d0": 1}}}, "There is one training query: none can be held out."),
        ({"only": {"q0": {"d0": 1}, "Q": {"d1": 1}}, "queries": {"Q": " Q0 "}}, "There is one training query"),
        ({"only": {"q0": {"d0": 1}, "q1": {"d1": 1}}}, "1 training query and 1 held out"),
        ({"only": {"q0": {"d0": 1}, "q1": {"d0": 1}}}, "1 training query and 1 held out: 1 seen"),
    ],
)
def test_what_has_a_remedy_gives_a_sound_result(
    quick: Callable[..., FitResult], changes: dict[str, Any], note: str
) -> None:
    encoder, data = changed(**changes)
    result = quick(encoder, data, settings=BOTH_SIDES)
    assert note in str(result.report)
    assert np.isfinite(result.model.encode_query(["q0", "q1"])).all()
    if "only" in changes:
        assert str(result.report).startswith("The model is the untouched encoder")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"qrels": {"q0": {"zz": 1}}}, {}, "names 1 queries or documents that do not exist: document zz"),
        (
            {"only": {f"q{i}": {f"d{j}": 1 for j in range(12)} for i in range(12)}},
            {},
            "12 queries of train for which ev",
        ),
        ({}, {"dev": "empty"}, "No dev query can be used"),
        ({}, {"dev": "train"}, "No train query can be used. 12 queries of train left out, in dev too"),
        ({}, {"settings": replace(QUICK, hidden_features=3)}, "cannot start as the identity"),
        ({}, {"settings": replace(QUICK, learning_rate=1e30)}, "diverged"),
        ({}, {"settings": replace(QUICK, learning_rate=1e30, contrastive="in-batch")}, "diverged"),
        ({}, {"expected_unseen": 1.5}, "expected_unseen must be from 0 to 1, got 1.5"),
        ({}, {"expected_unseen": 0.5, "collection": "open"}, "say the same: give one"),
        ({}, {"collection": "opne"}, "collection must be 'open', 'closed' or None, got 'opne'"),
        ({}, {"trials": -1}, "trials must not be below 0"),
        ({}, {"max_seconds": float("nan")}, "max_seconds must be above 0"),
    ],
)
def test_what_has_none_is_named(
    quick: Callable[..., FitResult], tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    encoder, data = changed(**changes)
    if "dev" in options:
        options = {"dev": (*data[:2], data[2] if options["dev"] == "train" else {})}
    with pytest.raises(ValueError, match=message):
        quick(encoder, data, **options)
    assert not (tmp_path / "model").exists()


def test_vectors_that_are_not_finite_are_named(quick: Callable[..., FitResult]) -> None:
    vectors = dict(zip(("q0", "q1", "d0", "d1"), np.random.default_rng(0).standard_normal((4, DIMENSION)), strict=True))
    vectors["d1"][3] = np.nan
    pairs = [("q0", "d0"), ("q1", "d1")]
    with pytest.raises(ValueError, match="not finite for 1 of 2 texts, the first in row 1, 'd1'"):
        quick(encoder_of(vectors), pairs)


@pytest.mark.parametrize("contrastive", ["corpus", "in-batch"])
def test_a_corpus_smaller_than_the_batch(quick: Callable[..., FitResult], contrastive: Any) -> None:
    encoder, (queries, corpus, _) = changed()
    two = {key: corpus[key] for key in ("d0", "d1")}
    qrels = {f"q{i}": {f"d{i % 2}": 1} for i in range(12)}
    result = quick(
        encoder, (queries, two, qrels), settings=replace(BOTH_SIDES, batch_size=256, contrastive=contrastive)
    )
    assert np.isfinite(result.model.encode_query(list(queries.values()))).all()


@pytest.mark.parametrize(
    "case", ["one document for all", "every document", "zero vectors", "queries are documents", "fewer than dimensions"]
)
def test_unusual_collections_give_a_sound_model(quick: Callable[..., FitResult], tmp_path: Path, case: str) -> None:
    encoder, data = rotated(30)
    queries, corpus, qrels = triple(data)
    if case == "one document for all":
        qrels = {query_id: {"d0": 1} for query_id in qrels}
    if case == "zero vectors":  # words that the encoder does not know
        queries, corpus = queries | {"q1": "unknown", "q2": "words"}, corpus | {"d1": "neither", "d5": "this"}
    if case == "queries are documents":
        queries = {query_id: corpus[f"d{query_id[1:]}"] for query_id in queries}
    if case == "fewer than dimensions":
        qrels = dict(list(qrels.items())[:4])
    result = quick(encoder, (queries, corpus, qrels), settings=BOTH_SIDES)
    for model in (result.model, SentenceTransformer(str(tmp_path / "model"), device="cpu")):
        sides = model.encode_query(list(queries.values())), model.encode_document(list(corpus.values()))
        assert np.isfinite(np.concatenate(sides)).all()
    if case == "queries are documents":
        assert not result.report.kept, "nothing can be better than perfect"


def test_pairs_that_are_given_twice_are_one(quick: Callable[..., FitResult]) -> None:
    encoder, _ = rotated(12)
    pairs = [(f"q{i}", f"d{i}") for i in range(12)]
    result = quick(encoder, pairs + pairs, settings=SHORT)
    assert result.report.counts == {"documents": 12, "train": 12}


def test_an_id_for_two_texts_is_refused(tmp_path: Path, quick: Callable[..., FitResult]) -> None:
    encoder, _ = rotated(4)
    rows = [{"_id": "a", "text": "one"}, {"_id": "b", "text": "two"}, {"_id": "a", "text": "three"}]
    (tmp_path / "corpus.jsonl").write_text(os.linesep.join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"1 id given again to a different text: a \(line 3\)"):
        quick(encoder, tmp_path / "corpus.jsonl")


def test_an_encoder_that_compares_by_dot_product_is_judged_by_it(tmp_path: Path) -> None:
    """Lengths say how often documents are asked for, which a cosine does not see."""
    draw = np.random.default_rng(0)
    length = np.where(np.arange(120) < 20, 3.0, 1.0)
    documents = draw.standard_normal((120, DIMENSION)) * length[:, None]
    asks = np.where(draw.random(60) < 0.9, draw.integers(0, 20, 60), draw.integers(20, 120, 60))
    queries = documents[asks] / length[asks, None] + 1.2 * draw.standard_normal((60, DIMENSION))
    names = [f"q{i}" for i in range(60)], [f"d{i}" for i in range(120)]
    encoder = encoder_of(dict(zip((*names[0], *names[1]), (*queries, *documents), strict=True)))
    data = RetrievalData(
        {name: name for name in names[0]},
        {name: name for name in names[1]},
        {"train": {f"q{i}": {f"d{answer}": 1} for i, answer in enumerate(asks)}},
    )
    judged = {}
    for similarity in ("dot", "cosine"):
        encoder.similarity_fn_name = similarity
        options: dict[str, Any] = {"cache": tmp_path / "vectors", "settings": ONE, "show_progress_bar": False}
        report = fit(encoder, data, output_dir=tmp_path / similarity, **options).report
        assert report.best is not None
        judged[similarity] = report.best.seen.untouched
    judgments = Judgments(data.qrels["train"], {name: row for row, name in enumerate(names[1])})
    found = (torch.tensor(queries) @ torch.tensor(documents).T).topk(10).indices
    assert judged["dot"] > judged["cosine"] + 0.05
    assert judged["dot"] == pytest.approx(judgments.ndcg(found).mean(), abs=0.1), "of those that were held out"


@pytest.mark.parametrize(
    ("similarity", "truncate_dim", "sides", "message"),
    [
        ("euclidean", None, None, "compares by euclidean distance, and heads by cosine"),
        ("manhattan", None, None, "compares by manhattan distance, and heads by cosine"),
        ("cosine", DIMENSION // 2, "query", "cuts its vectors to 6 dimensions .* leave sides='query' out"),
    ],
)
def test_an_encoder_that_heads_cannot_be_compared_with_is_refused_before_anything_is_encoded(
    quick: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch, similarity: Any, truncate_dim: Any, sides: Any,
    message: str,
) -> None:  # fmt: skip
    encoder, data = rotated(20)
    monkeypatch.setattr(EmbeddingCache, "fill", lambda *_, **__: pytest.fail("encoded"))
    encoder.similarity_fn_name, encoder.truncate_dim = similarity, truncate_dim
    with pytest.raises(ValueError, match=message):
        quick(encoder, data, settings=Settings(sides=sides))


def test_euclidean_distance_is_that_of_cosine_where_nothing_is_cut_off_unit_vectors(
    quick: Callable[..., FitResult],
) -> None:
    encoder, data = rotated(20)
    unit = SentenceTransformer(modules=[*encoder, Normalize()], device="cpu", similarity_fn_name="euclidean")
    assert quick(unit, data, settings=SHORT).report.evidence
    unit.truncate_dim = DIMENSION // 2
    with pytest.raises(ValueError, match="compares by euclidean distance"):
        quick(unit, data, settings=SHORT)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (2**32, ValueError), (1.5, TypeError)])
def test_a_seed_that_the_trainer_cannot_take_is_refused_before_anything_is_read(
    tmp_path: Path, seed: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="seed must be"):
        fit("nothing here", [], output_dir=tmp_path / "model", seed=seed)


@pytest.mark.parametrize("wrong", [{"epochs": 3.0}, {"batch_size": 16.0}, {"hard_negatives": 2.5}])
def test_counts_are_whole_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
        Settings(**wrong)


def test_a_seed_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    encoder, data = rotated(20)
    options: dict[str, Any] = {"cache": tmp_path / "vectors", "settings": ONE, "show_progress_bar": False}
    for name, seed in (("one", np.int64(3)), ("other", 3)):
        fit(encoder, data, output_dir=tmp_path / name, seed=seed, **options)
    one, other = ((tmp_path / name / "st_asym_report.json").read_text() for name in ("one", "other"))
    assert json.loads(one)["evidence"] == json.loads(other)["evidence"]
    assert json.loads(one)["seed"] == 3


def test_an_encoder_that_cuts_its_vectors_gets_heads_on_both_sides_that_do(quick: Callable[..., FitResult]) -> None:
    encoder, data = rotated()
    encoder.truncate_dim = DIMENSION // 2
    result = quick(encoder, data)
    assert result.report.kept
    assert result.report.settings.sides == "both"
    assert result.model.encode_query("q0").shape == result.model.encode_document("d0").shape == (DIMENSION // 2,)
