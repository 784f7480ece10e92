"""A model taken apart: the encoder, the heads behind it, the modules of each side, and where the encoder is from."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PureWindowsPath
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.util import load_file_path
from torch import nn

logger = logging.getLogger(__name__)

Side = Literal["query", "document"]

# The names that `encode_query` and `encode_document` look for among a model's prompts.
_PROMPT_NAMES: dict[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_STOCK = "sentence_transformers."
_VECTOR = "sentence_embedding"
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_HUB_CACHE = re.compile(r"(?:.*[/\\])?models--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_LICENSE_KEYS = ("license", "license_name", "license_link")


def taken_apart(model: SentenceTransformer) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules before the first ``Router``, and those from it on: none where the model has no heads."""
    modules = list(model.children())
    first = next((place for place, module in enumerate(modules) if isinstance(module, Router)), len(modules))
    return modules[:first], modules[first:]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """With modules in evaluation mode and without gradients; each part of them is back in its own mode afterwards."""
    training = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in training.items():
            part.training = mode


def foreign_modules(modules: Iterable[nn.Module]) -> list[str]:
    """The names of modules that are no part of sentence-transformers."""
    return [type(module).__name__ for module in modules if not type(module).__module__.startswith(_STOCK)]


def layer_reader(model: nn.Module) -> Any:
    """What ``AdaptiveLayerLoss`` puts in the place of the first module's ``forward`` while it runs; None otherwise.

    Its ``layer_idx`` is the layer that is read, None for the last. It is the library's own, and private to it.
    """
    forward = getattr(next(model.children(), None), "forward", None)
    return forward if hasattr(forward, "layer_idx") else None


def encoder_modules(model: SentenceTransformer) -> OrderedDict[str, nn.Module]:
    """The modules before the heads, by name: all up to the first ``Router``, or all where there is none."""
    before, _ = taken_apart(model)
    modules = OrderedDict(list(model.named_children())[: len(before)])
    if not modules:
        raise ValueError(
            "The model begins with a Router, so its queries and documents share no encoder whose vectors could be "
            "kept. Pass the model of one route, SentenceTransformer(modules=[...])."
        )
    return modules


def encoder_alone(
    model: SentenceTransformer, kind: type[SentenceTransformer] = SentenceTransformer, **options: Any
) -> SentenceTransformer:
    """The modules before the heads as a model of their own, shared, with the keyword arguments that they take."""
    modules = encoder_modules(model)
    # Names are kept where they come as a dict; the device is handed to Module.to.
    encoder = kind(modules=modules, device=model.device, **options)  # type: ignore[arg-type]
    if model.module_kwargs:
        encoder.module_kwargs = {name: kwargs for name, kwargs in model.module_kwargs.items() if name in modules}
    return encoder


def without_heads(model: SentenceTransformer) -> SentenceTransformer:
    """The encoder of a model with heads, with its prompts, similarity and ``truncate_dim``; the modules are shared."""
    return encoder_alone(
        model,
        prompts=prompts_of(model),
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
    )


def whole_width(model: SentenceTransformer) -> int | None:
    """How many dimensions a model's vectors have before ``truncate_dim`` cuts them; None where it does not say."""
    with model.truncate_embeddings(None):
        return model.get_embedding_dimension()


def is_cut(model: SentenceTransformer) -> bool:
    """Whether ``truncate_dim`` cuts something off a model's vectors."""
    width = whole_width(model) or 0
    return (model.truncate_dim or width) < width


def gives_unit_vectors(model: SentenceTransformer) -> bool:
    """Whether a model's vectors have length 1: it ends in ``Normalize``, and nothing is cut off behind that."""
    return isinstance(list(model.children())[-1], Normalize) and not is_cut(model)


