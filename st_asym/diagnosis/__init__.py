"""Did the heads learn anything, and what.

From the bottom up: ``geometry`` (vectors, and what heads do to them), ``findings`` (what queries find, and what it all
means), ``diagnose`` (all of it).
"""

from st_asym.diagnosis.diagnose import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
