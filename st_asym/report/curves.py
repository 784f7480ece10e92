"""Figures of training as lines over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st_asym.report.page import Picture
from st_asym.report.plotting import MARKERS, Theme, picture

SPREAD = "Of unit vectors, scaled by the root of the dimension: 1 is even, 0 is collapsed."
# About how many points of a line are marked.
_MARKED = 20


@dataclass(frozen=True)
class Line:
    """A figure over epochs.

    Attributes:
        name: What the legend says.
        kind: Lines of one kind have one colour.
        places: The epochs.
        values: The figure at each.
        dashed: Whether it is drawn dashed, as what is measured beside training.
    """

    name: str
    kind: str
    places: Sequence[float]
    values: Sequence[float]
    dashed: bool = False


def lines_of(log: Sequence[dict[str, float]], names: dict[str, str], *, dashed: str = "") -> list[Line]:
    """The figures of a log that are there, as lines.

    Args:
        log: Entries with ``epoch`` and figures.
        names: Figure to what the legend says.
        dashed: What the names of figures begin with that are drawn dashed.
    """
    found = []
    for name, shown in names.items():
        entries = [entry for entry in log if name in entry]
        if entries:
            values = [entry[name] for entry in entries]
            own = bool(dashed) and name.startswith(dashed)
            kind = name.removeprefix(dashed)
            found.append(Line(shown, kind, [entry["epoch"] for entry in entries], values, own))
    return found


def curves(title: str, lines: Sequence[Line], caption: str = "", kept: float | None = None) -> list[Picture]:
    """One picture of all lines, none without lines.

    Args:
        title: What is drawn.
        lines: The lines.
        caption: How to read it.
        kept: The epoch that is marked.
    """
    if not lines:
        return []
    places = [place for line in lines for place in line.places]
    kinds = list(dict.fromkeys(line.kind for line in lines))

    def draw(axes: Any, theme: Theme) -> None:
        for line in lines:
            number = kinds.index(line.kind)
            axes.plot(
                line.places,
                line.values,
                "--" if line.dashed else "-",
                color=theme.lines[number % len(theme.lines)],
                marker=MARKERS[number % len(MARKERS)],
                markevery=max(1, len(line.places) // _MARKED),
                markersize=4,
                # A sum is often as large as its first part, which would hide it.
                linewidth=3 if line.kind == "loss" and len(kinds) > 1 else 1.6,
                label=line.name,
            )
        if kept is not None:
            axes.axvline(kept, color=theme.text, linewidth=0.8, label="kept")
        axes.set(title=title, xlabel="epoch")
        if max(places) - min(places) >= 4:
            axes.xaxis.get_major_locator().set_params(integer=True)

    first = [f"{line.name} from {line.values[0]:.3g} to {line.values[-1]:.3g}" for line in lines]
    return [picture(draw, f"Line plot by epoch: {title}; {', '.join(first)}.", caption)]