def side_modules(model: SentenceTransformer, side: Side) -> list[nn.Module]:
    """The modules that texts of a side go through, in order.

    Behind the encoder, linear ``Dense`` modules in a row become one: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2),
    computed in float64. A ``Normalize`` goes where a later one makes it superfluous: with h(c x) = c h(x) for c > 0
    between them, h(x / ||x||) and h(x) have one direction. That holds for no head at all, and for linear and ReLU
    layers without bias. With a bias it does not hold, and the ``Normalize`` stays.

    Modules that are not folded are shared with ``model``.
    """
    before, router = taken_apart(model)
    heads: list[nn.Module] = []
    for are_linear, run in groupby(_without_routers(router, side), _is_linear):
        layers = list(run)
        heads += [_one_dense(layers)] if are_linear else layers
    return _without_idle_normalize([*before, *heads])


def side_prompt(model: SentenceTransformer, side: Side) -> str:
    """What ``encode_query`` or ``encode_document`` puts in front of a text."""
    names = _PROMPT_NAMES.get(side, (side,))
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(name) or "") if name is not None else ""


def prompts_of(model: SentenceTransformer) -> dict[str, str]:
    """A model's prompts for another one, to which the library gives empty ones for the sides that have none."""
    own = {name: prompt or "" for name, prompt in model.prompts.items()}
    return {**own, "query": side_prompt(model, "query"), "document": side_prompt(model, "document")}


@torch.no_grad()
def sides_differ(heads: Router) -> bool:
    """Whether the two routes map the same vector differently; False if a route is more than ``Dense`` layers."""
    routes: Any = dict(heads.sub_modules)
    if not {"query", "document"} <= set(routes):
        return False
    if not all(isinstance(layer, Dense) for route in routes.values() for layer in route):
        return False
    weight = next(heads.parameters())
    vector = nn.functional.normalize(weight.new_ones(1, weight.shape[-1]))
    query, document = (heads({_VECTOR: vector}, task=task)[_VECTOR] for task in ("query", "document"))
    return not torch.allclose(query, document, atol=1e-4)


def on_vectors(module: nn.Module) -> bool:
    """Whether a ``Dense`` or ``Normalize`` turns the sentence's vector into another, and nothing else."""
    return getattr(module, "module_input_name", _VECTOR) == getattr(module, "module_output_name", _VECTOR) == _VECTOR


def public_name(source: object) -> str:
    """The name of a source that may be published: a Hub id, the last part of a path, or the name of a class.

    Of an address it is the file's name, without what may be a key before or behind it.
    """
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    text = os.fspath(source)
    if _HUB_ID.fullmatch(text) and not text.startswith(".") and not Path(text).exists():
        return text
    if "://" in text:
        text = urlsplit(text).path
    return PureWindowsPath(text).name or "."


def model_file(model: str, name: str, revision: str | None, *, local_files_only: bool = False) -> Path | None:
    """A file of a model, by its folder or Hub id, from where the library keeps models; None where it has none."""
    home = os.getenv("SENTENCE_TRANSFORMERS_HOME")
    found = load_file_path(model, name, cache_folder=home, revision=revision, local_files_only=local_files_only)
    return None if found is None else Path(found)


