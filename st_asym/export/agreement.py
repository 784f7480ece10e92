"""Whether an export gives the vectors of the model that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from st_asym.heads.anatomy import Side

Vectors = np.ndarray[Any, np.dtype[np.float32]]

TEXTS = (
    "How do I reset the filter?",
    "Hold the button for five seconds until the light blinks twice, then let go; the counter starts again at zero.",
    "error E17",
    "In 1905, Einstein published four papers on the photoelectric effect, Brownian motion and special relativity.",
    "A protein kinase that phosphorylates serine residues regulates the cell cycle (p < 0.001, n = 42).",
    "Le contrat prend fin à la date indiquée à l'article 7, sauf accord écrit des deux parties.",
    "Der Zug nach Köln fährt heute von Gleis 3, etwa 10 Minuten später als geplant.",
    "def mean(values): return sum(values) / len(values)",
    "https://example.org/path?query=1&page=2",
    "東京の天気は晴れです。",
    "?",
    "The quick brown fox jumps over the lazy dog. " * 60,
)
"""What vectors are compared on if nothing else is given: short and long, past the usual maximum length."""


@dataclass(frozen=True)
class Agreement:
    """How close two sets of vectors are.

    Attributes:
        difference: Largest difference of a component.
        cosine: Lowest cosine of two vectors.
    """

    difference: float
    cosine: float


def agreement(vectors: Vectors, expected: Vectors) -> Agreement:
    """Compare vectors of shape ``(n, d)``; NaN is as far away as can be.

    Raises:
        ValueError: The shapes differ.
    """
    if vectors.shape != expected.shape:
        raise ValueError(f"The export gives vectors of shape {vectors.shape}, the model of {expected.shape}.")
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    difference = float(np.abs(a - b).max())
    finite = bool(np.isfinite(difference))
    return Agreement(difference if finite else float("inf"), float(cosines.min()) if finite else -1.0)


def side_vectors(model: SentenceTransformer, side: Side, texts: Sequence[str]) -> Vectors:
    """What the model's ``encode_query`` or ``encode_document`` gives, float32.

    Raises:
        ValueError: A vector is not finite.
    """
    encode = model.encode_query if side == "query" else model.encode_document
    vectors = encode(list(texts), convert_to_tensor=True, show_progress_bar=False).float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise ValueError(f"The model's {side} vectors are not finite: training diverged. Nothing was written.")
    return vectors


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """With the model in evaluation mode, each of its modules back in its own afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
