"""Each new checkpoint of a run through data sets, while the run is still training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sentence_transformers import SentenceTransformer

from st_asym.cache import EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.checkpoints import Checkpoint, checkpoints, read_state
from st_asym.evaluation.choosing import MODEL_FILE, why_ended
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.main import evaluate
from st_asym.evaluation.models import Model
from st_asym.evaluation.run_folder import Asked, RunFolder
from st_asym.evaluation.runs import evaluate_run, what_to_evaluate
from st_asym.evaluation.steps import Step, Steps
from st_asym.model import load_encoder

if TYPE_CHECKING:
    from st_asym.evaluation.seen import Train
    from st_asym.evaluation.tasks import Source

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
