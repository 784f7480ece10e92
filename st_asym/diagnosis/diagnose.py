"""Did the heads learn anything, and what: one call over a model, queries and documents."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache
from st_asym.cache.embedding_cache import open_cache
from st_asym.cache.encoding import Precision
from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import whole_number
from st_asym.data.files import plain, write_text
from st_asym.data.prepare import check_ids
from st_asym.data.sources import read_judged
from st_asym.diagnosis.findings import (
    BINS,
    Finding,
    Histograms,
    Judged,
    Positions,
    Ranking,
    SideOf,
    compare,
    findings,
    judge,
    ranking,
)
from st_asym.diagnosis.geometry import HeadModules, Spread
from st_asym.heads.anatomy import Side, gives_unit_vectors, side_prompt
from st_asym.losses.isotropy import unit
from st_asym.trust.provenance import Provenance, installed, made_with_heads


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`st_asym.diagnose` found: ``print`` it, or look at its parts.

    Attributes:
        query: The query side.
        document: The document side.
        ranking: What queries find.
        judged: What the relevant documents say; None without qrels.
        histograms: Of cosines.
        findings: What is out of range, or worth knowing.
        normalised: Whether the model ends in ``Normalize``.
        seconds: How long it took.
        versions: Of the packages.

    Example:
        >>> diagnosis.save("diagnosis.json")  # doctest: +SKIP
        >>> [finding.kind for finding in diagnosis.findings if finding.trouble]  # doctest: +SKIP
        []
    """

    query: SideOf
    document: SideOf
    ranking: Ranking
    judged: Judged | None
    histograms: Histograms
    findings: tuple[Finding, ...]
    normalised: bool
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=lambda: installed("scipy"))

    @property
    def sides(self) -> dict[Side, SideOf]:
        """Both sides by name."""
        return {"query": self.query, "document": self.document}

    @property
    def first_line(self) -> str:
        """What came of it, in one sentence."""
        trouble = [finding for finding in self.findings if finding.trouble]
        if not trouble:
            return "Nothing is out of range."
        kinds = dict.fromkeys(f.kind if f.side is None else f"{f.kind} ({f.side})" for f in trouble)
        return f"Out of range: {', '.join(kinds)}."

    def __str__(self) -> str:
        """Findings, tables and examples, for the terminal."""
        from st_asym.report.tables import as_text

        return as_text(self)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON knows it: what is not a finite number is None."""
        found: dict[str, Any] = plain({"first_line": self.first_line, **asdict(self)}, digits=6)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, in one step."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        write_text(path, text + "\n", errors="replace")


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
    if isinstance(model, CachedSentenceTransformer):
        cache = model.cache if cache is None else cache
        precision = precision or model.cache_precision
    cache = open_cache(cache)
    positions = Positions.of(data, judged)
    if qrels is not None and not positions.qrels:
        raise ValueError("The qrels judge no document relevant: pass qrels=None, or grades above zero.")

    texts: dict[Side, list[str]] = {"query": list(data.queries.values()), "document": list(data.corpus.values())}
    sides, before, after = {}, {}, {}
    for side, own in texts.items():
        prompt = side_prompt(model, side)
        inputs = torch.from_numpy(cache.embed(model, own, prompt=prompt, task=side, precision=precision or "fp32"))
        outputs = heads(inputs, side)
        head = heads.describe(side, inputs, outputs)
        inputs = inputs[:, : model.truncate_dim]  # as the encoder alone would give them
        before[side], after[side] = unit(inputs), unit(outputs)
        sides[side] = SideOf(len(own), Spread.of(inputs, before[side]), Spread.of(outputs, after[side]), head)
    first, now = (
        compare(vectors["query"], vectors["document"], positions.positives, positions.left_out)
        for vectors in (before, after)
    )
    changes = ranking(first, now, before["query"], before["document"])
    by_relevance = judge(data, positions, first, now)
    made = made_with_heads(model) if made is None else made
    known = None if made is None else made.trained_queries
    again = None if known is None or known.query_digests is None else known.among(data.queries)
    return Diagnosis(
        query=sides["query"],
        document=sides["document"],
        ranking=changes,
        judged=by_relevance,
        histograms=Histograms(
            edges=tuple(np.linspace(-1.0, 1.0, BINS + 1).tolist()),
            positive_before=first.positive_counts,
            positive_after=now.positive_counts,
            negative_before=first.negative_counts,
            negative_after=now.negative_counts,
        ),
        findings=findings(
            sides,
            changes,
            by_relevance,
            normalised=heads.normalised,
            similarity=_similarity(model),
            trained=again,
        ),
        normalised=heads.normalised,
        seconds=time.perf_counter() - started,
    )


def _similarity(model: SentenceTransformer) -> str:
    """What a model ranks by: of unit vectors dot product and Euclidean distance are the cosine."""
    name = str(model.similarity_fn_name)
    return "cosine" if name in ("dot", "euclidean") and gives_unit_vectors(model) else name


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
