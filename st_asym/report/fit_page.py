"""A fit as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from st_asym.data.collection import counted
from st_asym.fitting.gate import Evidence, Gain
from st_asym.fitting.report import FitReport
from st_asym.report.curves import SPREAD, curves, lines_of
from st_asym.report.page import Note, Page, Picture, Section, Table
from st_asym.report.plotting import Theme, picture

_HOW = "While training on the others, the held-out queries were looked at after each epoch; mean over the cuts."
_HALVES = (("seen", "seen documents", "-"), ("unseen", "unseen documents", "--"))


def fit_page(report: FitReport) -> Page:
    """The decision, what it rests on, how heads were trained, and on what."""
    sections = [
        Section(
            "Data", notes=[Note(note) for note in report.notes], tables=_data(report), text=" ".join(_held_out(report))
        ),
        Section("Held-out queries", tables=_evidence(report), pictures=_curves(report)),
        Section("Training", _HOW, pictures=_training(report)),
        Section("Settings", tables=[_settings(report), *_trials(report)]),
        Section("Time", tables=[Table(["part", "seconds"], [[k, f"{v:.1f}"] for k, v in report.seconds.items()])]),
    ]
    shown = [section for section in sections if section.notes or section.tables or section.pictures]
    return Page("Fit", report.first_line, shown, dict(report.versions))


def _held_out(report: FitReport) -> list[str]:
    lines = list(dict.fromkeys(report.held_out))
    if report.refitted:
        lines.append("The kept heads were then trained on all queries, those held out included.")
    if report.labels != "judged":
        lines.append(f"There were no labels: queries are the documents' own {report.labels}.")
    return lines


def _data(report: FitReport) -> list[Table]:
    return [Table(["texts", "number"], [[name, f"{number:,}"] for name, number in report.counts.items()])]


def _evidence(report: FitReport) -> list[Table]:
    rows = []
    for entry in report.evidence:
        kept = "kept" if entry == report.chosen else ""
        choice = [str(entry.choice.epoch), f"{entry.choice.dial:g}"]
        rows.append([*choice, _gain(entry.seen), _gain(entry.unseen), f"{entry.gain:+.3f} ± {entry.error:.3f}", kept])
    caption = "Difference in nDCG@10 to the untouched encoder by epoch and dial, ± standard error"
    return [Table(["epoch", "dial", "seen documents", "unseen documents", "together", ""], rows, caption, folded=True)]


def _gain(gain: Gain) -> str:
    return f"{gain.mean:+.3f} ± {gain.error:.3f}" if gain.queries else "no queries"


def _curves(report: FitReport) -> list[Picture]:
    """nDCG@10 by epoch with heads as they are, and by dial after the last epoch that was turned back."""
    straight = [entry for entry in report.evidence if entry.choice.dial == 1.0]
    dialled = [entry.choice.epoch for entry in report.evidence if entry.choice.dial != 1.0]
    pictures = [_curve(straight, lambda entry: entry.choice.epoch, "epoch", report.chosen)] if straight else []
    if dialled:
        last = [entry for entry in report.evidence if entry.choice.epoch == max(dialled)]
        title = f"dial after epoch {max(dialled)} (0: the encoder)"
        pictures.append(_curve(last, lambda entry: entry.choice.dial, title, report.chosen))
    return pictures


def _training(report: FitReport) -> list[Picture]:
    """Losses, and what they do not show, by epoch."""
    log = list(report.log)
    figures = {"accuracy": "accuracy", "query_std": "queries", "document_std": "documents"}
    losses = dict.fromkeys(name for entry in log for name in entry if name != "epoch" and name not in figures)
    kept = None if report.chosen is None else report.chosen.choice.epoch
    spread = {name: figures[name] for name in ("query_std", "document_std")}
    return [
        *curves("Loss", lines_of(log, {name: name for name in losses}), "", kept),
        *curves("Accuracy on held-out queries", lines_of(log, {"accuracy": "nearest document is relevant"}), "", kept),
        *curves("Standard deviation of the vectors", lines_of(log, spread), SPREAD, kept),
    ]


def _curve(
    entries: Sequence[Evidence], place: Callable[[Evidence], float], label: str, chosen: Evidence | None
) -> Picture:
    entries = sorted(entries, key=place)
    places = [place(entry) for entry in entries]

    def draw(axes: Any, theme: Theme) -> None:
        for (name, shown, style), color in zip(_HALVES, (theme.after, theme.before), strict=True):
            gains = [getattr(entry, name) for entry in entries]
            if not gains[0].queries:
                continue
            means = [gain.untouched + gain.mean for gain in gains]
            low = [mean - gain.error for mean, gain in zip(means, gains, strict=True)]
            high = [mean + gain.error for mean, gain in zip(means, gains, strict=True)]
            axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(places, means, style, color=color, marker="o", markersize=4, label=shown)
            axes.axhline(gains[0].untouched, color=color, linestyle=":", linewidth=1.2)
        if chosen is not None:
            whole = chosen in entries
            kept = "kept" if whole else f"kept, at dial {chosen.choice.dial:g}"
            axes.axvline(place(chosen), color=theme.text, linewidth=0.8, linestyle="-" if whole else "-.", label=kept)
        axes.set(title="nDCG@10 of held-out queries", xlabel=label)
        if all(isinstance(value, int) for value in places):
            axes.xaxis.get_major_locator().set_params(integer=True)

    caption = "Dotted: the untouched encoder. Shaded: a standard error of the difference to it."
    return picture(draw, f"Line plot of nDCG@10 of held-out queries by {label}.", caption)


def _settings(report: FitReport) -> Table:
    settings = {"system": report.system, "init": report.init, "collection": report.collection, "seed": report.seed}
    rows = [[name.replace("_", " "), str(value)] for name, value in {**settings, **asdict(report.settings)}.items()]
    return Table(["setting", "value"], rows)


def _trials(report: FitReport) -> list[Table]:
    if not report.trials:
        return []
    columns = list(dict.fromkeys(name for trial in report.trials for name in trial))
    rows = [[str(n), *(_cell(trial.get(name)) for name in columns)] for n, trial in enumerate(report.trials, 1)]
    return [Table(["trial", *columns], rows, f"{counted(len(rows), 'trial')}.")]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
