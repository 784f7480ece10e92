"""Plots as data URIs, once for light and once for dark pages, in colours that the colour-blind tell apart."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from st_asym.fitting.gate import Evidence
from st_asym.report.facts import HALVES, MOST, Report, how_far, is_kept
from st_asym.report.page import REQUIRES, Picture

if TYPE_CHECKING:
    from st_asym.retrieval.significance import Difference

# At 400 pixels, the width of a phone, a point is about a pixel.
_SIZE = (5.4, 3.3)
# About how many letters fit into a line of the legend, and how many the line before a name takes.
_LEGEND, _HANDLE = 75, 8

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Theme:
    """Colours of a page. Those of lines are of Okabe and Ito 2008, "Color Universal Design".

    Attributes:
        before: What is as the encoder gives it; drawn dashed.
        after: What the heads make of it; drawn solid.
        lines: For more than two.
        text: Of axes and labels.
        grid: Of the grid.
    """

    before: str
    after: str
    lines: tuple[str, ...]
    text: str
    grid: str


# Draws on matplotlib axes in a theme.
Draw = Callable[[Any, Theme], None]

_OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00")
LIGHT = Theme("#D55E00", "#0072B2", ("#0072B2", *_OTHERS), "#1b1b1b", "#d5d5d5")
DARK = Theme("#E69F00", "#56B4E9", ("#56B4E9", *_OTHERS), "#ececec", "#3d3d3d")


def picture(draw: Draw, alt: str, caption: str = "", *, height: float = _SIZE[1]) -> Picture:
    """Draw a plot in both themes.

    Args:
        draw: Draws on matplotlib axes in a theme.
        alt: What it shows, for those who do not see it.
        caption: How to read it.
        height: In inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    return Picture(_drawn(draw, LIGHT, height), _drawn(draw, DARK, height), alt, caption)


def wrapped(name: str, width: int, lines: int = 3) -> str:
    """A name in lines of that width; matplotlib leaves names out that begin with an underscore."""
    cut = name if len(name) <= lines * width else name[: lines * width - 1] + "…"
    text = "\n".join(textwrap.wrap(cut, width)[:lines]) or " "
    return f" {text}" if text.startswith("_") else text


