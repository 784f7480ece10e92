"""The checkpoints of a run of the stock trainer: which are whole, which is the run's model, and what each scored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from st_asym.data.collection import first_few
from st_asym.data.files import EVALUATION_FOLDER, REPORT_FILE, read_json, write_json, write_text
from st_asym.evaluation.comparison import MAIN, Comparison, short_digest
from st_asym.retrieval.significance import Interval, p_value

STATE_FILE = "trainer_state.json"
# What marks the folder of a Sentence Transformers model: without it the library makes up a model of its own.
MODEL_FILE = "modules.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole: the folder ``checkpoint-STEP``, and the trainer's state when it was saved."""

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``checkpoint-STEP``."""
        return self.path.name

    @property
    def key(self) -> str:
        """What tells it from one of the same name."""
        return short_digest(self.state)


def checkpoints(output_dir: str | PathLike[str]) -> list[Checkpoint]:
    """The checkpoints that are whole, by step: the trainer's state is the last file that it writes into one."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step, state = folder.name.rpartition("-")[2], read_state(folder)
        if step.isdecimal() and state is not None:
            found.append(Checkpoint(folder, int(step), state))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def read_state(folder: str | PathLike[str]) -> Mapping[str, Any] | None:
    """The trainer's state in a folder, None where there is none or it is being written."""
    with suppress(OSError, ValueError):
        state = read_json(Path(folder, STATE_FILE))
        return state if isinstance(state, Mapping) else None
    return None


def last_checkpoint(output_dir: str | PathLike[str]) -> str | None:
    """The newest checkpoint of the stock trainer that is whole, for ``trainer.train(resume_from_checkpoint=...)``.

    The trainer's own search takes the newest folder, which a process that was killed may have left half written.

    Args:
        output_dir: The ``output_dir`` of the training arguments.

    Returns:
        The path of a checkpoint, or None if there is none, which is what ``train`` takes for a fresh start.

    Example:
        >>> last_checkpoint("a folder that does not exist") is None
        True
    """
    whole = checkpoints(output_dir)
    return str(whole[-1].path) if whole else None


@dataclass(frozen=True)
class Chosen:
    """The folder of the model of a run, and what was chosen and why, in words."""

    path: Path
    why: str

    @property
    def name(self) -> str:
        """As in the tables."""
        return self.path.resolve().name


