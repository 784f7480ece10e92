"""What modules of others hold and read, value by value: attributes, code, and what the code names beside it.

Each value is told by a digest of its pickle, in which functions and classes stand for their code, and tensors, modules
and the libraries' objects for what shapes vectors in them: it is the same in every process.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import logging
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import fullname
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig

# What holds a value, and the name of the value in it.
Place = tuple[str, str]

# Whose classes are known by their names: what their attributes mean is in their configurations and weights.
_PACKAGES = frozenset(
    {"accelerate", "bitsandbytes", "sentence_transformers", "st_asym", "tokenizers", "torch", "torchao", "transformers"}
)
# Whose wrappers around methods of these packages are the packages' own.
_WRAPPERS = frozenset({"huggingface_hub", "typing_extensions"})
# What libraries keep in modules for themselves, and the configuration of adapters: its effect is in their layers.
_IDLE_ATTRIBUTES = frozenset(vars(nn.Module())) | frozenset(
    {"_hf_hook", "_is_hf_initialized", "_old_forward", "_original_forward", "_peft_config", "_prompt_length_mapping"}
    | {"gradient_checkpointing", "peft_config", "warnings_issued"}
)
_PLAIN = (bool, int, float, str, bytes, torch.dtype, enum.Enum, types.FunctionType, types.BuiltinFunctionType, type)
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
# Nothing that a vector could depend on, and different in every process.
_IDLE: list[type] = [logging.Logger, weakref.ref, torch.device, torch.Generator, io.IOBase]
_IDLE += [type(threading.Lock()), type(threading.RLock())]
# Where running the encoder has changed values: no settings, but counters and the like.
_CHANGES_BY_ITSELF: set[Place] = set()


def is_library_class(kind: type | types.FunctionType) -> bool:
    """Whether a class is one of the packages whose modules say in their configurations what they do."""
    return _package(kind.__module__) in _PACKAGES


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts and the like, so that ``==`` tells it from others."""
    if value is None or isinstance(value, _PLAIN):
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_plain, value))
    return type(value) is dict and all(map(is_plain, value)) and all(map(is_plain, value.values()))


def attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes that may shape vectors; what a module remembers it calls a cache."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _IDLE_ATTRIBUTES
        and "cache" not in name.lower()
        and not _is_origin(name)
        and (name != "forward" or "forward" in replaced_methods(module))
    }


def replaced_methods(module: nn.Module) -> dict[str, Any]:
    """Methods of the module's own, but for a ``forward`` that mixed precision or offloading put there.

    A method that was replaced and put back, as ``MatryoshkaLoss`` does in each step, is the class's.
    """
    by_library = {"forward"} if vars(module).keys() & {"_old_forward", "_original_forward"} else set()
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and name not in by_library
        and name[0] != "_"
        and callable(own := getattr(type(module), name, None))
        and value != types.MethodType(own, module)
    }


class Part(NamedTuple):
    """A module or class whose values count: all, where it is ``foreign``, and otherwise its replaced methods."""

    who: str
    path: str
    owner: nn.Module | type
    foreign: bool


def foreign_parts(modules: Sequence[nn.Module]) -> list[Part]:
    """Modules that are not the packages', and modules and classes of theirs in which methods were replaced by hand."""
    found, kinds = [], dict[type, None]()
    for position, top in enumerate(modules):
        found += list(_parts_of(f"module {position} ({fullname(top)})", str(position), top))
        kinds.update((kind, None) for part in top.modules() for kind in type(part).__mro__ if is_library_class(kind))
    return found + [Part(f"class {kind.__name__}", "", kind, False) for kind in kinds if _replaced_in(kind)]


def hidden_buffers(parts: Sequence[Part]) -> list[tuple[Place, Tensor]]:
    """The buffers of foreign modules that are in no state dict; no caches."""
    return [
        ((fullname(part.owner), name), buffer)
        for part in parts
        if part.foreign and isinstance(part.owner, nn.Module)
        for name in sorted(part.owner._non_persistent_buffers_set)
        if "cache" not in name.lower() and (buffer := part.owner._buffers.get(name)) is not None
    ]


