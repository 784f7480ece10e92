"""Plots as data URIs, once for light and once for dark pages, in colours that the colour-blind tell apart."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from st_asym.report.facts import HALVES, MOST, Report, how_far, is_kept
from st_asym.report.parts import REQUIRES, Picture

if TYPE_CHECKING:
    from st_asym.retrieval.significance import Difference

SPREAD = "Of unit vectors, scaled by the root of the dimension: 1 is even, 0 is collapsed."

# At 400 pixels, the width of a phone, a point is about a pixel.
_SIZE = (5.4, 3.3)
# About how many letters fit into a line of the legend, and how many the line before a name takes.
_LEGEND, _HANDLE = 75, 8
_INCHES_OF_A_ROW = 0.26
_INCHES_BESIDE = 1.1
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# About how many points of a line are marked.
_MARKED = 20
# Queries that score the same are one point, this large for one query.
_AREA = 14


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
    """Draw a plot in both themes; its height is in inches."""

    def drawn(theme: Theme) -> str:
        stream = io.BytesIO()
        draw_into(stream, draw, theme, height, format="svg", transparent=True, metadata={"Date": None})
        return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()

    return Picture(drawn(LIGHT), drawn(DARK), alt, caption)


def draw_into(target: Path | BinaryIO, draw: Draw, theme: Theme, height: float, **options: Any) -> None:
    """Draw a plot in one theme; options are those of matplotlib's ``savefig``.

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


def _wrapped(name: str, width: int, lines: int = 3) -> str:
    """A name in lines of that width; matplotlib leaves names out that begin with an underscore."""
    cut = name if len(name) <= lines * width else name[: lines * width - 1] + "…"
    text = "\n".join(textwrap.wrap(cut, width)[:lines]) or " "
    return f" {text}" if text.startswith("_") else text


@dataclass(frozen=True)
class Interval:
    """A difference in points of nDCG@10, and the ends of its bar; None where it has none."""

    points: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, difference: Difference) -> Interval:
        """A difference and its 95 % interval."""
        low, high = (None if end is None else 100 * end for end in (difference.low, difference.high))
        return cls(100 * difference.points, low, high)

    def __str__(self) -> str:
        """``+1.20 [+0.40, +2.00]``."""
        if self.low is None or self.high is None:
            return f"{self.points:+.2f}"
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def reach(self) -> tuple[float, float]:
        """How far the bar reaches to the left and to the right."""
        low, high = (self.points if end is None else end for end in (self.low, self.high))
        return max(0.0, self.points - low), max(0.0, high - self.points)


@dataclass(frozen=True)
class Forest:
    """A forest plot that can be drawn.

    Attributes:
        title: What is drawn.
        caption: How to read it.
        groups: Name of a group of rows, such as a data set, to kind of row, such as a system, to its difference. Rows
            of one kind have one colour.
        letters: Of the groups' names in a line.
    """

    title: str
    caption: str
    groups: Mapping[str, Mapping[str, Interval]]
    letters: int = 20

    @property
    def height(self) -> float:
        """In inches."""
        kinds = len(self._kinds)
        return _INCHES_BESIDE + _INCHES_OF_A_ROW * (max(self._places.values()) + 1 + (kinds if kinds > 1 else 0))

    @property
    def picture(self) -> Picture:
        """Drawn in both themes, with all that is drawn in words."""
        told = ", ".join(f"{group}, {kind}: {one}" for group, own in self.groups.items() for kind, one in own.items())
        alt = f"Forest plot of differences in points of nDCG@10. {told}."
        return picture(self.draw, alt, self.caption, height=self.height)

    def draw(self, axes: Any, theme: Theme) -> None:
        """Draw it."""
        places, kinds = self._places, self._kinds
        for number, kind in enumerate(kinds):
            own = {places[group, kind]: one[kind] for group, one in self.groups.items() if kind in one}
            axes.errorbar(
                [one.points for one in own.values()],
                list(own),
                xerr=list(zip(*(one.reach for one in own.values()), strict=True)),
                fmt=_MARKERS[number % len(_MARKERS)],
                color=theme.lines[number % len(theme.lines)],
                markersize=6,
                linewidth=2,
                capsize=3,
                label=_wrapped(kind, 44) if len(kinds) > 1 else None,
            )
        axes.axvline(0, color=theme.text, linewidth=1)
        axes.set_yticks(
            [sum(places[group, kind] for kind in own) / len(own) for group, own in self.groups.items() if own],
            [_wrapped(group, self.letters) for group, own in self.groups.items() if own],
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(title=self.title, xlabel="points of nDCG@10")
        axes.set_ylim(max(places.values()) + 0.7, -0.7)

    @property
    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(kind for own in self.groups.values() for kind in own))

    @property
    def _places(self) -> dict[tuple[str, str], float]:
        """The height of each row, with a little room between the groups."""
        rows = [(number, group, kind) for number, (group, own) in enumerate(self.groups.items()) for kind in own]
        return {(group, kind): place + 0.6 * number for place, (number, group, kind) in enumerate(rows)}


