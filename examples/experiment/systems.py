"""The four systems of the comparison: each makes a model from an encoder, and a loss for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import Tensor, nn
from typing_extensions import Unpack

from experiment.losses import PredictiveLoss, ResidualLoss
from experiment.predictors import add_training_aids, drop_training_aids
from experiment.residual import add_residual, drop_residual_class
from st_asym.heads.model import asymmetric_model, load_encoder
from st_asym.heads.projection import ProjectionOptions
from st_asym.losses import IsotropyLoss

Init = Literal["identity", "random"]
IsotropyKind = Literal["covariance", "sigreg", "uniformity"]

# A random start has the encoder's geometry to learn, an identity start has it to lose.
_LEARNING_RATES: dict[Init, float] = {"random": 1e-3, "identity": 3e-4}


@dataclass(frozen=True)
class System:
    """A way to make a model and its loss. Weights are those of the loss's parts; None: the system has no such part.

    Attributes:
        name: What :func:`get_system` knows it by.
        saved: What its saved model consists of.
        init: How its heads start where nothing else is asked for.
        contrastive: Whether its loss has a contrastive part.
        isotropy: Weight of the isotropy term.
        predictive: Weight of the predictive term.
        residual: Weight of the penalty on the correction of queries.
        shared: Whether queries and documents have one head.
        trains: Whether there is anything to train.
        batch_size: Pairs per batch.
        epochs: Passes over the pairs.
    """

    name: str
    saved: str
    init: Init = "random"
    contrastive: bool = True
    isotropy: float | None = None
    predictive: float | None = None
    residual: float | None = None
    shared: bool = False
    trains: bool = True
    batch_size: int = 64
    epochs: int = 3
    _arrange: Callable[[Router, Init], Router] | None = None
    _finish: Callable[[Router], Router] | None = None

    def build(
        self,
        encoder: SentenceTransformer | str | PathLike[str],
        **projection: Unpack[ProjectionOptions],
    ) -> SentenceTransformer:
        """Put the heads of this system behind a frozen encoder.

        With ``init="identity"`` the model gives the encoder's vectors, normalised, until it is trained. ``frozen`` is
        the encoder itself, frozen in place, whatever ``init`` is.

        Args:
            encoder: A ``SentenceTransformer``, or the Hub id or path of one. Its modules are shared, not copied.
            **projection: ``init``, :attr:`init` if not given, and more of the options of
                :func:`st_asym.AsymmetricProjection`. Systems with one shared head take ``out_features``,
                ``hidden_features``, ``activation`` and ``bias``, ``frozen`` takes none.

        Returns:
            The model, with the heads as its only trainable parameters.

        Raises:
            TypeError: As for :func:`st_asym.asymmetric_model`.
            ValueError: As for :func:`st_asym.asymmetric_model`, or an option that the system does not take.
        """
        if not self.trains:
            self._refuse([name for name in projection if name != "init"])
            model = encoder if isinstance(encoder, SentenceTransformer) else load_encoder(encoder)
            return model.requires_grad_(False).eval()
        options: ProjectionOptions = {"init": self.init, **projection}
        if self.shared:
            self._refuse([name for name in projection if name in ("query", "document", "shared")])
            options["shared"] = True
        model = asymmetric_model(encoder, **options)
        arrange, init = self._arrange, options["init"]
        return model if arrange is None else _replace_heads(model, lambda heads: arrange(heads, init))

    def loss(
        self,
        model: SentenceTransformer,
        contrastive: nn.Module | None = None,
        *,
        isotropy: float | None = None,
        predictive: float | None = None,
        residual: float | None = None,
        kind: IsotropyKind = "covariance",
    ) -> nn.Module:
        """The loss of this system, for the stock trainer.

        It returns a dict of weighted parts, of ``contrastive``, ``isotropy``, ``predictive`` and ``residual`` those
        that the system has. The trainer sums them and logs each.

        Args:
            model: Of :meth:`build`, or a :class:`st_asym.CachedSentenceTransformer` of it.
            contrastive: Any loss with a ``compute_loss_from_embeddings`` method, for this model;
                ``MultipleNegativesRankingLoss`` if None.
            isotropy: Weight of the isotropy term; :attr:`isotropy` if None.
            predictive: Weight of the predictive term; :attr:`predictive` if None.
            residual: Weight of the penalty on the correction; :attr:`residual` if None.
            kind: As for :class:`st_asym.IsotropyLoss`.

        Returns:
            The loss.

        Raises:
            TypeError: ``contrastive`` cannot be computed from embeddings.
            ValueError: The system has nothing to train, or has no part that a loss or weight is given for.
        """
        if not self.trains:
            raise ValueError(f"The system {self.name!r} has nothing to train, so it has no loss.")
        given = {"isotropy": isotropy, "predictive": predictive, "residual": residual}
        own: dict[str, float | None] = {part: getattr(self, part) for part in given}
        self._refuse([part for part, weight in given.items() if weight is not None and own[part] is None])
        if not self.contrastive:
            self._refuse([] if contrastive is None else ["contrastive"])
            contrastive = _Nothing()
        weights = {part: own[part] if weight is None else weight for part, weight in given.items()}
        loss: nn.Module = IsotropyLoss(model, contrastive, weight=weights["isotropy"] or 0.0, kind=kind)
        if weights["residual"] is not None:
            return ResidualLoss(model, loss, weight=weights["predictive"] or 0.0, residual_weight=weights["residual"])
        return loss if weights["predictive"] is None else PredictiveLoss(model, loss, weight=weights["predictive"])

    def arguments(self, init: Init | None = None) -> dict[str, Any]:
        """The settings that the system trains with, for ``SentenceTransformerTrainingArguments``.

        Args:
            init: What the model was built with; :attr:`init` if None.

        Returns:
            ``learning_rate``, ``per_device_train_batch_size`` and ``num_train_epochs``.

        Raises:
            ValueError: The system has nothing to train.
        """
        if not self.trains:
            raise ValueError(f"The system {self.name!r} has nothing to train, so it has no training arguments.")
        return {
            "learning_rate": _LEARNING_RATES[self.init if init is None else init],
            "per_device_train_batch_size": self.batch_size,
            "num_train_epochs": self.epochs,
        }

    def finish(self, model: SentenceTransformer) -> SentenceTransformer:
        """The trained model without what only training needs: what to save, export and search with.

        It gives the same vectors and consists of stock modules. (Saved without it, a model is stock as well, so that
        every checkpoint is, but that of ``iso_pred`` brings its predictor and target.)

        Args:
            model: Of :meth:`build`, or a :class:`st_asym.CachedSentenceTransformer` of it; it stays as it is.

        Returns:
            A model of the same class that shares the encoder and the heads with ``model``.
        """
        return model if self._finish is None else _replace_heads(model, self._finish)

    def _refuse(self, options: list[str]) -> None:
        if options:
            raise ValueError(f"The system {self.name!r} does not take {', '.join(options)}: leave it out.")


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("frozen", "the encoder as it is", trains=False, contrastive=False),
        System("asymmetric", "the encoder, a head for queries and one for documents", isotropy=1.0),
        System(
            "iso_pred",
            "the encoder and the shared head; predictor and target are used in training alone",
            contrastive=False,
            isotropy=1.5,
            predictive=1.2,
            shared=True,
            _arrange=add_training_aids,
            _finish=drop_training_aids,
        ),
        System(
            "respred",
            "the encoder and the shared head, with the residual of queries written as three Dense modules",
            isotropy=1.5,
            predictive=1.2,
            residual=1.0,
            shared=True,
            _arrange=add_residual,
            _finish=drop_residual_class,
        ),
    )
}
"""The systems by name.

