"""Any Python value as what JSON knows, the same in every process, or an error where it cannot be told from another."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import io
import json
import logging
import pickle
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import fullname
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig

# Whose classes are known by their names: what their attributes mean is in their configurations and weights.
_PACKAGES = frozenset(
    {"accelerate", "bitsandbytes", "sentence_transformers", "st_asym", "tokenizers", "torch", "torchao", "transformers"}
)
# Settings of a transformers configuration that change when it is saved, or that do not reach the vectors.
_IDLE_SETTINGS = frozenset({"architectures", "dtype", "gradient_checkpointing", "transformers_version", "use_cache"})
_TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "model_max_length", "model_input_names", "chat_template")
_PLAIN = (bool, int, float, str, bytes, torch.dtype, enum.Enum, types.FunctionType, types.BuiltinFunctionType, type)
# Nothing that a vector could depend on, and different in every process.
_IDLE = (
    logging.Logger,
    weakref.ReferenceType,
    torch.device,
    torch.Generator,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.local,
    io.IOBase,
)


class Undescribed(ValueError):  # noqa: N818 - not raised to users as such
    """A value that cannot be told from another of its kind."""


def is_stock(kind: type) -> bool:
    """Whether a class is one of the packages whose modules say in their configurations what they do."""
    return kind.__module__.partition(".")[0] in _PACKAGES


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts and the like, so that ``==`` tells it from others."""
    if value is None or isinstance(value, _PLAIN):
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_plain, value))
    return type(value) is dict and all(map(is_plain, value)) and all(map(is_plain, value.values()))


def described(value: Any, above: tuple[int, ...] = ()) -> Any:
    """A value as what JSON knows: tensors and arrays digested, functions by their code, objects by class and state.

    ``above`` are the identities of what it is part of. Where a part shows nothing of itself it is ``Undescribed``.
    """
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum)):
        return value
    if id(value) in above:
        return "itself"
    for kinds, describe in _DESCRIPTIONS:
        if isinstance(value, kinds):
            return describe(value, (*above, id(value)))
    return _object(value, (*above, id(value)))


def tensor_bytes(tensor: Tensor) -> Any:
    """The values of a tensor, of any dtype and on any device, for a digest."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def network_settings(config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration of transformers says of a network."""
    settings: dict[str, Any] = config.to_dict()
    return {name: value for name, value in settings.items() if name not in _IDLE_SETTINGS and not name.startswith("_")}


def tokenizer_settings(tokenizer: Any) -> Any:
    """What a tokenizer does with texts."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        # A bare `tokenizers.Tokenizer` truncates as it is set up; others are plain objects.
        return json.loads(tokenizer.to_str()) if hasattr(tokenizer, "to_str") else tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any]
    if backend is not None:
        # What the last call set up for its own batch.
        state = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
    else:
        state = {k: v for k, v in tokenizer.init_kwargs.items() if not k.endswith(("_file", "name_or_path"))}
        state = {"class": fullname(tokenizer), "vocabulary": tokenizer.get_vocab(), "options": state}
    return [state, [getattr(tokenizer, name, None) for name in _TOKENIZER_SETTINGS]]


def quick_tokenizer(tokenizer: Any) -> Any:
    """What is set in a tokenizer by hand, without its vocabulary."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    size = len(tokenizer) if backend is None else backend.get_vocab_size(with_added_tokens=True)
    names = () if backend is None else ("normalizer", "pre_tokenizer", "post_processor")
    parts = [getattr(backend, name) for name in names]
    settings = [getattr(tokenizer, name, None) for name in _TOKENIZER_SETTINGS]
    return [size, [part is not None and hash(part.__getstate__()) for part in parts], settings]


def code_of(kind: type) -> Any:
    """What a class says beside its name, and those it is made from, down to those that are known by theirs."""
    parts = []
    for one in kind.__mro__:
        if is_stock(one) or one.__module__ in ("builtins", "abc", "typing", "collections.abc"):
            continue
        plain = {name: value for name, value in vars(one).items() if not name.startswith("_") and is_plain(value)}
        parts += [
            [one.__qualname__, name, described(value)] for name, value in sorted({**plain, **functions_of(one)}.items())
        ]
    return parts


def functions_of(kind: type) -> dict[str, types.FunctionType]:
    """The methods and properties that a class itself defines, as functions."""
    found = {name: getattr(value, "__func__", getattr(value, "fget", value)) for name, value in vars(kind).items()}
    return {name: value for name, value in found.items() if isinstance(value, types.FunctionType)}