def difference_forest(title: str, differences: Mapping[str, Mapping[str, Difference]], first: str) -> Forest:
    """Of what the differences are on, such as a data set, to system to its difference to ``first``."""
    groups = {group: {system: Interval.of(one) for system, one in own.items()} for group, own in differences.items()}
    return Forest(title, f"To {first}. Bars are 95 % intervals: one that crosses the line at 0 may be chance.", groups)


def candidate_forest(report: Report) -> Forest | None:
    """The first candidates, each at its best, with bars of a standard error; None where none was judged."""
    groups: dict[str, dict[str, Interval]] = {}
    for one in report["candidates"][:MOST]:
        name = f"kept: {one['name']}" if is_kept(report, one["name"]) else one["name"]
        groups[name] = {}
        for half, shown in HALVES.items():
            gain = one["evidence"][half]
            if gain["queries"]:
                mean, error = 100 * gain["mean"], gain["error"]
                ends = (None, None) if error is None else (mean - 100 * error, mean + 100 * error)
                groups[name][shown] = Interval(mean, *ends)
    total = len(report["candidates"])
    which = f"the first {MOST} of {total} candidates" if total > MOST else "all candidates"
    caption = f"To the untouched encoder, {which}, each at its best. Bars are one standard error to either side."
    return Forest("Gain on held-out queries", caption, groups, letters=26) if groups else None


