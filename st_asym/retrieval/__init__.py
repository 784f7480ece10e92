"""Searching vectors, and what was found judged: arrays in, arrays out."""

from st_asym.retrieval.search import Judgments, Scores, nearest

__all__ = ["Judgments", "Scores", "nearest"]
