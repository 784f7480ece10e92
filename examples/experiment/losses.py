"""Losses of the experiment: predictive ones, whose target takes no gradient, and isotropy of the pair differences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from experiment.predictors import PREDICTION, TARGET, target_and_head
from experiment.residual import CORRECTION

_BYOL = """
@misc{grill2020bootstrap,
    title={Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning},
    author={Jean-Bastien Grill and Florian Strub and Florent Altché and Corentin Tallec and Pierre H. Richemond and
        Elena Buchatskaya and Carl Doersch and Bernardo Avila Pires and Zhaohan Daniel Guo and
        Mohammad Gheshlaghi Azar and Bilal Piot and Koray Kavukcuoglu and Rémi Munos and Michal Valko},
    year={2020},
    eprint={2006.07733},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
"""
_SIMSIAM = """
@misc{chen2020exploring,
    title={Exploring Simple Siamese Representation Learning},
    author={Xinlei Chen and Kaiming He},
    year={2020},
    eprint={2011.10566},
    archivePrefix={arXiv},
    primaryClass={cs.CV}
}
"""


class PredictiveLoss(nn.Module):
    """Add to another loss the distance of each prediction from its target.

    For a prediction p and a target t the distance is 2 - 2 cos(p, sg(t)), the mean over rows, in float32, where sg
    stops the gradient: equation 2 of BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733), which writes it as
    the squared distance of unit vectors. It lies in [0, 4]. Only the first two columns count: the query and its
    relevant document.

    With the ``iso_pred`` system of :mod:`experiment.systems` p is predictor(head(x)) and t is target(y), and the loss
    is symmetrised as BYOL's is: the mean of the distance from query to document and from document to query (BYOL takes
    the sum; the mean keeps the range). The target's weights follow the head's as a moving average,
    target = momentum * target + (1 - momentum) * head, once per optimizer step: with the first batch after it, while
    the model trains, whether or not gradients are accumulated over several batches. The target is part of the model
    and its checkpoints, so a resumed run equals the uninterrupted one.

    With ``respred`` there is no target, t is the document's own vector as in SimSiam (Chen and He 2020,
    https://arxiv.org/abs/2011.10566), and p is the corrected query.

    There is no ``compute_loss_from_embeddings``, as the vectors of the model are neither predictions nor targets. To
    combine it with ``IsotropyLoss``, wrap that one: ``PredictiveLoss(model, IsotropyLoss(model))``.

    Args:
        model: A model of the ``iso_pred`` or ``respred`` system.
        loss: The loss to add to, any with a ``compute_loss_from_embeddings`` method; None for this term alone.
        weight: Factor of the predictive term.
        momentum: Of the moving average, in [0, 1). BYOL starts with 0.996.

    Raises:
        TypeError: ``loss`` cannot be computed from embeddings.
        ValueError: A negative or non-finite ``weight``, or a ``momentum`` outside [0, 1).

    Inputs:
        +-------------------------------------------------+----------------------------+
        | Inputs                                          | Labels                     |
        +=================================================+============================+
        | (query, document), then what the wrapped loss   | those of the wrapped loss  |
        | takes                                           |                            |
        +-------------------------------------------------+----------------------------+

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> from experiment.losses import PredictiveLoss
        >>> from experiment.systems import get_system
        >>> encoder = SentenceTransformer(modules=[BoW(["frozen", "encoder", "head"])])
        >>> model = get_system("iso_pred").build(encoder)
        >>> queries = {**model.preprocess(["head", "encoder"]), "task": "query"}
        >>> documents = {**model.preprocess(["frozen head", "frozen encoder"]), "task": "document"}
        >>> list(PredictiveLoss(model)([queries, documents]))
        ['predictive']
    """

    def __init__(
        self, model: SentenceTransformer, loss: nn.Module | None = None, *, weight: float = 1.0, momentum: float = 0.996
    ) -> None:
        super().__init__()
        if loss is not None and not callable(getattr(loss, "compute_loss_from_embeddings", None)):
            raise TypeError(
                f"{type(self).__name__} embeds each column once and hands the vectors on, but {type(loss).__name__} "
                "has no compute_loss_from_embeddings(embeddings, labels). IsotropyLoss and "
                "MultipleNegativesRankingLoss have."
            )
        _check_weight("weight", weight)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}.")
        self.model = model
        self.loss: Any = loss
        self.weight = weight
        self.momentum = momentum
        self._followed: list[Tensor] = []

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Embed each column once and return the parts of the loss, which the trainer sums and logs one by one.

        Args:
            sentence_features: One dict of model inputs per column, the query first and its document second.
            labels: What the wrapped loss expects.

        Returns:
            The wrapped loss under its own names, and ``predictive``, weighted.

        Raises:
            ValueError: Fewer than two columns, or the model makes no predictions.
        """
        if self.model.training and torch.is_grad_enabled():
            self._follow_head()
        return self.compute_loss_from_outputs([self.model(features) for features in sentence_features], labels)

    def compute_loss_from_outputs(
        self, outputs: list[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The same parts from what the model returned before.

        Args:
            outputs: One dict per column: ``sentence_embedding``, and where there are any ``prediction`` and
                ``target``, each of shape ``(batch, dimension)``.
            labels: What the wrapped loss expects.

        Returns:
            The parts, as :meth:`forward` returns them.

        Raises:
            ValueError: As for :meth:`forward`.
        """
        parts: dict[str, Tensor] = {}
        if self.loss is not None:
            value = self.loss.compute_loss_from_embeddings([output["sentence_embedding"] for output in outputs], labels)
            contrastive = isinstance(self.loss, MultipleNegativesRankingLoss)
            name = "contrastive" if contrastive else type(self.loss).__name__
            parts = dict(value) if isinstance(value, dict) else {name: value}
        return {**parts, "predictive": self.weight * _predictive(outputs)}

    @torch.no_grad()
    def _follow_head(self) -> None:
        """Move the target, if the optimizer has moved the head since the last batch.

        The first batch counts as one after a step: in a fresh model target and head are equal, and a resumed one has
        that step before it.
        """
        pairs = target_and_head(self.model.modules())
        # Biases tell whether there was a step, and are small.
        watched = [head for _, head in pairs if head.ndim == 1]
        if self._followed and all(map(torch.equal, watched, self._followed)):
            return
        for target, head in pairs:
            target.lerp_(head, 1.0 - self.momentum)
        self._followed = [head.detach().clone() for head in watched]

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as the trainer writes them into the model card."""
        return {
            "loss": None if self.loss is None else type(self.loss).__name__,
            "weight": self.weight,
            "momentum": self.momentum,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper that the term is from."""
        return _BYOL


class ResidualLoss(PredictiveLoss):
    """A :class:`PredictiveLoss` for the ``respred`` system, with a squared penalty on the correction of queries.

    The penalty is the mean over queries of ||alpha * tanh(predictor(q))||^2, in float32.

    Args:
        model: A model of the ``respred`` system.
        loss: As for :class:`PredictiveLoss`.
        weight: Factor of the predictive term.
        residual_weight: Factor of the penalty.

    Raises:
        TypeError: As for :class:`PredictiveLoss`.
        ValueError: A negative or non-finite weight.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> from experiment.losses import ResidualLoss
        >>> from experiment.systems import get_system
        >>> encoder = SentenceTransformer(modules=[BoW(["frozen", "encoder", "head"])])
        >>> model = get_system("respred").build(encoder)
        >>> queries = {**model.preprocess(["head", "encoder"]), "task": "query"}
        >>> documents = {**model.preprocess(["frozen head", "frozen encoder"]), "task": "document"}
        >>> list(ResidualLoss(model)([queries, documents]))
        ['predictive', 'residual']
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: nn.Module | None = None,
        *,
        weight: float = 1.0,
        residual_weight: float = 1.0,
    ) -> None:
        super().__init__(model, loss, weight=weight)
        _check_weight("residual_weight", residual_weight)
        self.residual_weight = residual_weight

    def compute_loss_from_outputs(
        self, outputs: list[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parts from what the model returned before.

        Args:
            outputs: As for :class:`PredictiveLoss`, with ``correction``, shape ``(batch, dimension)``, for queries.
            labels: What the wrapped loss expects.

        Returns:
            The parts of :class:`PredictiveLoss`, and ``residual``, weighted.

        Raises:
            ValueError: As for :class:`PredictiveLoss`, or no column has a ``correction``.
        """
        parts = super().compute_loss_from_outputs(outputs, labels)
        corrections = [output[CORRECTION] for output in outputs if CORRECTION in output]
        if not corrections:
            raise ValueError(
                "No column was corrected, so there is nothing for ResidualLoss to penalise: build the model with "
                "experiment.systems.get_system('respred').build(encoder), and route a column to 'query'."
            )
        with torch.autocast(device_type=corrections[0].device.type, enabled=False):
            penalty = _precise(torch.cat(corrections)).pow(2).sum(dim=1).mean()
        parts["residual"] = self.residual_weight * penalty
        return parts

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as the trainer writes them into the model card."""
        config = super().get_config_dict()
        del config["momentum"]  # there is no target
        return {**config, "residual_weight": self.residual_weight}

    @property
    def citation(self) -> str:
        """BibTeX of the papers that the predictive term is from."""
        return _BYOL + _SIMSIAM


def difference_isotropy(queries: Tensor, documents: Tensor) -> Tensor:
    """How uneven the differences within a pair are, q - d of unit vectors.

    With C the second moment of q - d, it estimates ||C||_F^2 / tr(C)^2 - 1/d without the sampling bias of small
    batches: 0 on average where C is a multiple of the identity, 1 - 1/d where all differences lie on one line. What
    :func:`st_asym.whitened_heads` reaches in closed form for linear heads, as a term of a loss for any.

    Args:
        queries: Shape ``(n, d)``, of any lengths.
        documents: Their documents, row by row.

    Returns:
        A scalar; 0 for fewer than two pairs, and where no query differs from its document.

    Example:
        >>> pairs = torch.randn(500, 8), torch.randn(500, 8)
        >>> abs(difference_isotropy(*pairs).item()) < 0.02
        True
        >>> one_line = torch.eye(8)[:1] * torch.randn(500, 1).sign()
        >>> round(difference_isotropy(one_line, -one_line).item(), 3)
        0.875
    """
    with torch.autocast(device_type=queries.device.type, enabled=False):
        unit = [torch.nn.functional.normalize(_precise(vectors), dim=1) for vectors in (queries, documents)]
        x = unit[0] - unit[1]
        n, d = x.shape
        lengths = x.pow(2).sum(dim=1)
        others = lengths.sum().pow(2) - lengths.pow(2).sum()
        if n < 2 or others <= 0:
            return x.sum() * 0.0
        products = x @ x.T if n <= d else x.T @ x
        return (products.pow(2).sum() - lengths.pow(2).sum()) / others - 1.0 / d


def _predictive(outputs: list[dict[str, Tensor]]) -> Tensor:
    """Mean distance of the first two columns' predictions from each other's targets."""
    if len(outputs) < 2:
        raise ValueError(f"A predictive loss needs a query and a document column, and got {len(outputs)} column(s).")
    terms = []
    for one, other in ((outputs[0], outputs[1]), (outputs[1], outputs[0])):
        if PREDICTION in one:
            target = other.get(TARGET, other["sentence_embedding"]).detach()
            with torch.autocast(device_type=target.device.type, enabled=False):
                cosines = torch.cosine_similarity(_precise(one[PREDICTION]), _precise(target))
            terms.append((2.0 - 2.0 * cosines).mean())
    if not terms:
        raise ValueError(
            "The model makes no predictions, which a predictive loss needs: build it with "
            "experiment.systems.get_system('iso_pred').build(encoder), or 'respred', and route the first column to "
            "'query' and the second to 'document'."
        )
    return torch.stack(terms).mean()


def _precise(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _check_weight(name: str, weight: float) -> None:
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {weight}.")
