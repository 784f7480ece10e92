"""Plots as data URIs, once for light and once for dark pages, in colours that the colour-blind tell apart."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from st_asym.report.page import REQUIRES, Picture

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
