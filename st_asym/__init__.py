"""Query and document heads for a frozen Sentence Transformers encoder."""

from typing import TYPE_CHECKING, Any

from st_asym.cache import CachedSentenceTransformer, CacheError, EmbeddingCache, encoder_fingerprint, record_keys
from st_asym.losses import CorpusContrastiveLoss, IsotropyLoss
from st_asym.model import asymmetric_model, freeze_encoder
from st_asym.monitoring import TrainingMonitor, watch
from st_asym.negatives import mine_negatives
from st_asym.projection import AsymmetricProjection
from st_asym.routing import check_router_mapping, column_prompts, router_mapping
from st_asym.unfreezing import unfreeze_last_layers

if TYPE_CHECKING:
    from st_asym.diagnosis import Diagnosis, diagnose
    from st_asym.fitting import FitReport, FitResult, Settings, fit

__version__ = "0.1.0.dev0"

__all__ = [
    "AsymmetricProjection",
    "CacheError",
    "CachedSentenceTransformer",
    "CorpusContrastiveLoss",
    "Diagnosis",
    "EmbeddingCache",
    "FitReport",
    "FitResult",
    "IsotropyLoss",
    "Settings",
    "TrainingMonitor",
    "asymmetric_model",
    "check_router_mapping",
    "column_prompts",
    "diagnose",
    "encoder_fingerprint",
    "fit",
    "freeze_encoder",
    "mine_negatives",
    "record_keys",
    "router_mapping",
    "unfreeze_last_layers",
    "watch",
]

_LAZY = {
    "Diagnosis": "diagnosis",
    "FitReport": "fitting",
    "FitResult": "fitting",
    "Settings": "fitting",
    "diagnose": "diagnosis",
    "fit": "fitting",
}


def __getattr__(name: str) -> Any:
    """Load what most users of the modules alone do not need when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"st_asym.{_LAZY[name]}"), name)
