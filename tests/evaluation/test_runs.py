from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from evaluation_helpers import collection, ndcg_at_10, with_heads
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_asym import Comparison, asymmetric_model, fit, router_mapping
from st_asym.data import RetrievalData
from st_asym.evaluation import choose_model, evaluate_run, follow_run
from st_asym.evaluation import mteb as running
from st_asym.evaluation import run_folder as watching

Make = Callable[..., SentenceTransformer]


def write_beir(folder: Path, data: RetrievalData) -> str:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": key, "title": "", "text": text} for key, text in data.corpus.items()]
    queries = [{"_id": key, "text": text} for key, text in data.queries.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split, judged in data.qrels.items():
        lines = [
            f"{query}\t{document}\t{grade}\n" for query, grades in judged.items() for document, grade in grades.items()
        ]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return str(folder)


@pytest.fixture
def beir(tmp_path: Path) -> str:
    return write_beir(tmp_path / "tiny", collection())


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


def save(model: SentenceTransformer, run: Path, step: int, of: int = 6, **state: Any) -> Path:
    """A checkpoint as the trainer leaves it."""
    folder = run / f"checkpoint-{step}"
    model.save_pretrained(str(folder))
    log = [{"loss": 1 / done, "step": done} for done in range(1, step + 1)]
    content = {"global_step": step, "max_steps": of, "epoch": step / 2, "log_history": log, **state}
    (folder / "trainer_state.json").write_text(json.dumps(content))
    return folder


def test_a_run_of_the_stock_trainer_gives_its_best_checkpoint(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path
) -> None:
    data, run = collection(), tmp_path / "run"
    pairs = Dataset.from_dict({"query": list(data.queries.values())[:6], "document": list(data.corpus.values())[::2]})
    judged = {
        query: {document for document, grade in own.items() if grade} for query, own in data.qrels["test"].items()
    }
    evaluator = InformationRetrievalEvaluator(
        {query: data.queries[query] for query in judged}, data.corpus, judged, name="dev", write_csv=False
    )
    model = with_heads(make_encoder(), 1)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            str(run),
            num_train_epochs=3,
            per_device_train_batch_size=6,
            learning_rate=0.1,
            router_mapping=router_mapping(pairs),
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_dev_cosine_ndcg@10",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
        evaluator=evaluator,
    )
    trainer.train()
    best = Path(str(trainer.state.best_model_checkpoint))
    run = run.rename(tmp_path / "moved")  # the state names the old place
    chosen = choose_model(run)
    assert chosen.path == run / best.name
    value = trainer.state.best_metric
    assert chosen.why == f"{best.name}, the best by eval_dev_cosine_ndcg@10 ({value:.4f})."

    found = evaluate_run(run, [beir], cache=vectors, train=data, baselines=())
    assert [row.name for row in found.rows] == ["untouched encoder", best.name]
    scores = found.queries["tiny"]["scores"][best.name]["ndcg@10"][0]
    assert scores == pytest.approx(ndcg_at_10(model, data), abs=1e-6)  # the trainer has loaded the best one
    assert set(found[best.name].groups["tiny"]) == {"seen", "unseen"}
    assert found.notes[0] == f"Evaluated: {chosen.why}"
    assert Comparison.load(run / "evaluation" / "table.json") == found
    assert "| Model | Avg NDCG@10 | vs Baseline |" in (run / "evaluation" / "table.md").read_text()
    log = (run / "evaluation" / "log.txt").read_text()
    assert chosen.why in log
    assert "tiny: untouched encoder, full vectors" in log