def _drawn(draw: Draw, theme: Theme, height: float) -> str:
    stream = io.BytesIO()
    draw_into(stream, draw, theme, height, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def draw_into(target: Path | BinaryIO, draw: Draw, theme: Theme, height: float, **options: Any) -> None:
    """Draw a plot in one theme.

    Args:
        target: Where to.
        draw: As for :func:`picture`.
        theme: The theme.
        height: In inches.
        **options: Of matplotlib's ``savefig``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(REQUIRES) from error
    style: Any = {
        "axes.edgecolor": theme.grid,
        "axes.grid": True,
        "axes.labelcolor": theme.text,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.text,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "font.size": 11,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "st_asym",
        "text.color": theme.text,
        # Names of models and data sets may hold a dollar sign.
        "text.parse_math": False,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A name in another script: the picture shows boxes, the tables beside it the name.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        draw(axes, theme)
        handles, names = axes.get_legend_handles_labels()
        if names:
            columns = max(1, _LEGEND // (_HANDLE + max(map(len, names))))
            figure.legend(handles, names, loc="outside lower left", ncols=columns, labelcolor=theme.text, fontsize=10)
        figure.savefig(target, **options)


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


_STYLES = ("-", "--")


def gain_curves(entries: Sequence[Evidence], chosen: Evidence | None) -> list[Picture]:
    """By epoch with all of the training, and by dial after the last epoch that was turned back.

    Args:
        entries: The choices of one candidate; heads in closed form have no curves.
        chosen: What was kept of them, to be marked.
    """
    straight = [entry for entry in entries if entry.choice.epoch and entry.choice.dial == 1.0]
    dialled = [entry.choice.epoch for entry in entries if entry.choice.dial != 1.0]
    pictures = [_curve(straight, lambda entry: entry.choice.epoch, "epoch", chosen)] if straight else []
    if dialled:
        last = [entry for entry in entries if entry.choice.epoch == max(dialled)]
        label = f"dial after epoch {max(dialled)} (0: where heads started)"
        pictures.append(_curve(last, lambda entry: entry.choice.dial, label, chosen))
    return pictures


def _curve(
    entries: Sequence[Evidence], place: Callable[[Evidence], float], label: str, chosen: Evidence | None
) -> Picture:
    entries = sorted(entries, key=place)
    places = [place(entry) for entry in entries]

    def draw(axes: Any, theme: Theme) -> None:
        for (half, shown), style, color in zip(HALVES.items(), _STYLES, (theme.after, theme.before), strict=True):
            gains = [getattr(entry, half) for entry in entries]
            if not gains[0].queries:
                continue
            means = [gain.untouched + gain.mean for gain in gains]
            low = [mean - gain.error for mean, gain in zip(means, gains, strict=True)]
            high = [mean + gain.error for mean, gain in zip(means, gains, strict=True)]
            axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(places, means, style, color=color, marker="o", markersize=4, label=shown)
            axes.axhline(gains[0].untouched, color=color, linestyle=":", linewidth=1.2)
        if chosen is not None:
            # What was kept is off the curve where it has another dial, or another epoch.
            style, name = ("-", "kept") if chosen in entries else ("-.", f"kept, {how_far(asdict(chosen.choice))}")
            axes.axvline(place(chosen), color=theme.text, linewidth=0.8, linestyle=style, label=name)
        axes.set(title="nDCG@10 of held-out queries", xlabel=label)
        if all(isinstance(value, int) for value in places):
            axes.xaxis.get_major_locator().set_params(integer=True)

    caption = "Dotted: the untouched encoder. Shaded: a standard error of the difference to it."
    return picture(draw, f"Line plot of nDCG@10 of held-out queries by {label}.", caption)


# Queries that score the same are one point, this large for one query.
_AREA = 14


def by_query(
    title: str,
    before: Sequence[float],
    after: Sequence[float],
    labels: tuple[str, str],
    seen: Sequence[bool] | None = None,
) -> Picture:
    """A scatter plot, with queries that score the same in one point, the larger the more they are.

    Args:
        title: What is drawn.
        before: Score of each query with the model on the horizontal axis, shape ``(n,)``.
        after: The same with the other.
        labels: Names of the two.
        seen: Whether a relevant document of the query was in training, where that is known.
    """
    pairs = list(zip(before, after, strict=True))
    groups: list[tuple[str | None, Counter[tuple[float, float]]]] = [(None, _points_scatter(pairs))]
    if seen is not None:
        known = {
            shown: [pair for pair, own in zip(pairs, seen, strict=True) if own is kind]
            for kind, shown in ((True, "seen documents"), (False, "unseen documents"))
        }
        groups = [(shown, _points_scatter(own)) for shown, own in known.items() if own]

    def draw(axes: Any, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.text, linewidth=0.8)
        for number, (shown, points) in enumerate(groups):
            color = (theme.after, theme.before)[number]
            # The second group in outline: where both have queries, the first shows through.
            look = {"linewidths": 0, "alpha": 0.55} if number == 0 else {"facecolors": "none", "linewidths": 1.3}
            axes.scatter(
                *zip(*points, strict=True),
                s=[_AREA * count**0.7 for count in points.values()],
                marker="oD"[number],
                color=color if number == 0 else None,
                edgecolors=None if number == 0 else color,
                label=shown,
                clip_on=False,
                zorder=2 + number,
                **look,
            )
        names = wrapped(labels[0], 44, 2), wrapped(labels[1], 24, 2)
        axes.set(title=wrapped(title, 44, 2), xlabel=names[0], ylabel=names[1], xlim=(-0.08, 1.08), ylim=(-0.1, 1.1))

    up, down = sum(new > old for old, new in pairs), sum(new < old for old, new in pairs)
    counts = f"{up:,} queries gained, {down:,} lost, {len(pairs) - up - down:,} stayed as they were."
    caption = f"{counts} Above the line a query gained; the larger a point, the more queries."
    return picture(draw, f"Scatter plot of nDCG@10 by query, {labels[0]} against {labels[1]}: {counts}", caption)


def _points_scatter(pairs: Sequence[tuple[float, float]]) -> Counter[tuple[float, float]]:
    return Counter((round(old, 2), round(new, 2)) for old, new in pairs)
