"""The scores of a run by checkpoint, and where they are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.disk.writing import write_text
from st_asym.evaluation.checkpoints import MODEL_FILE, Checkpoint, checkpoints, read_state, why_ended
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.evaluate import evaluate
from st_asym.evaluation.models import Model
from st_asym.evaluation.run_folder import Asked, RunFolder, evaluate_run, what_to_evaluate
from st_asym.evaluation.scores import MAIN
from st_asym.heads.model import load_encoder

if TYPE_CHECKING:
    from st_asym.evaluation.seen import Train
    from st_asym.evaluation.tasks import Source

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
        from st_asym.report.tables import table

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


logger = logging.getLogger(__name__)


def follow_run(
    run_dir: str | os.PathLike[str],
    tasks: Source | Mapping[str, Source] | Iterable[Source] | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    split: str | None = None,
    train: Train | None = None,
    interval: float = 30.0,
    patience: float = 3600.0,
    tell: Callable[[str], None] | None = None,
) -> Comparison:
    """Evaluate each new checkpoint of a run once, until the run ends, and then its model by :func:`evaluate_run`.

    The run has ended when its last checkpoint says so (all steps done, or stopped early), when the final model or the
    trainer's state is saved in the run folder itself, or when there was no new checkpoint for ``patience`` seconds. A
    checkpoint counts when it is whole; one that is removed before its turn is left out. Stopped and started again, it
    goes on where it was. ``RUN_DIR/evaluation/checkpoints.md`` and ``.json`` hold a line for each checkpoint, those
    that have been removed since included.

    Args:
        run_dir: The ``output_dir`` of the stock trainer, which may not exist yet.
        tasks: As for :func:`evaluate_run`, and so are ``models``, ``cache``, ``split`` and ``train``.
        models: See there.
        cache: See there.
        split: See there.
        train: See there.
        interval: Seconds between looks at the folder.
        patience: Seconds without a new checkpoint after which to stop.
        tell: Is given a line on each checkpoint and on the end; None to log them alone.

    Returns:
        What :func:`evaluate_run` gives at the end.

    Raises:
        ValueError: An interval or patience that is not above 0; the run ended without a model that is whole; otherwise
            as :func:`evaluate_run`. A checkpoint whose vectors are not finite does not end the watch: its line says so.

    Example:
        >>> follow_run("runs/errors", ["scifact.zip"], tell=print)  # doctest: +SKIP
    """
    for name, seconds in (("interval", interval), ("patience", patience)):
        if not seconds > 0:
            raise ValueError(f"{name} must be above 0 seconds, got {seconds}.")
    folder = RunFolder(run_dir)
    asked = what_to_evaluate(folder, tasks, split, train, models, found="It is to be watched.")
    cache = open_cache(cache)
    with folder.log():
        watcher = _Watcher(Path(run_dir), folder, asked, cache, tell)
        watcher.tell(watcher.follow(interval, patience))
    return evaluate_run(run_dir, asked.tasks, models=asked.models, cache=cache, split=asked.split, train=asked.train)


class _Watcher:
    """Looks at a run again and again.

    Args:
        run: The run folder.
        folder: Where results go.
        asked: What each checkpoint is evaluated on.
        cache: The encoder's vectors.
        tell: As for :func:`follow_run`.
    """

    def __init__(
        self, run: Path, folder: RunFolder, asked: Asked, cache: EmbeddingCache, tell: Callable[[str], None] | None
    ) -> None:
        self._run, self._folder, self._asked, self._cache, self._tell = run, folder, asked, cache, tell
        self._steps = Steps(folder.path)
        # Of this watch: with save_total_limit, the newest one may be removed when the training ends.
        self._newest: Checkpoint | None = None
        self._done: set[tuple[str, str]] = set()

    def tell(self, line: str) -> None:
        """Log a line, and hand it on."""
        logger.info("%s", line)
        if self._tell is not None:
            self._tell(line)

    def follow(self, interval: float, patience: float) -> str:
        """Evaluate what comes until the run ends; say how that is known."""
        last_news = time.monotonic()
        while True:
            whole = checkpoints(self._run)
            self._newest = max([*whole[-1:], *filter(None, [self._newest])], key=_progress, default=None)
            ended = why_ended(self._run, self._newest)  # before the evaluations: what comes during them is looked for
            fresh = [one for one in whole if (one.name, Step.key_of(one)) not in self._done]
            for checkpoint in fresh:
                self._done.add((checkpoint.name, Step.key_of(checkpoint)))
                self._evaluate(checkpoint)
            if fresh:
                last_news = time.monotonic()
            if ended is not None:
                return f"The run has ended: {ended}."
            if time.monotonic() - last_news >= patience:
                return f"There was no new checkpoint for {patience:,.0f} seconds: the watch ends."
            time.sleep(interval)

    def _evaluate(self, checkpoint: Checkpoint) -> None:
        model = self._load(checkpoint)
        if model is None:
            self.tell(f"{checkpoint.name} was removed before it was evaluated.")
            return
        if isinstance(model, str):
            self._note(Step.failed(checkpoint, model))
            return
        try:
            found = evaluate(
                {**self._asked.models, checkpoint.name: model},
                self._asked.tasks,
                cache=self._cache,
                results=self._folder.results,
                split=self._asked.split,
                train=self._asked.train,
            )
        except ValueError as error:  # the data were read before: it is about this model
            self._note(Step.failed(checkpoint, str(error)))
            return
        self._note(Step.of(checkpoint, found))

    def _note(self, step: Step) -> None:
        newest = self._newest
        self._steps.add(step, newest.state if newest is not None else {})
        self.tell(str(step))

    def _load(self, checkpoint: Checkpoint) -> SentenceTransformer | str | None:
        """The model; why there is none; or None where the trainer removes it, of which half a model may be left."""
        files = _files(checkpoint.path)
        if checkpoint.path / MODEL_FILE not in files:
            whole = read_state(checkpoint.path) is not None
            return f"It holds no model of Sentence Transformers: there is no {MODEL_FILE}." if whole else None
        try:
            model: SentenceTransformer | str = load_encoder(checkpoint.path)
        except Exception as error:  # whatever a file that is missing leads to
            model = f"It cannot be loaded: {error}"
        return model if files <= _files(checkpoint.path) else None


def _progress(checkpoint: Checkpoint) -> int:
    return checkpoint.step


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
