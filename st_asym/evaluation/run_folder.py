"""The folder of a run: its model evaluated once, or each checkpoint as it comes. Results lie in ``RUN_DIR/evaluation``.

- ``results``: scores by query of each model and data set, which are not evaluated again;
- ``log.txt``: what was done when, appended to;
- ``table.md`` and ``table.json``: the last comparison; ``checkpoints.md`` and ``.json``: what each checkpoint scored;
- ``asked.json``: what it was asked for.

Loading the model beside it takes no notice of it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.data.files import EVALUATION_FOLDER, read_json, write_json, write_text
from st_asym.evaluation.checkpoints import (
    MODEL_FILE,
    Checkpoint,
    Step,
    add_step,
    checkpoints,
    choose_model,
    read_state,
    why_ended,
)
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.evaluate import evaluate, require_mteb
from st_asym.evaluation.models import Baseline, Model
from st_asym.heads.model import load_encoder

if TYPE_CHECKING:
    from st_asym.evaluation.tasks import Source, Train

logger = logging.getLogger(__name__)
_PACKAGE = logging.getLogger("st_asym")


def evaluate_run(
    run_dir: str | os.PathLike[str],
    tasks: Source | Mapping[str, Source] | Iterable[Source] | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    split: str | None = None,
    train: Train | None = None,
    baselines: Sequence[Baseline] | None = None,
) -> Comparison:
    """Evaluate the model of a run: its best checkpoint, or, where it names none, what it ended with or saved last.

    ``RUN_DIR/evaluation`` receives ``results``, ``log.txt``, ``table.md`` and ``table.json``. The model is compared
    with its encoder without the heads, unless ``models`` says with what. What was chosen, and why, is the first note of
    the comparison.

    Args:
        run_dir: The ``output_dir`` of the stock trainer, or of :func:`st_asym.fit`; or the folder of a model.
        tasks: As for :func:`st_asym.evaluate`. None for what the run was evaluated on before, with the same ``models``,
            ``split`` and ``train``.
        models: Name to the model, path or Hub id of what the run is compared with; the first is the first row.
        cache: As for :func:`st_asym.fit`: None for the one in the cache folder of ``huggingface_hub``.
        split: Of local collections, which queries are judged; None for ``"test"``.
        train: What the run was trained on, as for :func:`st_asym.evaluate`.
        baselines: As for :func:`st_asym.evaluate`.

    Returns:
        The comparison, also in ``RUN_DIR/evaluation/table.json``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no model that is whole, or ``tasks`` is None and there was no evaluation before; the
            message says what was found. Otherwise as :func:`st_asym.evaluate`.
        ImportError, OSError, TypeError: As :func:`st_asym.evaluate`.

    Example:
        >>> comparison = evaluate_run("runs/errors", ["scifact.zip"])  # doctest: +SKIP
        >>> print(comparison)  # doctest: +SKIP
    """
    chosen = choose_model(run_dir)
    own = re.escape(chosen.name)
    asked = Asked(tasks, split, train, models).now_or_before(Path(run_dir), chosen.why, own)
    folder = Path(run_dir) / EVALUATION_FOLDER
    with _logged(folder):
        logger.info("%s", chosen.why)
        kept = folder / "results"
        found = asked.evaluate(chosen.name, chosen.path, cache=cache, results=kept, baselines=baselines)
        found = replace(found, notes=(f"Evaluated: {chosen.why}", *found.notes))
        write_text(folder / "table.md", found.to_markdown(wide=True))
        found.to_json(folder / "table.json")
        logger.info("\n%s", found.to_markdown(wide=False).strip())
    return found


def follow_run(
    run_dir: str | os.PathLike[str],
    tasks: Source | Mapping[str, Source] | Iterable[Source] | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    split: str | None = None,
    train: Train | None = None,
    baselines: Sequence[Baseline] | None = None,
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
        baselines: See there; checkpoints have none.
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
    own = rf"checkpoint-\d+|{re.escape(Path(run_dir).resolve().name)}"
    asked = Asked(tasks, split, train, models).now_or_before(Path(run_dir), "It is to be watched.", own)
    cache = open_cache(cache)
    with _logged(Path(run_dir) / EVALUATION_FOLDER):
        for line in _watch(Path(run_dir), asked, cache, interval, patience):
            logger.info("%s", line)
            if tell is not None:
                tell(line)
    return evaluate_run(run_dir, **vars(asked), cache=cache, baselines=baselines)


def check_tasks(
    tasks: Source | Mapping[str, Source] | Iterable[Source], split: str = "test", train: Train | None = None
) -> tuple[Source | Mapping[str, Source] | list[Source], Train | None]:
    """Read what a model shall be evaluated on, hours before there is one; both, what a generator gives as a list."""
    require_mteb()
    from st_asym.evaluation.tasks import benchmarks, listed, training_documents

    tasks, train = listed(tasks), list(train) if isinstance(train, Iterator) else train
    training_documents(train, benchmarks(tasks, split))
    return tasks, train


@dataclass(frozen=True)
class Asked:
    """What a run is evaluated on, and the models that it is compared with, as :func:`st_asym.evaluate` takes them.

    None is what it was before.
    """

    tasks: Any
    split: str | None = None
    train: Any = None
    models: Mapping[str, Any] | None = None

    def now_or_before(self, run: Path, found: str, own: str) -> Asked:
        """What is asked for now, or was before: looked at before anything else is done, and remembered where it can be.

        The error, where it is neither, says what is ``found`` in the folder; the run calls its ``own`` models so.
        """
        file = run / EVALUATION_FOLDER / "asked.json"
        if self.tasks is not None:
            split = self.split or "test"
            tasks, train = check_tasks(self.tasks, split, self.train)
            asked = Asked(tasks, split, train, self.models or {})
        else:
            try:
                before = self.of_json(read_json(file), run)
            except (OSError, AttributeError, KeyError, TypeError, ValueError):
                was = (file.parent / "table.json").is_file()
                raise ValueError(
                    f"{run}: {found} It was not evaluated before{', but on data in memory' if was else ''}: say what "
                    "to evaluate it on (on the command line with --on)."
                ) from None
            asked = replace(before, **{name: one for name, one in vars(self).items() if one is not None})
        if taken := [name for name in asked.models or {} if re.fullmatch(own, name)]:
            raise ValueError(f"{taken[0]!r} is the model of the run itself: give the other one another name.")
        content = asked.as_json(run)
        if content is None:
            file.unlink(missing_ok=True)
        else:
            write_json(file, content, indent=1)
        return asked

    def evaluate(self, name: str, model: Model, **options: Any) -> Comparison:
        """One model of the run, as the last row but that with BM25 added."""
        others, split = self.models or {}, self.split or "test"
        return evaluate({**others, name: model}, self.tasks, split=split, train=self.train, **options)

    def as_json(self, run: Path) -> dict[str, Any] | None:
        """The same for another time, None where a part of it is in memory alone.

        Paths are told from the run's folder on, so that what is uploaded with a model does not say whose machine it
        was on.
        """
        tasks, models = self.tasks if isinstance(self.tasks, list | Mapping) else [self.tasks], self.models or {}
        sources = list(tasks.values()) if isinstance(tasks, Mapping) else tasks
        train = [] if self.train is None else [self.train]
        if not all(isinstance(one, str | os.PathLike) for one in (*sources, *train, *models.values())):
            return None
        lasting = [_lasting(one, run) for one in sources]
        return {
            "tasks": dict(zip(tasks, lasting, strict=True)) if isinstance(tasks, Mapping) else lasting,
            "split": self.split,
            "train": next((_lasting(one, run) for one in train), None),
            "models": {name: _lasting(one, run) for name, one in models.items()},
        }

    @classmethod
    def of_json(cls, content: Mapping[str, Any], run: Path) -> Asked:
        """What :meth:`as_json` gave; an AttributeError, KeyError or TypeError for something else."""
        tasks: Any = content["tasks"]
        if isinstance(tasks, dict):
            tasks = {name: _found(one, run) for name, one in tasks.items()}
        else:
            tasks = [_found(one, run) for one in tasks]
        train = None if content["train"] is None else _found(content["train"], run)
        return cls(tasks, str(content["split"]), train, {k: _found(one, run) for k, one in content["models"].items()})


def _lasting(name: str | os.PathLike[str], run: Path) -> str:
    """A path from the run's folder on, which begins with a dot; another name as it is."""
    if not Path(name).exists():
        return os.fspath(name)
    try:
        way = Path(os.path.relpath(Path(name).resolve(), run.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return Path(name).resolve().as_posix()
    return way if way.startswith("..") else f"./{way}"


def _found(name: str, run: Path) -> str:
    """The path or name that :func:`_lasting` was given."""
    return str((run / name).resolve()) if name.startswith((".", "/")) or Path(name).is_absolute() else name


def _watch(run: Path, asked: Asked, cache: EmbeddingCache, interval: float, patience: float) -> Iterator[str]:
    """Evaluate what comes until the run ends; a line on each checkpoint, and on how the end is known."""
    folder = run / EVALUATION_FOLDER
    newest: Checkpoint | None = None  # of this watch: with save_total_limit, it may be removed when the training ends
    done: set[tuple[str, str]] = set()
    last_news = time.monotonic()
    while True:
        whole = checkpoints(run)
        newest = max((one for one in (*whole[-1:], newest) if one), key=lambda one: one.step, default=None)
        ended = why_ended(run, newest)  # before the evaluations: what comes during them is looked for
        fresh = [one for one in whole if (one.name, one.key) not in done]
        for checkpoint in fresh:
            done.add((checkpoint.name, checkpoint.key))
            step = _evaluated(checkpoint, asked, cache, folder)
            if step is not None:
                add_step(folder, step, newest.state if newest is not None else {})
            yield f"{checkpoint.name} was removed before it was evaluated." if step is None else str(step)
        if fresh:
            last_news = time.monotonic()
        if ended is not None:
            yield f"The run has ended: {ended}."
            return
        if time.monotonic() - last_news >= patience:
            yield f"There was no new checkpoint for {patience:,.0f} seconds: the watch ends."
            return
        time.sleep(interval)


def _evaluated(checkpoint: Checkpoint, asked: Asked, cache: EmbeddingCache, folder: Path) -> Step | None:
    """What a checkpoint scored, or why it cannot be evaluated; None where it was removed."""
    files = _files(checkpoint.path)
    if checkpoint.path / MODEL_FILE not in files:
        why = f"It holds no model of Sentence Transformers: there is no {MODEL_FILE}."
        return None if read_state(checkpoint.path) is None else Step.of(checkpoint, why)
    try:
        model: SentenceTransformer | str = load_encoder(checkpoint.path)
    except Exception as error:  # whatever a file that is missing leads to
        model = f"It cannot be loaded: {error}"
    if not files <= _files(checkpoint.path):  # the trainer removes it, and half a model may have been read
        return None
    if isinstance(model, str):
        return Step.of(checkpoint, model)
    try:
        found = asked.evaluate(checkpoint.name, model, cache=cache, results=folder / "results", baselines=())
    except ValueError as error:  # the data were read before: it is about this model
        return Step.of(checkpoint, str(error))
    return Step.of(checkpoint, found)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Write what the package logs, and an error, to ``log.txt``; what the console gets stays the same."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagated, parent = _PACKAGE.level, _PACKAGE.propagate, _PACKAGE.parent
    console = logging.Handler(_PACKAGE.getEffectiveLevel())  # passes on what would have been shown without the file
    console.emit = parent.callHandlers if parent and propagated else lambda _: None  # type: ignore[assignment, method-assign]
    _PACKAGE.setLevel(min(logging.INFO, _PACKAGE.getEffectiveLevel()))
    _PACKAGE.propagate = False
    try:
        for handler in (file, console):
            _PACKAGE.addHandler(handler)
        yield
    except BaseException as error:
        file.emit(logging.LogRecord(logger.name, logging.ERROR, "", 0, f"{type(error).__name__}: {error}", None, None))
        raise
    finally:
        for handler in (file, console):
            _PACKAGE.removeHandler(handler)
            handler.close()
        _PACKAGE.setLevel(level)
        _PACKAGE.propagate = propagated
