"""Any of the package's results as HTML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from st_asym.diagnosis.result import Diagnosis
from st_asym.fitting.report import FitReport
from st_asym.report.diagnosis_page import diagnosis_page
from st_asym.report.fit_page import fit_page
from st_asym.report.page import Page, html

Subject: TypeAlias = Diagnosis | FitReport


def as_html(*subjects: Subject) -> str:
    """One HTML document for all of them, in light and dark; see :func:`save_html`."""
    if not subjects:
        raise TypeError("There is nothing to report on: give a Diagnosis or a FitReport.")
    return html([_page(subject) for subject in subjects])


def save_html(path: str | os.PathLike[str], *subjects: Subject) -> None:
    """Write one HTML file that opens anywhere, without a network. Needs the extra ``report``.

    Args:
        path: Where to write it; its folder is made if missing.
        *subjects: What :func:`st_asym.diagnose` gives, the ``report`` of :func:`st_asym.fit`, or several of them.

    Raises:
        TypeError: Nothing, or something else.
        ModuleNotFoundError: jinja2 or matplotlib is missing.

    Example:
        >>> result = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model")  # doctest: +SKIP
        >>> save_html("report.html", result.report)  # doctest: +SKIP
    """
    text = as_html(*subjects)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", errors="replace")


def _page(subject: Subject) -> Page:
    if isinstance(subject, Diagnosis):
        return diagnosis_page(subject)
    if isinstance(subject, FitReport):
        return fit_page(subject)
    raise TypeError(f"A report is made of a Diagnosis or a FitReport, not of a {type(subject).__name__}.")
