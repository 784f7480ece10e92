"""Did the heads learn anything, and what.

From the bottom up: ``statistics`` and ``hubness`` (of one set of vectors), ``heads`` (as functions), ``similarities``
(queries with documents), ``result`` (what a diagnosis holds), ``judging``, ``findings`` (what it means), ``text``,
``main``.
"""

from st_asym.diagnosis.diagnose import diagnose
from st_asym.diagnosis.result import Diagnosis

__all__ = ["Diagnosis", "diagnose"]
