"""Training on cached vectors: killed and resumed, in two processes, and in little memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import save_tiny_bert
from processes import in_a_process
from training_process import pairs, train

from st_asym.evaluation.checkpoints import last_checkpoint

SCRIPT = Path(__file__).with_name("training_process.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    save_tiny_bert(path / "bert")
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    root = SCRIPT.parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'examples'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


@pytest.mark.slow
def test_two_processes_train_as_one_and_encode_each_text_once(folder: Path) -> None:
    """Each process has half of every batch; the first run fills as it trains, the second before.

    The third is with a loss that caches gradients.
    """
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT), str(folder)]
    process = run(sys.executable, *command)
    assert process.returncode == 0, process.stderr[-3000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(folder, "one-64", torch.float64, "covariance")
    train(folder, "one-32", torch.float32, "sigreg")
    train(folder, "one-gradients", torch.float64, "gradients")
    torch.set_num_threads(threads)
    for bits, tolerance in ((64, 1e-6), (32, 1e-4)):
        one = load(folder / f"one-{bits}-0.pt")
        two = [load(folder / f"two-{bits}-{rank}.pt") for rank in range(2)]
        assert torch.equal(two[0]["weights"], two[1]["weights"])
        assert (two[0]["weights"] - one["weights"]).abs().max() < tolerance
        assert len(one["losses"]) == len(two[0]["losses"]) == 50
        assert one["losses"][-1] < one["losses"][0] - 0.1
        assert two[0]["losses"] == pytest.approx(one["losses"], abs=tolerance)
        distinct = {text for column in pairs().to_dict().values() for text in column}
        assert sum(result["encoded"] for result in two) == one["encoded"] == len(distinct)
        # Each its share, or the first all.
        assert two[1]["encoded"] == (len(distinct) // 2 if bits == 64 else 0)
    one, *two = (load(folder / f"{name}.pt") for name in ("one-gradients-0", "two-gradients-0", "two-gradients-1"))
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    assert (two[0]["weights"] - one["weights"]).abs().max() < 1e-6
    assert one["losses"][-1] < one["losses"][0] - 0.1
    assert two[0]["losses"] == pytest.approx(one["losses"], abs=1e-6)


@pytest.mark.slow
def test_killed_and_resumed_is_the_uninterrupted_run(folder: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 7}
    for step in (10, 24):
        killed = in_a_process(train, folder, "killed", torch.float32, "sigreg", die=step, **settings)
        assert killed == -signal.SIGKILL
    # As if the last had been in the middle of its next checkpoint, which the trainer's own search would take.
    (folder / "killed" / "checkpoint-28").mkdir()
    (folder / "killed" / "checkpoint-28" / "trainer_state.json").write_text('{"epoch": ')
    assert str(last_checkpoint(folder / "killed")).endswith("checkpoint-21")
    assert in_a_process(train, folder, "killed", torch.float32, "sigreg", **settings) == 0
    assert in_a_process(train, folder, "whole", torch.float32, "sigreg", **settings) == 0
    whole, resumed = load(folder / "whole-0.pt"), load(folder / "killed-0.pt")
    assert torch.equal(whole["weights"], resumed["weights"])
    assert resumed["losses"] == whole["losses"]


def benchmark(*arguments: str) -> str:
    process = run(sys.executable, str(SCRIPT.parents[2] / "examples" / "benchmarks" / arguments[0]), *arguments[1:])
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("real_encoder_path")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_takes_little_memory() -> None:
    """A slice of what ``examples/benchmarks/memory.py`` measures on 88 thousand pairs."""
    found = json.loads(benchmark("memory.py", "--pairs", "1000").splitlines()[-1])
    assert found["megabytes at peak"]["VmRSS"] < 300, found


@pytest.mark.slow
@pytest.mark.usefixtures("real_encoder_path")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_speed_benchmark_on_a_small_store(shared_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    options = ["--quick", "--lines", "vectors", "--vectors", "3000", "--data", str(shared_data / "scifact.zip")]
    table = benchmark("speed.py", *options, "--output", str(output))
    assert "| 3,000 vectors of 384, float16" in table
    line = json.loads(output.read_text())["lines"][0]
    assert len(line["values"]) == 3
    assert line["detail"]["vectors"] == 3000
