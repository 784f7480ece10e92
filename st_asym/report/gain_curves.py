"""nDCG@10 of held-out queries by how far heads were trained, and how far they were turned back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from st_asym.fitting.gate import Evidence
from st_asym.hub.fitted import HALVES, how_far
from st_asym.report.page import Picture
from st_asym.report.plotting import Theme, picture

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
