"""The model card: what a saved model is, how to use it, what made it and what it scored, for the Hub.

From the bottom up: ``card`` (metadata and sections, read and written), ``facts`` (what the model says of itself),
``saved_report`` and ``fitted`` (a fit: read, and in words), ``sections``, ``evaluation`` (of a comparison), ``plot``,
``main``.
"""

from st_asym.hub.main import write_card

__all__ = ["write_card"]
