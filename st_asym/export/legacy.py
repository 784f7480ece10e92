"""Settings in the files and under the names that sentence-transformers wrote before 6.0, which every server reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

_NAMES = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
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
    modules = json.loads(path.read_text(encoding="utf-8"))
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if package.startswith("sentence_transformers.") and name in _NAMES:
            module["type"] = f"sentence_transformers.models.{name}"
    _write(path, modules)


def max_seq_length(transformer: Any) -> int | None:
    """Where texts are cut off; None where a tokenizer knows no limit, which it says by a very large number."""
    length = getattr(transformer, "max_seq_length", None)
    return int(length) if length is not None and length < _NO_LIMIT else None


def write_transformer(folder: Path, transformer: Transformer) -> None:
    """Write ``sentence_bert_config.json`` with the length at which texts are cut off."""
    path = folder / "sentence_bert_config.json"
    found: dict[str, Any] = transformer.get_config_dict()
    if all(found.get(key) == value for key, value in _PLAIN_TEXT.items()):
        found = {key: value for key, value in found.items() if key not in _PLAIN_TEXT}
    if (length := max_seq_length(transformer)) is not None:
        found["max_seq_length"] = length
    found["do_lower_case"] = bool(transformer.do_lower_case)
    _write(path, found)


def write_pooling(folder: Path, pooling: Pooling) -> None:
    """Write a pooling's ``config.json`` with one key for each mode."""
    modes = (pooling.pooling_mode,) if isinstance(pooling.pooling_mode, str) else pooling.pooling_mode
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"word_embedding_dimension": pooling.embedding_dimension}
    config |= {key: mode in modes for mode, key in _POOLING_KEYS.items()}
    _write(folder / "config.json", {**config, "include_prompt": pooling.include_prompt})


def hide_activations(folder: Path) -> None:
    """Name activations so that servers which would run a ``Dense`` wrongly do not run it at all.

    They know ``torch.nn.modules.linear.Identity`` and not ``torch.nn.Identity``, the same class by another name: Text
    Embeddings Inference refuses to start, and vLLM logs an error.
    """
    for path in folder.glob("*_Dense/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config["activation_function"] = f"torch.nn.{config['activation_function'].rpartition('.')[2]}"
        _write(path, config)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
