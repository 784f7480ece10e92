from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_helpers import model_with_random_heads
from typer.testing import CliRunner

from st_asym.cli import app

SIDES = ("query", "document")

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("orjson")


@pytest.fixture(scope="module")
def folder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "clicks"
    model_with_random_heads(tiny_bert).save_pretrained(str(path))
    return path


def test_both_sides_are_served_under_the_name_of_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []

    def run(server: Any, sockets: list[socket.socket]) -> None:
        assert sockets[0].getsockname()[1] > 0
        from starlette.testclient import TestClient

        client = TestClient(server.config.app)
        answers.extend(client.post("/v1/embeddings", json={"model": f"clicks-{s}", "input": "red"}) for s in SIDES)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    result = CliRunner().invoke(app, ["serve", str(folder), "--port", "0", "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("clicks-query and clicks-document at http://127.0.0.1:")
    query, document = (np.array(answer.json()["data"][0]["embedding"]) for answer in answers)
    assert np.abs(query - document).max() > 0.01
    run_folder = folder.parent / "run" / folder.name
    shutil.copytree(folder, run_folder / "checkpoint-3")
    (run_folder / "checkpoint-3" / "trainer_state.json").write_text("{}")
    result = CliRunner().invoke(app, ["serve", str(run_folder), "--port", "0", "--quiet"])
    assert result.stdout.splitlines()[0].endswith("clicks: checkpoint-3, the latest of 1. The run names no best one.")
    assert [answer.status_code for answer in answers] == [200] * 4


def test_a_port_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["serve", str(folder), "--port", str(taken.getsockname()[1]), "--quiet"])
    assert result.exit_code == 2
    assert "Error: Cannot listen on 127.0.0.1, port" in result.stderr
    assert result.stderr.strip().count("\n") == 0
