"""From texts to a saved model: rehearse candidates on held-out queries, decide, train what is kept.

From left to right: ``settings``; ``vectors`` (all that training sees); ``closed_form`` and ``candidates`` (what is
tried); ``gate`` (the decision); ``loop`` (training, on vectors, and what is kept by the stock trainer); ``rehearsal``
(candidates on held-out queries) and ``tuning`` (more of them); ``report``; ``fit``; ``fit_vectors`` (the same for
vectors of any source, without texts and encoder).
"""

from st_asym.fitting.closed_form import whitened_heads
from st_asym.fitting.fit import FitResult, fit
from st_asym.fitting.report import FitReport
from st_asym.fitting.settings import Settings

__all__ = ["FitReport", "FitResult", "Settings", "fit", "whitened_heads"]
