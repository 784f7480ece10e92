"""What BM25 alone finds for the held-out queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from st_asym.data import RetrievalData
from st_asym.data.collection import own_documents
from st_asym.data.holdout import HeldOut
from st_asym.fitting.gate import Choice, Rehearsal
from st_asym.retrieval import Judgments, Scores
from st_asym.retrieval.metrics import TOP
from st_asym.retrieval.search import MOST_DOCUMENTS, Bm25Index, bm25_is_installed

# How many queries are scored at a time: 4 MB each for a million documents.
_BLOCK = 32


def bm25_ndcg(data: RetrievalData, part: HeldOut, queries: Sequence[str], index: Bm25Index) -> Scores:
    """nDCG@10 of BM25, shape ``(n,)``, for held-out queries of a cut; their own documents are no results."""
    places = {key: place for place, key in enumerate(data.corpus)}
    own = set(own_documents(places, part.dev))
    found = []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        similarities = torch.from_numpy(index.similarities([data.queries[query] for query in block]))
        for row, query in enumerate(block):
            if query in own:
                similarities[row, places[query]] = -torch.inf
        values, tops = similarities.topk(min(TOP, len(places)), dim=1)
        found.append(np.where(values > 0, tops, len(places)))  # a document without a word of the query is not found
    judged = {query: part.dev[query] for query in queries}
    return Judgments(judged, {**places, "": len(places)}).ndcg(np.concatenate(found))


def bm25_sentence(
    data: RetrievalData, parts: Sequence[HeldOut], judged: Sequence[Rehearsal], choice: Choice | None
) -> str:
    """Say so where BM25 alone is better than the encoder on the held-out queries, or than the heads that are kept.

    Nothing where it is not, ``bm25s`` (extra ``eval``) is not installed, or there are more than a million documents.
    """
    if not judged or not bm25_is_installed() or len(data.corpus) > MOST_DOCUMENTS:
        return ""
    index = Bm25Index(list(data.corpus.values()))
    # Of the last cuts, there may have been no time to judge, and a choice may not have been rehearsed on all of them.
    both = [(part, one) for part, one in zip(parts, judged, strict=False) if choice is None or choice in one.scores]
    bm25 = float(np.concatenate([bm25_ndcg(data, part, one.queries, index) for part, one in both]).mean())
    untouched = float(np.concatenate([one.untouched for _, one in both]).mean())
    others = {"the untouched encoder": untouched}
    if choice is not None:
        others["the kept heads"] = float(np.concatenate([one.scores[choice] for _, one in both]).mean())
    if not any(bm25 > other for other in others.values()):
        return ""
    figures = ", ".join(f"{name} {other:.3f}" for name, other in others.items())
    return (
        f"BM25 alone has an nDCG@10 of {bm25:.3f} on the held-out queries, {figures}: search by both. st-asym evaluate "
        "shows what they find together."
    )
