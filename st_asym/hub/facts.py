"""What a model says of itself, and where its encoder is from."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.util import load_file_path

from st_asym.cache import encoder_fingerprint
from st_asym.hub.card import is_license
from st_asym.origin import hub_snapshot

logger = logging.getLogger(__name__)

_LICENSE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Encoder:
    """Where an encoder is from.

    Attributes:
        name: Its Hub id, also where it was read from the Hub's cache; None for another folder, whose name means
            nothing to others.
        revision: Its commit on the Hub.
        license: ``license``, ``license_name`` and ``license_link`` of its own card, as far as they are there.
        recorded: False where nobody has said where it is from.
    """

    name: str | None = None
    revision: str | None = None
    license: dict[str, str] = field(default_factory=dict)
    recorded: bool = True

    @classmethod
    def of(cls, given: SentenceTransformer | str | os.PathLike[str], loaded: SentenceTransformer) -> Encoder:
        """What is known without asking the Hub again.

        Args:
            given: The encoder, as the user named it.
            loaded: The same, loaded.
        """
        data = loaded.model_card_data
        if not isinstance(given, SentenceTransformer) and (snapshot := hub_snapshot(given)):
            return cls(*snapshot, _license_of(os.fspath(given), None))
        name, revision = data.base_model, data.base_model_revision
        source = name
        if not isinstance(given, SentenceTransformer):
            source = os.fspath(given) if name is None or Path(given).is_dir() else name
            name = None if Path(given).is_dir() else source
        return cls(name, revision if name else None, {} if source is None else _license_of(source, revision))


@dataclass(frozen=True)
class Facts:
    """What a model says of itself.

    Attributes:
        dimension: Of its vectors.
        max_tokens: Of a text; what is beyond is cut off. None where it does not say.
        similarity: By which its vectors are compared.
        dtype: Of its weights.
        prompts: Side to what is put before its texts.
        heads: Side to the widths of its head, ``384 → 768 → 384, ReLU``; empty for a side without one.
        plain: The side that plain ``encode`` takes; None where the model has no sides.
        trained: How many weights the heads have.
        fingerprint: Of the encoder.
    """

    dimension: int | None
    max_tokens: int | None
    similarity: str
    dtype: str
    prompts: dict[str, str]
    heads: dict[str, str]
    plain: str | None
    trained: int
    fingerprint: str

    @classmethod
    def of(cls, model: SentenceTransformer) -> Facts:
        """Look at a model with or without heads."""
        router = next((module for module in model.children() if isinstance(module, Router)), None)
        heads: dict[str, str] = {}
        if router is not None:
            heads = {side: _widths(route) for side, route in router.sub_modules.items()}
        return cls(
            dimension=model.get_embedding_dimension(),
            max_tokens=_finite(model.max_seq_length),
            similarity=str(model.similarity_fn_name),
            dtype=str(model.dtype).removeprefix("torch."),
            prompts={name: prompt for name, prompt in model.prompts.items() if prompt},
            heads=heads,
            plain=None if router is None else router.default_route,
            trained=0 if router is None else sum(parameter.numel() for parameter in router.parameters()),
            fingerprint=encoder_fingerprint(model),
        )


def _finite(length: float | None) -> int | None:
    """Encoders without a limit give none, or an infinite one."""
    return int(length) if length is not None and math.isfinite(length) else None


def _widths(route: Any) -> str:
    """The layers of one route."""
    layers = [module for module in route if isinstance(module, Dense)]
    if not layers:
        return ""
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    names = [type(layer.activation_function).__name__ for layer in layers]
    used = dict.fromkeys(name for name in names if name != "Identity")
    return ", ".join([" → ".join(map(str, widths)), *used]) + ("" if used else ", linear")


def _license_of(source: str, revision: str | None) -> dict[str, str]:
    """What the card of an encoder says, from its folder or the local cache of the Hub."""
    try:
        path = load_file_path(
            source,
            "README.md",
            cache_folder=os.getenv("SENTENCE_TRANSFORMERS_HOME"),  # where SentenceTransformer puts it
            revision=revision,
            local_files_only=True,
        )
        data = None if path is None else ModelCard.load(Path(path), ignore_metadata_errors=True).data
    except Exception as error:  # whatever is wrong with the card of another model, its licence is unknown
        logger.debug("The encoder's card cannot be read: %s", error)
        return {}
    if data is None:
        return {}
    found = {key: data.get(key) for key in _LICENSE_KEYS}
    return (
        {key: value for key, value in found.items() if isinstance(value, str)} if is_license(found["license"]) else {}
    )
