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
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

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
    io.IOBase,
)
# What annotations and the machinery of classes are made of.
_NO_VALUES = (
    types.ModuleType,
    types.BuiltinFunctionType,
    types.GenericAlias,
    staticmethod,
    classmethod,
    property,
    functools.cached_property,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
)
# Whose wrappers around methods of the libraries are the libraries' own.
_WRAPPERS = frozenset({"huggingface_hub", "typing_extensions"})
# Where code finds values that running the encoder has changed: no settings, but counters and the like.
CHANGES_BY_ITSELF: set[tuple[str, str]] = set()


class Undescribed(ValueError):  # noqa: N818 - not raised to users as such
    """A value that cannot be told from another of its kind."""


class Beside(NamedTuple):
    """A value that code reads from beside it: where it is, how to read it again, and what it was."""

    place: tuple[Any, str]
    read: Callable[[], Any]
    value: Any


def is_stock(kind: type) -> bool:
    """Whether a class is one of the packages whose modules say in their configurations what they do."""
    return kind.__module__.partition(".")[0] in _PACKAGES


def is_foreign(function: types.FunctionType) -> bool:
    """Whether a method of a class of these packages was put there by somebody else."""
    package = str(function.__globals__.get("__name__")).partition(".")[0]
    return package not in _PACKAGES | _WRAPPERS | sys.stdlib_module_names


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
        return ["itself", value.__qualname__] if isinstance(value, type | types.FunctionType) else "itself"
    for kinds, describe in _DESCRIPTIONS:
        if isinstance(value, kinds):
            return describe(value, (*above, id(value)))
    return _object(value, (*above, id(value)))


def tensor_bytes(tensor: Tensor) -> Any:
    """The values of a tensor, of any dtype and on any device, for a digest."""
    if tensor.is_quantized:  # the whole numbers alone would be the same under any scale
        tensor = tensor.dequantize()
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
    settings = [getattr(tokenizer, name, None) for name in _TOKENIZER_SETTINGS]
    return [state, settings + _splits_special(tokenizer)]


def quick_tokenizer(tokenizer: Any) -> Any:
    """What is set in a tokenizer by hand, without its vocabulary."""
    backend = tokenizer if hasattr(tokenizer, "to_str") else getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        return {
            name: (id(one), len(one)) if hasattr(one, "__len__") else one for name, one in _state(tokenizer).items()
        }
    size = len(tokenizer) if backend is None else backend.get_vocab_size(with_added_tokens=True)
    names = () if backend is None else ("normalizer", "pre_tokenizer", "post_processor")
    parts = [getattr(backend, name) for name in names]
    settings = [getattr(tokenizer, name, None) for name in _TOKENIZER_SETTINGS]
    if backend is not None and backend is tokenizer:
        settings = [id(tokenizer), tokenizer.truncation]
    return [
        size,
        [part is not None and hash(part.__getstate__()) for part in parts],
        settings + _splits_special(tokenizer),
    ]


def code_of(kind: type, above: tuple[int, ...] = ()) -> Any:
    """What a class says beside its name, down to those that are known by theirs, with all code that it leads to."""
    return ["itself", kind.__qualname__] if id(kind) in above else _all_code(kind, above)


def functions_of(kind: type) -> dict[str, types.FunctionType]:
    """The methods and properties that a class itself defines, as functions."""
    found = {}
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if not isinstance(function, types.FunctionType):  # what is cached or half applied has one within
            function = getattr(function, "func", getattr(function, "__wrapped__", function))
        if isinstance(function, types.FunctionType) and name != "__wrapped__":
            found[name] = function
    return found


def values_of(part: type | types.FunctionType) -> list[Beside]:
    """The attributes of a class, other than its methods, and the globals that its code, or a function, names."""
    kinds = [] if isinstance(part, types.FunctionType) else own_kinds(part)
    found = [each for kind in kinds for each in _attributes_of(kind)]
    return found + [each for function in code_in(part) for each in beside(function)]


def code_in(part: type | types.FunctionType) -> list[types.FunctionType]:
    """The functions that a class, with those it is made from, consists of; of a function itself."""
    if isinstance(part, types.FunctionType):
        return [part]
    return [one for kind in own_kinds(part) for _, one in sorted(functions_of(kind).items())]


def _attributes_of(kind: type) -> list[Beside]:
    return [
        Beside((kind.__qualname__, name), functools.partial(vars(kind).get, name), value)
        for name, value in sorted(vars(kind).items())
        if name[:2] != "__"
        and name not in ("_abc_impl", *functions_of(kind))
        and _may_shape(name, value, kind.__module__)
    ]


def own_kinds(kind: type) -> list[type]:
    """A class and those it is made from, without those of the libraries that are known by their names."""
    return [
        one
        for one in kind.__mro__
        if not is_stock(one) and one.__module__.partition(".")[0] not in sys.stdlib_module_names
    ]


