"""What lies in ``RUN_DIR/evaluation``: results, log and tables of a run, and what it was evaluated on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.disk.writing import EVALUATION_FOLDER, write_text
from st_asym.evaluation.checkpoints import choose_model
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.evaluate import evaluate, require_mteb
from st_asym.evaluation.models import Model

if TYPE_CHECKING:
    from st_asym.evaluation.seen import Train
    from st_asym.evaluation.tasks import Source

_PACKAGE = logging.getLogger("st_asym")
_OWN = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a run is evaluated on, as :func:`st_asym.evaluate` takes it.

    Attributes:
        tasks: Paths, names or collections.
        split: Of local collections.
        train: What the run was trained on, if that is known.
        models: What it is compared with.
    """

    tasks: Any
    split: str = "test"
    train: Any = None
    models: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self, run: Path) -> dict[str, Any] | None:
        """The same for another time, None where a part of it is in memory alone.

        Paths are told from the run's folder on, so that what is uploaded with a model does not say whose machine it
        was on.
        """
        tasks = self.tasks if isinstance(self.tasks, list) else [self.tasks]
        named = [*tasks, *self.models.values(), *([] if self.train is None else [self.train])]
        if not all(isinstance(one, str | os.PathLike) for one in named):
            return None
        return {
            "tasks": [_lasting(one, run) for one in tasks],
            "split": self.split,
            "train": None if self.train is None else _lasting(self.train, run),
            "models": {name: _lasting(one, run) for name, one in self.models.items()},
        }

    @classmethod
    def of_json(cls, content: Mapping[str, Any], run: Path) -> Asked:
        """What :meth:`as_json` gave.

        Raises:
            AttributeError, KeyError, TypeError: Something else.
        """
        return cls(
            tasks=[_found(one, run) for one in content["tasks"]],
            split=str(content["split"]),
            train=None if content["train"] is None else _found(content["train"], run),
            models={name: _found(one, run) for name, one in content["models"].items()},
        )


class RunFolder:
    """The folder ``evaluation`` of a run: loading the model beside it takes no notice of it.

    - ``results``: scores by query of each model and data set, which are not evaluated again;
    - ``log.txt``: what was done when, appended to;
    - ``table.md`` and ``table.json``: the last comparison;
    - ``asked.json``: what it was asked for.

    Args:
        run_dir: The run.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.path = Path(run_dir) / EVALUATION_FOLDER
        self.results = self.path / "results"

    @contextmanager
    def log(self) -> Iterator[None]:
        """Write what the package logs, and an error, to ``log.txt``; what the console gets stays the same."""
        self.path.mkdir(parents=True, exist_ok=True)
        handler = _Log(self.path / "log.txt", _PACKAGE.getEffectiveLevel())
        level, propagated = _PACKAGE.level, _PACKAGE.propagate
        _PACKAGE.addHandler(handler)
        _PACKAGE.setLevel(min(logging.INFO, _PACKAGE.getEffectiveLevel()))
        _PACKAGE.propagate = False
        try:
            yield
        except BaseException as error:
            handler.write(logging.ERROR, f"{type(error).__name__}: {error}")
            raise
        finally:
            _PACKAGE.removeHandler(handler)
            _PACKAGE.setLevel(level)
            _PACKAGE.propagate = propagated
            handler.close()

    def write(self, comparison: Comparison) -> None:
        """Write the tables, and the first into the log."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "table.md", comparison.to_markdown(wide=True))
        comparison.to_json(self.path / "table.json")
        _OWN.info("\n%s", comparison.to_markdown(wide=False).strip())

    def remember(self, asked: Asked) -> None:
        """Keep what was asked for, where that can be written down, and nothing older where it cannot."""
        content = asked.as_json(self.path.parent)
        if content is None:
            (self.path / "asked.json").unlink(missing_ok=True)
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "asked.json", json.dumps(content, indent=1) + "\n")

    def remembered(self) -> Asked | None:
        """What was asked for the last time."""
        try:
            content = json.loads((self.path / "asked.json").read_text(encoding="utf-8"))
            return Asked.of_json(content, self.path.parent)
        except (OSError, AttributeError, KeyError, TypeError, ValueError):
            return None


class _Log(logging.FileHandler):
    """Writes to a file, and passes on what would have been shown without it."""

    def __init__(self, path: Path, shown: int) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if record.levelno >= self._shown and _PACKAGE.parent is not None:
            _PACKAGE.parent.callHandlers(record)

    def write(self, level: int, text: str) -> None:
        """A line for the file alone."""
        super().emit(logging.LogRecord(_OWN.name, level, "", 0, text, None, None))


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


logger = logging.getLogger(__name__)


def evaluate_run(
    run_dir: str | os.PathLike[str],
    tasks: Source | Mapping[str, Source] | Iterable[Source] | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    split: str | None = None,
    train: Train | None = None,
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
    folder = RunFolder(run_dir)
    if chosen.name in (models or {}):
        raise ValueError(f"{chosen.name!r} is the model of the run itself: give the other one another name.")
    asked = what_to_evaluate(folder, tasks, split, train, models, found=chosen.why)
    with folder.log():
        logger.info("%s", chosen.why)
        found = evaluate(
            {**asked.models, chosen.name: chosen.path},
            asked.tasks,
            cache=open_cache(cache),
            results=folder.results,
            split=asked.split,
            train=asked.train,
        )
        found = replace(found, notes=(f"Evaluated: {chosen.why}", *found.notes))
        folder.write(found)
    return found


def what_to_evaluate(
    folder: RunFolder,
    tasks: Source | Mapping[str, Source] | Iterable[Source] | None,
    split: str | None,
    train: Train | None,
    models: Mapping[str, Model] | None,
    *,
    found: str,
) -> Asked:
    """What is asked for now, or was before; looked at before anything else is done, and remembered.

    Args:
        folder: Where it is remembered.
        tasks: As for :func:`evaluate_run`, and so are ``split``, ``train`` and ``models``.
        split: See there.
        train: See there.
        models: See there.
        found: What is in the run folder, for the message.

    Raises:
        ValueError: Neither now nor before, or data that cannot be judged.
    """
    before = folder.remembered()
    if tasks is None and before is None:
        raise ValueError(
            f"{folder.path.parent}: {found} It was not evaluated before: say what to evaluate it on (on the command "
            "line with --on)."
        )
    if tasks is None and before is not None:
        asked = replace(before, split=split or before.split, train=train or before.train)
        asked = asked if models is None else replace(asked, models=models)
    else:
        asked = Asked(check_tasks(tasks, split or "test", train), split or "test", train, models or {})
    folder.remember(asked)
    return asked


def check_tasks(
    tasks: Source | Mapping[str, Source] | Iterable[Source] | None, split: str = "test", train: Train | None = None
) -> Source | Mapping[str, Source] | list[Source]:
    """Read what a model shall be evaluated on, hours before there is one.

    Returns:
        The tasks, those of a generator as a list.

    Raises:
        ImportError: MTEB is not installed.
        TypeError, ValueError, FileNotFoundError: As for :func:`st_asym.evaluate`.
    """
    require_mteb()
    from st_asym.evaluation.seen import TrainingData
    from st_asym.evaluation.tasks import benchmarks

    if isinstance(tasks, Iterable) and not isinstance(tasks, str | Mapping) and not hasattr(tasks, "column_names"):
        tasks = list(tasks)
    TrainingData(train, benchmarks(tasks, split), split)
    return tasks
