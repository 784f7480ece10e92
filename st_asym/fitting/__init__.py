"""From texts to a saved model: rehearse on held-out queries, choose, train.

From the bottom up: ``settings``, ``heads`` (weights as a whole), ``judging``, ``workbench`` (what all runs share),
``training`` (one run), ``gate`` (the decision), ``rehearsing``, ``tuning``, ``report``, ``main``.
"""

from st_asym.fitting.main import FitResult, fit
from st_asym.fitting.report import FitReport
from st_asym.fitting.settings import Settings

__all__ = ["FitReport", "FitResult", "Settings", "fit"]