def beside(function: types.FunctionType) -> list[Beside]:
    """The globals that the code of a function names, those of other files of the user among them; no caches.

    Of functions, classes and objects those of libraries are left out, but for the file that the function is in.
    """
    names, found = _names(function.__code__), []
    left: list[tuple[str, dict[str, Any]]] = [("", function.__globals__)]
    spaces = set[int]()
    while left:
        prefix, space = left.pop()
        spaces.add(id(space))
        for name in sorted(names & space.keys()):
            value, place = space[name], (function.__module__, prefix + name)
            if isinstance(value, types.ModuleType):
                if not _is_library(value.__name__) and id(vars(value)) not in spaces:
                    left.append((f"{prefix}{name}.", vars(value)))
            elif name[:2] != "__" and place not in CHANGES_BY_ITSELF and _may_shape(name, value, function.__module__):
                found.append(Beside(place, functools.partial(space.get, name), value))
    return found


def enclosed(function: types.FunctionType) -> list[Beside]:
    """The variables of the functions around a function that it reads; of a module the module itself is looked at."""
    found = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        place = (function.__qualname__, name)
        if place not in CHANGES_BY_ITSELF:
            found.append(Beside(place, read := functools.partial(_content, cell), read()))
    return found


def reached(start: type | types.FunctionType) -> list[type | types.FunctionType]:
    """A class or function, and the functions and classes that its code leads to."""
    found: dict[int, Any] = {}
    left: list[Any] = [start]
    while left:
        one = left.pop()
        if id(one) in found:
            continue
        found[id(one)] = one
        for value in (each.value for each in values_of(one)):
            kind = value if isinstance(value, type | types.FunctionType) else type(value)
            if isinstance(kind, types.FunctionType) or not _is_library(kind.__module__):
                left.append(kind)
    return list(found.values())


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
    code = [] if is_stock(type(value)) else code_of(type(value), above)
    return [fullname(value), nn.Module.__repr__(value), code, state]


def _function(value: types.FunctionType, above: tuple[int, ...]) -> Any:
    return ["function", value.__qualname__.rpartition(".")[2], _all_code(value, above)]


def _all_code(start: type | types.FunctionType, above: tuple[int, ...]) -> Any:
    """The code of a class or function and of all that it leads to, each once, with the values beside it."""
    parts = reached(start)
    above = (*above, *map(id, parts))
    return [_one(part, above) for part in parts]


def _one(part: type | types.FunctionType, above: tuple[int, ...]) -> Any:
    if isinstance(part, types.FunctionType):
        cells = [fullname(each.value) if isinstance(each.value, nn.Module) else each.value for each in enclosed(part)]
        inner = [described(one, above) for one in (part.__defaults__, part.__kwdefaults__, cells)]
        inner.append([[each.place[1], described(each.value, above)] for each in beside(part)])
        return [_code(part.__code__), inner]
    found = []
    for kind in own_kinds(part):
        found += [[kind.__qualname__, each.place[1], described(each.value, above)] for each in _attributes_of(kind)]
        found += [[kind.__qualname__, name, _one(one, above)] for name, one in sorted(functions_of(kind).items())]
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> frozenset[str]:
    inner = [_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def _may_shape(name: str, value: Any, module: str) -> bool:
    """Whether a value that code of a module names may shape vectors, and can be told from others."""
    if "cache" in name.lower() or isinstance(value, _NO_VALUES) or type(value).__module__ == "typing":
        return False
    if isinstance(value, type | types.FunctionType):
        return bool(value.__module__ == module or not _is_library(value.__module__))
    if isinstance(value, Tensor | np.ndarray | nn.Module) or is_plain(value):
        return True
    return not is_stock(type(value)) and (
        isinstance(value, Mapping)
        or type(value).__module__.partition(".")[0] in sys.stdlib_module_names
        or not _is_library(type(value).__module__)
    )


def _is_library(module: str) -> bool:
    """Whether a module is installed, and not the user's own code."""
    package = module.partition(".")[0]
    if package in _PACKAGES | sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


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
    state = _state(value)
    if state or (hasattr(value, "__dict__") and not _hides(value)):
        kept = {name: one for name, one in state.items() if not is_stock(type(value)) or is_plain(one)}
        code = [] if is_stock(type(value)) else code_of(type(value), above)
        return [fullname(value), code, _mapping(kept, above)]
    try:
        return [fullname(value), _digest(pickle.dumps(value, 4))]
    except Exception as error:  # whatever its own reduction raises
        raise Undescribed(f"a {fullname(value)}") from error


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an object, where it has any."""
    slots = [name for one in type(value).__mro__ for name in getattr(one, "__slots__", ()) if hasattr(value, name)]
    return {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}


def _hides(value: Any) -> bool:
    """Whether an object without attributes holds something nevertheless, as those written in C do."""
    kind: Any = type(value)
    return kind.__reduce__ is not object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__


def _splits_special(tokenizer: Any) -> list[str]:
    """Whether names of special tokens are read as any text; nothing where they are not, which is usual."""
    return ["split_special_tokens"] if getattr(tokenizer, "split_special_tokens", False) else []


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
    (
        type,
        lambda value, above: (
            [value.__module__, value.__qualname__]
            if _is_library(value.__module__)
            else [value.__qualname__, code_of(value, above[:-1])]
        ),
    ),
    (types.ModuleType, lambda value, _: value.__name__),
    (
        types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType,
        lambda value, _: [getattr(value, "__module__", None), getattr(value, "__qualname__", value.__name__)],
    ),
    (inspect.Signature, lambda value, _: str(value)),
)
