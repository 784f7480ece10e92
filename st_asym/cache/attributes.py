"""What the modules of an encoder hold beside weights and configurations, and whether any of it has changed.

The library's own modules say in their configurations what they do; what was changed in them by hand is compared with
what a new one has. Of all other modules every attribute counts, since any may shape vectors: the scaling of an adapter,
which adapter is active, a factor that ``forward`` multiplies by.
"""

from __future__ import annotations

import contextlib
import copy
import functools
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
        who = f"module {position} ({fullname(top)})"
        for path, module, owner in _with_owners(top):
            kind = fullname(module)
            if not is_stock(type(owner)):
                with _refused(f"The code of the encoder's {who} reads", "from beside it"):
                    code = code_of(type(module)) if module is owner else []
                values = {**_seen(module), **_hidden_buffers(module)}
                found.append(
                    [position, path, kind, code, {name: _told(values[name], who, kind, name) for name in values}]
                )
            else:
                for name, value in replaced_methods(module).items():
                    found.append([position, path, kind, name, _told(value, who, kind, name)])
        found += [[position, *deviation] for deviation in _deviations(top)]
    # The libraries' classes, whose methods somebody may have replaced for all of a kind.
    for stock in {above for one in _walk(modules) for above in type(one).__mro__ if is_stock(above)}:
        for name, function in functions_of(stock).items():
            if is_foreign(function):
                found.append([fullname(stock), name, described(function)])
    return found


@contextlib.contextmanager
def _refused(who: str, where: str) -> Iterator[None]:
    try:
        yield
    except Undescribed as error:
        raise ValueError(
            f"{who} {error} {where}, and whether that changes cannot be seen: its vectors would be kept under a name "
            "that fits others too. Keep plain values or tensors there, or, where no vector depends on it, call it "
            "something with 'cache'."
        ) from error


def _told(value: Any, who: str, kind: str, name: str) -> Any:
    with _refused(f"The encoder's {who} keeps", f"in {kind}.{name}"):
        return described(value)


def replaced_methods(module: nn.Module) -> dict[str, Any]:
    """Methods of the module's own, but for a ``forward`` that mixed precision or offloading put there."""
    by_library = {"forward"} if vars(module).keys() & {"_old_forward", "_original_forward"} else set()
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and name not in by_library and name[0] != "_" and callable(getattr(type(module), name, None))
    }


