"""Whether a saved model can be trusted to be what it says, told from its files without loading it.

From the bottom up: ``folder`` (its plain files, JSON and weights), ``modules`` (what they make up), ``provenance``
(what a model was made of, and what stands in the place of a new result), ``verify``.
"""

from st_asym.trust.folder import VerificationError
from st_asym.trust.provenance import Provenance, save_provenance
from st_asym.trust.verify import Verification, verify

__all__ = ["Provenance", "Verification", "VerificationError", "save_provenance", "verify"]
