"""The one place that says a result in words or pictures: tables, pages in HTML, and the model card.

From the bottom up: ``tables`` (text and Markdown), ``plots``, ``card`` (a card as sections, and what is in them),
``html`` (any result as one file).
"""

from st_asym.report.card import write_card
from st_asym.report.html import as_html, check_installed, save_html

__all__ = ["as_html", "check_installed", "save_html", "write_card"]
