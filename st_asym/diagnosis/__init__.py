"""Did the heads learn anything, and what.

From the bottom up: ``geometry`` (of one set of vectors), ``movement`` (what heads do to vectors), ``relevance`` (what
queries find), ``findings`` (what it means), ``diagnose``.
"""

from st_asym.diagnosis.diagnose import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
