"""The models that are compared: loaded, named, told apart, and answered from the cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache, model_fingerprint
from st_asym.cache.cached_model import encodes_in_its_own_way
from st_asym.data.collection import first_few
from st_asym.heads.anatomy import sides_differ, taken_apart, without_heads
from st_asym.heads.model import load_encoder
from st_asym.trainer.columns import encode_caveat

Model: TypeAlias = Union[SentenceTransformer, str, "os.PathLike[str]"]
Models: TypeAlias = Mapping[str, Model | Sequence[Model] | Mapping[int, Model]]

UNTOUCHED = "untouched encoder"
Baseline = Literal["bm25", "hybrid"]
BASELINES: tuple[Baseline, ...] = ("bm25", "hybrid")


@dataclass(frozen=True)
class System:
    """One system: one model or one per seed, the seeds where they were given, and a digest of each model.

    A baseline, which is BM25 or a system with BM25 added, has no models of its own here.
    """

    name: str
    models: tuple[SentenceTransformer, ...]
    seeds: tuple[int, ...] | None
    digests: tuple[str, ...]


def systems_of(models: Models) -> list[System]:
    """Load what is to be compared; where the first model has heads, its encoder without them is put before it."""
    if not isinstance(models, Mapping):
        raise TypeError(f'Models are given as {{"name": model, ...}}, not as a {type(models).__name__}.')
    found = [_system(name, value) for name, value in models.items()]
    if not found:
        raise ValueError("There is nothing to evaluate: no models were given.")
    first = found[0].models[0]
    if all(taken_apart(first)):
        if UNTOUCHED in models:
            raise ValueError(f"{UNTOUCHED!r} must be the first of the models: the others are compared with it.")
        encoder = without_heads(first)
        if isinstance(first, CachedSentenceTransformer):
            encoder = CachedSentenceTransformer(encoder, first.cache, precision=first.cache_precision)
        found.insert(0, _system(UNTOUCHED, encoder))
    return found


def models_of(given: Model | Sequence[Model] | Mapping[int, Model]) -> list[Model]:
    """The models of one system, however they are given."""
    several: Any = list(given.values()) if isinstance(given, Mapping) else given
    return list(several) if isinstance(several, list | tuple) else [several]


def _system(name: str, given: Model | Sequence[Model] | Mapping[int, Model]) -> System:
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"The name of a model must be a text, got {name!r}.")
    loaded = tuple(load_encoder(one) for one in models_of(given))
    if not loaded:
        raise ValueError(f"{name!r} has no models.")
    stock = (one.stock_model() if isinstance(one, CachedSentenceTransformer) else one for one in loaded)
    seeds = tuple(int(seed) for seed in given) if isinstance(given, Mapping) else None
    return System(name, loaded, seeds, tuple(map(model_fingerprint, stock)))


def answered_from(cache: EmbeddingCache, model: SentenceTransformer) -> SentenceTransformer:
    """The same model with its encoder answered from the cache, unless nothing comes before its heads.

    One that encodes in a way of its own is judged by that.
    """
    encoder, _ = taken_apart(model)
    if not encoder or isinstance(model, CachedSentenceTransformer) or encodes_in_its_own_way(model):
        return model
    # Nothing is trained here: an encoder that could be is as good as a frozen one.
    trainable = [p for module in encoder for p in module.parameters() if p.requires_grad]
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


def queries_as_documents(system: System, text: str) -> list[str]:
    """Say that queries would go through the document side, where they would: a sentence or none.

    A stock model sends them through their own. One with an ``encode_query`` that is plain ``encode``, or that holds the
    heads inside another module, need not: then both sides give one text the same vector, and the heads do not.
    """
    for model in system.models:
        heads = [module for module in model.modules() if isinstance(module, Router)]
        if not heads or _runs_through(model, heads[0]) or not sides_differ(heads[0]):
            continue
        options: Any = {"prompt": ""} if any(model.prompts.values()) else {}
        sides = (encode([text], **options) for encode in (model.encode_query, model.encode_document))
        query, document = (torch.as_tensor(np.asarray(side)).float() for side in sides)
        if query.shape == document.shape and torch.allclose(query, document, atol=1e-6):
            return [f"{system.name}: queries go through the document side. {encode_caveat()}"]
    return []


def _runs_through(model: SentenceTransformer, heads: Router) -> bool:
    """Whether the library's own methods send texts through the heads."""
    if isinstance(model, CachedSentenceTransformer):
        return True
    changed = {"encode", "encode_query"} & vars(model).keys()
    return type(model) is SentenceTransformer and not changed and heads in list(model.children())


def same_models(systems: Sequence[System]) -> list[str]:
    """Say which models are the same though they should not be."""
    notes = []
    names: dict[str, str] = {}
    for system in systems:
        different = dict.fromkeys(system.digests)
        if len(different) < len(system.digests):
            notes.append(f"{system.name}: {len(system.digests)} models were given, {len(different)} different.")
        for digest in different:
            if digest in names:
                notes.append(f"{system.name} and {names[digest]} are the same model.")
            names.setdefault(digest, system.name)
    return notes


def other_widths(systems: Sequence[System]) -> list[str]:
    """Say which models have vectors of other dimensions than the untouched encoder, which truncate_dim alone cuts."""
    first, *others = ((system.name, system.models[0].get_embedding_dimension()) for system in systems)
    return [
        f"{UNTOUCHED} has vectors of {first[1]} dimensions, {name} of {size}."
        for name, size in others
        if first[0] == UNTOUCHED and size != first[1]
    ]


def check_finite(vectors: Any, name: str, side: str) -> None:
    """Refuse to rank by vectors, shape ``(n, d)`` or a list of ``n``, that are NaN or infinite."""
    table = torch.stack(list(vectors)) if isinstance(vectors, list | tuple) and vectors else torch.as_tensor(vectors)
    finite = torch.isfinite(table).flatten(1).all(dim=1) if table.ndim > 1 else torch.isfinite(table)
    if not finite.all():
        wrong = torch.nonzero(~finite).flatten().tolist()
        raise ValueError(
            f"{name} gives vectors that are not finite for {len(wrong):,} of {len(finite):,} texts ({side} side, rows "
            f"{first_few(wrong)}): there is nothing to rank by. Its weights are damaged, or its training has diverged."
        )