class Inventory:
    """The values of parts, and those that their code names: ``values`` are places with a digest each.

    ``tell`` says what stands for a tensor, a tokenizer or a configuration; ``tensors`` are those that were met.
    """

    def __init__(self, parts: Sequence[Part], tell: Callable[[Any], Any]) -> None:
        self.values: list[tuple[Place, Any]] = []
        self.tensors: list[Tensor] = []
        self.tell = tell
        # Classes, functions and modules that were met, by identity: each is looked at once.
        self._met: dict[int, Any] = {id(part.owner): part.owner for part in parts}
        self._left: list[Any] = []
        for part in parts:
            self._add_part(part)
            while self._left:
                self._look_into(part.who, self._left.pop(0))

    def meet(self, one: Any) -> None:
        """Look into a class, function or module later, once."""
        if id(one) not in self._met:
            self._met[id(one)] = one
            self._left.append(one)

    def told(self, value: Any) -> str:
        """The digest of any value."""
        file = io.BytesIO()
        _Pickler(file, self).dump(value)
        return digest_of(file.getvalue())

    def _add_part(self, part: Part) -> None:
        name, owner = fullname(part.owner), part.owner
        self.values.append(((name, "class"), part.path))
        if isinstance(owner, type):
            values = _replaced_in(owner)
        else:
            values = attributes(owner) if part.foreign else replaced_methods(owner)
            if not is_library_class(type(owner)):
                self.meet(type(owner))
        for each, value in values.items():
            self._add(part.who, (name, each), value)

    def _look_into(self, who: str, one: Any) -> None:
        if isinstance(one, nn.Module):
            self._met.update((id(part), part) for part in one.modules())
            self._add(who, (fullname(one), "layers"), nn.Module.__repr__(one))
            for name, value in one.state_dict(keep_vars=True).items():
                self._add(who, (fullname(one), name), value)
            for part in _parts_of(who, "", one):
                self._add_part(part)
        elif isinstance(one, types.FunctionType):
            self._add_function(who, one)
        else:
            for kind in _own_kinds(one):
                for name, value in _attributes_of(kind):
                    self._add(who, (kind.__qualname__, name), value)
                for _, function in sorted(_functions(kind).items()):
                    self._add_function(who, function)

    def _add_function(self, who: str, one: types.FunctionType) -> None:
        self.values.append(((one.__module__, one.__qualname__), _code_digest(one.__code__)))
        self._add(who, (one.__qualname__, "defaults"), [one.__defaults__, one.__kwdefaults__])
        for name, cell in zip(one.__code__.co_freevars, one.__closure__ or (), strict=True):
            if cell != types.CellType():  # that is not filled yet
                self._add(who, (one.__qualname__, name), cell.cell_contents)
        for name, value in _beside(_names(one.__code__), one.__globals__, one.__module__):
            self._add(who, (one.__module__, name), value)

    def _add(self, who: str, place: Place, value: Any) -> None:
        if place in _CHANGES_BY_ITSELF:
            return
        if isinstance(value, type | types.FunctionType) and not is_library_class(value):
            self.meet(value)
        try:
            plain = value is None or type(value) in (bool, int, float, str)
            self.values.append((place, value if plain else self.told(value)))
        except Exception as error:  # whatever its own reduction raises
            raise ValueError(
                f"The encoder's {who} keeps a {fullname(value)} in {'.'.join(place)} ({error}). Whether it changes "
                "cannot be seen, so that cached vectors could be taken for those of another encoder. Keep plain values "
                "or tensors there, or, where no vector depends on it, call it something with 'cache'."
            ) from error


def note_changes(before: Sequence[tuple[Place, Any]], after: Sequence[tuple[Place, Any]]) -> bool:
    """Whether running the encoder has changed values: from now on these are no settings."""
    changed = {place for place, _ in set(before) ^ set(after)}
    _CHANGES_BY_ITSELF.update(changed)
    return bool(changed)


class _Pickler(pickle.Pickler):
    """Pickles a value for its digest, not to be read again."""

    def __init__(self, file: io.BytesIO, inventory: Inventory) -> None:
        super().__init__(file, 4)
        self._inventory = inventory

    def persistent_id(self, value: Any) -> Any:
        """What is pickled in place of a value; None where it is pickled itself."""
        return _stand_in(value, self._inventory)

    def reducer_override(self, value: Any) -> Any:
        """Of the packages' objects the plain attributes, as the others are their own affair."""
        if is_library_class(type(value)) and hasattr(value, "__dict__"):
            return type(value), (), {name: one for name, one in vars(value).items() if is_plain(one)}
        return NotImplemented


@functools.singledispatch
def _stand_in(value: Any, inventory: Inventory) -> Any:  # noqa: ARG001 - of others it is used
    return None


def _register(kinds: Sequence[type], stand_in: Callable[[Any, Inventory], Any]) -> None:
    for kind in kinds:
        _stand_in.register(kind)(stand_in)


def _code_stand_in(value: Any, inventory: Inventory) -> Any:
    if _is_library(value.__module__):
        return value.__module__, value.__qualname__
    inventory.meet(value)
    return value.__qualname__, None if isinstance(value, type) else _code_digest(value.__code__)


def _told(value: Any, inventory: Inventory) -> Any:
    if isinstance(value, Tensor):
        inventory.tensors.append(value)
    return "told", inventory.tell(value)


def _module(value: nn.Module, inventory: Inventory) -> Any:
    if not isinstance(value, SentenceTransformer):  # of which this is a part
        inventory.meet(value)
    return "module", fullname(value)


def _mapping(value: dict[Any, Any], _: Inventory) -> Any:
    if type(value) is not dict:
        return None
    items = [(key, one) for key, one in value.items() if not _is_origin(key)]
    return "mapping", sorted(items, key=lambda item: repr(item[0]))


def _array(value: np.ndarray[Any, Any], _: Inventory) -> Any:
    content = value.tolist() if value.dtype.hasobject else digest_of(np.ascontiguousarray(value).tobytes())
    return "array", str(value.dtype), value.shape, content


