"""What the candidates of a fit gained on held-out queries, seen and unseen: one picture for page and card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_asym.hub.fitted import HALVES, MOST, Report, is_kept
from st_asym.report.forest import Forest, Interval


def candidate_forest(report: Report) -> Forest | None:
    """The first candidates, each at its best, with bars of a standard error; None where none was judged."""
    groups = {}
    for one in report["candidates"][:MOST]:
        name = f"kept: {one['name']}" if is_kept(report, one["name"]) else one["name"]
        halves = {shown: one["evidence"][half] for half, shown in HALVES.items()}
        groups[name] = {shown: _interval(gain) for shown, gain in halves.items() if gain["queries"]}
    return Forest("Gain on held-out queries", groups, letters=26) if groups else None


def forest_caption(report: Report) -> str:
    """How to read the picture."""
    all_ = len(report["candidates"])
    which = f"the first {MOST} of {all_} candidates" if all_ > MOST else "all candidates"
    return f"To the untouched encoder, {which}, each at its best. Bars are one standard error to either side."


def _interval(gain: Mapping[str, Any]) -> Interval:
    mean, error = 100 * gain["mean"], gain["error"]
    return Interval(mean) if error is None else Interval(mean, mean - 100 * error, mean + 100 * error)
