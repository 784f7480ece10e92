"""Differences with their intervals, a row each: a forest plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st_asym.report.page import Picture
from st_asym.report.plotting import MARKERS, Theme, picture, wrapped

if TYPE_CHECKING:
    from st_asym.evaluation.statistics import Difference

_INCHES_OF_A_ROW = 0.26
_INCHES_BESIDE = 1.1


@dataclass(frozen=True)
class Interval:
    """A difference in points of nDCG@10, and the ends of its bar; None where it has none."""

    points: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """``+1.20 [+0.40, +2.00]``."""
        if self.low is None or self.high is None:
            return f"{self.points:+.2f}"
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Forest:
    """A forest plot that can be drawn.

    Attributes:
        title: What is drawn.
        groups: Name of a group of rows, such as a data set, to kind of row, such as a system, to its difference. Rows
            of one kind have one colour.
        letters: Of the groups' names in a line.
    """

    title: str
    groups: Mapping[str, Mapping[str, Interval]]
    letters: int = 20

    @property
    def kinds(self) -> list[str]:
        """The kinds of rows."""
        return list(dict.fromkeys(kind for own in self.groups.values() for kind in own))

    @property
    def height(self) -> float:
        """In inches."""
        legend = len(self.kinds) if len(self.kinds) > 1 else 0
        return _INCHES_BESIDE + _INCHES_OF_A_ROW * (max(self._places.values()) + 1 + legend)

    @property
    def alt(self) -> str:
        """All that is drawn, in words."""
        told = ", ".join(f"{group}, {kind}: {one}" for group, own in self.groups.items() for kind, one in own.items())
        return f"Forest plot of differences in points of nDCG@10. {told}."

    def draw(self, axes: Any, theme: Theme) -> None:
        """Draw it."""
        places = self._places
        for number, kind in enumerate(self.kinds):
            own = {places[group, kind]: one[kind] for group, one in self.groups.items() if kind in one}
            axes.errorbar(
                [one.points for one in own.values()],
                list(own),
                xerr=list(zip(*map(_bar, own.values()), strict=True)),
                fmt=MARKERS[number % len(MARKERS)],
                color=theme.lines[number % len(theme.lines)],
                markersize=6,
                linewidth=2,
                capsize=3,
                label=wrapped(kind, 44) if len(self.kinds) > 1 else None,
            )
        axes.axvline(0, color=theme.text, linewidth=1)
        axes.set_yticks(
            [sum(places[group, kind] for kind in own) / len(own) for group, own in self.groups.items() if own],
            [wrapped(group, self.letters) for group, own in self.groups.items() if own],
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(title=self.title, xlabel="points of nDCG@10")
        axes.set_ylim(max(places.values()) + 0.7, -0.7)

    @property
    def _places(self) -> dict[tuple[str, str], float]:
        return dict(_spaced(self.groups))


def forest(title: str, differences: Mapping[str, Mapping[str, Difference]], first: str) -> Picture:
    """Draw differences in points of nDCG@10 with 95 % intervals.

    Args:
        title: What is drawn.
        differences: What the differences are on, such as a data set, to system to difference.
        first: What they are to.
    """
    groups = {
        group: {system: Interval(*map(_points, (one.points, one.low, one.high))) for system, one in own.items()}
        for group, own in differences.items()
    }
    plot = Forest(title, groups)
    caption = f"To {first}. Bars are 95 % intervals: one that crosses the line at 0 may be chance."
    return picture(plot.draw, plot.alt, caption, height=plot.height)


def _points(value: float | None) -> Any:
    return None if value is None else 100 * value


def _spaced(groups: Mapping[str, Mapping[str, Interval]]) -> Iterator[tuple[tuple[str, str], float]]:
    """The height of each row, with a little room between the groups."""
    rows = [(number, group, kind) for number, (group, own) in enumerate(groups.items()) for kind in own]
    for place, (number, group, kind) in enumerate(rows):
        yield (group, kind), place + 0.6 * number


def _bar(one: Interval) -> tuple[float, float]:
    """How far it reaches to the left and to the right."""
    ends = one.points if one.low is None else one.low, one.points if one.high is None else one.high
    return max(0.0, one.points - ends[0]), max(0.0, ends[1] - one.points)
