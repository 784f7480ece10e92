"""Query and document heads for a frozen Sentence Transformers encoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from st_asym.cache import CachedSentenceTransformer, CacheError, EmbeddingCache, encoder_fingerprint, record_keys
from st_asym.losses import CorpusContrastiveLoss, IsotropyLoss
from st_asym.model import asymmetric_model, freeze_encoder
from st_asym.monitoring import TrainingMonitor, watch
from st_asym.negatives import mine_negatives
from st_asym.projection import AsymmetricProjection
from st_asym.routing import check_router_mapping, column_prompts, router_mapping
from st_asym.unfreezing import unfreeze_last_layers
from st_asym.untrusted.findings import VerificationError

if TYPE_CHECKING:
    from st_asym.diagnosis import Diagnosis, diagnose
    from st_asym.evaluation import BeirModel, Comparison, evaluate
    from st_asym.export import Export, export_side
    from st_asym.fitting import FitReport, FitResult, Settings, fit
    from st_asym.heads_alone import attach_heads, save_heads
    from st_asym.hub import write_card
    from st_asym.provenance import Provenance, save_provenance
    from st_asym.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "AsymmetricProjection",
    "BeirModel",
    "CacheError",
    "CachedSentenceTransformer",
    "Comparison",
    "CorpusContrastiveLoss",
    "Diagnosis",
    "EmbeddingCache",
    "Export",
    "FitReport",
    "FitResult",
    "IsotropyLoss",
    "Provenance",
    "Settings",
    "TrainingMonitor",
    "Verification",
    "VerificationError",
    "asymmetric_model",
    "attach_heads",
    "check_router_mapping",
    "column_prompts",
    "diagnose",
    "encoder_fingerprint",
    "evaluate",
    "export_side",
    "fit",
    "freeze_encoder",
    "mine_negatives",
    "record_keys",
    "router_mapping",
    "save_heads",
    "save_provenance",
    "unfreeze_last_layers",
    "verify",
    "watch",
    "write_card",
]

# What most users of the modules alone do not need, and where it is.
_LAZY = {
    **dict.fromkeys(("BeirModel", "Comparison", "evaluate"), "st_asym.evaluation"),
    **dict.fromkeys(("Diagnosis", "diagnose"), "st_asym.diagnosis"),
    **dict.fromkeys(("Export", "export_side"), "st_asym.export"),
    **dict.fromkeys(("FitReport", "FitResult", "Settings", "fit"), "st_asym.fitting"),
    "write_card": "st_asym.hub",
    **dict.fromkeys(("Provenance", "save_provenance"), "st_asym.provenance"),
    **dict.fromkeys(("Verification", "verify"), "st_asym.verification"),
    **dict.fromkeys(("attach_heads", "save_heads"), "st_asym.heads_alone"),
}


def __getattr__(name: str) -> Any:
    """Load it when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