def choose_model(run_dir: str | PathLike[str]) -> Chosen:
    """The model of a run: the best checkpoint, or, where the run names none, what it ended with or saved last.

    Args:
        run_dir: The ``output_dir`` of the stock trainer, or of :func:`st_asym.fit`; or the folder of a model.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no model that is whole. The message says what it holds.

    Example:
        >>> choose_model("runs/errors").why  # doctest: +SKIP
        'checkpoint-40, the best by eval_dev_cosine_ndcg@10 (0.7124).'
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run folder {run}.")
    whole = [checkpoint for checkpoint in checkpoints(run) if (checkpoint.path / MODEL_FILE).is_file()]
    states = [*(checkpoint.state for checkpoint in whole[-1:]), read_state(run) or {}]
    state = max(states, key=lambda state: int(state.get("global_step", 0)))
    # The run may have been moved, or be on another machine: its own folder's name is what counts.
    best = re.search(r"checkpoint-\d+$", str(state.get("best_model_checkpoint") or ""))
    for checkpoint in whole:
        if best is not None and checkpoint.name == best.group():
            return Chosen(checkpoint.path, f"{checkpoint.name}, the best by {_metric(state)}.")
    named = "The run names no best one." if best is None else f"The best, {best.group()}, is not there any more."
    if _has_final_model(run, whole):
        return Chosen(run, _what_is_saved(run, named if best or whole else None))
    if whole:
        return Chosen(whole[-1].path, f"{whole[-1].name}, the latest of {len(whole)}. {named}")
    raise ValueError(f"{run} holds no model to evaluate. {_contents(run)}")


def is_run(path: str | PathLike[str]) -> bool:
    """Whether a folder holds checkpoints, rather than only one model."""
    return Path(path).is_dir() and any(Path(path).glob("checkpoint-*"))


def _has_final_model(run: Path, whole: list[Checkpoint]) -> bool:
    """Whether a model lies in the run folder itself that is no older than its checkpoints."""
    with suppress(OSError):
        saved = (run / MODEL_FILE).stat().st_mtime_ns
        return all(saved >= (checkpoint.path / STATE_FILE).stat().st_mtime_ns for checkpoint in whole[-1:])
    return False


def why_ended(run: Path, newest: Checkpoint | None) -> str | None:
    """How a run that has ended is known to have, None for one that may go on; ``newest`` may be removed by now."""
    state = newest.state if newest is not None else {}
    stop = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {}).get("should_training_stop")
    step, steps = state.get("global_step", 0), state.get("max_steps", 0)
    if stop or step >= steps > 0:
        return f"training stopped after step {step:,} of {steps:,}"
    if _has_final_model(run, checkpoints(run)):
        return "the final model is saved"
    if (read_state(run) or {}).get("global_step", 0) >= max(1, step):
        return "the trainer has saved its last state"
    return None


@dataclass(frozen=True)
class Step:
    """What one checkpoint scored, as ``checkpoints.json`` has it."""

    name: str
    step: int
    epoch: float | None
    key: str  # digest of the trainer's state in it
    logged: int  # how many entries the trainer's log had
    history: str  # digest of these
    data: dict[str, str] = field(default_factory=dict)  # to its version
    scores: dict[str, float] = field(default_factory=dict)  # data set to nDCG@10
    average: float | None = None
    baseline: Sequence[Any] | None = None  # the name of what it is compared with, and its average
    points: float | None = None  # difference to it
    interval: Sequence[float] | None = None  # of 95 %
    p: float | None = None  # corrected for nothing
    problem: str | None = None  # why it has no scores

    @classmethod
    def of(cls, checkpoint: Checkpoint, found: Comparison | str) -> Step:
        """From a comparison, whose last row the checkpoint is, or from what is wrong with it."""
        log, epoch = checkpoint.state.get("log_history", []), checkpoint.state.get("epoch")
        epoch = None if epoch is None else round(float(epoch), 4)
        step = cls(checkpoint.name, checkpoint.step, epoch, checkpoint.key, len(log), short_digest(log))
        if isinstance(found, str):
            return replace(step, problem=found)
        first, row, gain = found.rows[0], found.rows[-1], found.rows[-1].difference
        if gain is not None:
            interval = None if gain.low is None or gain.high is None else (gain.low, gain.high)
            baseline = (first.name, first.average[MAIN])
            step = replace(step, baseline=baseline, points=gain.points, p=gain.p, interval=interval)
        return replace(
            step,
            data={name: str(known["version"]) for name, known in found.data.items()},
            scores={name: scores[MAIN] for name, scores in row.scores.items()},
            average=row.average[MAIN],
        )

    def beside(self, other: Step) -> Step:
        """Without the difference, where the other's is to another baseline: both stand in one column of a table."""
        if self.baseline is None or other.baseline is None or list(self.baseline) == list(other.baseline):
            return self
        return replace(self, baseline=None, points=None, interval=None, p=None)

    def __str__(self) -> str:
        """A line."""
        if self.average is None:
            return f"{self.name}: not evaluated. {self.problem}"
        if self.points is None or self.p is None or self.baseline is None:
            return f"{self.name}: nDCG@10 {self.average:.4f}."
        gain = f"{100 * self.points:+.2f} to {self.baseline[0]}, p {p_value(self.p)}"
        return f"{self.name}: nDCG@10 {self.average:.4f}, {gain}."


