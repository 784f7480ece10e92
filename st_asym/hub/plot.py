"""nDCG@10 of held-out queries by epoch, as a file beside the card."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = "held_out_queries.png"

# Okabe and Ito 2008, "Color Universal Design": blue and vermilion.
_HALVES = (("seen", "seen documents", "-", "#0072B2"), ("unseen", "unseen documents", "--", "#D55E00"))


def plot(report: Mapping[str, Any], folder: Path) -> str | None:
    """Draw it; None where there is no curve to draw, or no matplotlib (extra ``report``)."""
    entries = [entry for entry in report["evidence"] if entry["choice"]["dial"] == 1.0]
    if len(entries) < 2 or find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    epochs = [entry["choice"]["epoch"] for entry in entries]
    for name, shown, style, colour in _HALVES:
        gains = [entry[name] for entry in entries]
        if not gains[0]["queries"]:
            continue
        means = [gain["untouched"] + gain["mean"] for gain in gains]
        if all(gain["error"] is not None for gain in gains):
            low = [mean - gain["error"] for mean, gain in zip(means, gains, strict=True)]
            high = [mean + gain["error"] for mean, gain in zip(means, gains, strict=True)]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(epochs, means, style, color=colour, marker="o", markersize=3.5, label=shown)
        axes.axhline(gains[0]["untouched"], color=colour, linestyle=":", linewidth=1.2)
    _mark_choice(axes, report["chosen"])
    axes.set(title="nDCG@10 of held-out queries", xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot([], [], ":", color="black", label="untouched encoder")
    axes.legend(frameon=False, fontsize=9)
    (folder / FILE).unlink(missing_ok=True)  # a link would be followed
    figure.savefig(folder / FILE, metadata={"Software": None})
    return FILE


def _mark_choice(axes: Any, chosen: Mapping[str, Any] | None) -> None:
    """What was kept is off the curve where the dial turned the heads back."""
    if chosen is None:
        return
    choice, label = chosen["choice"], f"kept, dial {chosen['choice']['dial']:g}"
    for name, _, _, colour in _HALVES:
        gain = chosen[name]
        if gain["queries"]:
            axes.plot(choice["epoch"], gain["untouched"] + gain["mean"], "*", color=colour, markersize=11, label=label)
            label = "_"  # one star in the legend stands for both
