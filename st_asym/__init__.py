"""Query and document heads for a frozen Sentence Transformers encoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_asym.cache import CachedSentenceTransformer, CacheError, EmbeddingCache, encoder_fingerprint, record_keys
    from st_asym.diagnosis import Diagnosis, diagnose
    from st_asym.evaluation import BeirModel, Comparison, evaluate
    from st_asym.export import Export, export_side
    from st_asym.fitting import FitReport, Settings, whitened_heads
    from st_asym.fitting.fit import FitResult, fit
    from st_asym.heads_alone import attach_heads, save_heads
    from st_asym.hub import write_card
    from st_asym.losses import CorpusContrastiveLoss, IsotropyLoss
    from st_asym.model import asymmetric_model, freeze_encoder
    from st_asym.monitoring import TrainingMonitor, watch
    from st_asym.negatives import mine_negatives
    from st_asym.projection import AsymmetricProjection
    from st_asym.provenance import Provenance, save_provenance
    from st_asym.routing import check_router_mapping, column_prompts, router_mapping
    from st_asym.unfreezing import unfreeze_last_layers
    from st_asym.untrusted.findings import VerificationError
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
    "whitened_heads",
    "write_card",
]

# Loaded when they are asked for: a command's --help, or one class, must not wait for all others.
_PLACES = {
    "st_asym.cache": (
        "CachedSentenceTransformer",
        "CacheError",
        "EmbeddingCache",
        "encoder_fingerprint",
        "record_keys",
    ),
    "st_asym.diagnosis": ("Diagnosis", "diagnose"),
    "st_asym.evaluation": ("BeirModel", "Comparison", "evaluate"),
    "st_asym.export": ("Export", "export_side"),
    "st_asym.fitting": ("FitReport", "FitResult", "Settings", "fit", "whitened_heads"),
    "st_asym.heads_alone": ("attach_heads", "save_heads"),
    "st_asym.hub": ("write_card",),
    "st_asym.losses": ("CorpusContrastiveLoss", "IsotropyLoss"),
    "st_asym.model": ("asymmetric_model", "freeze_encoder"),
    "st_asym.monitoring": ("TrainingMonitor", "watch"),
    "st_asym.negatives": ("mine_negatives",),
    "st_asym.projection": ("AsymmetricProjection",),
    "st_asym.provenance": ("Provenance", "save_provenance"),
    "st_asym.routing": ("check_router_mapping", "column_prompts", "router_mapping"),
    "st_asym.unfreezing": ("unfreeze_last_layers",),
    "st_asym.untrusted.findings": ("VerificationError",),
    "st_asym.verification": ("Verification", "verify"),
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load it when it is asked for."""
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACE[name]), name)


def __dir__() -> list[str]:
    """All that can be asked for."""
    return sorted({*globals(), *__all__})