def test_without_a_best_checkpoint_the_latest_whole_one_or_the_final_model(make_encoder: Make, tmp_path: Path) -> None:
    model, run = asymmetric_model(make_encoder()), tmp_path / "run"
    save(model, run, 9)
    save(model, run, 10)
    (run / "checkpoint-11").mkdir()  # being written
    assert choose_model(run).why == "checkpoint-10, the latest of 2. The run names no best one."
    save(model, run, 12, best_model_checkpoint=r"C:\run\checkpoint-7", best_metric=0.5)
    assert choose_model(run).why == "checkpoint-12, the latest of 3. The best, checkpoint-7, is not there any more."
    model.save_pretrained(str(run))
    assert choose_model(run).path == run
    gone = "The best, checkpoint-7, is not there any more."
    assert choose_model(run).why == f"run, the model that the run ended with. {gone}"
    shutil.copytree(run, tmp_path / "other")
    state = tmp_path / "other" / "checkpoint-12" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "best_model_checkpoint": None}))
    os.utime(tmp_path / "other" / "modules.json", ns=(2**62, 2**62))
    assert choose_model(tmp_path / "other").why.endswith("that the run ended with. The run names no best one.")
    newer = save(model, run, 13)  # trained further since
    os.utime(newer / "trainer_state.json", ns=(2**62, 2**62))
    assert choose_model(run).name == "checkpoint-13"


