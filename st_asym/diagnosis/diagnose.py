"""Did the heads learn anything, and what: one call over a model, queries and documents."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.cache.encoding import Precision
from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import whole_number
from st_asym.data.judgments import check_ids
from st_asym.data.sources import read_judged
from st_asym.diagnosis import geometry
from st_asym.diagnosis.findings import findings
from st_asym.diagnosis.geometry import BINS, Similarities, compare, entered
from st_asym.diagnosis.movement import HeadModules, Side
from st_asym.diagnosis.relevance import Positions, judge
from st_asym.diagnosis.result import Diagnosis, Histograms, Ranking, SideOf, Spread
from st_asym.losses.isotropy import unit
from st_asym.trainer.monitor import scaled_std
from st_asym.trust.provenance import Provenance, made_with_heads


def diagnose(
    model: SentenceTransformer,
    queries: Mapping[str, str] | Sequence[str],
    documents: Mapping[str, Any] | Sequence[str],
    qrels: Mapping[str, Mapping[str, int]] | None = None,
    *,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    precision: Precision | None = None,
    made: Provenance | None = None,
) -> Diagnosis:
    """Look at a model's vectors before and after its heads: did they learn anything, and what.

    The encoder's vectors come from the cache; what is missing is encoded. On five thousand documents the rest takes
    seconds. The model stays as it is.

    A query that is a document itself (as of ArguAna, by its id in ``qrels``) does not count that as a result. Where the
    model has a ``truncate_dim``, vectors are truncated before and after the heads.

    Args:
        model: A ``SentenceTransformer`` with heads, as of :func:`st_asym.fit` or :func:`st_asym.asymmetric_model`,
            loaded from disk or not, or a :class:`st_asym.CachedSentenceTransformer` of one.
        queries: Query id to text; or texts, whose ids are then ``q0``, ``q1`` and so on.
        documents: Document id to text, or to a dict of ``title`` and ``text``; or texts, with the ids ``d0``, ``d1``.
        qrels: Query id to document id to grade, above zero for relevant. With it the diagnosis says how near relevant
            documents are, and which queries gained and lost. Use queries that were not trained on: those that were, as
            far as ``made`` tells, are counted in the first finding, and the others given apart.
        cache: An :class:`st_asym.EmbeddingCache`, or its directory; None for that of a cached model, and for others
            the one in the cache folder of ``huggingface_hub``, as for :func:`st_asym.fit`.
        precision: As for :meth:`st_asym.EmbeddingCache.fill`; None for that of a cached model, and for others
            ``"fp32"``.
        made: What says which queries were trained on; None for the ``st_asym.json`` of the folder that the model was
            loaded from, where its encoder remembers that.

    Returns:
        The diagnosis: ``print`` it, ``save`` it, or look at ``findings``, ``query``, ``document``, ``ranking`` and
        ``judged``.

    Raises:
        ValueError: A model without heads, fewer than two queries or documents, qrels that name missing ones or judge
            nothing relevant, or weights that are not finite. The message names them.
        TypeError, CacheError: As for :meth:`st_asym.EmbeddingCache.fill`.

    Example:
        >>> model = SentenceTransformer("path/to/a/saved/model")  # doctest: +SKIP
        >>> data = load_data("scifact.zip")  # doctest: +SKIP
        >>> print(diagnose(model, data.queries, data.corpus, data.qrels["test"]))  # doctest: +SKIP
    """
    started = time.perf_counter()
    heads = HeadModules(model)
    data, judged = _read(queries, documents, qrels)
    lookup = _Lookup(model, cache, precision)
    texts: dict[Side, list[str]] = {"query": list(data.queries.values()), "document": list(data.corpus.values())}
    positions = Positions.of(data, judged)
    if qrels is not None and not positions.qrels:
        raise ValueError("The qrels judge no document relevant: pass qrels=None, or grades above zero.")

    sides, before, after = {}, {}, {}
    for side, own in texts.items():
        inputs = lookup(own, side)
        outputs = heads(inputs, side)
        head = heads.describe(side, inputs, outputs)
        inputs = inputs[:, : model.truncate_dim]  # as the encoder alone would give them
        before[side], after[side] = unit(inputs), unit(outputs)
        sides[side] = SideOf(
            texts=len(own),
            before=spread(inputs, before[side]),
            after=spread(outputs, after[side]),
            head=head,
        )
    found_before = compare(before["query"], before["document"], positions.pairs, positions.own)
    found_after = compare(after["query"], after["document"], positions.pairs, positions.own)
    replaced = entered(found_before, found_after, before["query"], before["document"])
    ranking = _ranking(found_before, found_after, replaced, len(data.corpus))
    by_relevance = judge(data, positions, found_before, found_after)
    made = made_with_heads(model) if made is None else made
    known = None if made is None else made.trained_queries
    again = set() if known is None else known.among(data.queries)
    return Diagnosis(
        query=sides["query"],
        document=sides["document"],
        ranking=ranking,
        judged=by_relevance,
        histograms=_histograms(found_before, found_after),
        findings=findings(sides, ranking, by_relevance, normalised=heads.normalised, trained=again),
        normalised=heads.normalised,
        seconds=time.perf_counter() - started,
    )


def spread(vectors: Tensor, directions: Tensor) -> Spread:
    """How vectors fill their space.

    Args:
        vectors: As they leave the encoder or the head, shape ``(n, d)``.
        directions: The same at length one.
    """
    d = directions.shape[1]
    lengths = vectors.double().norm(dim=1)
    variances = geometry.spectrum(directions)
    return Spread(
        dimension=d,
        mean_norm=geometry.mean_norm(directions),
        std=float(scaled_std(directions.double())),
        mean_cosine=geometry.mean_cosine(directions),
        isoscore=geometry.isoscore(variances),
        effective_rank=geometry.effective_rank(variances),
        uniformity=geometry.sampled_uniformity(directions),
        hubness=geometry.hubness(directions),
        length=float(lengths.mean()),
        length_std=float(lengths.std()),
        std_by_dimension=tuple((directions.double().std(dim=0) * d**0.5).tolist()),
        spectrum=tuple((variances / variances.sum().clamp(min=1e-300)).tolist()),
    )


def _read(
    queries: Mapping[str, str] | Sequence[str],
    documents: Mapping[str, Any] | Sequence[str],
    qrels: Mapping[str, Mapping[str, int]] | None,
) -> tuple[RetrievalData, Qrels]:
    data = read_judged(queries, documents, {} if qrels is None else qrels)
    if set(data.qrels) != {"train"}:
        raise ValueError("qrels must be those of one split: query id to document id to grade.")
    for name, texts in (("queries", data.queries), ("documents", data.corpus)):
        if len(texts) < 2:
            raise ValueError(f"diagnose needs at least two {name}, got {len(texts)}.")
    judged = {q: {d: whole_number(grade) for d, grade in own.items()} for q, own in data.qrels["train"].items()}
    check_ids(data.queries, data.corpus, judged, "qrels")
    return data, judged


class _Lookup:
    """Vectors before the heads, from a cache."""

    def __init__(
        self,
        model: SentenceTransformer,
        cache: EmbeddingCache | str | os.PathLike[str] | None,
        precision: Precision | None,
    ) -> None:
        self._model = model
        self._precision: Precision = precision or "fp32"
        if isinstance(model, CachedSentenceTransformer):
            cache = model.cache if cache is None else cache
            self._precision = precision or model.cache_precision
        self._cache = open_cache(cache)

    def __call__(self, texts: Sequence[str], side: Side) -> Tensor:
        prompt = self._model.prompts.get(side) or None
        vectors = self._cache.embed(self._model, texts, prompt=prompt, task=side, precision=self._precision)
        return torch.from_numpy(vectors)


def _ranking(before: Similarities, after: Similarities, replaced: np.ndarray[Any, Any], documents: int) -> Ranking:
    def hubs(found: Similarities) -> float:
        return geometry.skewness(found.top.flatten().bincount(minlength=documents).numpy())

    return Ranking(
        changed=float((replaced > 0).mean()),
        replaced=float(replaced.mean() / before.top.shape[1]),
        first_changed=float((before.top[:, 0] != after.top[:, 0]).double().mean()),
        hubness_before=hubs(before),
        hubness_after=hubs(after),
    )


def _histograms(before: Similarities, after: Similarities) -> Histograms:
    return Histograms(
        edges=tuple(np.linspace(-1.0, 1.0, BINS + 1).tolist()),
        positive_before=before.positive_counts,
        positive_after=after.positive_counts,
        negative_before=before.negative_counts,
        negative_after=after.negative_counts,
    )
