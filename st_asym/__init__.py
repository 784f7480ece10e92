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
    from st_asym.fitting.fit_vectors import HeadsResult, fit_vectors
    from st_asym.heads import (
        AsymmetricProjection,
        Heads,
        asymmetric_model,
        freeze_encoder,
        unfreeze_last_layers,
    )
    from st_asym.heads.saved import attach_heads, save_heads
    from st_asym.losses import CorpusContrastiveLoss, IsotropyLoss
    from st_asym.report import write_card
    from st_asym.trainer import (
        TrainingMonitor,
        check_router_mapping,
        column_prompts,
        mine_negatives,
        router_mapping,
        watch,
    )
    from st_asym.trust import Provenance, Verification, VerificationError, save_provenance, verify

__version__ = "0.2.0.dev0"

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
    "Heads",
    "HeadsResult",
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
    "fit_vectors",
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
    "st_asym.fitting.fit_vectors": ("HeadsResult", "fit_vectors"),
    "st_asym.heads": (
        "AsymmetricProjection",
        "Heads",
        "asymmetric_model",
        "freeze_encoder",
        "unfreeze_last_layers",
    ),
    "st_asym.heads.saved": ("attach_heads", "save_heads"),
    "st_asym.losses": ("CorpusContrastiveLoss", "IsotropyLoss"),
    "st_asym.report": ("write_card",),
    "st_asym.trainer": (
        "TrainingMonitor",
        "check_router_mapping",
        "column_prompts",
        "mine_negatives",
        "router_mapping",
        "watch",
    ),
    "st_asym.trust": ("Provenance", "Verification", "VerificationError", "save_provenance", "verify"),
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
