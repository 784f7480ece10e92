"""Losses for the stock trainer, in the conventions of the library's own."""

from st_asym.losses.corpus import CorpusContrastiveLoss
from st_asym.losses.isotropy import IsotropyLoss

__all__ = ["CorpusContrastiveLoss", "IsotropyLoss"]
