"""Plots for light and for dark pages, in colours that the colour-blind tell apart."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from st_asym.data.collection import counted
from st_asym.report.tables import HALVES, MOST, Report, how_far, is_kept
from st_asym.retrieval.significance import Interval

if TYPE_CHECKING:
    from st_asym.diagnosis.diagnose import Diagnosis
    from st_asym.diagnosis.findings import Histograms, SideOf
    from st_asym.retrieval.significance import Difference

REQUIRES = 'HTML reports need matplotlib: pip install "st_asym[report]".'
SPREAD = "Of unit vectors, scaled by the root of the dimension: 1 is even, 0 is collapsed."

# Of a diagnosis: when, what it is called, and how its line looks.
_WHEN = (("before", "encoder", "--"), ("after", "with heads", "-"))
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


class Theme(NamedTuple):
    """Colours of a page. Those of lines are of Okabe and Ito 2008, "Color Universal Design"."""

    before: str  # what is as the encoder gives it; drawn dashed
    after: str  # what the heads make of it; drawn solid
    lines: tuple[str, ...]  # for more than two
    text: str  # of axes and labels
    grid: str


_OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00")
LIGHT = Theme("#D55E00", "#0072B2", ("#0072B2", *_OTHERS), "#1b1b1b", "#d5d5d5")
DARK = Theme("#E69F00", "#56B4E9", ("#56B4E9", *_OTHERS), "#ececec", "#3d3d3d")


@dataclass(frozen=True)
class Plot:
    """What draws on matplotlib's axes in a theme, the same in words, how to read it, and its height in inches."""

    draw: Callable[[Any, Theme], None]
    alt: str
    caption: str = ""
    height: float = _SIZE[1]

    def uri(self, name: Literal["light", "dark"]) -> str:
        """The picture for such a page, as a data URI."""
        stream = io.BytesIO()
        theme = LIGHT if name == "light" else DARK
        self.save(stream, theme, format="svg", transparent=True, metadata={"Date": None})
        return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()

    def save(self, target: Path | BinaryIO, theme: Theme = LIGHT, **options: Any) -> None:
        """Draw it; options are those of matplotlib's ``savefig``."""
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(REQUIRES) from error
        style: Any = {
            **dict.fromkeys(("axes.edgecolor", "grid.color"), theme.grid),
            **dict.fromkeys(("axes.labelcolor", "axes.titlecolor"), theme.text),
            **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), theme.text),
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "font.size": 11,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "svg.fonttype": "path",
            "svg.hashsalt": "st_asym",
            # Names of models and data sets may hold a dollar sign.
            "text.parse_math": False,
        }
        with matplotlib.rc_context(style), warnings.catch_warnings():
            # A name in another script: the picture shows boxes, the tables beside it the name.
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
            figure = Figure(figsize=(_SIZE[0], self.height), layout="constrained")
            axes = figure.add_subplot()
            axes.set_axisbelow(True)
            self.draw(axes, theme)
            handles, names = axes.get_legend_handles_labels()
            if names:
                columns = max(1, _LEGEND // (_HANDLE + max(map(len, names))))
                place: Any = {"loc": "outside lower left", "ncols": columns}
                figure.legend(handles, names, **place, labelcolor=theme.text, fontsize=10)
            figure.savefig(target, **options)


def _wrapped(name: str, width: int, lines: int = 3) -> str:
    """A name in lines of that width; matplotlib leaves names out that begin with an underscore."""
    cut = name if len(name) <= lines * width else name[: lines * width - 1] + "…"
    text = "\n".join(textwrap.wrap(cut, width)[:lines]) or " "
    return f" {text}" if text.startswith("_") else text


def _forest(title: str, caption: str, groups: Mapping[str, Mapping[str, Interval]], letters: int = 20) -> list[Plot]:
    """Groups of rows, such as a data set, with an interval of each kind, such as a system, which has one colour.

    ``letters`` are those of the groups' names in a line. No picture where there are no intervals.
    """
    rows = [(number, group, kind) for number, (group, own) in enumerate(groups.items()) for kind in own]
    if not rows:
        return []
    # With a little room between the groups.
    places = {(group, kind): place + 0.6 * number for place, (number, group, kind) in enumerate(rows)}
    kinds = list(dict.fromkeys(kind for _, _, kind in rows))

    def draw(axes: Any, theme: Theme) -> None:
        for number, kind in enumerate(kinds):
            own = {places[group, kind]: one[kind] for group, one in groups.items() if kind in one}
            axes.errorbar(
                [one.points for one in own.values()],
                list(own),
                xerr=list(zip(*map(_reach, own.values()), strict=True)),
                fmt=_MARKERS[number % len(_MARKERS)],
                color=theme.lines[number % len(theme.lines)],
                markersize=6,
                linewidth=2,
                capsize=3,
                label=_wrapped(kind, 44) if len(kinds) > 1 else None,
            )
        axes.axvline(0, color=theme.text, linewidth=1)
        axes.set_yticks(
            [sum(places[group, kind] for kind in own) / len(own) for group, own in groups.items() if own],
            [_wrapped(group, letters) for group, own in groups.items() if own],
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(title=title, xlabel="points of nDCG@10")
        axes.set_ylim(max(places.values()) + 0.7, -0.7)

    told = ", ".join(f"{group}, {kind}: {groups[group][kind]}" for _, group, kind in rows)
    height = _INCHES_BESIDE + _INCHES_OF_A_ROW * (max(places.values()) + 1 + (len(kinds) if len(kinds) > 1 else 0))
    return [Plot(draw, f"Forest plot of differences in points of nDCG@10. {told}.", caption, height)]


def _reach(one: Interval) -> tuple[float, float]:
    """How far a bar reaches to the left and to the right."""
    low, high = (one.points if end is None else end for end in (one.low, one.high))
    return max(0.0, one.points - low), max(0.0, high - one.points)


def difference_forest(title: str, differences: Mapping[str, Mapping[str, Difference]], first: str) -> list[Plot]:
    """Of what the differences are on, such as a data set, to system to its difference to ``first``."""
    groups = {group: {system: one.interval for system, one in own.items()} for group, own in differences.items()}
    return _forest(title, f"To {first}. Bars are 95 % intervals: one that crosses the line at 0 may be chance.", groups)


def candidate_forest(report: Report) -> list[Plot]:
    """The first candidates, each at its best, with bars of a standard error; none where none was judged."""
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
    return _forest("Gain on held-out queries", caption, groups, letters=26)


def curves(
    title: str,
    log: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
    caption: str = "",
    kept: float | None = None,
) -> list[Plot]:
    """One picture of figures over epochs; none where the log has none of them.

    ``names`` maps a figure to what the legend says; those of an evaluation, ``eval_loss`` beside ``loss``, are dashed.
    The epoch that was ``kept`` is marked.
    """
    found = {name: [(entry["epoch"], entry[name]) for entry in log if name in entry] for name in names}
    lines = {name: points for name, points in found.items() if points}
    if not lines:
        return []
    kinds = list(dict.fromkeys(name.removeprefix("eval_") for name in lines))

    def draw(axes: Any, theme: Theme) -> None:
        for name, points in lines.items():
            kind = name.removeprefix("eval_")
            number = kinds.index(kind)
            axes.plot(
                *zip(*points, strict=True),
                "-" if kind == name else "--",
                color=theme.lines[number % len(theme.lines)],
                marker=_MARKERS[number % len(_MARKERS)],
                markevery=max(1, len(points) // _MARKED),
                markersize=4,
                # A sum is often as large as its first part, which would hide it.
                linewidth=3 if kind == "loss" and len(kinds) > 1 else 1.6,
                label=names[name],
            )
        if kept is not None:
            axes.axvline(kept, color=theme.text, linewidth=0.8, label="kept")
        axes.set(title=title, xlabel="epoch")
        epochs = [epoch for points in lines.values() for epoch, _ in points]
        if max(epochs) - min(epochs) >= 4:
            axes.xaxis.get_major_locator().set_params(integer=True)

    told = [f"{names[name]} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in lines.items()]
    return [Plot(draw, f"Line plot by epoch: {title}; {', '.join(told)}.", caption)]


def gain_curves(entries: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None) -> list[Plot]:
    """Of one candidate's evidence: by epoch with all of the training, and by dial after the last one turned back.

    What was chosen is marked. Heads in closed form have no curves.
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
) -> Plot:
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
    return Plot(draw, f"Line plot of nDCG@10 of held-out queries by {label}.", caption)


def by_query(
    title: str,
    before: Sequence[float],
    after: Sequence[float],
    labels: tuple[str, str],
    seen: Sequence[bool] | None = None,
) -> Plot:
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
    counts = f"{counted(up, 'query', 'queries')} gained, {down:,} lost, {len(pairs) - up - down:,} stayed as they were."
    caption = f"{counts} Above the line a query gained; the larger a point, the more queries."
    return Plot(draw, f"Scatter plot of nDCG@10 by query, {labels[0]} against {labels[1]}: {counts}", caption)


def cosines(histograms: Histograms, kind: Literal["positive", "negative"], shown: str) -> Plot:
    """Which share of the pairs has which cosine, before and after; the fewer pairs, the wider the bins."""
    counts = {when: getattr(histograms, f"{kind}_{when}") for when, *_ in _WHEN}
    width = next(width for width, enough in ((1, 2_000), (2, 500), (4, 0)) if sum(counts["after"]) >= enough)
    counts = {when: [sum(own[p : p + width]) for p in range(0, len(own), width)] for when, own in counts.items()}
    used = [place for own in counts.values() for place, count in enumerate(own) if count]
    edges = histograms.edges[::width]

    def draw(axes: Any, theme: Theme) -> None:
        for when, name, style in _WHEN:
            total = max(1, sum(counts[when]))
            shares = [count / total for count in counts[when]]
            axes.stairs(shares, edges, color=getattr(theme, when), linestyle=style, linewidth=1.8, label=name)
        if used:
            axes.set_xlim(edges[min(used)] - 0.02, edges[max(used) + 1] + 0.02)
        axes.set(title=f"Cosine of a query with a document: {shown}", xlabel="cosine", ylabel="share of pairs")
        axes.title.set_fontsize(11)

    return Plot(draw, f"Histogram of the cosines of {shown}, before and after the heads.")


def spectra(side: SideOf, shown: str) -> Plot:
    """How the variance of a side's vectors falls from axis to axis, before and after."""

    def draw(axes: Any, theme: Theme) -> None:
        for when, name, style in _WHEN:
            shares = [share for share in getattr(side, when).spectrum if share > 1e-9]
            places = range(1, len(shares) + 1)
            axes.plot(places, shares, color=getattr(theme, when), linestyle=style, linewidth=1.8, label=name)
        axes.set(title=f"Spectrum of the {shown}", xlabel="principal axis", ylabel="share of variance", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")

    return Plot(draw, f"Share of the variance of the {shown} along each axis.", "The flatter, the more even.")


def singular_values(diagnosis: Diagnosis) -> list[Plot]:
    """Those of both heads' linear maps in one picture; none where there are none."""
    heads = {side: own.head for side, own in diagnosis.sides.items() if own.head.kind != "none"}
    if not any(head.singular_values for head in heads.values()):
        return []

    def draw(axes: Any, theme: Theme) -> None:
        for (side, head), color, style in zip(heads.items(), theme.lines, ("-", "--"), strict=False):
            places = range(1, len(head.singular_values) + 1)
            axes.plot(places, head.singular_values, color=color, linestyle=style, linewidth=1.8, label=side)
        axes.axhline(1.0, color=theme.text, linewidth=0.8)
        axes.set(title="Singular values of the heads' linear maps", xlabel="rank", ylabel="singular value")
        axes.set_ylim(bottom=0)

    return [Plot(draw, "Singular values of the linear map of each head.", "The identity has 1 everywhere.")]
