"""What the modules of an encoder hold beside weights and configurations, and whether any of it has changed.

The library's own modules say in their configurations what they do; what was changed in them by hand is compared with
what a new one has. Of all other modules every attribute counts, since any may shape vectors: the scaling of an adapter,
which adapter is active, a factor that ``forward`` multiplies by.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from sentence_transformers.base.modules import Module
from sentence_transformers.util import fullname
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig

from st_asym.cache.described import (
    CHANGES_BY_ITSELF,
    Beside,
    Undescribed,
    code_in,
    code_of,
    described,
    enclosed,
    functions_of,
    is_foreign,
    is_origin,
    is_plain,
    is_stock,
    own_kinds,
    quick_tokenizer,
    reached,
    values_of,
)

_INTERNAL = frozenset(vars(nn.Module()))
# What libraries keep in modules for themselves, and the configuration of adapters, whose layers have what it led to.
_IDLE_ATTRIBUTES = frozenset(
    {"_hf_hook", "_is_hf_initialized", "_old_forward", "_original_forward", "_peft_config", "_prompt_length_mapping"}
    | {"gradient_checkpointing", "peft_config", "warnings_issued"}
)
# Sizes, which the weights have too, and what only training does.
_IN_WEIGHTS = frozenset(
    {"in_features", "out_features", "num_embeddings", "embedding_dim", "normalized_shape", "vocab_size"}
    | {"p", "inplace", "bias", "sparse", "scale_grad_by_freq"}
)
_SCALARS = (bool, int, float, str, torch.dtype, types.FunctionType, types.MethodType)
# By module the attributes that running the encoder has changed: no settings, but counters and the like.
_CHANGES_BY_ITSELF: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def without_configuration(modules: Sequence[nn.Module]) -> list[Any]:
    """What shapes vectors and is neither in the weights nor in the configurations; empty for the library's modules.

    A module that holds what cannot be told from another of its kind is a ValueError.
    """
    found: list[Any] = []
    for position, top in enumerate(modules):
        for path, module, owner in _with_owners(top):
            if not is_stock(type(owner)):
                code = _code_of(type(module), position, top) if module is owner else []
                found.append([position, path, fullname(module), code, _attributes(module, position, top)])
                continue
            for name, value in replaced_methods(module).items():
                what = _described(value, position, top, module, name)
                found.append([position, path, fullname(module), name, what])
        found += [[position, *deviation] for deviation in _deviations(top)]
    for kind in _stock_kinds(_walk(modules)):
        for name, function in functions_of(kind).items():
            if is_foreign(function):
                found.append([fullname(kind), name, described(function)])
    return found


def hidden_tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Tensors of modules that no state dict has, to be watched like weights."""
    found: list[Tensor] = []
    for module in _walk(modules):
        if not is_stock(type(module)):
            found += _hidden_buffers(module).values()
            found += [value for value in _seen(module).values() if isinstance(value, Tensor)]
            found += [value for held in _held(module) for value in held.state_dict(keep_vars=True).values()]
    for each in _beside(_walk(modules)):
        if isinstance(each.value, nn.Module):
            found += each.value.state_dict(keep_vars=True).values()
        elif isinstance(each.value, Tensor):
            found.append(each.value)
    return found


def replaced_methods(module: nn.Module) -> dict[str, Any]:
    """Methods of the module's own, but for a ``forward`` that mixed precision or offloading put there."""
    by_library = {"forward"} if vars(module).keys() & {"_old_forward", "_original_forward"} else set()
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and name not in by_library and name[0] != "_" and callable(getattr(type(module), name, None))
    }


