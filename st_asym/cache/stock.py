"""What the packages' own modules and tokenizers do: their settings, and what was changed in them by hand."""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers.base.modules import Module, Router
from sentence_transformers.util import fullname
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig

from st_asym.cache.foreign import attributes, is_library_class, is_plain

# Settings of a transformers configuration that change when it is saved, or that do not reach the vectors.
_IDLE_SETTINGS = frozenset({"architectures", "dtype", "gradient_checkpointing", "transformers_version", "use_cache"})
_TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "model_max_length", "model_input_names", "chat_template")
# Sizes, which the weights have too, and what only training does.
_IN_WEIGHTS = frozenset(
    {"in_features", "out_features", "num_embeddings", "embedding_dim", "normalized_shape", "vocab_size"}
    | {"p", "inplace", "bias", "sparse", "scale_grad_by_freq"}
)
# What a tokenizer's model in Rust is told beside its vocabulary, and how many tokens of that are looked at at once.
_MODEL_SETTINGS = (
    *("unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "end_of_word_suffix", "fuse_unk"),
    *("byte_fallback", "ignore_merges", "dropout", "alpha", "nbest_size"),
)
_TOKENS = 8
# Each added token takes half a microsecond of every look at them.
_MOST_ADDED = 256
_SCALARS = (bool, int, float, str, torch.dtype, types.FunctionType, types.MethodType)
# Items of a list or mapping, from which on it is not compared in every step.
_LARGE = 1000
# Torch's layers beside the activations, by what a new one needs to be told.
_LAYERS = {nn.LayerNorm: (1,), nn.Embedding: (1, 1), nn.EmbeddingBag: (1, 1)}


def module_settings(module: nn.Module) -> dict[str, Any]:
    """Everything about a module that shapes vectors, other than its weights."""
    config = getattr(getattr(module, "model", None), "config", None)
    # A Router with an empty route, which leaves that side as it is, cannot be asked; its parts are.
    mute = isinstance(module, Router) and not all(list(route.children()) for route in module.sub_modules.values())
    asked = None if mute else module
    return {
        "class": fullname(module),
        "config": module.get_config_dict() if isinstance(module, Module) else nn.Module.__repr__(module),
        "max_seq_length": getattr(asked, "max_seq_length", None),
        "network": None if config is None else [fullname(module.model), network_settings(config)],
        "tokenizer": tokenizer_settings(getattr(asked, "tokenizer", None)),
    }


def network_settings(config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration of transformers says of a network."""
    settings: dict[str, Any] = config.to_dict()
    return {name: value for name, value in settings.items() if name not in _IDLE_SETTINGS and not name.startswith("_")}


def tokenizer_settings(tokenizer: Any) -> Any:
    """What a tokenizer does with texts."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        if not hasattr(tokenizer, "to_str"):
            return tokenizer  # a plain object
        # A bare `tokenizers.Tokenizer` truncates and pads as it is set up. Recorded only where it is True, as below.
        rare = {"encode_special_tokens": True} if tokenizer.encode_special_tokens else {}
        return {**json.loads(tokenizer.to_str()), **rare}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any]
    if backend is not None:
        # What the last call set up for its own batch.
        state = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
    else:
        state = {k: v for k, v in tokenizer.init_kwargs.items() if not k.endswith(("_file", "name_or_path"))}
        # Words that were added are cut out of texts first, also where the vocabulary has them. Most encoders have none
        # but the special ones, which are among the options.
        options = [one for value in state.values() for one in (value if isinstance(value, list | tuple) else [value])]
        special = set(map(str, options))
        added = sorted(repr(one) for one in tokenizer.added_tokens_decoder.values() if one.content not in special)
        state = {"class": fullname(tokenizer), "vocabulary": tokenizer.get_vocab(), "options": state}
        state |= {"added": added} if added else {}
    # Recorded only where it is True, which is rare.
    splits = ["split_special_tokens"] if getattr(tokenizer, "split_special_tokens", False) else []
    return [state, [getattr(tokenizer, name, None) for name in _TOKENIZER_SETTINGS] + splits]


def has_few_added_tokens(tokenizer: Any) -> bool:
    """Whether the words that were added to a tokenizer in Rust can be looked at in every step."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return not hasattr(backend, "to_str") or len(backend.get_added_tokens_decoder()) <= _MOST_ADDED


def quick_tokenizer(tokenizer: Any, *, few_added: bool = True) -> list[Any]:
    """What a tokenizer in Rust does, without taking it apart; what is set in Python is in its attributes."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        return []
    parts = [getattr(backend, name) for name in ("normalizer", "pre_tokenizer", "post_processor")]
    states = [part is not None and hash(part.__getstate__()) for part in parts]
    bare = [backend.truncation, backend.padding, backend.encode_special_tokens] if backend is tokenizer else []
    model, size = backend.model, backend.get_vocab_size(with_added_tokens=True)
    settings = [getattr(model, name, None) for name in _MODEL_SETTINGS]
    tokens = [backend.id_to_token(size * part // _TOKENS) for part in range(_TOKENS)]
    return [size, tokens, backend.get_added_tokens_decoder() if few_added else None, settings, states, bare]


def watched(modules: Sequence[nn.Module]) -> list[tuple[Mapping[str, Any], int | None, dict[str, Any]]]:
    """What ``==`` compares at once of modules, their classes, configurations and tokenizers.

    Each as its attributes, how many there are (None for any number), and some of them as they are now.
    """
    found: list[tuple[Mapping[str, Any], int | None, dict[str, Any]]] = []
    for module in modules:
        found.append((vars(module), None, {"_modules": dict(module._modules)}))
        if is_library_class(type(module)):
            found.append((vars(module), len(vars(module)), _plain(attributes(module))))
        for held in (vars(module).get("config"), getattr(module, "tokenizer", None)):
            if hasattr(held, "__dict__"):
                found.append((vars(held), None, _plain(vars(held))))
    for kind in set(map(type, modules)):
        methods = {name: value for name, value in vars(kind).items() if isinstance(value, types.FunctionType)}
        found.append((vars(kind), None, methods))
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that ``==`` tells from others; of large ones only another in their place shows."""
    plain = {name: value for name, value in values.items() if is_plain(value)}
    return {
        name: value if hasattr(value, "__len__") and len(value) > _LARGE else copy.deepcopy(value)
        for name, value in plain.items()
    }


def deviations(top: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """What was changed by hand in stock modules and no configuration has: path, attribute and value."""
    known: set[nn.Module] = set()
    for path, module in top.named_modules():
        if module in known or not is_library_class(type(module)):
            continue
        if isinstance(module, PreTrainedModel):
            parts = dict(module.named_modules())
            known.update(parts.values())
            usual = _as_made(module, copy.deepcopy(module.config))
            references = {} if usual is None else dict(usual.named_modules())
        elif isinstance(module, Module):
            parts = dict(module.named_children())
            references = {name: _layer_like(part) for name, part in parts.items()}
        else:
            continue
        for name, part in parts.items():
            if (reference := references.get(name)) is not None:
                yield from ((f"{path}.{name}", *rest) for rest in _differences(part, reference))


def _differences(module: nn.Module, reference: nn.Module) -> Iterator[tuple[str, Any]]:
    if type(reference) is not type(module):
        yield "class", fullname(module)
        return
    usual = _scalars(reference)
    for name, value in sorted(_scalars(module).items()):
        idle = name in _IN_WEIGHTS or "drop" in name or name.startswith("_")
        if not idle and name in usual and value != usual[name]:
            yield name, value


def _scalars(module: nn.Module) -> dict[str, Any]:
    """What ``==`` compares at once."""
    return {name: value for name, value in attributes(module).items() if value is None or isinstance(value, _SCALARS)}


def _as_made(module: nn.Module, *given: Any) -> nn.Module | None:
    """A new module of the same class, without weights; None where the class takes more than is given."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return type(module)(*given)
    except Exception:  # the class may refuse in any way
        return None


def _layer_like(layer: nn.Module) -> nn.Module | None:
    """A layer of torch as it is by default, which is how the library makes it again when it loads."""
    is_activation = type(layer).__module__.startswith("torch.nn.modules.activation")
    return _as_made(layer, *_LAYERS.get(type(layer), ())) if is_activation or type(layer) in _LAYERS else None
