"""A fit as a page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from transformers import TrainerState

from st_asym.data.collection import counted
from st_asym.fitting.gate import Evidence
from st_asym.fitting.report import FitReport
from st_asym.report import facts as of_fit
from st_asym.report.page import Note, Page, Picture, Section, Table
from st_asym.report.plots import SPREAD, candidate_forest, curves, forest_caption, gain_curves, lines_of, picture

_FIGURES = {"accuracy": "nearest document is relevant", "query_std": "queries", "document_std": "documents"}


def fit_page(report: FitReport) -> Page:
    """The decision, what it rests on, how heads were trained, and on what."""
    facts, best = report.as_dict(), _best(report)
    how = "" if best is None else f"{best.choice.candidate}: means over the cuts on which it was rehearsed."
    sections = [
        Section(
            "Data", notes=[Note(note) for note in report.notes], tables=_data(report), text=" ".join(_held_out(report))
        ),
        Section("Candidates", " ".join(of_fit.why(facts)), tables=_candidates(facts), pictures=_forest(facts)),
        Section("Held-out queries", tables=_choices(facts), pictures=_curves(report, best)),
        Section("Training", how, pictures=_training(report)),
        Section("Settings", tables=[Table(["setting", "value"], of_fit.settings_rows(facts)), *_trials(report)]),
        Section("Time", tables=[Table(["part", "seconds"], [[k, f"{v:.1f}"] for k, v in report.seconds.items()])]),
    ]
    found = [section for section in sections if section.notes or section.tables or section.pictures]
    return Page("Fit", report.first_line, found, dict(report.versions))


def _best(report: FitReport) -> Evidence | None:
    """What was kept, or else the best of what was tried."""
    return report.chosen or next((one.evidence for one in report.candidates), None)


def _held_out(report: FitReport) -> list[str]:
    lines = list(dict.fromkeys(report.held_out))
    if report.refitted:
        lines.append("The kept heads were then made of all queries, those held out included.")
    if report.labels != "judged":
        lines.append(f"There were no labels: queries are the documents' own {report.labels}.")
    return lines


def _data(report: FitReport) -> list[Table]:
    return [Table(["texts", "number"], [[name, f"{number:,}"] for name, number in report.counts.items()])]


def _candidates(facts: of_fit.Report) -> list[Table]:
    return [Table(*of_fit.candidate_table(facts), " ".join(of_fit.how_to_read(facts)))] if facts["candidates"] else []


def _forest(facts: of_fit.Report) -> list[Picture]:
    forest = candidate_forest(facts)
    if forest is None:
        return []
    return [picture(forest.draw, forest.alt, forest_caption(facts), height=forest.height)]


def _choices(facts: of_fit.Report) -> list[Table]:
    """All that was judged."""
    rows = []
    for entry in facts["evidence"]:
        gains = [
            *(of_fit.half(entry[name]) for name in of_fit.HALVES),
            of_fit.difference(entry["gain"], entry["error"]),
        ]
        kept = "kept" if entry == facts["chosen"] else ""
        rows.append([entry["choice"]["candidate"], of_fit.how_far(entry["choice"]), *gains, kept])
    caption = f"Difference in nDCG@10 to the untouched encoder of {counted(len(rows), 'choice')}, ± standard error"
    header = ["candidate", "how far", *of_fit.HALVES.values(), "together", ""]
    return [Table(header, rows, caption, folded=True)] if rows else []


def _curves(report: FitReport, best: Evidence | None) -> list[Picture]:
    if best is None:
        return []
    own = [entry for entry in report.evidence if entry.choice.candidate == best.choice.candidate]
    return gain_curves(own, report.chosen)


def _training(report: FitReport) -> list[Picture]:
    """Losses, and what they do not show, by epoch; and the losses of the last training."""
    log, last = list(report.log), list(report.training)
    kept = None if report.chosen is None else report.chosen.choice.epoch
    spread = {name: _FIGURES[name] for name in ("query_std", "document_std")}
    accuracy = lines_of(log, {"accuracy": _FIGURES["accuracy"]})
    return [
        *curves("Loss", lines_of(log, _losses(log)), "", kept),
        *curves("Accuracy on held-out queries", accuracy, "", kept),
        *curves("Standard deviation of the vectors", lines_of(log, spread), SPREAD, kept),
        *curves("Loss of the last training", lines_of(last, _losses(last)), "On all training queries."),
    ]


def _losses(log: Sequence[dict[str, float]]) -> dict[str, str]:
    return {name: name for entry in log for name in entry if name != "epoch" and name not in _FIGURES}


def _trials(report: FitReport) -> list[Table]:
    """Gains of the trials, and the settings in which they differ."""
    trials = [{**trial.get("settings", {}), **trial} for trial in report.trials]
    names = dict.fromkeys(name for trial in trials for name in trial if name != "settings")
    columns = [name for name in names if len(trials) == 1 or len({str(trial.get(name)) for trial in trials}) > 1]
    rows = [[str(n), *(_cell(trial.get(name)) for name in columns)] for n, trial in enumerate(trials, 1)]
    caption = f"{counted(len(rows), 'trial')}, with what they differ in."
    return [Table(["trial", *(name.replace("_", " ") for name in columns)], rows, caption)] if rows else []


def _cell(value: Any) -> str:
    return "" if value is None else of_fit.shown(value)


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
