"""What is said of a fit on cards and pages: what was tried, what it was worth, why this one, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from st_asym.data.collection import counted

# ``as_dict()`` of a :class:`st_asym.FitReport`.
Report: TypeAlias = Mapping[str, Any]

HALVES = {"seen": "seen documents", "unseen": "unseen documents"}
# So many candidates are drawn, and listed in a card; the page lists all.
MOST = 10
# All that heads in closed form are made by.
_OF_CLOSED_FORM = ("sides", "init", "whitening", "hidden_features", "bias")
_LABELS = {"init": "heads start as"}


def best(report: Report) -> Mapping[str, Any] | None:
    """What held-out queries say about what was kept, or about the best of what was tried; None without any."""
    found: Mapping[str, Any] | None = report["chosen"]
    return found or next((one["evidence"] for one in report["candidates"]), None)


def how_far(choice: Mapping[str, Any]) -> str:
    """How far heads are trained and turned back."""
    return f"epoch {choice['epoch']}, dial {choice['dial']:g}" if choice["epoch"] else "in closed form"


def difference(mean: float, error: float | None, digits: int = 3) -> str:
    """``+0.071 ± 0.010``; 0.1 knew no standard error of a single query."""
    return f"{mean:+.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def half(found: Mapping[str, Any], digits: int = 3) -> str:
    """The gain of the queries on seen, or on unseen documents."""
    return difference(found["mean"], found["error"], digits) if found["queries"] else "no queries"


def is_kept(report: Report, candidate: str) -> bool:
    """Whether the heads that were kept are of this candidate."""
    return report["chosen"] is not None and bool(report["chosen"]["choice"]["candidate"] == candidate)


def candidate_table(report: Report, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what was tried, each at its best, on held-out queries."""
    header = ["candidate", "at its best", *HALVES.values(), "together", "cuts", "seconds", ""]
    cuts = max((one["cuts"] or 0 for one in report["candidates"]), default=0)
    rows = []
    for one in report["candidates"][:most]:
        found = one["evidence"]
        row = [one["name"], how_far(found["choice"]), *(half(found[name]) for name in HALVES)]
        row.append(difference(found["gain"], found["error"]))
        row.append("" if one["cuts"] is None else f"{one['cuts']} of {cuts}")
        row.append("" if one["seconds"] is None else f"{one['seconds']:.1f}")
        rows.append([*row, "kept" if is_kept(report, one["name"]) else ""])
    return header, rows


def how_to_read(report: Report) -> list[str]:
    """What the figures of the table are, in sentences."""
    lines = ["Differences in nDCG@10 to the untouched encoder on held-out queries, ± one standard error."]
    share, shown = report["expected_unseen"], best(report)
    if share is not None and shown is not None:
        missing = [name for key, name in HALVES.items() if not shown[key]["queries"]]
        together = f"Together: in proportion of the traffic to expect, {share:.0%} of which asks for unseen documents."
        lines.append(f"No query on {missing[0]} was held out: the others count alone." if missing else together)
    if len({one["cuts"] for one in report["candidates"]}) > 1:
        lines.append("What has fewer cuts than others was clearly behind after these, or was stopped.")
    return lines


def why(report: Report) -> list[str]:
    """Why this choice was kept, or none, in sentences; of 0.1, which did not say, what was kept."""
    chance, chosen = report["chance"], report["chosen"]
    lines = []
    if chosen is not None:
        lines.append(f"Kept: {chosen['choice']['candidate']}, {how_far(chosen['choice'])}.")
    if chance is None:
        return lines
    if chance >= 1:
        return ["None was kept: none gains without a loss beyond noise on seen or on unseen documents."]
    what = "of what was rehearsed on all cuts and loses beyond noise neither on seen nor on unseen documents"
    lines.append(
        f"It has the largest gain {what}." if chosen else f"None was kept: the largest gain {what} may be chance."
    )
    tried = counted(len(report["evidence"]), "choice")
    return [*lines, f"If none were worth anything, the best of {tried} would look as good in {chance:.2%} of cases."]


def settings_rows(report: Report) -> list[list[str]]:
    """Name and value: how the kept heads were made, or what was given, where none were kept."""
    chosen, settings = report["chosen"], dict(report["settings"])
    if chosen is not None and not chosen["choice"]["epoch"]:
        settings = {name: settings[name] for name in _OF_CLOSED_FORM}
    if settings["init"] not in (None, "pairs"):
        settings.pop("whitening", None)
    unset = "left to fit" if chosen is None else "not used"
    rows = [["collection", report["collection"] or "not given"]]
    if report["expected_unseen"] is not None:
        rows.append(["share of traffic on unseen documents", f"{report['expected_unseen']:.0%}"])
    rows.append(["seed", str(report["seed"])])
    for name, value in settings.items():
        empty = "none: one linear layer" if name == "hidden_features" else unset
        rows.append([_LABELS.get(name, name.replace("_", " ")), empty if value is None else shown(value)])
    return rows


def shown(value: Any) -> str:
    """A setting or a figure of it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
