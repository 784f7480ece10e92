"""The model of a run folder through data sets, with results, log and table in the folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.evaluation.choosing import choose_model
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.main import evaluate, require_mteb
from st_asym.evaluation.models import Model
from st_asym.evaluation.run_folder import Asked, RunFolder

if TYPE_CHECKING:
    from st_asym.evaluation.seen import Train
    from st_asym.evaluation.tasks import Source

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
