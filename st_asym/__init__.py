"""Query and document heads for a frozen Sentence Transformers encoder."""

from st_asym.cache import CachedSentenceTransformer, CacheError, EmbeddingCache, encoder_fingerprint, record_keys
from st_asym.fitting import FitReport, FitResult, Settings, fit
from st_asym.losses import CorpusContrastiveLoss, IsotropyLoss
from st_asym.model import asymmetric_model, freeze_encoder
from st_asym.monitoring import TrainingMonitor, watch
from st_asym.projection import AsymmetricProjection
from st_asym.routing import check_router_mapping, column_prompts, router_mapping

__version__ = "0.1.0.dev0"

__all__ = [
    "AsymmetricProjection",
    "CacheError",
    "CachedSentenceTransformer",
    "CorpusContrastiveLoss",
    "EmbeddingCache",
    "FitReport",
    "FitResult",
    "IsotropyLoss",
    "Settings",
    "TrainingMonitor",
    "asymmetric_model",
    "check_router_mapping",
    "column_prompts",
    "encoder_fingerprint",
    "fit",
    "freeze_encoder",
    "record_keys",
    "router_mapping",
    "watch",
]
