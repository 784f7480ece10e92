"""What servers of sentence-transformers models cannot run, in plain words.

The rules are those of huggingface/text-embeddings-inference (router, backends/candle) and vllm-project/vllm
(transformers_utils/config.py, model_executor/models/adapters.py) as of 2026. Neither fails on all that it does not
know: what a rule here left out would be served with other vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from st_asym.export.sides import on_vectors

TEI = "Text Embeddings Inference"
VLLM = "vLLM"
_ACTIVATIONS: dict[str, tuple[type[nn.Module], ...]] = {
    TEI: (nn.Identity, nn.Tanh),
    VLLM: (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid),
}
_POOLING = ("cls", "mean", "lasttoken")


def not_served(modules: Sequence[nn.Module], *, prompt: str, max_length: int | None) -> dict[str, str]:
    """Which servers cannot run a model of these modules, and why.

    Args:
        modules: Of one side.
        prompt: Its prompt.
        max_length: Where it cuts texts off, None for nowhere.

    Returns:
        The first reason by server; empty if both run it.
    """
    reasons = {server: _reason(modules, known, prompt) for server, known in _ACTIVATIONS.items()}
    if max_length is None:
        reasons[TEI] = reasons[TEI] or "it needs a max_seq_length, and the model has none: set one"
    return {server: reason for server, reason in reasons.items() if reason}


def _reason(modules: Sequence[Any], activations: tuple[type[nn.Module], ...], prompt: str) -> str | None:
    if not _is_plain(modules):
        names = ", ".join(type(module).__name__ for module in modules)
        return f"they run [Transformer, Pooling, Dense..., Normalize] and not [{names}]"
    pooling = modules[1]
    if pooling.pooling_mode not in _POOLING:
        return f"they pool by one of {', '.join(_POOLING)}, and not by {pooling.pooling_mode}"
    if prompt and not pooling.include_prompt:
        return "they pool the prompt's tokens too, which this model leaves out"
    for module in modules[2:]:
        if isinstance(module, Normalize):
            if module is not modules[-1]:
                return "they do not normalise before a Dense, and behind a Normalize its bias depends on that"
        elif module.use_residual or not isinstance(module.activation_function, activations):
            what = "residual" if module.use_residual else type(module.activation_function).__name__
            return f"they do not know the {what} of a Dense ({', '.join(kind.__name__ for kind in activations)})"
    return None


def _is_plain(modules: Sequence[nn.Module]) -> bool:
    first, rest = [type(module) for module in modules[:2]], modules[2:]
    return first == [Transformer, Pooling] and all(isinstance(m, Dense | Normalize) and on_vectors(m) for m in rest)