def globals_of(function: types.FunctionType) -> dict[str, Any]:
    """The values beside a function that its code names, and functions of the same file; no libraries and no caches."""
    names, left = set[str](), [function.__code__]
    while left:
        code = left.pop()
        names.update(code.co_names)
        left += [one for one in code.co_consts if isinstance(one, types.CodeType)]
    found = {name: value for name, value in function.__globals__.items() if name in names and name[:2] != "__"}
    return {
        name: value
        for name, value in sorted(found.items())
        if "cache" not in name.lower()
        and (
            value.__module__ == function.__module__
            if isinstance(value, types.FunctionType)
            else isinstance(value, Tensor | np.ndarray)
            or (is_plain(value) and not isinstance(value, type | types.BuiltinFunctionType))
        )
    }


def is_origin(name: Any) -> bool:
    """Whether a name is one under which is kept where something came from, which no vector depends on."""
    return isinstance(name, str) and name.endswith("name_or_path")


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _tensor(value: Tensor, _: tuple[int, ...]) -> Any:
    if value.device.type == "meta":
        raise Undescribed("a tensor that is not in memory")
    return ["tensor", str(value.dtype), list(value.shape), _digest(tensor_bytes(value))]


def _array(value: np.ndarray[Any, Any], above: tuple[int, ...]) -> Any:
    if value.dtype.hasobject:
        return ["array", list(value.shape), [described(one, above) for one in value.reshape(-1).tolist()]]
    return ["array", str(value.dtype), list(value.shape), _digest(np.ascontiguousarray(value).tobytes())]


def _module(value: nn.Module, above: tuple[int, ...]) -> Any:
    """A module that is held in a list or the like, so that it is none of those that its holder is made of."""
    state = {name: described(one, above) for name, one in value.state_dict().items()}
    return [fullname(value), nn.Module.__repr__(value), [] if is_stock(type(value)) else code_of(type(value)), state]


def _function(value: types.FunctionType, above: tuple[int, ...]) -> Any:
    cells = []
    for cell in value.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            content = None
        # Of a module that a function belongs to, the module itself is looked at.
        cells.append(fullname(content) if isinstance(content, nn.Module) else content)
    inner = [described(one, above) for one in (value.__defaults__, value.__kwdefaults__, cells)]
    if beside := globals_of(value):
        inner.append(described(beside, above))
    return ["function", value.__qualname__.rpartition(".")[2], _code(value.__code__), inner]


def _code(value: Any) -> Any:
    """Code, or a constant of it."""
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), [_code(one) for one in value.co_consts], list(value.co_names)]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _mapping(value: Mapping[Any, Any], above: tuple[int, ...]) -> Any:
    items = [[described(key, above), described(one, above)] for key, one in value.items() if not is_origin(key)]
    return ["mapping", sorted(items, key=repr)]


def _object(value: Any, above: tuple[int, ...]) -> Any:
    if hasattr(value, "to_str"):  # a tokenizer, without what the last call set up for its own batch
        return ["tokenizer", _digest(value.to_str().encode())]
    slots = [name for one in type(value).__mro__ for name in getattr(one, "__slots__", ()) if hasattr(value, name)]
    state = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
    if state or hasattr(value, "__dict__"):
        kept = {name: one for name, one in state.items() if not is_stock(type(value)) or is_plain(one)}
        return [fullname(value), [] if is_stock(type(value)) else code_of(type(value)), _mapping(kept, above)]
    try:
        return [fullname(value), _digest(pickle.dumps(value, 4))]
    except Exception as error:  # whatever its own reduction raises
        raise Undescribed(f"a {fullname(value)}") from error


_DESCRIPTIONS: tuple[tuple[Any, Callable[[Any, tuple[int, ...]], Any]], ...] = (
    (enum.Enum, lambda value, _: [fullname(value), value.name]),
    (_IDLE, lambda value, _: fullname(value)),
    (Tensor, _tensor),
    (np.ndarray, _array),
    (np.generic, lambda value, above: described(value.item(), above)),
    (nn.Module, _module),
    (PretrainedConfig, lambda value, above: described(network_settings(value), above)),
    (PreTrainedTokenizerBase, lambda value, above: described(tokenizer_settings(value), above)),
    (bytes | bytearray, lambda value, _: ["bytes", _digest(value)]),
    (torch.dtype | torch.Size | complex, lambda value, _: repr(value)),
    (PurePath, lambda value, _: value.name),
    (Mapping, _mapping),
    (list | tuple, lambda value, above: [described(one, above) for one in value]),
    (set | frozenset, lambda value, above: sorted([described(one, above) for one in value], key=repr)),
    (types.FunctionType, _function),
    (types.MethodType, lambda value, above: ["method", fullname(value.__self__), described(value.__func__, above)]),
    (functools.partial, lambda value, above: described([value.func, value.args, value.keywords], above)),
    (type, lambda value, _: [value.__module__, value.__qualname__]),
    (types.ModuleType, lambda value, _: value.__name__),
    (
        types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType,
        lambda value, _: [getattr(value, "__module__", None), getattr(value, "__qualname__", value.__name__)],
    ),
    (inspect.Signature, lambda value, _: str(value)),
)
