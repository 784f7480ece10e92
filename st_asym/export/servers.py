"""What Text Embeddings Inference and vLLM can run, and files that they read: as sentence-transformers 5 wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from st_asym.data.files import read_json, write_json
from st_asym.heads.anatomy import on_vectors

TEI = "Text Embeddings Inference"
VLLM = "vLLM"
_ACTIVATIONS: dict[str, tuple[type[nn.Module], ...]] = {
    TEI: (nn.Identity, nn.Tanh),
    VLLM: (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid),
}
_POOLING = ("cls", "mean", "lasttoken")
_NAMES = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLING_KEYS = {  # in the order in which sentence-transformers joins what it reads by them
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_NO_LIMIT = 2**31
# What a Transformer of plain text writes beside max_seq_length, and takes for granted where it is missing.
_PLAIN_TEXT = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def rename_modules(folder: Path) -> None:
    """Give the four modules that servers know their former names in ``modules.json``."""
    path = folder / "modules.json"
    modules = read_json(path)
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if package.startswith("sentence_transformers.") and name in _NAMES:
            module["type"] = f"sentence_transformers.models.{name}"
    write_json(path, modules)


def write_settings(folder: Path, modules: Iterable[nn.Module], *, hidden: bool = False) -> None:
    """Write the configurations of modules that are saved in a folder, or of those that a graph stands for.

    Where activations are ``hidden``, servers that would run a ``Dense`` wrongly do not run it at all. They know
    ``torch.nn.modules.linear.Identity`` and not ``torch.nn.Identity``, the same class by another name: Text Embeddings
    Inference refuses to start, and vLLM logs an error.
    """
    for position, module in enumerate(modules):
        place = folder / f"{position}_{type(module).__name__}"
        if isinstance(module, Transformer) and position == 0:
            write_json(folder / "sentence_bert_config.json", _of_transformer(module))
        elif isinstance(module, Pooling):
            place.mkdir(exist_ok=True)
            write_json(place / "config.json", _of_pooling(module))
        elif isinstance(module, Dense) and place.is_dir():  # not in a graph
            write_json(place / "config.json", _of_dense(module, hidden=hidden))


def _of_pooling(pooling: Pooling) -> dict[str, Any]:
    """Its settings with one key for each mode, or in the order of the modes where the keys have another."""
    modes = (pooling.pooling_mode,) if isinstance(pooling.pooling_mode, str) else pooling.pooling_mode
    if modes != tuple(mode for mode in _POOLING_KEYS if mode in modes):
        return pooling.get_config_dict()
    keys = {key: mode in modes for mode, key in _POOLING_KEYS.items()}
    size = pooling.embedding_dimension
    return {"word_embedding_dimension": size, **keys, "include_prompt": pooling.include_prompt}


def _of_dense(dense: Dense, *, hidden: bool) -> dict[str, Any]:
    """Its settings without the names of what it reads and writes: version 3 knows none."""
    found: dict[str, Any] = dense.get_config_dict()  # type: ignore[no-untyped-call]
    if hidden:
        found["activation_function"] = f"torch.nn.{found['activation_function'].rpartition('.')[2]}"
    names = ("module_input_name", "module_output_name") if on_vectors(dense) else ()
    return {key: value for key, value in found.items() if key not in names}


def _of_transformer(transformer: Transformer) -> dict[str, Any]:
    """Its settings with the length at which texts are cut off."""
    found: dict[str, Any] = transformer.get_config_dict()
    if all(found.get(key) == value for key, value in _PLAIN_TEXT.items()):
        found = {key: value for key, value in found.items() if key not in _PLAIN_TEXT}
    length = {} if (limit := _max_seq_length(transformer)) is None else {"max_seq_length": limit}
    return {**found, **length, "do_lower_case": bool(transformer.do_lower_case)}


def _max_seq_length(transformer: Any) -> int | None:
    """Where texts are cut off; None where a tokenizer knows no limit, which it says by a very large number."""
    length = getattr(transformer, "max_seq_length", None)
    return int(length) if length is not None and length < _NO_LIMIT else None


def not_served(modules: Sequence[nn.Module], *, prompt: str) -> dict[str, str]:
    """Which servers cannot run a model of one side with this prompt, and the first reason why."""
    tokens = own_tokens(modules[0])
    reasons = {server: tokens or _reason(modules, known, prompt) for server, known in _ACTIVATIONS.items()}
    if _max_seq_length(modules[0]) is None:
        reasons[TEI] = reasons[TEI] or "it needs a max_seq_length, and the model has none: set one"
    return {server: reason for server, reason in reasons.items() if reason}


def own_tokens(encoder: Any) -> str | None:
    """Why an encoder makes other tokens of a text than its tokenizer alone, all that servers and graphs have of it."""
    if "message" in (getattr(encoder, "modality_config", None) or ()):
        return "its encoder puts each text into a chat template, and only sentence-transformers does that"
    options = getattr(encoder, "processing_kwargs", None) or {}
    if options.get("text") or options.get("common"):
        return "its encoder has processing_kwargs, which only sentence-transformers reads"
    return None


def _reason(modules: Sequence[Any], activations: tuple[type[nn.Module], ...], prompt: str) -> str | None:
    begins, behind = [type(module) for module in modules[:2]], modules[2:]
    if begins != [Transformer, Pooling] or not all(isinstance(m, Dense | Normalize) and on_vectors(m) for m in behind):
        names = ", ".join(type(module).__name__ for module in modules)
        return f"they run [Transformer, Pooling, Dense..., Normalize] and not [{names}]"
    pooling = modules[1]
    if pooling.pooling_mode not in _POOLING:
        return f"they pool by one of {', '.join(_POOLING)}, and not by {pooling.pooling_mode}"
    if prompt and not pooling.include_prompt:
        return "they pool the prompt's tokens too, which this model leaves out"
    for module in behind:
        if isinstance(module, Normalize):
            if module is not modules[-1]:
                return "they do not normalise before a Dense, and behind a Normalize its bias depends on that"
        elif module.use_residual or not isinstance(module.activation_function, activations):
            what = "residual" if module.use_residual else type(module.activation_function).__name__
            return f"they do not know the {what} of a Dense ({', '.join(kind.__name__ for kind in activations)})"
    return None
