"""Whether a saved model can be trusted to be what it says, told from its files without loading it."""

from st_asym.verification.findings import VerificationError

__all__ = ["Verification", "VerificationError", "verify"]


def __getattr__(name: str) -> object:
    """Load it when it is asked for: provenance, which it compares with, reads folders itself."""
    if name not in ("Verification", "verify"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from st_asym.verification import main

    return getattr(main, name)
