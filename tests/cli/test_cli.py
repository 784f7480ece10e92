from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

import st_asym
from st_asym.cli import app
from st_asym.data import load_data
from st_asym.heads.model import load_encoder

PAIRS = [("red head", "big red head"), ("small text", "the small text"), ("query", "answers query"), ("vector", "big")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_transformer: Transformer) -> Path:
    """A folder with an encoder and a file of pairs, and the same pairs as a BEIR folder and heads on the encoder."""
    folder = tmp_path_factory.mktemp("saved")
    encoder = SentenceTransformer(modules=[tiny_transformer, Pooling(16, "mean"), Normalize()], device="cpu")
    encoder.save_pretrained(str(folder / "encoder"))
    rows = [json.dumps({"query": query, "positive": document}) for query, document in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    loaded = SentenceTransformer(str(folder / "encoder"), device="cpu")
    st_asym.asymmetric_model(loaded).save_pretrained(str(folder / "heads"))
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": text} for i, (_, text) in enumerate(PAIRS)]
    (beir / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    queries = [{"_id": f"q{i}", "text": text} for i, (text, _) in enumerate(PAIRS)]
    (beir / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (beir / "qrels" / "test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(len(PAIRS))))
    return folder


@pytest.fixture
def folder(tmp_path: Path, saved: Path) -> Path:
    """A folder with an encoder and a file of pairs."""
    shutil.copytree(saved / "encoder", tmp_path / "encoder")
    shutil.copy(saved / "pairs.jsonl", tmp_path)
    return tmp_path


def run(folder: Path, *arguments: str, train: str | None = "pairs.jsonl") -> Any:
    paths = [str(folder / "encoder"), *([] if train is None else [str(folder / train)])]
    fixed = ["--output-dir", str(folder / "model"), "--cache", str(folder / "vectors"), "--quiet"]
    return CliRunner().invoke(app, ["fit", *paths, *fixed, *arguments])


def test_a_model_is_saved_and_the_report_is_printed(folder: Path) -> None:
    result = run(folder, "--max-seconds", "5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    report = json.loads((folder / "model" / "st_asym_report.json").read_text())
    assert lines[0] == report["first_line"]
    assert lines[-1] == f"Saved in {folder / 'model'}."
    assert SentenceTransformer(str(folder / "model"), device="cpu").encode_query("red head").shape == (16,)


def test_options_reach_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Found:
        report = "first\nsecond"

    def spy(*arguments: Any, **options: Any) -> Found:
        seen.update(options, arguments=arguments)
        return Found()

    monkeypatch.setattr("st_asym.fitting.fit", spy)
    options = "--dev d --corpus c --init random --closed --sides query --trials 3 --precision bf16 --seed 4"
    assert run(folder, *options.split()).stdout.startswith("first\nsecond\n")
    assert seen["arguments"] == (str(folder / "encoder"), str(folder / "pairs.jsonl"))
    settings = seen.pop("settings")
    assert settings == st_asym.Settings(sides="query", init="random")
    expected = {"dev": "d", "corpus": "c", "collection": "closed", "expected_unseen": None}
    expected |= {"trials": 3, "precision": "bf16", "seed": 4, "max_seconds": None, "show_progress_bar": False}
    assert expected.items() <= seen.items()
    run(folder, "--open", train=None)
    assert seen["arguments"] == (str(folder / "encoder"), None)
    assert (seen["collection"], seen["settings"]) == ("open", st_asym.Settings())
    assert not seen["hold_out_test"]
    run(folder, "--expected-unseen", "0.3")
    assert (seen["collection"], seen["expected_unseen"]) == (None, 0.3)
    run(folder, "--linear", "--hard-negatives", "2")
    expected_settings = st_asym.Settings(hidden_features=None, bias=False, contrastive="in-batch", hard_negatives=2)
    assert seen["settings"] == expected_settings


def test_what_is_evaluated_in_the_end_is_not_trained_on(folder: Path) -> None:
    rows = [f"query {number},answers {number}" for number in range(40)]
    (folder / "clicks.csv").write_text("\n".join(["query,document", *rows]))
    result = run(folder, "--max-seconds", "5", "--evaluate", str(folder / "clicks.csv"), train="clicks.csv")
    assert result.exit_code == 0, result.output
    test = load_data(folder / "clicks.csv").qrels["test"]
    report = json.loads((folder / "model" / "st_asym_report.json").read_text())
    assert report["counts"] == {"documents": 40, "train": 40 - len(test), "test": len(test)}
    found = st_asym.Comparison.load(folder / "model" / "evaluation" / "table.json")
    assert (found.data["clicks"]["queries"], found.queries["clicks"]["seen"]) == (len(test), [])
    assert "was trained on all queries" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "train", "message"),
    [
        ([], "nowhere.jsonl", "Error: There is no file or folder"),
        ([], None, "Error: There is nothing to train on"),
        (["--open", "--expected-unseen", "0.5"], "pairs.jsonl", "expected_unseen=0.5 say the same: give one"),
        (["--max-seconds", "-1"], "pairs.jsonl", "Error: max_seconds must be above 0"),
    ],
)
def test_an_error_is_one_line(folder: Path, arguments: list[str], train: str | None, message: str) -> None:
    result = run(folder, *arguments, train=train)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_debug_shows_where_an_error_came_from(folder: Path) -> None:
    result = run(folder, "--debug", train="nowhere.jsonl")
    assert isinstance(result.exception, FileNotFoundError)


@pytest.mark.parametrize(
    "option",
    [["--init", "none"], ["--sides", "left"], ["--trials", "-1"], ["--precision", "8"], ["--expected-unseen", "2"]],
)
def test_what_an_option_cannot_be_is_refused(folder: Path, option: list[str]) -> None:
    result = run(folder, *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr


def test_the_version_is_shown() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"st-asym {st_asym.__version__}\n")
    assert "--version" in CliRunner().invoke(app, ["--help"]).stdout
    assert CliRunner().invoke(app, []).stdout.count("verify")  # alone, it shows the help


def test_how_a_model_is_loaded_is_an_option_of_all_commands(
    folder: Path, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ["--cache", str(folder / "vectors"), "--quiet"]
    commands = [
        ["fit", "me/model", str(folder / "pairs.jsonl"), "-o", str(folder / "fitted"), *places],
        ["evaluate", str(beir), "-m", "me/model", "--results", str(folder / "results"), *places],
        ["evaluate", str(beir), "-m", "me/model", "-m", str(folder / "model"), *places],
        ["diagnose", "me/model", str(beir), *places],
        ["export", "me/model", "--side", "query", "-o", str(folder / "side")],
    ]
    seen: list[tuple[Any, dict[str, Any]]] = []

    class Loaded(SentenceTransformer):
        def __init__(self, name: str, **options: Any) -> None:
            seen.append((name, options))
            raise OSError("it was asked for")

    monkeypatch.setattr("st_asym.heads.model.SentenceTransformer", Loaded)
    for command in commands:
        seen.clear()
        result = CliRunner().invoke(app, [*command, "--revision", "v2", "--trust-remote-code", "--dtype", "float16"])
        assert result.exit_code == 2
        assert "me/model at revision v2 is no folder here and is not whole in the cache" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        name, options = seen[0]
        assert name == "me/model"
        assert (options["revision"], options["trust_remote_code"]) == ("v2", True)


def test_weights_are_evaluated_as_they_are_asked_for(folder: Path, beir: Path) -> None:
    places = ["--cache", str(folder / "vectors"), "--results", str(folder / "results"), "--quiet"]
    digests = []
    for options in ([], ["--dtype", "float16"]):
        command = ["evaluate", str(beir), "-m", f"m={folder / 'encoder'}", "--json", str(folder / "found.json")]
        result = CliRunner().invoke(app, [*command, *places, *options])
        assert result.exit_code == 0, result.output
        digests.append(st_asym.Comparison.load(folder / "found.json")["m"].digests)
    assert digests[0] != digests[1]
    result = CliRunner().invoke(app, ["evaluate", str(beir), "-m", str(folder / "encoder"), "--revision", "x", *places])
    assert "--revision x is for one Hub id, and --model names 0" in result.stderr
    result = CliRunner().invoke(app, ["evaluate", str(folder / "model"), "--dtype", "float16", *places[:2]])
    assert "are for models that --model names" in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/nothing", "HF_HUB_OFFLINE forbids to ask the Hub: unset it, or give the path of a folder"),
        ("nothing", "nothing is no folder here and is not whole in the cache"),
        ("./nothing", "There is no folder ./nothing: give the path of one that holds a model, or the model's Hub id."),
        ("/no/such/folder", "There is no folder /no/such/folder"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(folder: Path, name: str, message: str) -> None:
    command = ["fit", name, str(folder / "pairs.jsonl"), "-o", str(folder / "model"), "--quiet"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_hub_that_cannot_be_reached_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files.")

    monkeypatch.setattr("st_asym.heads.model.SentenceTransformer.__init__", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="couldn't connect") as caught:
        load_encoder("me/model")
    for part in ("me/model is no folder here", "the path of a folder", "hf download me/model", "HF_HUB_OFFLINE=1"):
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(OSError, match="load the files"):  # a folder that is damaged is not the Hub's fault
        load_encoder(folder / "encoder")
    with pytest.raises(ValueError, match="is a folder, and only a Hub id has revisions"):
        load_encoder(folder / "encoder", revision="v2")


def test_the_module_runs_as_the_command() -> None:
    code = [sys.executable, "-m", "st_asym", "fit", "--help"]
    assert "--output-dir" in subprocess.run(code, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def beir(folder: Path, saved: Path) -> Path:
    """A BEIR folder, and a model with heads in ``model`` beside it."""
    shutil.copytree(saved / "heads", folder / "model")
    return Path(shutil.copytree(saved / "beir", folder / "beir"))


def test_a_model_is_diagnosed(folder: Path, beir: Path) -> None:
    paths = [str(folder / "model"), str(beir)]
    options = ["--cache", str(folder / "vectors"), "--quiet"]
    result = CliRunner().invoke(app, ["diagnose", *paths, *options, "--json", str(folder / "figures.json")])
    assert result.exit_code == 0, result.output
    assert "identity" in result.stdout
    assert json.loads((folder / "figures.json").read_text())["findings"]
    result = CliRunner().invoke(app, ["diagnose", *paths, *options, "--split", "dev"])
    assert result.exit_code == 2
    assert "has no split 'dev': choose one of test" in result.stderr


def test_models_are_compared(folder: Path, beir: Path) -> None:
    places = ["--cache", str(folder / "vectors"), "--results", str(folder / "results")]
    options = ["-m", f"untouched={folder / 'encoder'}", "-m", f"heads={folder / 'model'}", "--quiet", *places]
    result = CliRunner().invoke(app, ["evaluate", str(beir), *options, "--json", str(folder / "comparison.json")])
    assert result.exit_code == 0, result.output
    rows = st_asym.Comparison.load(folder / "comparison.json").rows
    assert [row.name for row in rows] == ["untouched", "BM25", "untouched + BM25", "heads", "heads + BM25"]
    assert "untouched" in result.stdout
    result = CliRunner().invoke(app, ["evaluate", *options, "--on", str(beir), "--json", str(folder / "on.json")])
    assert result.exit_code == 0, result.output
    assert st_asym.Comparison.load(folder / "on.json").rows == st_asym.Comparison.load(folder / "comparison.json").rows
    odd = folder / "lr=1e-3"
    (folder / "model").rename(odd)
    options = ["-m", str(odd), "-m", f"best={odd}", "--quiet", *places]
    result = CliRunner().invoke(app, ["evaluate", str(beir), *options, "--json", str(folder / "comparison.json")])
    assert result.exit_code == 0, result.output
    rows = st_asym.Comparison.load(folder / "comparison.json").rows
    names = [row.name for row in rows if not row.baseline]
    assert names[-2:] == [str(odd), "best"]
    result = CliRunner().invoke(app, ["evaluate", str(beir), "-m", "x=a", "-m", "x=b", *places])
    assert result.exit_code == 2
    assert "Two models have one name" in result.stderr


@pytest.mark.slow
def test_each_command_writes_its_page(folder: Path, beir: Path) -> None:
    heads, places = str(folder / "model"), ["--cache", str(folder / "vectors"), "--quiet"]
    commands = {
        "Diagnosis": ["diagnose", heads, str(beir)],
        "Comparison": ["evaluate", str(beir), "-m", heads, "--results", str(folder / "results")],
        "Fit": ["fit", str(folder / "encoder"), str(folder / "pairs.jsonl"), "-o", str(folder / "fitted")],
    }
    for title, command in commands.items():
        page = folder / "pages" / f"{title}.html"
        result = CliRunner().invoke(app, [*command, *places, "--html", str(page)])
        assert result.exit_code == 0, result.output
        assert f"<h1>{title}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_json_that_cannot_be_written_is_refused_before_the_work(folder: Path, command: str) -> None:
    places = ["nothing.csv", "-m", "nothing"] if command == "evaluate" else ["nothing", "nothing.csv"]
    result = CliRunner().invoke(app, [command, *places, "--json", str(folder)])
    assert result.exit_code == 2
    assert "is a folder: name a file for the JSON" in result.stderr


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_asym.fitting.fit", lambda *_, **__: pytest.fail("fitted"))
    result = run(folder, "--html", str(folder))
    assert result.exit_code == 2
    assert "is a folder: name a file" in result.stderr
    monkeypatch.setattr("st_asym.report.html.find_spec", lambda _: None)
    result = run(folder, "--html", str(folder / "page.html"))
    assert result.exit_code == 2
    assert "st_asym[report]" in result.stderr


def test_fit_ends_with_an_evaluation_that_can_be_asked_for_again(folder: Path, beir: Path) -> None:
    (folder / "model" / "st_asym_report.json").write_text("{}")  # an earlier result, to be replaced
    result = run(folder, "--max-seconds", "5", "--evaluate", str(beir), "--evaluate", str(folder / "pairs.jsonl"))
    assert result.exit_code == 2  # before anything is fitted: of four pairs none fell into a test split
    assert "pairs: no query of the split 'test' has a relevant document" in result.stderr
    result = run(folder, "--max-seconds", "5", "--evaluate", str(beir))
    assert result.exit_code == 0, result.output
    evaluation = folder / "model" / "evaluation"
    assert result.stdout.splitlines()[-1] == f"Results, log and table are in {evaluation}."
    assert sorted(path.name for path in evaluation.iterdir()) == [
        "asked.json",
        "log.txt",
        "results",
        "table.json",
        "table.md",
    ]
    found = st_asym.Comparison.load(evaluation / "table.json")
    assert [row.name for row in found.rows if not row.baseline] == ["untouched encoder", "model"]
    assert found.queries["beir"]["seen"] == ["q0", "q1", "q2", "q3"]  # the pairs are those of the folder

    options = ["--cache", str(folder / "vectors"), "--quiet"]
    result = CliRunner().invoke(app, ["evaluate", str(folder / "model"), *options])
    assert result.exit_code == 0, result.output
    assert "which fit saved" in result.stdout
    again = st_asym.Comparison.load(evaluation / "table.json")
    assert again.rows == found.rows


def test_the_model_of_a_run_is_evaluated(folder: Path, beir: Path) -> None:
    (folder / "model").rename(folder / "checkpoint-3")
    state = {"global_step": 3, "max_steps": 3, "log_history": []}
    (folder / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(state))
    options = ["--on", str(beir), "--cache", str(folder / "vectors"), "--quiet"]
    for more in ([], ["--watch", "--interval", "0.1"]):
        result = CliRunner().invoke(app, ["evaluate", str(folder), *options, *more])
        assert result.exit_code == 0, result.output
        assert "Evaluated: checkpoint-3, the latest of 1. The run names no best one." in result.stdout
    assert "The run has ended: training stopped after step 3 of 3." in result.stdout
    assert (folder / "evaluation" / "checkpoints.md").is_file()
    places = ["--cache", str(folder / "vectors"), "--results", str(folder / "results"), "--quiet"]
    result = CliRunner().invoke(app, ["evaluate", str(beir), "--model", f"run={folder}", *places])
    assert result.exit_code == 0, result.output
    assert "run: checkpoint-3, the latest of 1." in result.stdout


def test_the_model_of_a_run_is_diagnosed_and_exported(folder: Path, beir: Path) -> None:
    (folder / "run").mkdir()
    (folder / "model").rename(folder / "run" / "checkpoint-3")
    state = {"global_step": 3, "max_steps": 3, "log_history": []}
    (folder / "run" / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(state))
    places = [str(beir), "--cache", str(folder / "vectors")]
    for command, options in (("diagnose", places), ("export", ["--side", "query", "-o", str(folder / "side")])):
        result = CliRunner().invoke(app, [command, str(folder / "run"), *options, "--quiet"])
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{folder / 'run'}: checkpoint-3, the latest of 1.")
    shutil.copytree(folder / "run" / "checkpoint-3", folder / "run", dirs_exist_ok=True)
    (folder / "run" / "trainer_state.json").unlink()
    os.utime(folder / "run" / "checkpoint-3" / "trainer_state.json")  # as a download may leave it
    result = CliRunner().invoke(app, ["diagnose", str(folder / "run"), *places, "--quiet"])
    assert result.exit_code == 0, result.output
    assert "checkpoint-3" not in result.stdout, "the model in the folder is the one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is nothing to evaluate: give the folder of a run, or models with --model."),
        (["beir"], "without --model, this must be the folder of one run"),
        (["SciFact"], "without --model, this must be the folder of one run"),
        (["model", "encoder", "--on", "beir"], "without --model, this must be the folder of one run"),
        (["beir", "--model", "encoder", "--watch"], "--watch follows one run"),
        (
            ["beir", "--model", "encoder", "--patience", "3"],
            "--interval and --patience say how to watch a run",
        ),
        (["model", "--interval", "3"], "--interval and --patience say how to watch a run: add --watch"),
        (["qrels", "--on", "beir"], "qrels holds no model to evaluate. It holds test.tsv."),
        (["model"], "It was not evaluated before: say what to evaluate it on"),
        (["beir", "--model", "run"], "run holds no model to evaluate. Not whole"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(
    folder: Path, beir: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (beir / "qrels").rename(folder / "qrels")
    (beir / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").rename(beir / "qrels" / "test.tsv")
    (folder / "qrels" / "test.tsv").write_text("")
    (folder / "run" / "checkpoint-1").mkdir(parents=True)
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--cache", "vectors", "--quiet"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("beir")
def test_a_side_is_exported(folder: Path) -> None:
    command = ["export", str(folder / "model"), "--side", "query", "--quiet"]
    result = CliRunner().invoke(app, [*command, "--output", str(folder / "side")])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{folder / 'side'}: ")
    assert SentenceTransformer(str(folder / "side"), device="cpu").encode("red head").shape == (16,)
    result = CliRunner().invoke(app, [*command, "--output", str(folder / "side")])
    assert result.exit_code == 2
    assert "exists and is not an empty folder" in result.stderr
    result = CliRunner().invoke(app, [*command, "--output", str(folder / "other"), "--int8"])
    assert result.exit_code == 2
    assert "int8 is for format='onnx'" in result.stderr


def test_quiet_gives_progress_bars_and_levels_back(folder: Path) -> None:
    logger = logging.getLogger("st_asym")
    level, shown = logger.level, transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.enable_progress_bar()
        CliRunner().invoke(
            app, ["export", str(folder / "encoder"), "--side", "query", "-o", str(folder / "s"), "--quiet"]
        )
        assert transformers_logging.is_progress_bar_enabled()
        assert logger.level == level
    finally:
        if not shown:
            transformers_logging.disable_progress_bar()
