"""A run of the stock trainer as a page, from the log that it keeps."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from transformers import TrainerState

from st_asym.report.curves import SPREAD, curves, lines_of
from st_asym.report.page import Page, Picture, Section, Table

_PACKAGES = ("st_asym", "sentence-transformers", "transformers", "torch")
# In the entries of a training step, but no part of its loss.
_NO_LOSSES = ("epoch", "step", "grad_norm", "learning_rate", "num_input_tokens_seen")
_NO_FIGURES = ("epoch", "step", "runtime", "per_second", "total_flos")
_SPREADS = ("query_std", "document_std")
_DASHED = "Dashed: evaluation."
_WATCHED = ("in_batch_accuracy", "positive_similarity", "negative_similarity", *_SPREADS)


def training_page(state: TrainerState) -> Page:
    """Curves of everything that was logged, and the last figures.

    Raises:
        ValueError: Nothing was logged with a number of epochs.
    """
    log = [entry for entry in map(_numbers, state.log_history) if "epoch" in entry]
    # A state that was read from a file has its figures by the alphabet.
    names = sorted({name for entry in log for name in entry}, key=_place)
    if all(name.endswith(_NO_FIGURES) for name in names):
        raise ValueError(
            "The trainer's log is empty: there are no curves to draw. Train first, with logging_strategy='steps' or "
            "'epoch' in the training arguments."
        )
    sections = [
        Section("Curves", pictures=_pictures(log, names)),
        Section("First and last", tables=[Table(["figure", "first", "last"], _ends(log, names))]),
    ]
    lead = f"{state.global_step:,} of {state.max_steps:,} steps, {state.epoch or 0:.3g} epochs."
    if state.best_metric is not None:
        lead += f" Best checkpoint: {state.best_metric:.4g} at step {state.best_global_step or 0:,}."
    return Page("Training", lead, [section for section in sections if section.pictures or section.tables], _versions())


def _place(name: str) -> tuple[bool, bool, str]:
    """Training before evaluation, and a sum before its parts."""
    return name.startswith("eval_"), not name.endswith("loss"), name


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if isinstance(value, int | float)}


def _pictures(log: list[dict[str, float]], names: list[str]) -> list[Picture]:
    steps = [entry for entry in log if "loss" in entry]
    trained = {name for entry in steps for name in entry if name not in (*_NO_LOSSES, *_WATCHED)}
    losses = [name for name in names if name in trained or _is_loss_of_evaluation(name, trained)]

    def lines(*endings: str) -> Any:
        return lines_of(log, {name: _shown(name) for name in names if name.endswith(endings)}, dashed="eval_")

    return [
        *curves("Loss", lines_of(log, {name: _shown(name) for name in losses}, dashed="eval_"), _DASHED),
        *curves("In-batch accuracy", lines("in_batch_accuracy"), _DASHED),
        *curves("Cosine of pairs", lines("positive_similarity", "negative_similarity"), _DASHED),
        *curves("Standard deviation of the vectors", lines(*_SPREADS), SPREAD),
        *curves("nDCG@10", lines("ndcg@10"), "Of the trainer's evaluators."),
        *curves("Learning rate", lines_of(steps, {"learning_rate": "learning rate"})),
    ]


def _is_loss_of_evaluation(name: str, trained: set[str]) -> bool:
    own = name.removeprefix("eval_")
    return own != name and (own in trained or own.endswith("_loss"))


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _ends(log: list[dict[str, float]], names: list[str]) -> list[list[str]]:
    """First and last value of each figure."""
    rows = []
    for name in names:
        values = [entry[name] for entry in log if name in entry]
        if not name.endswith(_NO_FIGURES):
            rows.append([_shown(name), f"{values[0]:.4g}", f"{values[-1]:.4g}"])
    return rows