def hub_snapshot(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Hub id and revision of a folder in the cache of ``huggingface_hub``; None for any other."""
    found = _HUB_CACHE.fullmatch(os.fspath(path))
    return (found[1].replace("--", "/", 1), found[2]) if found else None


def encoder_origin(model: SentenceTransformer) -> tuple[str | None, str | None]:
    """Name and revision of a loaded model's encoder, where the library or transformers remember them."""
    config, card = getattr(model.transformers_model, "config", None), model.model_card_data
    source = str(getattr(config, "name_or_path", "") or card.base_model or "")
    revision = getattr(config, "_commit_hash", None) or (card.base_model_revision if card.base_model else None)
    return hub_snapshot(source) or ((public_name(source) if source else None), revision)


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder is from; ``recorded`` is False where nobody has said.

    The name is its Hub id, also where it was read from the Hub's cache, and None for another folder, whose name means
    nothing to others. The licence is ``license``, ``license_name`` and ``license_link`` of its own card.
    """

    name: str | None = None
    revision: str | None = None
    license: dict[str, str] = field(default_factory=dict)
    recorded: bool = True

    @classmethod
    def of(cls, given: SentenceTransformer | str | os.PathLike[str], loaded: SentenceTransformer) -> EncoderSource:
        """What is known of a loaded encoder, as the user gave or named it, without asking the Hub again."""
        name, revision = loaded.model_card_data.base_model, loaded.model_card_data.base_model_revision
        if not isinstance(given, SentenceTransformer):
            if snapshot := hub_snapshot(given):
                return cls(*snapshot, _license_of(os.fspath(given), None))
            if Path(given).is_dir():
                return cls(license=_license_of(os.fspath(given), None))
            name = name or os.fspath(given)
        return cls(name, revision, _license_of(name, revision)) if name else cls()


def is_license(name: object) -> bool:
    """Whether the Hub could have a licence of this name."""
    return isinstance(name, str) and _LICENSE.fullmatch(name) is not None


def _license_of(source: str, revision: str | None) -> dict[str, str]:
    """What the card of an encoder says, from its folder or the local cache of the Hub."""
    try:
        path = model_file(source, "README.md", revision, local_files_only=True)
        data = None if path is None else ModelCard.load(path, ignore_metadata_errors=True).data
    except Exception as error:  # whatever is wrong with the card of another model, its licence is unknown
        logger.debug("The encoder's card cannot be read: %s", error)
        return {}
    if data is None or not is_license(data.get("license")):
        return {}
    return {key: value for key in _LICENSE_KEYS if isinstance(value := data.get(key), str)}


def _without_routers(modules: Iterable[nn.Module], side: Side) -> Iterator[nn.Module]:
    for module in modules:
        if not isinstance(module, Router):
            yield module
            continue
        if side not in module.sub_modules:
            raise ValueError(f"The model's Router has no route {side!r}: it has {', '.join(module.sub_modules)}.")
        if module.route_mappings:
            raise ValueError(
                "The model's Router decides by more than query or document (route_mappings), so that a side is not one "
                "list of modules. Export the model of one route, SentenceTransformer(modules=[...])."
            )
        layers: Any = module.sub_modules[side]
        yield from _without_routers(layers, side)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, Dense) and isinstance(module.activation_function, nn.Identity) and on_vectors(module)


@torch.no_grad()
def _one_dense(layers: Sequence[Any]) -> Dense:
    """Linear layers, and their residuals, as one, in their dtype and on their device, without a bias that is zero."""
    weight = layers[0].linear.weight
    # What zero and the unit vectors become says all of a linear map.
    features = {_VECTOR: torch.eye(weight.shape[1] + 1, weight.shape[1]).roll(1, 0).to(weight.device).double()}
    for layer in layers:
        features = copy.deepcopy(layer).double()(features)
    bias, *columns = features[_VECTOR]
    dense = Dense(weight.shape[1], len(bias), bias=bool(bias.any()), activation_function=nn.Identity())
    dense.to(device=weight.device, dtype=weight.dtype)
    dense.linear.weight.copy_((torch.stack(columns) - bias).T)
    if dense.bias:
        dense.linear.bias.copy_(bias)
    return dense


def _without_idle_normalize(modules: list[nn.Module]) -> list[nn.Module]:
    kept: list[nn.Module] = []
    idle = False  # whether a Normalize here would be undone by one further on
    for module in reversed(modules):
        normalizes = isinstance(module, Normalize) and on_vectors(module)
        if not (normalizes and idle):
            kept.append(module)
        idle = normalizes or (idle and _keeps_direction(module))
    return kept[::-1]


def _keeps_direction(module: nn.Module) -> bool:
    """Whether h(c x) = c h(x) for c > 0."""
    return (
        isinstance(module, Dense)
        and on_vectors(module)
        and isinstance(module.activation_function, nn.Identity | nn.ReLU | nn.LeakyReLU)
        and (module.linear.bias is None or not bool(module.linear.bias.any()))
    )