def curves(
    title: str,
    log: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
    caption: str = "",
    kept: float | None = None,
) -> list[Picture]:
    """One picture of figures over epochs; none where the log has none of them.

    Args:
        title: What is drawn.
        log: Entries with ``epoch`` and figures. Those of an evaluation, ``eval_loss`` beside ``loss``, are dashed.
        names: Figure to what the legend says.
        caption: How to read it.
        kept: The epoch that is marked.
    """
    lines: list[tuple[str, str, list[float], list[float]]] = []
    for name, shown in names.items():
        entries = [entry for entry in log if name in entry]
        if entries:
            lines.append((name, shown, [entry["epoch"] for entry in entries], [entry[name] for entry in entries]))
    if not lines:
        return []
    kinds = list(dict.fromkeys(name.removeprefix("eval_") for name, *_ in lines))

    def draw(axes: Any, theme: Theme) -> None:
        for name, shown, places, values in lines:
            kind = name.removeprefix("eval_")
            number = kinds.index(kind)
            axes.plot(
                places,
                values,
                "-" if kind == name else "--",
                color=theme.lines[number % len(theme.lines)],
                marker=_MARKERS[number % len(_MARKERS)],
                markevery=max(1, len(places) // _MARKED),
                markersize=4,
                # A sum is often as large as its first part, which would hide it.
                linewidth=3 if kind == "loss" and len(kinds) > 1 else 1.6,
                label=shown,
            )
        if kept is not None:
            axes.axvline(kept, color=theme.text, linewidth=0.8, label="kept")
        axes.set(title=title, xlabel="epoch")
        epochs = [place for _, _, places, _ in lines for place in places]
        if max(epochs) - min(epochs) >= 4:
            axes.xaxis.get_major_locator().set_params(integer=True)

    told = [f"{shown} from {values[0]:.3g} to {values[-1]:.3g}" for _, shown, _, values in lines]
    return [picture(draw, f"Line plot by epoch: {title}; {', '.join(told)}.", caption)]


def gain_curves(entries: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None) -> list[Picture]:
    """By epoch with all of the training, and by dial after the last epoch that was turned back.

    Args:
        entries: Of a report's ``evidence``, those of one candidate; heads in closed form have no curves.
        chosen: What was kept of them, to be marked.
    """
    straight = [entry for entry in entries if entry["choice"]["epoch"] and entry["choice"]["dial"] == 1.0]
    dialled = [entry["choice"]["epoch"] for entry in entries if entry["choice"]["dial"] != 1.0]
    pictures = [_gain_curve(straight, "epoch", "epoch", chosen)] if straight else []
    if dialled:
        last = [entry for entry in entries if entry["choice"]["epoch"] == max(dialled)]
        label = f"dial after epoch {max(dialled)} (0: where heads started)"
        pictures.append(_gain_curve(last, "dial", label, chosen))
    return pictures


def _gain_curve(
    entries: Sequence[Mapping[str, Any]], figure: str, label: str, chosen: Mapping[str, Any] | None
) -> Picture:
    """nDCG@10 by a figure of the choice."""
    entries = sorted(entries, key=lambda entry: entry["choice"][figure])
    places = [entry["choice"][figure] for entry in entries]

    def draw(axes: Any, theme: Theme) -> None:
        for (half, shown), style, color in zip(HALVES.items(), ("-", "--"), (theme.after, theme.before), strict=True):
            gains = [entry[half] for entry in entries]
            if not gains[0]["queries"]:
                continue
            means = [gain["untouched"] + gain["mean"] for gain in gains]
            low = [mean - gain["error"] for mean, gain in zip(means, gains, strict=True)]
            high = [mean + gain["error"] for mean, gain in zip(means, gains, strict=True)]
            axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(places, means, style, color=color, marker="o", markersize=4, label=shown)
            axes.axhline(gains[0]["untouched"], color=color, linestyle=":", linewidth=1.2)
        if chosen is not None:
            # What was kept is off the curve where it has another dial, or another epoch.
            style, name = ("-", "kept") if chosen in entries else ("-.", f"kept, {how_far(chosen['choice'])}")
            axes.axvline(chosen["choice"][figure], color=theme.text, linewidth=0.8, linestyle=style, label=name)
        axes.set(title="nDCG@10 of held-out queries", xlabel=label)
        if figure == "epoch":
            axes.xaxis.get_major_locator().set_params(integer=True)

    caption = "Dotted: the untouched encoder. Shaded: a standard error of the difference to it."
    return picture(draw, f"Line plot of nDCG@10 of held-out queries by {label}.", caption)


def by_query(
    title: str,
    before: Sequence[float],
    after: Sequence[float],
    labels: tuple[str, str],
    seen: Sequence[bool] | None = None,
) -> Picture:
    """A scatter plot of two scores of each query; those that score the same are one point, the larger the more.

    ``seen`` says of each query whether a relevant document of it was in training, where that is known.
    """
    pairs = list(zip(before, after, strict=True))
    groups: dict[str | None, list[tuple[float, float]]] = {None: pairs}
    if seen is not None:
        kinds = {"seen documents": True, "unseen documents": False}
        groups = {name: [p for p, own in zip(pairs, seen, strict=True) if own is kind] for name, kind in kinds.items()}

    def draw(axes: Any, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.text, linewidth=0.8)
        for number, (shown, own) in enumerate((shown, own) for shown, own in groups.items() if own):
            points = Counter((round(old, 2), round(new, 2)) for old, new in own)
            color = (theme.after, theme.before)[number]
            # The second group in outline: where both have queries, the first shows through.
            filled = {"color": color, "linewidths": 0, "alpha": 0.55}
            outlined = {"edgecolors": color, "facecolors": "none", "linewidths": 1.3}
            axes.scatter(
                *zip(*points, strict=True),
                s=[_AREA * count**0.7 for count in points.values()],
                marker="oD"[number],
                label=shown,
                clip_on=False,
                zorder=2 + number,
                **(outlined if number else filled),
            )
        names = _wrapped(labels[0], 44, 2), _wrapped(labels[1], 24, 2)
        axes.set(title=_wrapped(title, 44, 2), xlabel=names[0], ylabel=names[1], xlim=(-0.08, 1.08), ylim=(-0.1, 1.1))

    up, down = sum(new > old for old, new in pairs), sum(new < old for old, new in pairs)
    counts = f"{up:,} queries gained, {down:,} lost, {len(pairs) - up - down:,} stayed as they were."
    caption = f"{counts} Above the line a query gained; the larger a point, the more queries."
    return picture(draw, f"Scatter plot of nDCG@10 by query, {labels[0]} against {labels[1]}: {counts}", caption)
