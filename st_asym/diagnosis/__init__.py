"""Did the heads learn anything, and what.

From the bottom up: ``geometry`` (vectors, and what heads do to them), ``relevance`` (what queries find), ``diagnose``
(all of it, and what it means).
"""

from st_asym.diagnosis.diagnose import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
