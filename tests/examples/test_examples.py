from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packaged_encoder
import pytest
import python_docs
from scoring import Scores, score, summarise

from st_asym import Comparison
from st_asym.data import RetrievalData

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_docstrings_become_pairs_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_docs"
    (package / "tests").mkdir(parents=True)
    (package / "_private").mkdir()
    rest = "It takes a list and returns a new one in ascending order. " * 3
    source = f'''
raise ImportError("importing this would run it")
def sort_values(x):
    """Sort the values of a list in place.

    {rest}
    """
def _hidden(x):
    """Do something that is not documented publicly.

    {rest}
    """
def short(x):
    """Too short to search for in this place."""
'''
    for file in ("__init__.py", "tests/test_it.py", "_private/impl.py"):
        (package / file).write_text(source)
    (package / "broken.py").write_text("def (:")
    monkeypatch.syspath_prepend(tmp_path)
    data = python_docs.python_docs(packages=("some_docs", "not_installed_anywhere"))
    assert list(data.queries.values()) == ["Sort the values of a list in place."]
    assert list(data.corpus.values()) == [rest.strip()]


def test_the_weights_of_the_packaged_encoder_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forged_encoder" / "model").mkdir(parents=True)
    (tmp_path / "forged_encoder" / "__init__.py").write_text("raise ImportError('never imported')")
    (tmp_path / "forged_encoder" / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packaged_encoder, "_PACKAGE", "forged_encoder")
    with pytest.raises(ValueError, match="has SHA-256"):
        packaged_encoder.packaged_encoder()
    monkeypatch.setattr(packaged_encoder, "_PACKAGE", "not_installed_anywhere")
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        packaged_encoder.packaged_encoder()


@pytest.mark.slow
def test_the_quickstart_on_pairs_of_its_own(real_encoder_path: str, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = [{"query": f"error E{i}", "positive": f"part number {i * 7919 % 1000} failed"} for i in range(120)]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "run"
    arguments = ["--data", str(pairs), "--encoder", real_encoder_path, "--output", str(output)]
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(host, *_, **__):\n"
        f"    open({str(tmp_path / 'looked_up')!r}, 'a').write(f'{{host}}\\n')\n"
        "    raise OSError('no network in this test')\n"
        "socket.getaddrinfo = refuse\n"
    )
    environment["PYTHONPATH"] = str(tmp_path)
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env=environment
    )
    assert process.returncode == 0, process.stderr
    assert not (tmp_path / "looked_up").exists(), (tmp_path / "looked_up").read_text()
    report = json.loads((output / "model" / "st_asym_report.json").read_text())
    assert report["first_line"] in process.stdout
    assert "Loaded without st_asym." in process.stdout
    assert "'loss'" not in process.stdout + process.stderr, "no dictionaries of the trainer"
    comparison = Comparison.load(output / "results.json")
    fused = ["untouched encoder", "BM25", "untouched encoder + BM25", "fit", "fit + BM25"]
    assert [row.name for row in comparison.rows] == fused
    assert str(comparison) in process.stdout


class Fixed:
    """A model whose similarities are given: each query's vector is its row of scores, each document's a unit vector."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        return self.scores[: len(texts)]

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        return np.eye(len(texts))


def test_scores_are_those_of_the_definitions() -> None:
    corpus = {f"d{i}": f"document {i}" for i in range(150)}
    judged = {"q0": {"d1": 1}, "q1": {"d0": 2, "d3": 1, "d149": 1}, "q2": {"d5": 0}}
    data = RetrievalData({query: query for query in judged}, corpus, {"test": judged})
    falling = np.linspace(1.0, 0.0, 150)  # d0 is first, d1 second, ...
    scores = score(Fixed(np.stack([falling, falling])), data)  # type: ignore[arg-type]
    ideal = 2 + 1 / np.log2(3) + 1 / np.log2(4)
    assert scores.ndcg_at_10 == pytest.approx([1 / np.log2(3), (2 + 1 / np.log2(5)) / ideal])
    assert scores.recall_at_100 == pytest.approx([1.0, 2 / 3])


def test_the_interval_is_that_of_the_paired_difference() -> None:
    before = np.linspace(0.0, 1.0, 50)
    rows = summarise({"before": [Scores(before, before)], "after": [Scores(before + 0.01, before)] * 2})
    assert rows[1]["difference"] == pytest.approx(0.01)
    assert rows[1]["95 %"] == pytest.approx([0.01, 0.01])
    assert "difference" not in rows[0]


@pytest.fixture
def small_beir(tmp_path: Path) -> Path:
    """Thirty parts that have failed, and as many queries, twenty of them for training."""
    folder = tmp_path / "parts"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": f"part number {i * 7919 % 1000} failed"} for i in range(30)]
    queries = [{"_id": f"q{i}", "text": f"error {i * 7919 % 1000}"} for i in range(30)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels" / "train.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(20)))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(20, 30)))
    return folder


Run = Callable[..., str]


@pytest.fixture
def run_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script in this process, which has loaded the libraries before, and gives what it prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        importlib.import_module(name).main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("real_encoder_path")
@pytest.mark.parametrize(
    ("example", "arguments", "rows"),
    [
        ("hard_negatives", ["--negatives", "2", "--epochs", "2"], ["in-batch", "whole corpus", "in-batch, 2 hard"]),
        ("unfreeze_layers", ["--epochs", "1"], ["heads alone", "heads and last 1 layer(s)"]),
    ],
)
def test_the_examples_of_other_ways_to_train(
    tmp_path: Path,
    run_example: Run,
    example: str,
    arguments: list[str],
    rows: list[str],
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = [{"query": f"error E{i}", "positive": f"part number {i * 7919 % 1000} failed"} for i in range(60)]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = run_example(example, "--data", str(pairs), *arguments)
    for row in ["untouched encoder", *rows]:
        assert re.search(rf"^ {re.escape(row)} +0\.\d{{4}} ", printed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.usefixtures("real_encoder_path")
def test_the_examples_of_evaluation(tmp_path: Path, small_beir: Path, run_example: Run) -> None:
    pytest.importorskip("mteb")
    printed = run_example("compare_systems", str(small_beir), "--seeds", "0", "1")
    assert "Several seeds, mean ± standard deviation: both sides 2, query side 2." in printed
    assert "parts, unseen" in printed
    output = tmp_path / "runs" / "compare_systems"
    models = f"heads={output / 'both-0'},{output / 'both-1'}"
    printed = run_example("compare_systems", str(small_beir), "--system", models)
    assert "Several seeds, mean ± standard deviation: heads 2." in printed
    assert "unseen" not in printed
    printed = run_example("evaluate_beir", str(small_beir), "--model", str(output / "both-0"))
    table = (tmp_path / "runs" / "evaluate_beir" / "beir.md").read_text()
    assert "both-0" in printed
    assert table.startswith("| Model | Avg NDCG@10 | vs Baseline |")
    assert Comparison.load(tmp_path / "runs" / "evaluate_beir" / "beir.json").data["parts"]["queries"] == 10