def test_what_was_asked_for_tells_no_paths_of_the_machine_and_moves_with_the_run(
    make_encoder: Make, tmp_path: Path, vectors: Path
) -> None:
    home = tmp_path / "olivia"
    write_beir(home / "tiny", collection())
    save(with_heads(make_encoder(), 1), home / "run", 3)
    first = evaluate_run(home / "run", home / "tiny", cache=vectors)
    with pytest.raises(ValueError, match="is the model of the run itself"):
        evaluate_run(home / "run", home / "tiny", models={"checkpoint-3": home / "run"}, cache=vectors)
    written = [path for path in (home / "run" / "evaluation").rglob("*") if path.is_file()]
    assert "asked.json" in [path.name for path in written]
    assert [path.name for path in written if "olivia" in path.read_text()] == []
    home.rename(tmp_path / "moved")
    assert evaluate_run(tmp_path / "moved" / "run", cache=vectors).rows == first.rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "run holds no model to evaluate. It is empty."),
        (["logs/events", "notes.txt"], "It holds logs, notes.txt."),
        (["checkpoint-5/modules.json"], "Not whole, without trainer_state.json: checkpoint-5."),
        (
            ["checkpoint-5/trainer_state.json"],
            "No models of Sentence Transformers, without modules.json: checkpoint-5.",
        ),
        (["final/modules.json"], "There is a model or a run in .*final: give that path."),
        (["run-0/checkpoint-1/x", "run-1/checkpoint-1/x"], "There is a model or a run in .*run-0, .*run-1: give that"),
    ],
)
def test_a_run_without_a_model_says_what_it_holds(tmp_path: Path, content: list[str], message: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in content:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        evaluate_run(run, ["SciFact"])
    assert not (run / "evaluation").exists()


def test_a_second_evaluation_asks_for_the_same_and_runs_nothing(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, name = tmp_path / "run", Path(beir).name
    save(with_heads(make_encoder(), 1), run, 3)
    with pytest.raises(ValueError, match=r"checkpoint-3, the latest of 1.* It was not evaluated before"):
        evaluate_run(run, baselines=())
    make_encoder().save_pretrained(str(tmp_path / "base"))
    monkeypatch.chdir(tmp_path)
    first = evaluate_run("run", name, models={"base": "base"}, cache=vectors, train=name, baselines=())
    asked = (run / "evaluation" / "asked.json").read_text()
    for other in ("{", "[]", '{"of": "another version"}'):
        (run / "evaluation" / "asked.json").write_text(other)
        with pytest.raises(ValueError, match="It was not evaluated before"):
            evaluate_run("run", cache=vectors, baselines=())
    (run / "evaluation" / "asked.json").write_text(asked)
    monkeypatch.chdir(run)
    monkeypatch.setattr(running.mteb, "evaluate", refuse)
    again = evaluate_run(run, cache=vectors, baselines=())
    assert again.rows == first.rows
    assert [row.name for row in again.rows] == ["base", "checkpoint-3"]
    assert set(again["base"].groups["tiny"]) == {"seen", "unseen"}
    monkeypatch.undo()
    other = replace(collection(), qrels={"test": {"q0": {"d3": 1}}})
    in_memory = evaluate_run(run, {"mine": other}, cache=vectors, baselines=())  # which nobody can find again
    assert list(in_memory.data) == ["mine"]
    with pytest.raises(ValueError, match="It was not evaluated before"):
        evaluate_run(run, cache=vectors, baselines=())


def test_a_data_frame_is_one_collection(make_encoder: Make, tmp_path: Path, vectors: Path) -> None:
    frame = pytest.importorskip("pandas").DataFrame({"query": ["red head", "big text"], "positive": ["red", "text"]})
    save(with_heads(make_encoder(), 1), tmp_path / "run", 3)
    found = evaluate_run(tmp_path / "run", frame, cache=vectors, baselines=())
    assert found.data["data set 1"]["queries"] == 2


def test_training_pairs_of_a_generator_are_read_once(make_encoder: Make, tmp_path: Path, vectors: Path) -> None:
    data = collection()
    save(with_heads(make_encoder(), 1), tmp_path / "run", 3)
    pairs = ((data.queries[query], data.corpus["d0"]) for query in data.qrels["train"])
    found = evaluate_run(tmp_path / "run", {"tiny": data}, cache=vectors, train=pairs, baselines=())
    assert found.queries["tiny"]["seen"] == ["q0", "q4"]


def test_what_fails_is_in_the_log_and_data_are_looked_at_first(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, model = tmp_path / "run", with_heads(make_encoder(), 1)
    save(broken(model), run, 3)
    with pytest.raises(ValueError, match="has no split 'dev'"):
        evaluate_run(run, [beir], cache=vectors, split="dev")
    assert not (run / "evaluation").exists()
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="checkpoint-3 gives vectors"):
        evaluate_run(run, [beir], cache=vectors)
    log = (run / "evaluation" / "log.txt").read_text()
    assert "ERROR ValueError: checkpoint-3 gives vectors that are not finite for 6 of 6 texts" in log
    assert not caplog.records  # the console gets what it got before
    assert len(list((run / "evaluation" / "results").rglob("*.json"))) == 1


def test_warnings_still_reach_the_console(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    save(asymmetric_model(make_encoder()), run, 3)
    evaluate_run(run, [beir], cache=vectors, baselines=())
    for file in (run / "evaluation" / "results").rglob("*.json"):
        file.write_text(json.dumps({"format": 0}))
    with caplog.at_level(logging.WARNING):
        evaluate_run(run, [beir], cache=vectors, baselines=())
    assert len(caplog.records) == 2
    assert (run / "evaluation" / "log.txt").read_text().count("cannot be used") == 2


def test_a_model_of_fit_stays_a_stock_model(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path, run_without_st_asym: Callable[..., str]
) -> None:
    run = tmp_path / "fitted"
    fit(make_encoder(), beir, output_dir=run, cache=vectors, max_seconds=0.5, show_progress_bar=False)
    found = evaluate_run(run, [beir], cache=vectors)
    assert found.notes[0].startswith("Evaluated: fitted, which fit saved. The model is the untouched encoder")
    assert (run / "evaluation" / "table.json").is_file()
    code = "from sentence_transformers import SentenceTransformer as S; print(S(sys.argv[1]).encode_query('red').shape)"
    assert run_without_st_asym(code, str(run)).strip() == "(16,)"
    fit(make_encoder(), beir, output_dir=run, cache=vectors, max_seconds=0.5, show_progress_bar=False)
    assert (run / "evaluation" / "table.json").is_file(), "a refit keeps what is beside the model"


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("this was evaluated before")


def broken(model: SentenceTransformer) -> SentenceTransformer:
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    return model


class Training:
    """A run that goes on each time the watcher sleeps."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.steps = list(steps)

    def __call__(self, _: float) -> None:
        assert self.steps, "the watcher goes on after the end"
        self.steps.pop(0)()


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that went through MTEB."""
    names: list[str] = []
    real = running.mteb.evaluate

    def spy(model: Any, *arguments: Any, **options: Any) -> Any:
        names.append(model.mteb_model_meta.name.removeprefix("st_asym/"))
        return real(model, *arguments, **options)

    monkeypatch.setattr(running.mteb, "evaluate", spy)
    return names


def test_each_checkpoint_is_evaluated_once_until_the_run_ends(
    make_encoder: Make,
    tmp_path: Path,
    beir: str,
    vectors: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluated: list[str],
) -> None:
    encoder, run = make_encoder(), tmp_path / "run"
    models = {step: with_heads(encoder, step) for step in (2, 4, 6)}

    def half() -> None:
        save(models[4], run, 4)
        (run / "checkpoint-4" / "trainer_state.json").rename(tmp_path / "not yet")

    def whole() -> None:
        (tmp_path / "not yet").rename(run / "checkpoint-4" / "trainer_state.json")

    def limit() -> None:  # save_total_limit, and steps without a checkpoint
        shutil.rmtree(run / "checkpoint-2")

    training = Training(
        lambda: save(models[2], run, 2), lambda: None, half, whole, limit, lambda: save(models[6], run, 6, epoch=None)
    )
    monkeypatch.setattr(watching.time, "sleep", training)
    lines: list[str] = []
    found = follow_run(run, [beir], cache=vectors, tell=lines.append, baselines=())
    assert evaluated == ["untouched encoder", "checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert not training.steps
    assert [line.partition(":")[0] for line in lines[:3]] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert lines[3] == "The run has ended: training stopped after step 6 of 6."
    assert [row.name for row in found.rows] == ["untouched encoder", "checkpoint-6"]
    kept = json.loads((run / "evaluation" / "checkpoints.json").read_text())["checkpoints"]
    for entry, model in zip(kept, models.values(), strict=True):
        scores = ndcg_at_10(model, collection())
        assert entry["average"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    table = (run / "evaluation" / "checkpoints.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:6]] == [
        "| untouched encoder",
        "| checkpoint-2",
        "| checkpoint-4",
        "| checkpoint-6",
    ]

    evaluated.clear()  # started again, with one of them removed
    again = follow_run(run, [beir], cache=vectors, baselines=())
    assert not evaluated
    assert again.rows == found.rows
    assert len(json.loads((run / "evaluation" / "checkpoints.json").read_text())["checkpoints"]) == 3


def test_a_watch_that_is_interrupted_goes_on(
    make_encoder: Make,
    tmp_path: Path,
    beir: str,
    vectors: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluated: list[str],
) -> None:
    encoder, run = make_encoder(), tmp_path / "run"
    save(with_heads(encoder, 1), run, 2)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", Training(interrupt))
    with pytest.raises(KeyboardInterrupt):
        follow_run(run, [beir], cache=vectors, baselines=())
    assert evaluated == ["untouched encoder", "checkpoint-2"]
    assert "KeyboardInterrupt" in (run / "evaluation" / "log.txt").read_text()
    stop = {"TrainerControl": {"args": {"should_training_stop": True}}}  # as by early stopping
    save(with_heads(encoder, 2), run, 4, stateful_callbacks=stop)
    lines: list[str] = []
    follow_run(run, cache=vectors, tell=lines.append, baselines=())
    assert evaluated == ["untouched encoder", "checkpoint-2", "checkpoint-4"]
    assert lines[-1] == "The run has ended: training stopped after step 4 of 6."


def test_a_watch_ends_with_the_final_model_or_when_nothing_comes(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = tmp_path / "run", with_heads(make_encoder(), 1)
    lines: list[str] = []
    monkeypatch.setattr(watching.time, "sleep", Training(lambda: model.save_pretrained(str(run))))
    found = follow_run(run, [beir], cache=vectors, tell=lines.append, baselines=())
    assert lines == ["The run has ended: the final model is saved."]
    assert [row.name for row in found.rows] == ["untouched encoder", "run"]

    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(watching.time, "sleep", lambda _: None)
    killed = tmp_path / "killed"
    save(model, killed, 2)
    found = follow_run(killed, [beir], cache=vectors, patience=100, tell=lines.append, baselines=())
    assert lines[-1] == "There was no new checkpoint for 100 seconds: the watch ends."
    assert found.rows[-1].name == "checkpoint-2"
    with pytest.raises(ValueError, match="nothing holds no model to evaluate"):
        follow_run(tmp_path / "nothing", [beir], cache=vectors, patience=100, baselines=())
    with pytest.raises(ValueError, match="interval must be above 0 seconds"):
        follow_run(run, [beir], interval=0, baselines=())


def test_what_a_watched_run_is_compared_with_is_not_called_like_a_model_of_it(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path
) -> None:
    save(with_heads(make_encoder(), 1), tmp_path / "run", 2)
    for name in ("checkpoint-2", "run"):
        with pytest.raises(ValueError, match=f"'{name}' is the model of the run itself"):
            follow_run(
                tmp_path / "run", [beir], models={name: make_encoder()}, cache=vectors, interval=0.1, patience=0.1
            )
        assert not (tmp_path / "run" / "evaluation" / "asked.json").exists()
    make_encoder().save(str(tmp_path / "other"))
    options: Any = {"cache": vectors, "baselines": ()}
    evaluate_run(tmp_path / "run", [beir], models={"checkpoint-4": str(tmp_path / "other")}, **options)
    save(with_heads(make_encoder(), 2), tmp_path / "run", 4)
    with pytest.raises(ValueError, match="'checkpoint-4' is the model of the run itself"):
        evaluate_run(tmp_path / "run", **options)


def test_data_sets_with_names_of_their_own_are_remembered(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path
) -> None:
    save(with_heads(make_encoder(), 1), tmp_path / "run", 2)
    for asked in ({"mine": beir}, None):
        found = evaluate_run(tmp_path / "run", asked, cache=vectors, baselines=())
        assert list(found.data) == ["mine"]


def test_bad_checkpoints_do_not_end_a_watch(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, run = make_encoder(), tmp_path / "run"
    save(broken(with_heads(encoder, 1)), run, 1)
    foreign = save(with_heads(encoder, 2), run, 2)
    (foreign / "modules.json").unlink()
    leaving = save(with_heads(encoder, 3), run, 3)
    damaged = save(with_heads(encoder, 4), run, 4)
    (damaged / "config.json").write_text("{")
    save(with_heads(encoder, 5), run, 6)
    real = watching.load_encoder

    def load(path: Path) -> SentenceTransformer:
        model = real(path)
        if path == leaving:
            shutil.rmtree(path)  # by save_total_limit, while it is read
        return model

    monkeypatch.setattr(watching, "load_encoder", load)
    lines: list[str] = []
    follow_run(run, [beir], cache=vectors, tell=lines.append, baselines=())
    assert lines[0].startswith("checkpoint-1: not evaluated. checkpoint-1 gives vectors that are not finite")
    assert lines[1].startswith("checkpoint-2: not evaluated. It holds no model of Sentence Transformers")
    assert lines[2] == "checkpoint-3 was removed before it was evaluated."
    assert lines[3].startswith("checkpoint-4: not evaluated. It cannot be loaded")
    assert lines[4].startswith("checkpoint-6: nDCG@10")
    table = (run / "evaluation" / "checkpoints.md").read_text()
    assert [name in table for name in ("checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4")] == [
        True,
        True,
        False,
        True,
    ]


def test_the_table_of_another_training_or_other_data_is_not_gone_on_with(
    make_encoder: Make, tmp_path: Path, beir: str, vectors: Path
) -> None:
    encoder, run = make_encoder(), tmp_path / "run"

    def names() -> list[str]:
        content = json.loads((run / "evaluation" / "checkpoints.json").read_text())
        return [entry["name"] for entry in content["checkpoints"]]

    for step in (2, 4, 6):
        save(with_heads(encoder, step), run, step)
    follow_run(run, [beir], cache=vectors, baselines=())
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-4")
    other = write_beir(tmp_path / "other" / "tiny", replace(collection(), qrels={"test": {"q0": {"d3": 1}}}))
    follow_run(run, [other], cache=vectors, baselines=())
    assert names() == ["checkpoint-6"]
    save(with_heads(encoder, 8), run, 8)
    shutil.rmtree(run / "checkpoint-6")
    follow_run(run, [other], cache=vectors, baselines=(), models={"base": encoder})
    content = json.loads((run / "evaluation" / "checkpoints.json").read_text())["checkpoints"]
    assert [entry["points"] is None for entry in content] == [True, False], "of another baseline"
    shutil.rmtree(run / "checkpoint-8")
    save(with_heads(encoder, 1), run, 4, of=4, log_history=[{"loss": 9.0, "step": 4}])
    follow_run(run, [other], cache=vectors, baselines=())
    assert names() == ["checkpoint-4"]
    (run / "evaluation" / "checkpoints.json").write_text('{"format": 0}')
    follow_run(run, [other], cache=vectors, baselines=())
    assert names() == ["checkpoint-4"]