# Texts stand for themselves by digests, as pickle writes one text twice if it is two objects, and otherwise once.
_register([str, bytes], lambda value, _: int(digest_of(repr(value).encode()), 16))
_register([set, frozenset], lambda value, inventory: ("set", sorted(map(inventory.told, value))))
_register([type, types.FunctionType], _code_stand_in)
_register([Tensor, PreTrainedTokenizerBase, PretrainedConfig], _told)
_register([nn.Module], _module)
_register([dict], _mapping)
_register([np.ndarray], _array)
_register([PurePath], lambda value, _: ("path", value.name))
_register([types.ModuleType], lambda value, _: ("name", value.__name__))
_register(_IDLE, lambda value, _: ("idle", fullname(value)))
_register(_BUILTIN, lambda value, _: ("builtin", getattr(value, "__module__", None), value.__qualname__))
_register([types.MethodType], lambda value, _: ("method", value.__func__, value.__self__))
_register([threading.local, type(functools.lru_cache(len))], lambda value, _: ("object", vars(value)))


def _is_origin(name: Any) -> bool:
    """Whether a name is one under which is kept where something came from, which no vector depends on."""
    return isinstance(name, str) and name.endswith("name_or_path")


def digest_of(content: Any) -> str:
    """64 hexadecimal digits of bytes."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _parts_of(who: str, path: str, module: nn.Module, holder: type | None = None) -> Iterator[Part]:
    """A module and those in it, as far as they are foreign; torch's layers belong to their holder."""
    holder = holder if holder is not None and _package(type(module).__module__) == "torch" else type(module)
    foreign = not is_library_class(holder)
    if foreign or replaced_methods(module):
        yield Part(who, path, module, foreign)
    for name, child in module.named_children():
        yield from _parts_of(who, f"{path}.{name}", child, holder)


def _functions(kind: type) -> dict[str, types.FunctionType]:
    """The methods and properties that a class itself defines, as functions."""
    found = {}
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if not isinstance(function, types.FunctionType):  # what is cached or half applied has one within
            function = getattr(function, "func", getattr(function, "__wrapped__", function))
        if isinstance(function, types.FunctionType) and name != "__wrapped__":
            found[name] = function
    return found


def _replaced_in(kind: type) -> dict[str, Any]:
    """The methods of a class of the packages that somebody else has put there."""
    known = _PACKAGES | _WRAPPERS | sys.stdlib_module_names
    return {
        name: one for name, one in _functions(kind).items() if _package(one.__globals__.get("__name__")) not in known
    }


def _own_kinds(kind: type) -> list[type]:
    """A class and those it is made from, without those that are known by their names."""
    return [one for one in kind.__mro__ if _package(one.__module__) not in _PACKAGES | sys.stdlib_module_names]


def _attributes_of(kind: type) -> list[tuple[str, Any]]:
    skipped = {"_abc_impl", *_functions(kind)}
    return [
        (name, value)
        for name, value in sorted(vars(kind).items())
        if name not in skipped and _may_shape(name, value, kind.__module__)
    ]


def _beside(names: frozenset[str], space: dict[str, Any], module: str) -> Iterator[tuple[str, Any]]:
    """The globals that code of a module names, those of other files of the user among them; no caches.

    Functions, classes and objects of libraries are left out, unless they are defined in the same file.
    """
    for name in sorted(names & space.keys()):
        value = space[name]
        if isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                yield from ((f"{name}.{inner}", one) for inner, one in _beside(names - {name}, vars(value), module))
        elif _may_shape(name, value, module):
            yield name, value


def _may_shape(name: str, value: Any, module: str) -> bool:
    """Whether a value that code of a module names may shape vectors, and can be told from others."""
    if name[:2] == "__" or "cache" in name.lower():
        return False
    if isinstance(value, type | types.FunctionType):
        return bool(value.__module__ == module or not _is_library(value.__module__))
    # What annotations and the machinery of classes are made of.
    if hasattr(type(value), "__get__") or type(value).__module__ == "typing":
        return False
    if isinstance(value, Tensor | np.ndarray | nn.Module) or is_plain(value):
        return True
    kind = type(value).__module__
    return not is_library_class(type(value)) and (
        isinstance(value, Mapping) or _package(kind) in sys.stdlib_module_names or not _is_library(kind)
    )


def _package(module: Any) -> str:
    return str(module).partition(".")[0]


def _is_library(module: str) -> bool:
    """Whether a module is installed, and not the user's own code."""
    if module == "__main__":
        return False
    if _package(module) in _PACKAGES | sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> frozenset[str]:
    inner = [_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


@functools.lru_cache(maxsize=4096)
def _code_digest(code: types.CodeType) -> str:
    constants = [
        _code_digest(one)
        if isinstance(one, types.CodeType)
        else repr(sorted(map(repr, one)) if isinstance(one, frozenset) else one)
        for one in code.co_consts
    ]
    return digest_of(repr([code.co_code, constants, code.co_names]).encode())
