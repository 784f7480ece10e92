"""The heads and the model around them: built, frozen, taken apart, saved alone, applied to arrays.

From the bottom up: ``projection`` (two heads in a stock Router), ``anatomy`` (a model taken apart), ``model`` (an
encoder with heads behind it), ``saved`` (heads without their encoder); ``array_heads`` (saved heads on arrays, by numpy
alone).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_asym.heads.array_heads import Heads
    from st_asym.heads.model import asymmetric_model, freeze_encoder, unfreeze_last_layers
    from st_asym.heads.projection import AsymmetricProjection

__all__ = ["AsymmetricProjection", "Heads", "asymmetric_model", "freeze_encoder", "unfreeze_last_layers"]

# Loaded when they are asked for: heads on arrays need no torch.
_PLACES = {"AsymmetricProjection": "projection", "Heads": "array_heads"}


def __getattr__(name: str) -> Any:
    """Load it when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'model')}"), name)
