"""Any result as one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from transformers import TrainerState

from st_asym.diagnosis import Diagnosis
from st_asym.disk.writing import write_text
from st_asym.evaluation.comparison import Comparison
from st_asym.fitting.report import FitReport
from st_asym.report.pages import comparison_page, diagnosis_page, fit_page, training_page
from st_asym.report.parts import REQUIRES, Page, template

Subject: TypeAlias = Comparison | Diagnosis | FitReport | TrainerState

_NAMES = "a Comparison, a Diagnosis, a FitReport or a TrainerState"
_PAGES: dict[type, Callable[[Any], Page]] = {
    Comparison: comparison_page,
    Diagnosis: diagnosis_page,
    FitReport: fit_page,
    TrainerState: training_page,
}


def check_installed() -> None:
    """Refuse before hours of work whose report could not be written.

    Raises:
        ModuleNotFoundError: jinja2 or matplotlib is missing.
    """
    if not all(map(find_spec, ("jinja2", "matplotlib"))):
        raise ModuleNotFoundError(REQUIRES)


def as_html(*subjects: Subject) -> str:
    """One HTML document for all of them, in light and dark; see :func:`save_html`."""
    if not subjects:
        raise TypeError(f"There is nothing to report on: give {_NAMES}.")
    pages = [_page(subject) for subject in subjects]
    return template("page.html.j2").render(pages=pages, title=" and ".join(page.title for page in pages))


def save_html(path: str | os.PathLike[str], *subjects: Subject) -> None:
    """Write one HTML file that opens anywhere, without a network. Needs the extra ``report``.

    Args:
        path: Where to write it; its folder is made if missing.
        *subjects: What :func:`st_asym.evaluate` or :func:`st_asym.diagnose` gives, the ``report`` of
            :func:`st_asym.fit`, the ``state`` of a trainer, best with the figures of :func:`st_asym.watch`, or several
            of them.

    Raises:
        TypeError: Nothing, or something else.
        ValueError: A trainer that has logged nothing.
        ModuleNotFoundError: jinja2 or matplotlib is missing.

    Example:
        >>> result = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model")  # doctest: +SKIP
        >>> save_html("report.html", result.report)  # doctest: +SKIP
        >>> state = TrainerState.load_from_json("runs/checkpoint-60/trainer_state.json")  # doctest: +SKIP
        >>> save_html("training.html", state)  # doctest: +SKIP
    """
    text = as_html(*subjects)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text, errors="replace")


def _page(subject: Subject) -> Page:
    for kind, page in _PAGES.items():
        if isinstance(subject, kind):
            return page(subject)
    raise TypeError(f"A report is made of {_NAMES}, not of a {type(subject).__name__}.")
