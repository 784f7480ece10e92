"""The models that are compared: loaded, named, told apart, and answered from the cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache, model_fingerprint
from st_asym.cache.fingerprint import encoder_modules, without_heads
from st_asym.model import load_encoder

Model: TypeAlias = Union[SentenceTransformer, str, "os.PathLike[str]"]
Models: TypeAlias = Mapping[str, Model | Sequence[Model] | Mapping[int, Model]]

UNTOUCHED = "untouched encoder"


@dataclass(frozen=True)
class Candidate:
    """One system, as one or several models.

    Attributes:
        name: As given.
        models: One, or one per seed.
        seeds: Of each, where they were given.
        digests: Of each.
    """

    name: str
    models: tuple[SentenceTransformer, ...]
    seeds: tuple[int, ...] | None
    digests: tuple[str, ...]


def candidates(models: Models) -> list[Candidate]:
    """Load what is to be compared, with the untouched encoder first.

    Where the first model has heads, its encoder without them is put before it.

    Args:
        models: Name to a model, to the models of several seeds, or to a mapping of seeds to them.

    Raises:
        TypeError: Not a mapping, or not a model.
        ValueError: No models, or a name without any.
    """
    if not isinstance(models, Mapping):
        raise TypeError(f'Models are given as {{"name": model, ...}}, not as a {type(models).__name__}.')
    found = [_candidate(name, value) for name, value in models.items()]
    if not found:
        raise ValueError("There is nothing to evaluate: no models were given.")
    first = found[0].models[0]
    heads = any(isinstance(module, Router) for module in first.children())
    if heads and not isinstance(next(iter(first.children())), Router):
        if UNTOUCHED in models:
            raise ValueError(f"{UNTOUCHED!r} must be the first of the models: the others are compared with it.")
        found.insert(0, _candidate(UNTOUCHED, _without_heads(first)))
    return found


def answered_from(cache: EmbeddingCache | None, model: SentenceTransformer) -> SentenceTransformer:
    """The same model with its encoder answered from the cache, unless nothing comes before its heads."""
    if cache is None or isinstance(model, CachedSentenceTransformer):
        return model
    if isinstance(next(iter(model.children())), Router):
        return model
    # Nothing is trained here: an encoder that could be is as good as a frozen one.
    trainable = [p for module in encoder_modules(model).values() for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        return CachedSentenceTransformer(model, cache)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def vectors_of(model: SentenceTransformer) -> str:
    """What vectors of the encoder a model is evaluated on: rounded ones give other scores."""
    if not isinstance(model, CachedSentenceTransformer):
        return "fp32"
    stored = model.cache.store.dtype
    return model.cache_precision + ("" if str(stored) == "float32" else f" as {stored}")


def _candidate(name: str, value: Model | Sequence[Model] | Mapping[int, Model]) -> Candidate:
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"The name of a model must be a text, got {name!r}.")
    seeds: tuple[int, ...] | None = None
    models: list[Model]
    if isinstance(value, Mapping):
        seeds, models = tuple(int(seed) for seed in value), list(value.values())
    elif isinstance(value, list | tuple):
        models = list(value)
    else:
        models = [value]  # type: ignore[list-item] # no sequence is left
    if not models:
        raise ValueError(f"{name!r} has no models.")
    loaded = tuple(one if isinstance(one, SentenceTransformer) else load_encoder(one) for one in models)
    return Candidate(name, loaded, seeds, tuple(model_fingerprint(_stock(one)) for one in loaded))


def _stock(model: SentenceTransformer) -> SentenceTransformer:
    return model.stock_model() if isinstance(model, CachedSentenceTransformer) else model


def _without_heads(model: SentenceTransformer) -> SentenceTransformer:
    encoder = without_heads(model)
    if isinstance(model, CachedSentenceTransformer):
        return CachedSentenceTransformer(encoder, model.cache, precision=model.cache_precision)
    return encoder
