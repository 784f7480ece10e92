"""Whether a saved model can be trusted to be what it says, told from its files without loading it."""

from st_asym.untrusted.findings import VerificationError
from st_asym.verification.main import Verification, verify

__all__ = ["Verification", "VerificationError", "verify"]
