"""How heads are shaped and trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from st_asym.heads.projection import HiddenFeatures, ProjectionOptions
from st_asym.losses.isotropy import IsotropyKind

Sides = Literal["both", "query", "document", "shared"]
Init = Literal["identity", "pairs", "random"]
Contrastive = Literal["both", "corpus", "in-batch"]
_NAMES = {
    "sides": get_args(Sides),
    "init": get_args(Init),
    "contrastive": get_args(Contrastive),
    "isotropy_kind": get_args(IsotropyKind),
}
_ABOVE_ZERO = ("temperature", "learning_rate", "epochs", "batch_size", "whitening")
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(_ABOVE_ZERO, ("a finite number above 0", lambda value: 0 < value < math.inf)),
    "unlabelled_weight": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "isotropy_weight": ("a finite number, 0 or more", lambda value: 0 <= value < math.inf),
    "hard_negatives": ("at least 0", lambda value: value >= 0),
}
_WHOLE = ("epochs", "batch_size", "hard_negatives")
# Larger collections need fewer passes over their queries: about so many steps, and at least so many epochs.
_EPOCHS, _STEPS, _FEWEST = 20, 400, 3
_TEMPERATURE, _TEMPERATURE_OF_MANY, _MANY = 0.05, 0.04, 2_000
_LEARNING_RATE, _LEARNING_RATE_OF_MANY, _VERY_MANY = 3e-4, 2e-4, 10_000


@dataclass(frozen=True)
class Settings:
    """How heads are shaped and trained. What is None is left to :func:`st_asym.fit`, which tries what there is.

    Attributes:
        sides: Which sides get a head: ``"both"``, ``"query"`` (documents stay as they are, and so does an existing
            index), ``"document"``, or ``"shared"``, one head for both. ``fit`` tries ``"both"`` and ``"query"``.
        init: How heads start: ``"identity"``, ``"pairs"`` (within-pair whitening, see
            :func:`st_asym.fitting.closed_form.pair_whitening`) or ``"random"``. ``fit`` takes ``"pairs"``.
        contrastive: ``"corpus"`` for :class:`st_asym.CorpusContrastiveLoss` against the corpus, ``"in-batch"`` for its
            form against the documents of the batch, ``"both"`` for the mean of both losses. ``fit`` takes ``"both"``,
            and tries ``"corpus"`` too where the corpus is closed.
        unlabelled_weight: What a document that no training query asks for counts as a negative, with ``"corpus"`` and
            ``"both"``. ``fit`` tries 1, where the corpus is closed, and 0.1.
        whitening: The strength s of the start ``"pairs"``; the others have none. ``fit`` tries several.
        hidden_features: Width of the hidden layer, as for :func:`st_asym.AsymmetricProjection`.
        bias: Whether layers have one, as for :func:`st_asym.AsymmetricProjection`. Servers that know no heads of
            their own run ``hidden_features=None, bias=False`` (see :func:`st_asym.export_side`).
        temperature: Divides the similarities in the loss; None for 0.05, and for 0.04 with 2,000 training queries or
            more: what many queries say is worth being followed more closely.
        learning_rate: At the first step; it falls linearly to zero. None for 3e-4, and for 2e-4 with 10,000 training
            queries or more: heads that go less far lose less on documents that nobody asked for.
        epochs: Passes over the training queries; None for 20, and fewer where that were more than 400 steps.
        batch_size: Queries per step.
        hard_negatives: With ``"in-batch"``, how many of the documents that the encoder finds most similar to a query
            are its negatives besides.
        isotropy_weight: Weight of the isotropy term, 0 for none.
        isotropy_kind: As for :class:`st_asym.IsotropyLoss`.

    Raises:
        ValueError: A setting that no training can have.

    Example:
        >>> Settings(sides="query", epochs=10).batch_size
        256
    """

    sides: Sides | None = None
    init: Init | None = None
    contrastive: Contrastive | None = None
    unlabelled_weight: float | None = None
    whitening: float | None = None
    hidden_features: HiddenFeatures = "2x"
    bias: bool = True
    temperature: float | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int = 256
    hard_negatives: int = 0
    isotropy_weight: float = 0.0
    isotropy_kind: IsotropyKind = "covariance"

    def __post_init__(self) -> None:
        """Refuse what would fail later, in the middle of a fit; numbers of NumPy become Python's."""
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
            wanted = None if value is None else _wanted(name, getattr(self, name))
            if wanted is not None:
                raise ValueError(f"{name} must be {wanted}, got {value!r}.")
        if self.hard_negatives and self.contrastive not in (None, "in-batch"):
            raise ValueError(
                f"hard_negatives={self.hard_negatives} is for contrastive='in-batch': with 'corpus' every document "
                "that is not relevant is a negative of each query already, the hardest among them."
            )

    def epochs_for(self, queries: int) -> int:
        """How many passes over so many training queries."""
        if self.epochs is not None:
            return self.epochs
        return max(_FEWEST, min(_EPOCHS, _STEPS // -(-queries // self.batch_size)))

    def temperature_for(self, queries: int) -> float:
        """The temperature with so many training queries."""
        return self.temperature or (_TEMPERATURE if queries < _MANY else _TEMPERATURE_OF_MANY)

    def learning_rate_for(self, queries: int) -> float:
        """The learning rate with so many training queries."""
        return self.learning_rate or (_LEARNING_RATE if queries < _VERY_MANY else _LEARNING_RATE_OF_MANY)

    def projection(self) -> ProjectionOptions:
        """The options of :func:`st_asym.asymmetric_model`; the start ``"pairs"`` is written into the identity."""
        return {
            "hidden_features": self.hidden_features,
            "bias": self.bias,
            "init": "random" if self.init == "random" else "identity",
            "query": self.sides != "document",
            "document": self.sides != "query",
            "shared": self.sides == "shared",
        }

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


def _wanted(name: str, value: Any) -> str | None:
    """What a setting must be, where it is something else."""
    if name in _NAMES and value not in _NAMES[name]:
        return f"one of {', '.join(map(repr, _NAMES[name]))}"
    if name == "bias" and not isinstance(value, bool):
        return "True or False"
    return _wanted_number(name, value) if name in _RANGES else None


def _wanted_number(name: str, value: Any) -> str | None:
    if not isinstance(value, int | float):
        return "a number"
    what, contains = _RANGES[name]
    if not contains(value):
        return what
    return "a whole number" if name in _WHOLE and not isinstance(value, int) else None
