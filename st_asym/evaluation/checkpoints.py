"""The checkpoints of the stock trainer: which are whole, and where to go on after a run that was killed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from st_asym.data.collection import first_few
from st_asym.disk.writing import EVALUATION_FOLDER, REPORT_FILE

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        path: Its folder, ``checkpoint-STEP``.
        step: After how many steps it was saved.
        state: The trainer's state then, as in ``trainer_state.json``.
    """

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``checkpoint-STEP``."""
        return self.path.name


def checkpoints(output_dir: str | PathLike[str]) -> list[Checkpoint]:
    """The checkpoints that are whole, by step.

    The trainer's state is the last file that it writes, so a checkpoint that has it has everything.

    Args:
        output_dir: The ``output_dir`` of the training arguments.

    Example:
        >>> checkpoints("a folder that does not exist")
        []
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step, state = folder.name.rpartition("-")[2], read_state(folder)
        if step.isdecimal() and state is not None:
            found.append(Checkpoint(folder, int(step), state))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def read_state(folder: str | PathLike[str]) -> Mapping[str, Any] | None:
    """The trainer's state in a folder, None where there is none or it is being written."""
    try:
        state = json.loads(Path(folder, STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, Mapping) else None


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


# What marks the folder of a Sentence Transformers model: without it the library makes up a model of its own.
MODEL_FILE = "modules.json"


@dataclass(frozen=True)
class Chosen:
    """The model of a run.

    Attributes:
        path: Its folder.
        why: What was chosen and why, in words.
    """

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
    best = _best_name(run, whole)
    for checkpoint in whole:
        if checkpoint.name == best:
            return Chosen(checkpoint.path, f"{best}, the best by {_metric(_newest_state(run, whole))}.")
    named = f"The best, {best}, is not there any more." if best else "The run names no best one."
    if has_final_model(run, whole):
        return Chosen(run, _what_is_saved(run, named if best or whole else None))
    if whole:
        return Chosen(whole[-1].path, f"{whole[-1].name}, the latest of {len(whole)}. {named}")
    raise ValueError(f"{run} holds no model to evaluate. {_contents(run)}")


def is_run(path: str | PathLike[str]) -> bool:
    """Whether a folder holds checkpoints, rather than only one model."""
    return Path(path).is_dir() and any(Path(path).glob("checkpoint-*"))


def has_final_model(run: Path, whole: list[Checkpoint]) -> bool:
    """Whether a model lies in the run folder itself that is no older than its checkpoints."""
    try:
        saved = (run / MODEL_FILE).stat().st_mtime_ns
        return all(saved >= (checkpoint.path / STATE_FILE).stat().st_mtime_ns for checkpoint in whole[-1:])
    except OSError:
        return False


def why_ended(run: Path, newest: Checkpoint | None) -> str | None:
    """How a run that has ended is known to have, None for one that may go on.

    Args:
        run: The run folder.
        newest: Its checkpoint after the most steps, which may have been removed since.
    """
    state = newest.state if newest is not None else {}
    stop = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {}).get("should_training_stop")
    step, steps = state.get("global_step", 0), state.get("max_steps", 0)
    if stop or step >= steps > 0:
        return f"training stopped after step {step:,} of {steps:,}"
    whole = checkpoints(run)
    if has_final_model(run, whole):
        return "the final model is saved"
    own = read_state(run)
    if own is not None and own.get("global_step", 0) > 0 and own.get("global_step", 0) >= step:
        return "the trainer has saved its last state"
    return None


def _best_name(run: Path, whole: list[Checkpoint]) -> str | None:
    # The run may have been moved, or be on another machine: its own folder's name is what counts.
    found = re.search(r"checkpoint-\d+$", str(_newest_state(run, whole).get("best_model_checkpoint") or ""))
    return found.group() if found else None


def _newest_state(run: Path, whole: list[Checkpoint]) -> Mapping[str, Any]:
    states = [state for state in (*(one.state for one in whole[-1:]), read_state(run)) if state is not None]
    return max(states, key=lambda state: int(state.get("global_step", 0)), default={})


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
    try:
        report = json.loads((run / REPORT_FILE).read_text(encoding="utf-8"))
        return f"{run.resolve().name}, which fit saved. {report['first_line']}"
    except (OSError, KeyError, TypeError, ValueError):
        pass
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
