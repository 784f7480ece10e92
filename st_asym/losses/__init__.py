"""Losses for the stock trainer, in the conventions of the library's own."""

from st_asym.losses.corpus import CorpusContrastiveLoss
from st_asym.losses.isotropy import IsotropyLoss
from st_asym.losses.predictive import PredictiveLoss, ResidualLoss

__all__ = ["CorpusContrastiveLoss", "IsotropyLoss", "PredictiveLoss", "ResidualLoss"]