class Attributes:
    """The settings and attributes of modules as they were once; ``tensors`` are those that no state dict has."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        found = _walk(modules)
        self._foreign = [one for one in found if not is_stock(type(one))]
        kinds = {type(one) for one in found} | {kind for one in self._foreign for kind in own_kinds(type(one))}
        configs = [config for one in found if isinstance(config := vars(one).get("config"), PretrainedConfig)]
        self._parts, self._settings = _parts(modules), copy.deepcopy(_settings(modules))
        # What ``==`` compares at once: a mapping, how many it has (None for any number), and what some of them were.
        self._plain: list[tuple[Mapping[str, Any], int | None, dict[str, Any]]]
        self._plain = [(vars(one), len(vars(one)), _scalars(one)) for one in found]
        for kind in kinds:
            methods = {name: value for name, value in vars(kind).items() if isinstance(value, types.FunctionType)}
            self._plain.append((vars(kind), None if is_stock(kind) else len(vars(kind)), methods))
        for config in configs:
            plain = {name: value for name, value in vars(config).items() if name[0] != "_" and is_plain(value)}
            self._plain.append((vars(config), None, copy.deepcopy(plain)))
        own = [
            Beside((one, name), functools.partial(vars(one).get, name), value)
            for one in self._foreign
            for name, value in _seen(one).items()
        ]
        self._looked_at = [
            (each, copy.deepcopy(now) if is_plain(each.value) else now)
            for each in [*own, *_beside(found)]
            for now in [_quick(each.value)]
        ]
        self.tensors = [buffer for one in self._foreign for buffer in _hidden_buffers(one).values()]
        for each, _ in self._looked_at:
            within = [each.value] if isinstance(each.value, nn.Module) else _modules_in(each.value)
            self.tensors += [each.value] if isinstance(each.value, Tensor) else []
            self.tensors += [value for held in within for value in held.state_dict(keep_vars=True).values()]

    def have_changed(self, modules: Sequence[nn.Module]) -> bool:
        """Whether a module has come, gone or changed: looked at in every step, so in a tenth of a millisecond."""
        return (
            _parts(modules) != self._parts
            or _settings(modules) != self._settings
            or any(
                (count is not None and len(now) != count) or not before.items() <= now.items()
                for now, count, before in self._plain
            )
            or any(_quick(each.read()) != before for each, before in self._looked_at)
        )

    def note_what_ran(self) -> bool:
        """Whether running the encoder has changed attributes of modules: from now on these are no settings."""
        known = {each.place for each, _ in self._looked_at}
        changed = {each.place for each, before in self._looked_at if _quick(each.read()) != before}
        changed |= {(one, name) for one in self._foreign for name in _seen(one)} - known
        for where, name in changed:
            if isinstance(where, nn.Module):
                _CHANGES_BY_ITSELF.setdefault(where, set()).add(name)
            else:
                CHANGES_BY_ITSELF.add((where, name))
        return bool(changed)


def _beside(modules: Iterable[nn.Module]) -> list[Beside]:
    """What the code of modules that are not the libraries' reads from beside it, and code that was put into modules."""
    starts: dict[int, Any] = {}
    for module in modules:
        values: list[Any] = [type(module)] if not is_stock(type(module)) else []
        values += [value for value in vars(module).values() if isinstance(value, types.FunctionType)]
        starts.update({id(value): value for value in values})
    parts = {id(part): part for start in starts.values() for part in reached(start)}
    found: dict[tuple[Any, str], Beside] = {}
    for part in parts.values():
        around = [each for function in code_in(part) for each in enclosed(function)]
        found.update({each.place: each for each in (*values_of(part), *around)})
    return [each for each in found.values() if not isinstance(each.value, types.ModuleType)]


def _quick(value: Any) -> list[Any]:
    """What is compared of a value in every step: a plain one itself; of another its identity, and what shows at once.

    The contents of tensors and modules are watched as weights are.
    """
    if is_plain(value):
        return [value]
    shown: Any = None
    if isinstance(value, PreTrainedTokenizerBase):
        shown = quick_tokenizer(value)
    elif modules := _modules_in(value):
        shown = modules  # themselves, and no numbers: those of a module that is gone may be given to another
    elif not isinstance(value, Tensor | nn.Module) and not is_stock(type(value)):
        with contextlib.suppress(Undescribed):
            shown = described(value)
    return [id(value), shown]


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


def _modules_in(value: Any) -> list[nn.Module]:
    """Modules in a list or mapping, which torch does not know as parts."""
    group = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [one for one in group if isinstance(one, nn.Module)]


def _walk(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """All modules, those that others hold in lists and mappings too, in an order that stays."""
    found: dict[nn.Module, None] = {}
    left = list(modules)
    while left:
        new = [one for one in _parts(left) if one not in found]
        found.update(dict.fromkeys(new))
        left = [held for one in new if not is_stock(type(one)) for v in _seen(one).values() for held in _modules_in(v)]
    return list(found)


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


def _scalars(module: nn.Module) -> dict[str, Any]:
    """Of a module of the libraries what ``==`` compares at once."""
    if not is_stock(type(module)):
        return {}
    return {name: value for name, value in _seen(module).items() if value is None or isinstance(value, _SCALARS)}


def _hidden_buffers(module: nn.Module) -> dict[str, Tensor]:
    names = sorted(name for name in module._non_persistent_buffers_set if "cache" not in name.lower())
    return {name: buffer for name in names if (buffer := module._buffers.get(name)) is not None}


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
    usual = _scalars(reference)
    for name, value in sorted(_scalars(module).items()):
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
        return type(layer)(1, 1, device="meta")  # which draws nothing from the caller's generator
    if not type(layer).__module__.startswith("torch.nn.modules.activation"):
        return None
    try:
        return type(layer)()
    except TypeError:
        return None
