"""Searching vectors, and what was found judged: arrays in, arrays out."""

from st_asym.retrieval.metrics import Judgments, Scores
from st_asym.retrieval.search import nearest

__all__ = ["Judgments", "Scores", "nearest"]
