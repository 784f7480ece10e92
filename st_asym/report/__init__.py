"""Reports as one HTML file that opens anywhere: tables, plots and examples, with nothing from the network.

From the bottom up: ``page`` (what a page consists of), ``plotting``, ``diagnosis_page`` and ``fit_page``, ``main``.
"""

from st_asym.report.main import as_html, save_html

__all__ = ["as_html", "save_html"]
