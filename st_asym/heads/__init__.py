"""The heads and the model around them: built, frozen, taken apart, saved alone.

From the bottom up: ``projection`` (two heads in a stock Router), ``anatomy`` (a model taken apart), ``model`` (an
encoder with heads behind it), ``saved`` (heads without their encoder).
"""

from st_asym.heads.model import asymmetric_model, freeze_encoder, unfreeze_last_layers
from st_asym.heads.projection import AsymmetricProjection

__all__ = [
    "AsymmetricProjection",
    "asymmetric_model",
    "freeze_encoder",
    "unfreeze_last_layers",
]