def add_step(folder: Path, step: Step, newest: Mapping[str, Any]) -> None:
    """Add a checkpoint to ``checkpoints.json`` and its table ``checkpoints.md``, in its place.

    What is there already is kept as far as it is of the same run and the same data: the log of an earlier checkpoint is
    the beginning of that in ``newest``, the trainer's state in the newest one.
    """
    log = newest.get("log_history", [])
    kept = [
        one
        for one in _steps(folder)
        if one.step != step.step
        and one.history == short_digest(log[: one.logged])
        and (not one.data or not step.data or one.data == step.data)
    ]
    steps = sorted([*(one.beside(step) for one in kept), step], key=lambda one: one.step)
    content = {"format": FORMAT, "checkpoints": [asdict(one) for one in steps]}
    write_json(folder / "checkpoints.json", content, indent=1)
    write_text(folder / "checkpoints.md", _table_of(steps))


def _steps(folder: Path) -> list[Step]:
    """The checkpoints in the file; without it, what is still there is evaluated again, out of the results."""
    with suppress(OSError, KeyError, TypeError, ValueError):
        content = read_json(folder / "checkpoints.json")
        return [Step(**values) for values in content["checkpoints"]] if content["format"] == FORMAT else []
    return []


def _table_of(steps: list[Step]) -> str:
    """All checkpoints in Markdown, the system that they are compared with first."""
    from st_asym.report.tables import table

    names = list(dict.fromkeys(name for one in steps for name in one.scores))
    several = names if len(names) > 1 else []
    header = ["Model", "epoch", "Avg nDCG@10" if several else "nDCG@10", "points", "95 %", "p", *several]
    rows = [
        [name, "", f"{average:.4f}", *[""] * (3 + len(several))]
        for name, average in dict.fromkeys(tuple(one.baseline) for one in steps if one.baseline is not None)
    ]
    for one in steps:
        rows.append(
            [
                one.name,
                "" if one.epoch is None else f"{one.epoch:g}",
                (one.problem or "") if one.average is None else f"{one.average:.4f}",
                "" if one.points is None else f"{100 * one.points:+.2f}",
                "" if one.interval is None else Interval(0.0, *(100 * end for end in one.interval)).ends,
                "" if one.p is None else p_value(one.p),
                *(f"{one.scores[name]:.4f}" if name in one.scores else "" for name in several),
            ]
        )
    return f"{table(header, rows)}\n\n{_NOTE}\n"


_NOTE = (
    "Difference in nDCG@10, paired by query: 95 % bootstrap interval, and p-value of a randomisation test, not "
    "corrected for the number of checkpoints. Choose a checkpoint by dev queries, not by this table."
)


def _metric(state: Mapping[str, Any]) -> str:
    """The name and value of what the best was chosen by: the state names the value alone."""
    value = state.get("best_metric")
    if not isinstance(value, int | float):
        return "the trainer's choice"
    for entry in state.get("log_history", []):
        if entry.get("step") == state.get("best_global_step", entry.get("step")):
            for name, found in entry.items():
                if name.startswith("eval_") and found == value:
                    return f"{name} ({value:.4f})"
    return f"the trainer's metric ({value:.4f})"


def _what_is_saved(run: Path, named: str | None) -> str:
    """What the model in the run folder itself is; ``named`` is what the run says of its best checkpoint."""
    with suppress(OSError, KeyError, TypeError, ValueError):
        report = read_json(run / REPORT_FILE)
        return f"{run.resolve().name}, which fit saved. {report['first_line']}"
    if named is None:
        return f"{run.resolve().name}, the model that is saved there."
    return f"{run.resolve().name}, the model that the run ended with. {named}"


def _contents(run: Path) -> str:
    names = sorted(entry.name for entry in run.iterdir() if entry.name != EVALUATION_FOLDER)
    if not names:
        return "It is empty."
    parts = []
    broken = [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if unfinished := [name for name in broken if read_state(run / name) is None]:
        parts.append(f"Not whole, without {STATE_FILE}: {first_few(unfinished)}.")
    if foreign := [name for name in broken if name not in unfinished]:
        parts.append(f"No models of Sentence Transformers, without {MODEL_FILE}: {first_few(foreign)}.")
    if inside := [name for name in names if (run / name / MODEL_FILE).is_file() or is_run(run / name)]:
        parts.append(f"There is a model or a run in {first_few([str(run / name) for name in inside])}: give that path.")
    return " ".join(parts) or f"It holds {first_few(names, 8)}."
