"""Differences with their intervals, a row each: a forest plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_asym.evaluation.statistics import Difference
from st_asym.report.page import Picture
from st_asym.report.plotting import MARKERS, Theme, picture, wrapped

_INCHES_OF_A_ROW = 0.26
_INCHES_BESIDE = 1.1


def forest(title: str, differences: Mapping[str, Mapping[str, Difference]], first: str) -> Picture:
    """Draw differences in points of nDCG@10 with 95 % intervals.

    Args:
        title: What is drawn.
        differences: What the differences are on, such as a data set, to system to difference.
        first: What they are to.
    """
    systems = list(dict.fromkeys(system for own in differences.values() for system in own))
    rows = [(group, system) for group, own in differences.items() for system in own]
    # A little room between the groups.
    heights = {row: place + 0.6 * list(differences).index(row[0]) for place, row in enumerate(rows)}

    def draw(axes: Any, theme: Theme) -> None:
        for number, system in enumerate(systems):
            own = {heights[group, system]: one[system] for group, one in differences.items() if system in one}
            points = [100 * one.points for one in own.values()]
            low = [point - 100 * _or(one.low, one) for point, one in zip(points, own.values(), strict=True)]
            high = [100 * _or(one.high, one) - point for point, one in zip(points, own.values(), strict=True)]
            axes.errorbar(
                points,
                list(own),
                xerr=[[max(0.0, value) for value in low], [max(0.0, value) for value in high]],
                fmt=MARKERS[number % len(MARKERS)],
                color=theme.lines[number % len(theme.lines)],
                markersize=6,
                linewidth=2,
                capsize=3,
                label=wrapped(system, 44) if len(systems) > 1 else None,
            )
        axes.axvline(0, color=theme.text, linewidth=1)
        middles = [
            sum(heights[group, system] for system in own) / len(own) for group, own in differences.items() if own
        ]
        axes.set_yticks(middles, [wrapped(group, 20) for group, own in differences.items() if own])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(title=title, xlabel="points of nDCG@10")
        axes.set_ylim(max(heights.values()) + 0.7, -0.7)

    told = ", ".join(f"{group}, {system}: {_told(differences[group][system])}" for group, system in rows)
    legend = len(systems) if len(systems) > 1 else 0
    height = _INCHES_BESIDE + _INCHES_OF_A_ROW * (max(heights.values()) + 1 + legend)
    caption = f"To {first}. Bars are 95 % intervals: one that crosses the line at 0 may be chance."
    return picture(draw, f"Forest plot of differences in points of nDCG@10. {told}.", caption, height=height)


def _or(value: float | None, one: Difference) -> float:
    """An end of the interval; a single query has none."""
    return one.points if value is None else value


def _told(one: Difference) -> str:
    if one.low is None or one.high is None:
        return f"{100 * one.points:+.2f}"
    return f"{100 * one.points:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]"
