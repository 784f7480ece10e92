"""Models for the tests of serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_asym import asymmetric_model


def model_with_random_heads(folder: Path, *, seed: int = 0, **options: Any) -> SentenceTransformer:
    """A model whose sides differ from each other and from the encoder, with ``options`` such as ``prompts``."""
    torch.manual_seed(seed)
    transformer = Transformer(str(folder), max_seq_length=32)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Normalize()]
    model = asymmetric_model(SentenceTransformer(modules=modules, device="cpu", **options))
    with torch.no_grad():
        for parameter in model[-2].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model