class Attributes:
    """The settings and attributes of modules as they were once."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        found = _walk(modules)
        foreign = [one for one in found if not is_stock(type(one))]
        configs = [config for one in found if isinstance(config := vars(one).get("config"), PretrainedConfig)]
        self._parts = _parts(modules)
        self._settings = copy.deepcopy(_settings(modules))
        # What ``==`` compares, with the mapping that it was copied from and how much that had (any number in
        # configurations).
        self._plain: list[tuple[Mapping[str, Any], int | None, dict[str, Any]]]
        self._plain = [(vars(one), len(vars(one)), copy.deepcopy(_plain(one))) for one in found]
        for kind in {kind for one in foreign for kind in own_kinds(type(one))}:
            methods = {name: value for name, value in vars(kind).items() if isinstance(value, types.FunctionType)}
            self._plain.append((vars(kind), len(vars(kind)), methods))
        # Those of the classes above, which have many, are looked at where the whole encoder is.
        self._methods = [
            (vars(kind), name, value)
            for kind in {type(one) for one in found}
            for name, value in vars(kind).items()
            if is_stock(kind) and isinstance(value, types.FunctionType)
        ]
        for config in configs:
            plain = {
                name: value for name, value in vars(config).items() if not name.startswith("_") and is_plain(value)
            }
            self._plain.append((vars(config), None, copy.deepcopy(plain)))
        self._foreign = [(one, copy.deepcopy(_plain(one)), _others(one), _held(one)) for one in foreign]
        self._beside = [(each, _quick(each.value)) for each in _beside(found)]

    def have_changed(self, modules: Sequence[nn.Module]) -> bool:
        """Whether a module has come, gone or changed: looked at in every step, so in a tenth of a millisecond."""
        return (
            _parts(modules) != self._parts
            or _settings(modules) != self._settings
            or any(_held(one) != held or _changed_others(one, others) for one, _, others, held in self._foreign)
            or any(
                (count is not None and len(now) != count) or not before.items() <= now.items()
                for now, count, before in self._plain
            )
            or any(methods.get(name) is not method for methods, name, method in self._methods)
            or any(_has_changed(each, before) for each, before in self._beside)
        )

    def note_what_ran(self) -> bool:
        """Whether running the encoder has changed attributes of modules: from now on these are no settings."""
        noted = False
        for module, plain, others, _ in self._foreign:
            now = _seen(module)
            changed = {name for name, value in plain.items() if name not in now or now[name] != value}
            changed |= _changed_others(module, others) | (now.keys() - plain.keys() - others.keys())
            if changed:
                _CHANGES_BY_ITSELF.setdefault(module, set()).update(changed)
                noted = True
        if places := {each.place for each, before in self._beside if _has_changed(each, before)}:
            CHANGES_BY_ITSELF.update(places)
            noted = True
        return noted


def _stock_kinds(modules: Iterable[nn.Module]) -> set[type]:
    """The libraries' classes of modules, whose methods somebody may have replaced for all of a kind."""
    kinds = {type(one) for one in modules}
    return {above for kind in kinds for above in kind.__mro__ if is_stock(above)}


def _beside(modules: Iterable[nn.Module]) -> list[Beside]:
    """What the code of modules that are not the libraries' reads from beside it, and code that was put into modules."""
    starts: dict[int, Any] = {}
    for module in modules:
        values: list[Any] = [type(module)] if not is_stock(type(module)) else []
        values += [value for value in vars(module).values() if isinstance(value, types.FunctionType)]
        starts.update({id(value): value for value in values})
    parts = {id(part): part for start in starts.values() for part in reached(start)}
    found: dict[tuple[str, str], Beside] = {}
    for part in parts.values():
        around = [each for function in code_in(part) for each in enclosed(function)]
        found.update({each.place: each for each in (*values_of(part), *around)})
    return [each for each in found.values() if not isinstance(each.value, types.ModuleType)]


def _quick(value: Any) -> Any:
    """What is compared of a value beside the code: a copy of a plain one, and what is seen of another."""
    return copy.deepcopy(value) if is_plain(value) else _quick_description(value)


def _has_changed(each: Beside, before: Any) -> bool:
    now = each.read()
    if is_plain(each.value):
        return bool(now != before)
    return now is not each.value or _quick_description(now) != before


def _settings(modules: Sequence[nn.Module]) -> list[Any]:
    """The settings that are read without taking a tokenizer apart."""
    return [
        (
            getattr(module, "max_seq_length", None),
            module.get_config_dict() if isinstance(module, Module) else None,
            quick_tokenizer(getattr(module, "tokenizer", None)),
        )
        for module in modules
    ]


