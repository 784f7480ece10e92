"""What the candidates of a fit gained on held-out queries, as a file beside the card."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from st_asym.hub.fitted import Report

FILE = "held_out_queries.png"


def plot(report: Report, folder: Path) -> str | None:
    """Draw it; None where nothing was judged, or without matplotlib (extra ``report``)."""
    if find_spec("matplotlib") is None:
        return None
    from st_asym.report.candidate_forest import candidate_forest
    from st_asym.report.plotting import LIGHT, draw_into

    forest = candidate_forest(report)
    if forest is None:
        return None
    path = folder / FILE
    path.unlink(missing_ok=True)  # a link would be followed
    draw_into(path, forest.draw, LIGHT, forest.height, dpi=120, facecolor="white", metadata={"Software": None})
    return FILE
