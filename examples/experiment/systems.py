"""The systems of the original experiment: each makes a model from an encoder, and a loss for it.

The fourth, the frozen encoder itself, is the first row of every table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import Tensor, nn

from experiment.losses import PredictiveLoss, ResidualLoss
from experiment.predictors import add_training_aids, drop_training_aids
from experiment.residual import add_residual, drop_residual_class
from st_asym import IsotropyLoss, asymmetric_model

Init = Literal["identity", "random"]

# A random start has the encoder's geometry to learn, an identity start has it to lose.
_LEARNING_RATES: dict[Init, float] = {"random": 1e-3, "identity": 3e-4}


@dataclass(frozen=True)
class System:
    """A way to make a model and its loss.

    Attributes:
        name: What :func:`get_system` knows it by.
        isotropy: Weight of the isotropy term.
        predictive: Weight of the predictive term; None: its loss has none.
        residual: Weight of the penalty on the correction of queries, in the same way.
        contrastive: Whether its loss has a contrastive part.
        shared: Whether queries and documents have one head.
    """

    name: str
    isotropy: float
    predictive: float | None = None
    residual: float | None = None
    contrastive: bool = True
    shared: bool = False
    _arrange: Callable[[Router, Init], Router] = lambda heads, _: heads
    _finish: Callable[[Router], Router] = lambda heads: heads

    def build(self, encoder: SentenceTransformer | str | PathLike[str], init: Init = "random") -> SentenceTransformer:
        """Put the heads of this system behind a frozen encoder.

        With ``init="identity"`` the model gives the encoder's vectors, normalised, until it is trained.

        Args:
            encoder: A ``SentenceTransformer``, or the Hub id or path of one. Its modules are shared, not copied.
            init: As for :func:`st_asym.AsymmetricProjection`.

        Returns:
            The model, with the heads as its only trainable parameters.

        Raises:
            TypeError: As for :func:`st_asym.asymmetric_model`.
            ValueError: As for :func:`st_asym.asymmetric_model`.
        """
        model = asymmetric_model(encoder, init=init, shared=self.shared)
        return _replace_heads(model, lambda heads: self._arrange(heads, init))

    def loss(self, model: SentenceTransformer) -> nn.Module:
        """The loss of this system, for the stock trainer.

        It returns a dict of weighted parts, of ``contrastive``, ``isotropy``, ``predictive`` and ``residual`` those
        that the system has. The trainer sums them and logs each.

        Args:
            model: Of :meth:`build`, or a :class:`st_asym.CachedSentenceTransformer` of it.
        """
        loss: nn.Module = IsotropyLoss(model, None if self.contrastive else _Nothing(), weight=self.isotropy)
        if self.predictive is None:
            return loss
        if self.residual is None:
            return PredictiveLoss(model, loss, weight=self.predictive)
        return ResidualLoss(model, loss, weight=self.predictive, residual_weight=self.residual)

    def arguments(self, init: Init = "random") -> dict[str, Any]:
        """What it trains with, for ``SentenceTransformerTrainingArguments``; ``init`` is what it was built with."""
        return {"learning_rate": _LEARNING_RATES[init], "per_device_train_batch_size": 64, "num_train_epochs": 3}

    def finish(self, model: SentenceTransformer) -> SentenceTransformer:
        """The trained model without what only training needs: what to save, export and search with.

        It gives the same vectors and consists of stock modules. (Saved without it, a model is stock as well, so that
        every checkpoint is, but that of ``iso_pred`` brings its predictor and target.)

        Args:
            model: Of :meth:`build`, or a :class:`st_asym.CachedSentenceTransformer` of it; it stays as it is.

        Returns:
            A model of the same class that shares the encoder and the heads with ``model``.
        """
        return _replace_heads(model, self._finish)


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("asymmetric", isotropy=1.0),
        System(
            "iso_pred",
            isotropy=1.5,
            predictive=1.2,
            contrastive=False,
            shared=True,
            _arrange=add_training_aids,
            _finish=drop_training_aids,
        ),
        System(
            "respred",
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

    - ``asymmetric``: a head for queries and one for documents, contrastive loss and isotropy;
    - ``iso_pred``: one shared head; a predictor on top of it predicts, from either side of a pair, what a slow-moving
      copy of the head makes of the other; predictive loss and isotropy, no contrastive loss;
    - ``respred``: one shared head, and query + alpha * tanh(predictor(query)) with a learned alpha; contrastive and
      predictive loss, isotropy and a penalty on the correction.

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

    def compute_loss_from_embeddings(self, _: list[Tensor], _labels: Tensor | None = None) -> dict[str, Tensor]:
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
