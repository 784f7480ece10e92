"""Reports as one HTML file that opens anywhere: tables, plots and examples, with nothing from the network.

From the bottom up: ``page`` (what a page consists of), ``plotting``, ``curves``, ``forest`` and ``scatter`` (kinds of
pictures), ``candidate_forest`` and ``gain_curves`` (of a fit), ``comparison_page``, ``diagnosis_page``, ``fit_page``
and ``training_page``, ``main``.
"""

from st_asym.report.main import as_html, check_installed, save_html

__all__ = ["as_html", "check_installed", "save_html"]
