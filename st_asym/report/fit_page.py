"""A fit as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from st_asym.data.collection import counted
from st_asym.fitting.gate import Evidence
from st_asym.fitting.report import FitReport
from st_asym.hub import fitted
from st_asym.report.candidate_forest import candidate_forest, forest_caption
from st_asym.report.curves import SPREAD, curves, lines_of
from st_asym.report.gain_curves import gain_curves
from st_asym.report.page import Note, Page, Picture, Section, Table
from st_asym.report.plotting import picture

_FIGURES = {"accuracy": "nearest document is relevant", "query_std": "queries", "document_std": "documents"}


def fit_page(report: FitReport) -> Page:
    """The decision, what it rests on, how heads were trained, and on what."""
    facts, best = report.as_dict(), _best(report)
    how = "" if best is None else f"{best.choice.candidate}: means over the cuts on which it was rehearsed."
    sections = [
        Section(
            "Data", notes=[Note(note) for note in report.notes], tables=_data(report), text=" ".join(_held_out(report))
        ),
        Section("Candidates", " ".join(fitted.why(facts)), tables=_candidates(facts), pictures=_forest(facts)),
        Section("Held-out queries", tables=_choices(facts), pictures=_curves(report, best)),
        Section("Training", how, pictures=_training(report)),
        Section("Settings", tables=[Table(["setting", "value"], fitted.settings_rows(facts)), *_trials(report)]),
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


def _candidates(facts: fitted.Report) -> list[Table]:
    return [Table(*fitted.candidate_table(facts), " ".join(fitted.how_to_read(facts)))] if facts["candidates"] else []


def _forest(facts: fitted.Report) -> list[Picture]:
    forest = candidate_forest(facts)
    if forest is None:
        return []
    return [picture(forest.draw, forest.alt, forest_caption(facts), height=forest.height)]


def _choices(facts: fitted.Report) -> list[Table]:
    """All that was judged."""
    rows = []
    for entry in facts["evidence"]:
        gains = [
            *(fitted.half(entry[name]) for name in fitted.HALVES),
            fitted.difference(entry["gain"], entry["error"]),
        ]
        kept = "kept" if entry == facts["chosen"] else ""
        rows.append([entry["choice"]["candidate"], fitted.how_far(entry["choice"]), *gains, kept])
    caption = f"Difference in nDCG@10 to the untouched encoder of {counted(len(rows), 'choice')}, ± standard error"
    header = ["candidate", "how far", *fitted.HALVES.values(), "together", ""]
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
    return "" if value is None else fitted.shown(value)
