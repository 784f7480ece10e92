"""What a fit trains with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from st_asym.projection import HiddenFeatures, ProjectionOptions
from st_asym.systems import Init, System

Sides = Literal["both", "query", "document", "shared"]
Contrastive = Literal["corpus", "in-batch"]
IsotropyKind = Literal["covariance", "sigreg", "uniformity"]
_NAMES = {
    name: get_args(kind)
    for name, kind in (("sides", Sides), ("contrastive", Contrastive), ("isotropy_kind", IsotropyKind))
}


@dataclass(frozen=True)
class Settings:
    """How heads are shaped and trained. The defaults are good across collections.

    Attributes:
        sides: Which sides get a head: ``"both"``, ``"query"`` (documents stay as they are, and so does an existing
            index), ``"document"``, or ``"shared"``, one head for both.
        hidden_features: Width of the hidden layer, as for :func:`st_asym.AsymmetricProjection`.
        bias: Whether layers have one, as for :func:`st_asym.AsymmetricProjection`. Servers that know no heads of
            their own run ``hidden_features=None, bias=False`` (see :func:`st_asym.export_side`).
        contrastive: ``"corpus"`` for :class:`st_asym.CorpusContrastiveLoss`, ``"in-batch"`` for the library's
            ``MultipleNegativesRankingLoss``.
        temperature: Divides the similarities in the loss.
        learning_rate: At the first step; it falls linearly to zero.
        epochs: Passes over the training queries.
        batch_size: Queries (``"corpus"``) or pairs (``"in-batch"``) per step.
        hard_negatives: With ``"in-batch"``, how many of the documents that the encoder finds most similar to a query
            its pairs get as negatives, see :func:`st_asym.mine_negatives`.
        isotropy_weight: Weight of the isotropy term, 0 for none.
        isotropy_kind: As for :class:`st_asym.IsotropyLoss`.

    Raises:
        ValueError: A setting that no training can have.

    Example:
        >>> Settings(sides="query", epochs=10).batch_size
        256
    """

    sides: Sides = "both"
    hidden_features: HiddenFeatures = "2x"
    contrastive: Contrastive = "corpus"
    temperature: float = 0.05
    learning_rate: float = 1e-3
    epochs: int = 20
    batch_size: int = 256
    isotropy_weight: float = 0.0
    isotropy_kind: IsotropyKind = "covariance"
    hard_negatives: int = 0
    bias: bool = True

    def __post_init__(self) -> None:
        """Refuse what would fail later, in the middle of a fit."""
        for name, names in _NAMES.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {getattr(self, name)!r}.")
        for name in ("temperature", "learning_rate", "epochs", "batch_size"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number above 0, got {getattr(self, name)}.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)}.")
        if not 0 <= self.isotropy_weight < float("inf"):
            raise ValueError(f"isotropy_weight must be a finite number, 0 or more, got {self.isotropy_weight}.")
        self._check_hard_negatives()

    def _check_hard_negatives(self) -> None:
        if self.hard_negatives < 0:
            raise ValueError(f"hard_negatives must be at least 0, got {self.hard_negatives}.")
        if self.hard_negatives and self.contrastive == "corpus":
            raise ValueError(
                f"hard_negatives={self.hard_negatives} is for contrastive='in-batch': with 'corpus' every document "
                "that is not relevant is a negative of each query already, the hardest among them."
            )

    @classmethod
    def of(cls, system: System, init: Init) -> Settings:
        """The defaults of a system: ours for ``asymmetric``, those of the original experiment for the others."""
        if system.name in ("asymmetric", "frozen"):
            return cls()
        arguments = system.arguments(init)
        return cls(
            sides="shared",
            contrastive="in-batch",
            learning_rate=arguments["learning_rate"],
            epochs=arguments["num_train_epochs"],
            batch_size=arguments["per_device_train_batch_size"],
            isotropy_weight=system.isotropy or 0.0,
        )

    def projection(self, system: System) -> ProjectionOptions:
        """The options of :meth:`st_asym.systems.System.build`."""
        if system.shared:
            return {"hidden_features": self.hidden_features, "bias": self.bias}
        return {
            "hidden_features": self.hidden_features,
            "bias": self.bias,
            "query": self.sides != "document",
            "document": self.sides != "query",
            "shared": self.sides == "shared",
        }

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


def usual_init(system: System) -> Init:
    """How heads start if nobody says: as the identity, and in the other systems as they did originally."""
    return "identity" if system.name == "asymmetric" else system.init
