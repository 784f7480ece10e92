"""What Text Embeddings Inference and vLLM make of pooled vectors, from a model's files and by their rules.

Rules of huggingface/text-embeddings-inference, 0d124dc of July 2026 (router/src/lib.rs, backends/src/lib.rs,
backends/candle/src/lib.rs, backends/candle/src/models/dense.rs), and of vllm-project/vllm, 0036026
(transformers_utils/config.py, with adapters.py and activation.py of model_executor of about then), which also knows the
names of sentence-transformers 6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf

IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"


class Refused(Exception):  # noqa: N818
    """The server does not start."""


@dataclass
class Served:
    """What a server read: how it pools, where it cuts texts off, its prompts, and the layers behind the pooling."""

    pooling: str
    max_length: int | None
    prompts: dict[str, str]
    layers: list[tuple[np.ndarray, np.ndarray | None, str]]

    def __call__(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled vectors, as they come out of the pooling, to unit vectors."""
        x = pooled.astype(np.float64)
        for weight, bias, activation in self.layers:
            x = x @ weight.T + (0 if bias is None else bias)
            x = _ACTIVATIONS[activation](x)
        return x / np.linalg.norm(x, axis=1, keepdims=True)


_ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tei(folder: Path) -> Served:
    """Text Embeddings Inference on a local folder, candle backend."""
    if (folder / "model.onnx").exists() or (folder / "onnx").exists():
        raise Refused("the onnx backend takes over")
    config = read_json(folder / "config.json")
    _need(config, "architectures", list)
    _need(config, "model_type", str)
    _need(config, "max_position_embeddings", int)
    if not (folder / "tokenizer.json").is_file() or not (folder / "model.safetensors").is_file():
        raise Refused("tokenizer.json and model.safetensors are needed")
    names = load_file(folder / "model.safetensors").keys()
    if not any({f"{root}embeddings.word_embeddings.weight", *_layer(root)} <= names for root in ("", "bert.")):
        raise Refused("weights of another name")
    length = None
    if (folder / "sentence_bert_config.json").exists():
        length = _need(read_json(folder / "sentence_bert_config.json"), "max_seq_length", int)
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    if any(not isinstance(prompt, str) for prompt in prompts.values()):
        raise Refused("prompts are strings")
    return Served(_tei_pooling(folder), length, prompts, _tei_layers(folder))


def _layer(root: str) -> set[str]:
    parts = ("attention.self.query.weight", "intermediate.dense.weight", "output.dense.weight")
    return {f"{root}encoder.layer.0.{part}" for part in parts}


def _tei_pooling(folder: Path) -> str:
    config = read_json(folder / "1_Pooling" / "config.json")
    if _need(config, "pooling_mode_cls_token", bool):
        return "cls"
    if _need(config, "pooling_mode_mean_tokens", bool):
        return "mean"
    if config.get("pooling_mode_lasttoken", False):
        return "lasttoken"
    raise Refused("this pooling is not supported")


def _tei_layers(folder: Path) -> list[tuple[np.ndarray, np.ndarray | None, str]]:
    known = {f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")}
    modules = read_json(folder / "modules.json")
    if any(module["type"] not in known for module in modules):
        return []  # with a warning in the log
    layers = []
    for module in modules:
        if module["type"].endswith(".Dense"):
            config = read_json(folder / module["path"] / "config.json")
            bias = _need(config, "bias", bool)
            activation = config.get("activation_function") or IDENTITY
            if activation not in (IDENTITY, TANH):
                raise Refused(f"unknown variant {activation}")
            tensors = load_file(folder / module["path"] / "model.safetensors")
            weight = tensors["linear.weight"]
            if weight.shape != (_need(config, "out_features", int), _need(config, "in_features", int)):
                raise Refused("shape mismatch")
            layers.append((weight, tensors["linear.bias"] if bias else None, activation.rpartition(".")[2].lower()))
    return layers


def vllm(folder: Path) -> Served:
    """vLLM on a local folder; it logs an error and goes on without the layers where it knows an activation not."""
    modules = read_json(folder / "modules.json")
    pooling = next(module for module in modules if module["type"] == "sentence_transformers.models.Pooling")
    modes = [
        _vllm_pooling(key) for key, on in read_json(folder / pooling["path"] / "config.json").items() if on is True
    ]
    known = [mode for mode in modes if mode in ("CLS", "MEAN", "LAST")]
    settings = read_json(folder / "sentence_bert_config.json")
    length = settings["max_seq_length"] if {"max_seq_length", "do_lower_case"} <= settings.keys() else None
    return Served(known[-1].lower().replace("last", "lasttoken"), length, {}, _vllm_layers(folder, modules))


def _vllm_pooling(key: str) -> str:
    return key.replace("pooling_mode_", "").partition("_")[0].replace("lasttoken", "last").upper()


def _vllm_layers(folder: Path, modules: Any) -> list[tuple[np.ndarray, np.ndarray | None, str]]:
    layers = []
    for module in modules:
        if module["type"] == "sentence_transformers.models.Dense":
            config = read_json(folder / module["path"] / "config.json")
            tensors = load_file(folder / module["path"] / "model.safetensors")
            bias = tensors.get("linear.bias") if config.get("bias", True) else None
            name = (config.get("activation_function") or IDENTITY).lower()
            if not name.startswith("torch.nn.modules."):
                return []
            layers.append((tensors["linear.weight"], bias, name.rpartition(".")[2]))
    return layers


def _need(config: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(config.get(key), kind):
        raise Refused(f"missing field {key}")
    return config[key]