def _parts(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """All modules that torch knows of, in a third of the time that ``nn.Module.modules`` takes."""
    found: list[nn.Module] = []
    left: list[nn.Module | None] = list(modules)
    while left:
        if (module := left.pop()) is not None:
            found.append(module)
            left.extend(module._modules.values())
    return found


def _held(module: nn.Module) -> list[nn.Module]:
    """Modules in lists and mappings, which torch does not know as parts."""
    values = [value for name, value in vars(module).items() if name not in _INTERNAL]
    groups = [one.values() if type(one) is dict else one for one in values if type(one) in (dict, list, tuple)]
    return [one for group in groups for one in group if isinstance(one, nn.Module)]


def _walk(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """All modules, those that others hold in lists and mappings too, in an order that stays."""
    found = _parts(modules)
    held = [one for module in found if not is_stock(type(module)) for one in _held(module)]
    return found + _walk(held) if held else found


def _with_owners(top: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """All modules with their paths, each with the one that says what it does: torch's layers belong to their holder."""
    left: list[tuple[str, nn.Module, nn.Module]] = [("", top, top)]
    while left:
        path, module, above = left.pop()
        owner = above if type(module).__module__.startswith("torch.") else module
        yield path, module, owner
        left += [(f"{path}.{name}", child, owner) for name, child in module.named_children()]


def _seen(module: nn.Module) -> dict[str, Any]:
    """The attributes that may shape vectors; what a module remembers it calls a cache."""
    left_out = _INTERNAL | _IDLE_ATTRIBUTES | _CHANGES_BY_ITSELF.get(module, set())
    return {
        name: value
        for name, value in vars(module).items()
        if name not in left_out
        and "cache" not in name.lower()
        and not is_origin(name)
        and (name != "forward" or "forward" in replaced_methods(module))
    }


def _plain(module: nn.Module) -> dict[str, Any]:
    """Those that ``==`` compares, and of the library's modules those that it compares at once."""
    if is_stock(type(module)):
        return {name: value for name, value in _seen(module).items() if value is None or isinstance(value, _SCALARS)}
    return {name: value for name, value in _seen(module).items() if is_plain(value)}


def _others(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """The rest of a module that is not the libraries': value, and what is compared beside its identity."""
    return {name: (value, _quick_description(value)) for name, value in _seen(module).items() if not is_plain(value)}


def _changed_others(module: nn.Module, others: dict[str, tuple[Any, Any]]) -> set[str]:
    now = vars(module)
    return {
        name
        for name, (value, description) in others.items()
        if now.get(name) is not value or _quick_description(value) != description
    }


def _hidden_buffers(module: nn.Module) -> dict[str, Tensor]:
    names = sorted(name for name in module._non_persistent_buffers_set if "cache" not in name.lower())
    return {name: buffer for name in names if (buffer := module._buffers.get(name)) is not None}


def _attributes(module: nn.Module, position: int, top: nn.Module) -> dict[str, Any]:
    found = {**_seen(module), **_hidden_buffers(module)}
    return {name: _described(value, position, top, module, name) for name, value in found.items()}


def _code_of(kind: type, position: int, top: nn.Module) -> Any:
    try:
        return code_of(kind)
    except Undescribed as error:
        raise ValueError(
            f"The code of the encoder's module {position} ({fullname(top)}) reads {error} from beside it, and whether "
            "that changes cannot be seen: its vectors would be kept under a name that fits others too. Read plain "
            "values or tensors, or, where no vector depends on it, call the variable something with 'cache'."
        ) from error


def _described(value: Any, position: int, top: nn.Module, module: nn.Module, name: str) -> Any:
    try:
        return described(value)
    except Undescribed as error:
        raise ValueError(
            f"The encoder's module {position} ({fullname(top)}) keeps {error} in {fullname(module)}.{name}, and "
            "whether that changes cannot be seen: its vectors would be kept under a name that fits others too. Keep "
            "plain values or tensors there, or, where no vector depends on it, call the attribute something with "
            "'cache'."
        ) from error


def _quick_description(value: Any) -> Any:
    """What is compared in every step of a value beside its identity; tensors and modules are watched themselves."""
    if isinstance(value, PreTrainedTokenizerBase):
        return quick_tokenizer(value)
    group = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if isinstance(value, Tensor | nn.Module) or is_stock(type(value)) or any(isinstance(x, nn.Module) for x in group):
        return None
    try:
        return described(value)
    except Undescribed:
        return None


def _deviations(top: nn.Module) -> Iterator[list[Any]]:
    """What was changed by hand in modules of the libraries: attributes that no configuration has."""
    looked_at: set[nn.Module] = set()
    for path, module in top.named_modules():
        if module in looked_at or not is_stock(type(module)):
            continue
        if isinstance(module, PreTrainedModel):
            reference = _network_like(module)
            names = {} if reference is None else dict(reference.named_modules())
            for below, part in module.named_modules():
                looked_at.add(part)
                yield from _differences(f"{path}.{below}", part, names.get(below))
        elif isinstance(module, Module):
            for name, part in module.named_children():
                yield from _differences(f"{path}.{name}", part, _layer_like(part))


def _differences(path: str, module: nn.Module, reference: nn.Module | None) -> Iterator[list[Any]]:
    if reference is None:
        return
    if type(reference) is not type(module):
        yield [path, "class", fullname(module)]
        return
    usual = _plain(reference)
    for name, value in sorted(_plain(module).items()):
        idle = name in _IN_WEIGHTS or "drop" in name or name.startswith("_")
        if not idle and name in usual and value != usual[name]:
            yield [path, name, described(value)]


def _network_like(network: PreTrainedModel) -> nn.Module | None:
    """A network of the same configuration, without weights; None where the class takes more than that."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return type(network)(copy.deepcopy(network.config))
    except Exception:  # the class may refuse in any way
        return None


def _layer_like(layer: nn.Module) -> nn.Module | None:
    """A layer of torch as it is by default, which is how the library makes it again when it loads."""
    if isinstance(layer, nn.LayerNorm):
        return nn.LayerNorm(1)
    if isinstance(layer, nn.EmbeddingBag | nn.Embedding):
        return type(layer)(1, 1)
    if not type(layer).__module__.startswith("torch.nn.modules.activation"):
        return None
    try:
        return type(layer)()
    except TypeError:
        return None
