"""A learned correction of queries, query + alpha * tanh(predictor(query)), that saves as stock modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from sentence_transformers.base.modules import Dense, Module, Router
from torch import Tensor, nn

from experiment.predictors import PREDICTION, dense_layers, predictor
from st_asym.heads.projection import require_tasks

CORRECTION = "correction"
_RANDOM_ALPHA = 0.1


class ResidualPredictor(Module):
    """Turn ``sentence_embedding`` q into q + alpha * tanh(predictor(q)), with alpha and the predictor learned.

    The correction is left under ``correction``, shape ``(batch, features)``, and the corrected vectors also under
    ``prediction``, where the predictive loss looks for them. The predictor is features -> 2 x features -> features
    with ReLU.

    Args:
        layers: The two ``Dense`` layers of the predictor.
        alpha: Factor of the correction at the start. 0 leaves queries as they are, and is still learned, as in ReZero
            (Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887).
    """

    def __init__(self, layers: Sequence[Dense], alpha: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first, self.second = (layer.linear for layer in layers)
        self.alpha = nn.Parameter(torch.tensor(alpha, dtype=self.first.weight.dtype))

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Correct ``sentence_embedding``."""
        queries = features["sentence_embedding"]
        features[CORRECTION] = self.alpha * torch.tanh(self.second(torch.relu(self.first(queries))))
        features["sentence_embedding"] = features[PREDICTION] = queries + features[CORRECTION]
        return features

    def get_embedding_dimension(self) -> int:
        """Dimension of the vectors, before and after."""
        return self.first.in_features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Refuse: by itself this module would not load without st_asym."""
        raise NotImplementedError(
            "A ResidualPredictor is saved as stock Dense modules by the ResidualRouter around it: save that, or the "
            "Dense modules of ResidualPredictor.stock()."
        )

    @torch.no_grad()
    def stock(self) -> list[Dense]:
        """The same function of ``sentence_embedding`` as three stock ``Dense`` modules, with copied weights.

        The first carries the query q along as relu(q) and relu(-q) beside the hidden layer; the second puts it
        together again, as its linear residual, beside the tanh of the predictor; the third adds both.
        """
        d, h = self.first.in_features, self.first.out_features
        options: dict[str, Any] = {"device": self.first.weight.device, "dtype": self.first.weight.dtype}
        identity = torch.eye(d, **options)
        first = Dense(d, 2 * d + h, activation_function=nn.ReLU())
        second = Dense(2 * d + h, 2 * d, activation_function=nn.Tanh(), use_residual=True)
        third = Dense(2 * d, d, activation_function=None)
        for layer in (first, second, third):
            layer.to(**options)
            for parameter in layer.parameters():
                parameter.zero_()
        first.linear.weight.copy_(torch.cat([identity, -identity, self.first.weight]))
        first.linear.bias[2 * d :] = self.first.bias
        second.linear.weight[d:, 2 * d :] = self.second.weight
        second.linear.bias[d:] = self.second.bias
        second.residual.weight[:d, : 2 * d] = torch.cat([identity, -identity], dim=1)
        third.linear.weight.copy_(torch.cat([identity, self.alpha * identity], dim=1))
        return [first, second, third]

    @classmethod
    @torch.no_grad()
    def from_stock(cls, layers: Sequence[Dense]) -> ResidualPredictor:
        """The module whose :meth:`stock` form ``layers`` are."""
        first, second, third = layers
        d = third.out_features
        module = cls(predictor(d, "random"), 0.0).to(first.linear.weight)
        module.first.weight.copy_(first.linear.weight[2 * d :])
        module.first.bias.copy_(first.linear.bias[2 * d :])
        module.second.weight.copy_(second.linear.weight[d:, 2 * d :])
        module.second.bias.copy_(second.linear.bias[d:])
        module.alpha.copy_(third.linear.weight[0, d])
        return module


class ResidualRouter(Router):
    """One head for both sides, and behind it a :class:`ResidualPredictor` for queries.

    It writes a stock ``Router`` of stock ``Dense`` modules that gives the same vectors, so a saved model loads
    without st_asym, and goes by the stock name there. In memory, where it trains, it reads that form back: the
    trainer resumes from a checkpoint, and ends with the best, as with any model.

    Args:
        head: The ``Dense`` layers of the head.
        residual: What comes behind it for queries.
    """

    def __init__(self, head: Sequence[Dense], residual: ResidualPredictor) -> None:
        super().__init__({"query": [*head, residual], "document": [*head]}, default_route="document")

    def stock(self) -> Router:
        """The same function as a stock ``Router``: it shares the head, the residual is copied."""
        route: Any = self.sub_modules["query"]
        *head, residual = route
        return require_tasks(Router.for_query_document([*head, *residual.stock()], [*head]))

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:  # noqa: ARG002
        """Save the stock form."""
        self.stock().save(output_path, safe_serialization=safe_serialization, **kwargs)

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> ResidualRouter:
        """Read back what :meth:`save` wrote."""
        router = Router.load(*args, **kwargs)
        head = dense_layers(router, "document")
        return cls(head, ResidualPredictor.from_stock(dense_layers(router, "query")[len(head) :]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the class's name, which is another's."""
        return _empty_residual_router, (), self.__dict__


def _empty_residual_router() -> ResidualRouter:
    return ResidualRouter.__new__(ResidualRouter)


# What a model writes as the type of this module, and what the trainer looks up to read a checkpoint back.
ResidualRouter.__name__ = Router.__name__
ResidualRouter.__module__ = Router.__module__


def add_residual(router: Router, init: Literal["identity", "random"]) -> ResidualRouter:
    """Put a :class:`ResidualPredictor` behind the shared head of a ``Router``, for queries.

    Args:
        router: Of :func:`st_asym.AsymmetricProjection` with ``shared=True``.
        init: ``"identity"`` starts with alpha = 0, ``"random"`` with 0.1. The predictor starts randomly in both, since
            with alpha = 0 and a predictor that returns the query, cosine would give alpha no gradient.

    Returns:
        A new ``Router`` around the same head.
    """
    head = dense_layers(router, "document")
    alpha = 0.0 if init == "identity" else _RANDOM_ALPHA
    result = ResidualRouter(head, ResidualPredictor(predictor(head[-1].out_features, "random"), alpha))
    require_tasks(result)
    return result


def drop_residual_class(router: Router) -> Router:
    """The stock form of a :class:`ResidualRouter`; any other ``Router`` as it is."""
    return router.stock() if isinstance(router, ResidualRouter) else router
