"""Did the heads learn anything, and what.

From the bottom up: ``geometry`` (vectors, and what heads do to them), ``relevance`` (what queries find), ``findings``
(what that means), ``diagnose`` (all of it).
"""

from st_asym.diagnosis.diagnose import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
