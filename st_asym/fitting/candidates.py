"""What ``fit`` tries: ways to make heads, each with its settings complete."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from torch import Tensor, nn

from st_asym.data import Qrels
from st_asym.fitting.closed_form import pair_whitening, write_whitening
from st_asym.fitting.settings import Settings, Sides
from st_asym.fitting.vectors import Vectors
from st_asym.heads.projection import AsymmetricProjection, ProjectionOptions
from st_asym.losses import CorpusContrastiveLoss, IsotropyLoss
from st_asym.retrieval import nearest

# The strengths of within-pair whitening that are tried without training, and as starts of trained heads: few pairs say
# little of how queries and documents differ, and many collections gain by less of it.
_STRENGTHS, _START_STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0), (1.0, 10.0)
# The weight, as a negative, of a document that no training query asks for.
_UNLABELLED = 0.1
# Documents that a step compares its queries with, at the most, besides those that are relevant to them.
_DOCUMENTS_PER_STEP = 1_024
_SIDES = {"both": "both sides", "query": "query side", "document": "document side", "shared": "one shared head"}


@dataclass(frozen=True)
class Candidate:
    """One way to make heads.

    Attributes:
        name: What reports call it.
        settings: How, with nothing left open but the number of epochs.
        trains: Whether the heads are trained; otherwise they are in closed form.
    """

    name: str
    settings: Settings
    trains: bool = True

    @property
    def start(self) -> tuple[object, ...]:
        """A key of the start: equal for candidates that begin as the same linear map."""
        return self.settings.sides, self.settings.init, self.settings.whitening

    def heads(self, dimension: int, out_features: int, covariance: Tensor) -> Router:
        """The heads as they start, float32, from vectors of ``dimension`` to vectors of ``out_features``.

        ``covariance`` is that of the training pairs, see :func:`st_asym.fitting.closed_form.pair_covariance`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            options: ProjectionOptions = {**self.settings.projection(), "out_features": out_features}
            router = AsymmetricProjection(dimension, **options).float()
        if self.settings.init == "pairs":
            write_whitening(router, pair_whitening(covariance, self.settings.whitening or 1.0))
        return router

    def identity(self, dimension: int, out_features: int) -> Router:
        """The same heads as the identity, or its truncation: what the dial turns back to."""
        as_identity = replace(self, settings=replace(self.settings, init="identity"))
        return as_identity.heads(dimension, out_features, torch.zeros(dimension, dimension))

    def loss(self, model: nn.Module, vectors: Vectors, qrels: Qrels, withheld: Qrels) -> nn.Module:
        """The loss that trains them, see :class:`st_asym.CorpusContrastiveLoss`.

        ``qrels`` are judgments of the queries that are trained on, ``withheld`` documents by query that are neither
        relevant to it nor not, besides ``vectors.no_negatives``.
        """
        settings = self.settings
        found = ((key, {*vectors.no_negatives.get(key, ()), *withheld.get(key, ())}) for key in qrels)
        ignored = {key: documents for key, documents in found if documents}
        if settings.hard_negatives:
            qrels = with_hard_negatives(vectors, qrels, ignored, settings.hard_negatives)
        model_: Any = model
        loss: nn.Module = CorpusContrastiveLoss(
            model_,
            (vectors.document_ids, vectors.documents),
            qrels,
            ignored=ignored,
            temperature=settings.temperature_for(len(qrels)),
            precision="bf16",
            negatives="batch" if settings.contrastive == "in-batch" else settings.contrastive or "both",
            unlabelled_weight=1.0 if settings.unlabelled_weight is None else settings.unlabelled_weight,
            max_documents=_DOCUMENTS_PER_STEP,
            sampled_documents=_DOCUMENTS_PER_STEP,
            hard_negatives=0,
        )
        if settings.isotropy_weight:
            loss = IsotropyLoss(model_, loss, weight=settings.isotropy_weight, kind=settings.isotropy_kind)
        return loss


def candidates(settings: Settings, queries: int, *, closed: bool = False) -> list[Candidate]:
    """What to try with so many training queries, the cheapest first: the closed forms, then what is trained.

    What is None in ``settings`` is tried in several ways. ``closed`` says that there are many documents that nobody
    asks for, and that most queries will ask for others: full negatives of them are tried then, too.
    """
    settings = replace(
        settings,
        epochs=settings.epochs_for(queries),
        temperature=settings.temperature_for(queries),
        learning_rate=settings.learning_rate_for(queries),
    )
    sides: tuple[Sides, ...] = ("both", "query") if settings.sides is None else (settings.sides,)
    given = None if settings.whitening is None else (settings.whitening,)
    found, starts = [], [settings]
    if settings.init in (None, "pairs"):
        whitened = replace(settings, init="pairs")
        for side in sides:
            for strength in given or _STRENGTHS:
                own = replace(whitened, sides=side, whitening=strength, hidden_features=None, bias=False)
                found.append(Candidate(f"{_SIDES[side]}, whitening {strength:g}", own, trains=False))
        starts = [replace(whitened, whitening=strength) for strength in given or _START_STRENGTHS]
    negatives = settings.contrastive or ("in-batch" if settings.hard_negatives else "both")
    weight: float | None = None
    if negatives != "in-batch":
        weight = _UNLABELLED if settings.unlabelled_weight is None else settings.unlabelled_weight
    trained = [
        replace(start, sides=side, contrastive=negatives, unlabelled_weight=weight)
        for side in sides
        for start in starts
    ]
    if closed and negatives != "in-batch" and settings.unlabelled_weight is None:
        trained += [replace(starts[0], sides=side, contrastive="corpus", unlabelled_weight=1.0) for side in sides]
    return [*found, *(Candidate(name_of(one), one) for one in trained)]


def name_of(settings: Settings) -> str:
    """What reports call heads that are trained so."""
    start = f"whitening {settings.whitening:g}" if settings.init == "pairs" else settings.init
    ways = {
        "in-batch": "in-batch",
        "corpus": f"corpus, unlabelled {settings.unlabelled_weight}",
        "both": "in-batch and corpus",
    }
    return f"{_SIDES[settings.sides or 'both']}, {start} start, {ways[settings.contrastive or 'both']}"


def behind_vectors(router: Router, *, normalise: bool = True) -> SentenceTransformer:
    """A model that takes the encoder's vectors where it would take texts."""
    modules = [nn.Identity(), router, *([Normalize()] if normalise else [])]
    return SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")


def with_hard_negatives(vectors: Vectors, qrels: Qrels, ignored: dict[str, set[str]], count: int) -> Qrels:
    """The qrels with the documents most similar to each query as judged not relevant, by the untouched encoder."""
    queries = torch.nn.functional.normalize(vectors.of_queries(qrels))
    known = [
        (row, vectors.document_rows[key]) for row, q in enumerate(qrels) for key in (*qrels[q], *ignored.get(q, ()))
    ]
    similarities, positions = nearest(queries, vectors.unit_stretches(), count, excluded=torch.tensor(known).T)
    found: Qrels = {}
    for query_id, values, places in zip(qrels, similarities.tolist(), positions.tolist(), strict=True):
        mined = [vectors.document_ids[place] for place, value in zip(places, values, strict=True) if value > -2]
        found[query_id] = {**dict.fromkeys(mined, 0), **qrels[query_id]}
    return found
