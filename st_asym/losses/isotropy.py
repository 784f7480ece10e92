"""How evenly a batch of vectors uses its space: three differentiable measures, and the loss that adds one.

Each measure takes a tensor of shape ``(n, d)``, of any floating dtype and any lengths, looks at directions only,
computes in float32 (float64 stays float64) and returns a scalar that is lowest where vectors are even. Rows of zero
length count as vectors that are orthogonal to all others and receive no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import uses_gradient_cache
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    EmbedDistillLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import all_gather_with_grad, get_world_size
from torch import Tensor, nn

from st_asym.losses.distributed import of_the_first, random_source

IsotropyKind = Literal["covariance", "sigreg", "uniformity"]

_SMALLEST_VALUE = 1e-12
_CITATIONS = {
    "covariance": """
@misc{zhang2017learningspreadoutlocalfeature,
    title={Learning Spread-out Local Feature Descriptors},
    author={Xu Zhang and Felix X. Yu and Sanjiv Kumar and Shih-Fu Chang},
    year={2017},
    eprint={1708.06320},
    archivePrefix={arXiv},
    primaryClass={cs.CV}
}
""",
    "sigreg": """
@misc{balestriero2025lejepa,
    title={LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics},
    author={Randall Balestriero and Yann LeCun},
    year={2025},
    eprint={2511.08544},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
""",
    "uniformity": """
@misc{wang2020understanding,
    title={Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere},
    author={Tongzhou Wang and Phillip Isola},
    year={2020},
    eprint={2005.10242},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
""",
}


def covariance(vectors: Tensor) -> Tensor:
    """Distance of the second-moment matrix from the identity, without the sampling bias of small batches.

    The mean over pairs i != j of cos(i, j)^2, less 1/d, plus the square of the mean of cos(i, j). With
    S = (d/n) sum_i x_i x_i^T over unit vectors x_i, the first part estimates ||S - I||_F^2 / d^2; it is the second
    moment term of Zhang et al. 2017, "Learning Spread-out Local Feature Descriptors" (https://arxiv.org/abs/1708.06320),
    without its clamp at zero, which would bias it. The library's ``GlobalOrthogonalRegularizationLoss`` has both parts,
    with the clamp, from the n x n product. Here it is the n x n or the d x d product, whichever is smaller.

    Uniform directions give 0 on average: exactly in the first part, to within 2 / (d n (n - 1)) in the second. Vectors
    that all coincide give 2 - 1/d. A single vector gives 0.

    Example:
        >>> round(covariance(torch.ones(8, 4)).item(), 4)
        1.75
    """
    x = unit(vectors)
    n, d = x.shape
    if n < 2:
        return x.sum() * 0.0
    squared_lengths = x.pow(2).sum(dim=1)
    products = x @ x.T if n <= d else x.T @ x
    pairs = n * (n - 1)
    mean_cosine = (x.sum(dim=0).pow(2).sum() - squared_lengths.sum()) / pairs
    mean_squared_cosine = (products.pow(2).sum() - squared_lengths.pow(2).sum()) / pairs
    return mean_squared_cosine - 1.0 / d + mean_cosine.pow(2)


def sigreg(vectors: Tensor, directions: Tensor, *, knots: int = 17) -> Tensor:
    """Distance of the vectors' one-dimensional projections from the standard normal distribution.

    The Epps-Pulley statistic per sample, averaged over directions a: the integral over t of
    |mean_i exp(i t a.z_i) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), where z_i are the unit vectors times sqrt(d). This is the
    SIGReg of LeJEPA (Balestriero and LeCun 2025, https://arxiv.org/abs/2511.08544) divided by the batch size, so that
    its weight means the same at every batch size. The integral is a trapezoid sum over ``knots`` points in [0, 5],
    doubled, as the integrand is even.

    It is never zero: n independent normal vectors give (sqrt(2 pi) - sqrt(2 pi / 3)) / n = 1.06 / n on average, and
    uniform directions the same but for terms of order 1/d. Vectors that all coincide give 1.06 on average over
    directions, whatever n.

    Args:
        vectors: Shape ``(n, d)``.
        directions: Shape ``(d, slices)``, of any lengths: the directions to project on. Draw them anew for every batch
            from a normal distribution.
        knots: Points of the integral, at least 2.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> directions = torch.randn(64, 256)
        >>> even = sigreg(torch.randn(512, 64), directions)
        >>> even.item() < 0.01 < sigreg(torch.ones(512, 64), directions).item()
        True
    """
    x = unit(vectors)
    projections = (x * math.sqrt(x.shape[1])) @ unit(directions.to(x).T).T
    t = torch.linspace(0.0, 5.0, knots, dtype=x.dtype, device=x.device)
    normal = torch.exp(-0.5 * t.pow(2))
    weights = torch.full_like(t, 2.0 * 5.0 / (knots - 1))
    weights[[0, -1]] /= 2.0
    angles = projections.unsqueeze(-1) * t
    distances = (angles.cos().mean(dim=0) - normal).pow(2) + angles.sin().mean(dim=0).pow(2)
    return (distances @ (weights * normal)).mean()


def uniformity(vectors: Tensor) -> Tensor:
    """Logarithm of the mean Gaussian potential of pairs, log mean_{i != j} exp(-2 ||x_i - x_j||^2).

    From Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere" (https://arxiv.org/abs/2005.10242), with their t = 2. Vectors that all coincide, and a single vector,
    give 0; uniform directions about -4 + 8/d.

    Example:
        >>> round(uniformity(torch.eye(8)).item(), 4)
        -4.0
    """
    x = unit(vectors)
    n = len(x)
    if n < 2:
        return x.sum() * 0.0
    squared_lengths = x.pow(2).sum(dim=1)
    squared_distances = squared_lengths[:, None] + squared_lengths[None, :] - 2.0 * (x @ x.T)
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    potentials = (-2.0 * squared_distances).masked_fill(itself, -torch.inf)
    return potentials.flatten().logsumexp(dim=0) - math.log(n * (n - 1))


def scaled_std(vectors: Tensor) -> Tensor:
    """Standard deviation over rows, averaged over dimensions, times the square root of their number; a scalar."""
    n, d = vectors.shape
    return vectors.std(dim=0, correction=min(1, n - 1)).mean() * math.sqrt(d)


def unit(vectors: Tensor) -> Tensor:
    """Rows of ``vectors`` at length one, in float32 or better; rows of no length stay zero and get no gradient."""
    x = vectors if vectors.dtype == torch.float64 else vectors.float()
    # Scaled by a constant first, so that squares neither overflow nor vanish.
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    has_length = ~(largest <= _SMALLEST_VALUE)  # so that NaN stays NaN
    scaled = torch.where(has_length, x / torch.where(has_length, largest, 1.0), 0.0)
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(has_length, lengths, 1.0)


class IsotropyLoss(nn.Module):
    """Add an isotropy term to another loss, embedding each column once for both.

    Every column is measured by itself, on unit-length vectors in float32, and the term is the mean over columns. Where
    the wrapped loss has documents beyond those of the batch (a ``sample_documents`` method, as
    :class:`st_asym.CorpusContrastiveLoss` has), a sample of them, of as many rows, is one more column. Under
    several processes it is computed over the vectors of all of them, and equals what one process would compute for the
    whole batch, gradients included; every process must then hold equally many rows. Losses that weight another, such as
    ``MatryoshkaLoss``, take no dict of parts, and cannot be combined with this one.

    Args:
        model: The model to train.
        loss: The loss to add to, any with a ``compute_loss_from_embeddings`` method. ``MultipleNegativesRankingLoss``
            if None.
        weight: Factor of the isotropy term.
        kind: ``"covariance"``, ``"sigreg"`` or ``"uniformity"``: the function of that name in this module,
            which gives its formula, floor and source.
        slices: Random directions that ``sigreg`` projects on, drawn anew for every batch from torch's generator; in
            evaluation they are always the same.
        knots: Points of the integral of ``sigreg``.

    Raises:
        TypeError: ``loss`` cannot be computed from embeddings.
        ValueError: Unknown ``kind``, a negative or non-finite ``weight``, no slices, or fewer than two knots. In
            training: teacher's vectors that do not fit the columns.

    Inputs:
        +---------------------------+----------------------------+
        | Inputs                    | Labels                     |
        +===========================+============================+
        | those of the wrapped loss | those of the wrapped loss  |
        +---------------------------+----------------------------+

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> from st_asym import IsotropyLoss, asymmetric_model
        >>> model = asymmetric_model(SentenceTransformer(modules=[BoW(["frozen", "encoder", "head"])]))
        >>> loss = IsotropyLoss(model, weight=0.3)
        >>> queries = {**model.preprocess(["head", "encoder"]), "task": "query"}
        >>> documents = {**model.preprocess(["frozen head", "frozen encoder"]), "task": "document"}
        >>> sorted(loss([queries, documents]))
        ['contrastive', 'isotropy']
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: nn.Module | None = None,
        *,
        weight: float = 1.0,
        kind: IsotropyKind = "covariance",
        slices: int = 256,
        knots: int = 17,
    ) -> None:
        super().__init__()
        loss = MultipleNegativesRankingLoss(model) if loss is None else loss
        if not callable(getattr(loss, "compute_loss_from_embeddings", None)):
            if isinstance(loss, MatryoshkaLoss | AdaptiveLayerLoss):
                hint = " This one runs the model itself, and takes no loss of named parts: the two cannot be combined."
            elif uses_gradient_cache(loss):
                hint = " Instead of a Cached... loss take a large batch: it fits with a frozen encoder."
            else:
                hint = ""
            raise TypeError(
                f"IsotropyLoss embeds each column once and hands the vectors on, but {type(loss).__name__} has no "
                "compute_loss_from_embeddings(embeddings, labels). MultipleNegativesRankingLoss, CoSENTLoss and "
                f"MarginMSELoss have.{hint}"
            )
        if kind not in _CITATIONS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, _CITATIONS))}, got {kind!r}.")
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"weight must be a finite number of at least 0, got {weight}.")
        if slices < 1 or knots < 2:
            raise ValueError(f"sigreg needs at least 1 slice and 2 knots, got slices={slices} and knots={knots}.")
        self.model = model
        self.loss: Any = loss
        self.weight = weight
        self.kind = kind
        self.slices = slices
        self.knots = knots

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Embed each column once and return the parts of the loss, which the trainer sums and logs one by one.

        These are the wrapped loss under its own names, or as ``contrastive`` (under its class name if it is not
        contrastive) where it has none; and ``isotropy``, weighted.
        """
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """:meth:`forward` from vectors: of each column a tensor of shape ``(batch, dimension)``."""
        targets = _teachers(labels, len(embeddings)) if isinstance(self.loss, EmbedDistillLoss) else labels
        value = self.loss.compute_loss_from_embeddings(embeddings, targets)
        name = "contrastive" if isinstance(self.loss, MultipleNegativesRankingLoss) else type(self.loss).__name__
        parts = dict(value) if isinstance(value, dict) else {name: value}
        term = self.weight * self._isotropy(embeddings)
        parts["isotropy"] = parts["isotropy"] + term if "isotropy" in parts else term
        return parts

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as the trainer writes them into the model card."""
        config: dict[str, Any] = {"loss": type(self.loss).__name__, "weight": self.weight, "kind": self.kind}
        if self.kind == "sigreg":
            config |= {"slices": self.slices, "knots": self.knots}
        return config

    @property
    def citation(self) -> str:
        """BibTeX of the paper that the isotropy term is from."""
        return _CITATIONS[self.kind]

    def _isotropy(self, embeddings: list[Tensor]) -> Tensor:
        sample_documents = getattr(self.loss, "sample_documents", None)
        if sample_documents is not None:
            embeddings = [*embeddings, sample_documents(len(embeddings[0]))]
        if get_world_size() > 1:
            embeddings = [all_gather_with_grad(column) for column in embeddings]
        with torch.autocast(embeddings[0].device.type, enabled=False):
            if self.kind == "sigreg":
                drawn = torch.randn(embeddings[0].shape[1], self.slices, generator=random_source())
                directions = of_the_first(drawn).to(embeddings[0].device)
                terms = [sigreg(column, directions, knots=self.knots) for column in embeddings]
            else:
                measure = covariance if self.kind == "covariance" else uniformity
                terms = [measure(column) for column in embeddings]
        return torch.stack(terms).mean()


def _teachers(labels: Tensor | None, columns: int) -> list[Tensor]:
    """The teacher's vectors of each column, as ``EmbedDistillLoss`` makes them of labels in its ``forward``."""
    shape = () if labels is None else tuple(labels.shape)
    if labels is None or len(shape) not in (2, 3) or (len(shape) == 3 and shape[1] != columns):
        raise ValueError(
            "MSELoss and EmbedDistillLoss need the teacher's vectors as labels, of shape (batch, dimension) for all "
            f"columns or (batch, {columns}, dimension) for each of the {columns}; the labels have the shape {shape}."
        )
    return [labels.detach()] * columns if len(shape) == 2 else list(labels.detach().unbind(1))
