"""The scores of a run by checkpoint, and where they are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from st_asym.checkpoints import Checkpoint
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.scores import MAIN
from st_asym.markdown import table
from st_asym.writing import write_text

FORMAT = 1


@dataclass(frozen=True)
class Step:
    """What one checkpoint scored.

    Attributes:
        name: ``checkpoint-STEP``.
        step: After how many steps it was saved.
        epoch: After how many epochs.
        key: Digest of the trainer's state in it.
        logged: How many entries the trainer's log had.
        history: Digest of these.
        data: Data set to its version.
        scores: Data set to nDCG@10.
        average: Mean of these.
        baseline: What the first system of the comparison is called, and its average.
        points: Difference to it; None where the model has no heads and nothing was given to compare with.
        interval: The 95 % interval of the difference.
        p: Of its randomisation test, corrected for nothing.
        problem: Why it has no scores.
    """

    name: str
    step: int
    epoch: float | None
    key: str
    logged: int
    history: str
    data: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    average: float | None = None
    baseline: tuple[str, float] | None = None
    points: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    problem: str | None = None

    @staticmethod
    def key_of(checkpoint: Checkpoint) -> str:
        """What tells a checkpoint from one of the same name."""
        return _digest(checkpoint.state)

    @classmethod
    def of(cls, checkpoint: Checkpoint, found: Comparison) -> Step:
        """From the comparison of a checkpoint, its last row."""
        first, row = found.rows[0], found.rows[-1]
        gain = row.difference
        interval = None
        if gain is not None and gain.low is not None and gain.high is not None:
            interval = (gain.low, gain.high)
        return cls(
            **_facts(checkpoint),
            data={name: str(facts["version"]) for name, facts in found.data.items()},
            scores={name: scores[MAIN] for name, scores in row.scores.items()},
            average=row.average[MAIN],
            baseline=None if gain is None else (first.name, first.average[MAIN]),
            points=None if gain is None else gain.points,
            interval=interval,
            p=None if gain is None else gain.p,
        )

    @classmethod
    def failed(cls, checkpoint: Checkpoint, problem: str) -> Step:
        """One without scores."""
        return cls(**_facts(checkpoint), problem=problem)

    def __str__(self) -> str:
        """A line."""
        if self.average is None:
            return f"{self.name}: not evaluated. {self.problem}"
        if self.points is None or self.p is None or self.baseline is None:
            return f"{self.name}: nDCG@10 {self.average:.4f}."
        return (
            f"{self.name}: nDCG@10 {self.average:.4f}, {100 * self.points:+.2f} to {self.baseline[0]}, p {self.p:.3f}."
        )


class Steps:
    """The file ``checkpoints.json`` of a run, and its table ``checkpoints.md``.

    Args:
        folder: Where they are. What is there already is kept as far as it is of the same run and the same data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.steps: list[Step] = []
        try:
            content = json.loads((folder / "checkpoints.json").read_text(encoding="utf-8"))
            if content["format"] == FORMAT:
                self.steps = [_read(values) for values in content["checkpoints"]]
        except (OSError, KeyError, TypeError, ValueError):
            pass  # what is still there is evaluated again, out of the results

    def add(self, step: Step, newest: Mapping[str, Any]) -> None:
        """Add a checkpoint in its place, and leave out those of an earlier training or on other data.

        Args:
            step: The checkpoint.
            newest: The trainer's state in the newest one: the log of an earlier one is its beginning.
        """
        log = newest.get("log_history", [])
        kept = [
            one
            for one in self.steps
            if one.step != step.step
            and one.history == _digest(log[: one.logged])
            and (not one.data or not step.data or one.data == step.data)
        ]
        self.steps = sorted([*kept, step], key=lambda one: one.step)
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "checkpoints": [asdict(one) for one in self.steps]}
        write_text(self._folder / "checkpoints.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_text(self._folder / "checkpoints.md", self.to_markdown())

    def to_markdown(self) -> str:
        """The table of all checkpoints, the system that they are compared with first."""
        names = list(dict.fromkeys(name for one in self.steps for name in one.scores))
        several = names if len(names) > 1 else []
        header = ["Model", "epoch", "Avg nDCG@10" if several else "nDCG@10", "points", "95 %", "p", *several]
        rows = [
            [name, "", f"{average:.4f}", "", "", "", *("" for _ in several)]
            for name, average in dict.fromkeys(one.baseline for one in self.steps if one.baseline is not None)
        ]
        rows += [_cells(one, several) for one in self.steps]
        note = (
            "Difference in nDCG@10, paired by query: 95 % bootstrap interval, and p-value of a randomisation test, not "
            "corrected for the number of checkpoints. Choose a checkpoint by dev queries, not by this table."
        )
        return f"{table(header, rows)}\n\n{note}\n"


def _cells(step: Step, names: list[str]) -> list[str]:
    cells = [step.name, "" if step.epoch is None else f"{step.epoch:g}"]
    if step.average is None:
        return [*cells, step.problem or "", *("" for _ in range(3 + len(names)))]
    return [
        *cells,
        f"{step.average:.4f}",
        "" if step.points is None else f"{100 * step.points:+.2f}",
        "" if step.interval is None else "[{:+.2f}, {:+.2f}]".format(*(100 * end for end in step.interval)),
        "" if step.p is None else f"{step.p:.3f}",
        *(f"{step.scores[name]:.4f}" if name in step.scores else "" for name in names),
    ]


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    log, epoch = checkpoint.state.get("log_history", []), checkpoint.state.get("epoch")
    return {
        "name": checkpoint.name,
        "step": checkpoint.step,
        "epoch": None if epoch is None else round(float(epoch), 4),
        "key": Step.key_of(checkpoint),
        "logged": len(log),
        "history": _digest(log),
    }


def _read(values: Mapping[str, Any]) -> Step:
    pairs = {name: None if values[name] is None else tuple(values[name]) for name in ("baseline", "interval")}
    return Step(**{**values, **pairs})


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
