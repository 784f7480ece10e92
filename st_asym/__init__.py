"""Query and document heads for a frozen Sentence Transformers encoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_asym.cache import CachedSentenceTransformer as CachedSentenceTransformer
    from st_asym.cache import CacheError as CacheError
    from st_asym.cache import EmbeddingCache as EmbeddingCache
    from st_asym.cache import encoder_fingerprint as encoder_fingerprint
    from st_asym.cache import record_keys as record_keys
    from st_asym.diagnosis import Diagnosis as Diagnosis
    from st_asym.diagnosis import diagnose as diagnose
    from st_asym.evaluation import BeirModel as BeirModel
    from st_asym.evaluation import Comparison as Comparison
    from st_asym.evaluation import evaluate as evaluate
    from st_asym.export import Export as Export
    from st_asym.export import export_side as export_side
    from st_asym.fitting import FitReport as FitReport
    from st_asym.fitting import Settings as Settings
    from st_asym.fitting import whitened_heads as whitened_heads
    from st_asym.fitting.fit import FitResult as FitResult
    from st_asym.fitting.fit import fit as fit
    from st_asym.fitting.fit_vectors import HeadsResult as HeadsResult
    from st_asym.fitting.fit_vectors import fit_vectors as fit_vectors
    from st_asym.heads import AsymmetricProjection as AsymmetricProjection
    from st_asym.heads import Heads as Heads
    from st_asym.heads import asymmetric_model as asymmetric_model
    from st_asym.heads import freeze_encoder as freeze_encoder
    from st_asym.heads import unfreeze_last_layers as unfreeze_last_layers
    from st_asym.heads.saved import attach_heads as attach_heads
    from st_asym.heads.saved import save_heads as save_heads
    from st_asym.losses import CorpusContrastiveLoss as CorpusContrastiveLoss
    from st_asym.losses import IsotropyLoss as IsotropyLoss
    from st_asym.report import write_card as write_card
    from st_asym.trainer import TrainingMonitor as TrainingMonitor
    from st_asym.trainer import check_router_mapping as check_router_mapping
    from st_asym.trainer import column_prompts as column_prompts
    from st_asym.trainer import mine_negatives as mine_negatives
    from st_asym.trainer import router_mapping as router_mapping
    from st_asym.trainer import watch as watch
    from st_asym.trust import Provenance as Provenance
    from st_asym.trust import Verification as Verification
    from st_asym.trust import VerificationError as VerificationError
    from st_asym.trust import save_provenance as save_provenance
    from st_asym.trust import verify as verify

__version__ = "0.2.0.dev0"

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
    "st_asym.heads": ("AsymmetricProjection", "Heads", "asymmetric_model", "freeze_encoder", "unfreeze_last_layers"),
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

if not TYPE_CHECKING:  # type checkers know lists alone that are written out; they go by the imports above
    __all__ = sorted(_PLACE)


def __getattr__(name: str) -> Any:
    """Load it when it is asked for."""
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACE[name]), name)


def __dir__() -> list[str]:
    """All that can be asked for."""
    return sorted({*globals(), *_PLACE})