They come from an experiment whose notes give ``iso_pred`` its weights, and batches of 64 and three epochs. What they do
not give is chosen here: the weights of ``asymmetric`` and ``respred``, momentum, alpha at the start, learning rates.
"""


def get_system(name: str) -> System:
    """Look a system up.

    - ``frozen``: the untouched encoder;
    - ``asymmetric``: a head for queries and one for documents, contrastive loss and isotropy;
    - ``iso_pred``: one shared head; a predictor on top of it predicts, from either side of a pair, what a slow-moving
      copy of the head makes of the other; predictive loss and isotropy, no contrastive loss;
    - ``respred``: one shared head, and query + alpha * tanh(predictor(query)) with a learned alpha; contrastive and
      predictive loss, isotropy and a penalty on the correction.

    Args:
        name: One of these names.

    Returns:
        The system.

    Raises:
        ValueError: There is no such system.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> system = get_system("iso_pred")
        >>> model = system.build(SentenceTransformer(modules=[BoW(["frozen", "encoder"])]), init="identity")
        >>> loss = system.loss(model)
        >>> system.arguments("identity")
        {'learning_rate': 0.0003, 'per_device_train_batch_size': 64, 'num_train_epochs': 3}
        >>> [type(module).__name__ for module in system.finish(model)]
        ['BoW', 'Router', 'Normalize']
    """
    if name not in SYSTEMS:
        raise ValueError(f"There is no system {name!r}: choose one of {', '.join(map(repr, SYSTEMS))}.")
    return SYSTEMS[name]


class _Nothing(nn.Module):
    """The loss to add to where there is no other."""

    def compute_loss_from_embeddings(
        self,
        embeddings: list[Tensor],  # noqa: ARG002
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        return {}


def _replace_heads(model: SentenceTransformer, change: Callable[[Router], Router]) -> SentenceTransformer:
    """A model that shares all but its ``Router`` with ``model``."""
    other = copy.copy(model)
    # A shallow copy has the same dict of modules, not one of its own.
    other._modules = other._modules.copy()
    for name, module in model.named_children():
        if isinstance(module, Router):
            other._modules[name] = change(module).to(next(module.parameters())).train(module.training)
    return other
