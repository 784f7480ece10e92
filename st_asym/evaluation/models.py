"""The models that are compared: loaded, named, told apart, and answered from the cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache, model_fingerprint
from st_asym.evaluation.checkpoints import choose_model, is_run
from st_asym.heads.anatomy import encoder_modules, without_heads
from st_asym.heads.model import DType, load_encoder
from st_asym.trainer.columns import plain_encode

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


def queries_as_documents(system: Candidate, text: str) -> list[str]:
    """Say that queries would go through the document side, where they would: a sentence or none.

    A stock model sends them through their own. One with an ``encode_query`` that is plain ``encode``, or that holds the
    heads inside another module, need not: then both sides give one text the same vector, and the heads do not.

    Args:
        system: The models, as they were given.
        text: To look at.
    """
    for model in system.models:
        heads = [module for module in model.modules() if isinstance(module, Router)]
        if not heads or _is_stock(model, heads[0]) or not _sides_differ(heads[0]):
            continue
        options: Any = {"prompt": ""} if any(model.prompts.values()) else {}
        sides = (encode([text], **options) for encode in (model.encode_query, model.encode_document))
        query, document = (torch.as_tensor(np.asarray(side)).float() for side in sides)
        if query.shape == document.shape and torch.allclose(query, document, atol=1e-6):
            return [f"{system.name}: queries go through the document side. {plain_encode()}"]
    return []


def _is_stock(model: SentenceTransformer, heads: Router) -> bool:
    """Whether the library's own methods send texts through the heads."""
    if isinstance(model, CachedSentenceTransformer):
        return True
    changed = {"encode", "encode_query"} & vars(model).keys()
    return type(model) is SentenceTransformer and not changed and heads in list(model.children())


@torch.no_grad()
def _sides_differ(heads: Router) -> bool:
    """Whether heads give one vector two."""
    routes: Any = dict(heads.sub_modules)
    layers = [layer for route in routes.values() for layer in route]
    if not {"query", "document"} <= set(routes) or not all(isinstance(layer, Dense) for layer in layers):
        return False  # encoders of their own
    weight = next(heads.parameters())
    vector = torch.nn.functional.normalize(torch.ones(1, weight.shape[-1], dtype=weight.dtype, device=weight.device))
    query, document = (heads({"sentence_embedding": vector}, task=task) for task in ("query", "document"))
    return not torch.allclose(query["sentence_embedding"], document["sentence_embedding"], atol=1e-4)


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


def named_models(entries: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Name to path or Hub id, and what was chosen where a path is that of a run.

    Args:
        entries: Each ``PATH`` or ``NAME=PATH``.

    Raises:
        ValueError: Two models have one name, or a run holds no model that is whole.
    """
    # A path may hold an equals sign itself, after the name's or without one.
    split_up = [(entry, "", "") if Path(entry).exists() else entry.partition("=") for entry in entries]
    named, notes = {name: path or name for name, _, path in split_up}, []
    if len(named) < len(split_up):
        raise ValueError("Two models have one name: give others with --model NAME=PATH.")
    for name, path in named.items():
        if is_run(path):
            chosen = choose_model(path)
            named[name] = str(chosen.path)
            notes.append(f"{name}: {chosen.why}")
    return named, notes


def loaded_models(
    named: Mapping[str, str], *, revision: str | None, trust_remote_code: bool, dtype: DType | None
) -> dict[str, Model]:
    """The models as they are asked for; their paths and Hub ids, where nothing is asked for.

    Raises:
        ValueError: Nothing is named that it could be asked of, or a revision of none or several Hub ids.
    """
    if revision is None and dtype is None and not trust_remote_code:
        return {**named}
    if not named:
        raise ValueError("--revision, --trust-remote-code and --dtype are for models that --model names.")
    on_the_hub = [path for path in named.values() if not Path(path).exists()]
    if revision is not None and len(on_the_hub) != 1:
        raise ValueError(f"--revision {revision} is for one Hub id, and --model names {len(on_the_hub)}.")
    return {
        name: load_encoder(
            path,
            revision=revision if path in on_the_hub else None,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
        )
        for name, path in named.items()
    }


def the_run(data: Sequence[str], *, watch: bool) -> str:
    """The only run folder; one that is watched may not exist yet.

    Raises:
        ValueError: Several, or no folder. The message says how to give models and data.
    """
    first = Path(data[0])
    found = first.is_dir() or (watch and not first.exists())
    if len(data) == 1 and found and not (first / "corpus.jsonl").is_file():
        return data[0]
    raise ValueError(
        f"{', '.join(data)}: without --model, this must be the folder of one run, and the data are given with --on. To "
        "evaluate models on data, name them with --model."
    )
