"""What relevant documents say: nearness of positives, nDCG@10 by query, and the queries that changed most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import own_documents
from st_asym.data.document import copies
from st_asym.diagnosis.geometry import Similarities, by_query
from st_asym.diagnosis.result import Example, Judged, Relevance
from st_asym.fitting.gate import Gain
from st_asym.retrieval import Judgments, Scores

_SHOWN = 10
_LONGEST = 300


@dataclass(frozen=True)
class Positions:
    """Where queries, documents and relevant pairs are in the arrays.

    Attributes:
        queries: Query ids by row.
        documents: Document ids by row.
        qrels: Grades, zero or more.
        pairs: Rows of a query and of a document that is relevant to it, by query.
        own: Rows of a query and of the documents that are not results: the one that it is itself, and those that
            have the text of a relevant one under another id.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    qrels: Qrels
    pairs: Sequence[tuple[int, int]]
    own: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, data: RetrievalData, qrels: Qrels) -> Positions:
        """Those of a collection; queries without a relevant document are not judged."""
        graded = {q: {d: max(grade, 0) for d, grade in judged.items()} for q, judged in qrels.items()}
        graded = {q: graded[q] for q in data.queries if any(graded.get(q, {}).values())}
        query_rows = {key: row for row, key in enumerate(data.queries)}
        document_rows = {key: row for row, key in enumerate(data.corpus)}
        pairs = [(query_rows[q], document_rows[d]) for q, judged in graded.items() for d, g in judged.items() if g > 0]
        own = [(query_rows[key], document_rows[key]) for key in own_documents(data.corpus, graded)]
        copied = copies(graded, data.corpus)
        own += [(query_rows[q], document_rows[d]) for q, documents in copied.items() for d in documents]
        return cls(list(data.queries), list(data.corpus), graded, pairs, list(dict.fromkeys(own)))


def judge(data: RetrievalData, positions: Positions, before: Similarities, after: Similarities) -> Judged | None:
    """Compare two searches by what is relevant; None where nothing is judged."""
    if not positions.qrels:
        return None
    scores_before, scores_after = ndcg(positions, before), ndcg(positions, after)
    gain = Gain.of(scores_before, scores_after)
    order = np.argsort(scores_before - scores_after, kind="stable")
    example = _Examples(data, positions, before, after)
    differences = scores_after - scores_before
    gains = [row for row in order[:_SHOWN] if differences[row] > 0]
    losses = [row for row in order[::-1][:_SHOWN] if differences[row] < 0]
    return Judged(
        before=relevance(positions, before),
        after=relevance(positions, after),
        query_ids=tuple(positions.qrels),
        ndcg_before=tuple(scores_before.tolist()),
        ndcg_after=tuple(scores_after.tolist()),
        difference=gain.mean,
        error=gain.error if gain.queries > 1 else None,
        gains=tuple(example(row, scores_before[row], scores_after[row]) for row in gains),
        losses=tuple(example(row, scores_before[row], scores_after[row]) for row in losses),
    )


def ndcg(positions: Positions, found: Similarities) -> Scores:
    """nDCG@10 of each judged query, as ``trec_eval`` computes it from grades, shape ``(n,)``."""
    rows = list(_rows(positions).values())
    places = {key: row for row, key in enumerate(positions.documents)}
    return Judgments(positions.qrels, places).ndcg(found.top[rows])


def relevance(positions: Positions, found: Similarities) -> Relevance:
    """Nearness of relevant documents, and how far the others are."""
    margins = [
        found.positives[places].mean() - found.best_negative[row]
        for row, places in by_query(positions.pairs).items()
        if math.isfinite(found.best_negative[row])
    ]
    positive = float(found.positives.mean())
    return Relevance(
        alignment=2.0 - 2.0 * positive,
        positive=positive,
        negative=found.mean_negative,
        margin=positive - found.mean_negative,
        hard_margin=float(np.mean(margins)) if margins else math.nan,
    )


class _Examples:
    """Makes an example of a judged query, by its place among them."""

    def __init__(self, data: RetrievalData, positions: Positions, before: Similarities, after: Similarities) -> None:
        self._data, self._positions, self._before, self._after = data, positions, before, after
        self._ids = list(positions.qrels)
        self._rows = _rows(positions)

    def __call__(self, place: int, before: float, after: float) -> Example:
        query_id = self._ids[place]
        row = self._rows[query_id]
        grades = self._positions.qrels[query_id]
        documents, corpus = self._positions.documents, self._data.corpus
        return Example(
            query_id=query_id,
            query=_short(self._data.queries[query_id]),
            before=float(before),
            after=float(after),
            relevant=_short(corpus[max(grades, key=lambda key: grades[key])]),
            first_before=_short(corpus[documents[int(self._before.top[row, 0])]]),
            first_after=_short(corpus[documents[int(self._after.top[row, 0])]]),
        )


def _rows(positions: Positions) -> Mapping[str, int]:
    return {key: row for row, key in enumerate(positions.queries) if key in positions.qrels}


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
