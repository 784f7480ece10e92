"""Texts of the tiny encoder, and heads as training could leave them."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer

TEXTS = ["frozen encoder", "red head", "big document text", "vector " * 50, "small"]


def trained(model: SentenceTransformer) -> SentenceTransformer:
    """Heads as training could leave them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model
