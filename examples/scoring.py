"""Retrieval scores by query, and what separates systems from chance: nDCG@10, recall@100, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytrec_eval
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import own_documents
from st_asym.retrieval import Judgments, nearest
from st_asym.retrieval.significance import difference

Floats = NDArray[np.float64]


def ndcg_of_run(qrels: Qrels, run: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """nDCG@10 of each query with judgements, by the scores of what was found for it."""
    graded = {query: {document: max(int(grade), 0) for document, grade in own.items()} for query, own in qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(graded, {"ndcg_cut.10"}).evaluate(run)
    return {query: float(scores["ndcg_cut_10"]) for query, scores in found.items()}


@dataclass
class Scores:
    """Scores by test query, in the order of the qrels."""

    ndcg_at_10: Floats
    recall_at_100: Floats


def score(model: SentenceTransformer, data: RetrievalData) -> Scores:
    """nDCG@10 and recall@100 of each test query with a relevant document, over the whole corpus."""
    relevant = data.relevant("test")
    queries = model.encode_query([data.queries[query] for query in relevant], batch_size=1024)
    documents = model.encode_document(list(data.corpus.values()), batch_size=1024)
    judged = {query: data.qrels["test"][query] for query in relevant}
    places = {key: row for row, key in enumerate(data.corpus)}
    own = set(own_documents(data.corpus, judged))  # no results, where queries are documents
    rows, columns = [row for row, key in enumerate(judged) if key in own], [places[key] for key in judged if key in own]
    excluded = torch.tensor(rows).long(), torch.tensor(columns).long()
    _, found = nearest(torch.as_tensor(queries), torch.as_tensor(documents), 100, excluded=excluded)
    judgments = Judgments(judged, places)
    recall = judgments.relevant(found).sum(axis=1) / np.array([len(documents) for documents in relevant.values()])
    return Scores(judgments.ndcg(found), recall)


def summarise(scores: dict[str, list[Scores]]) -> list[dict[str, Any]]:
    """One row per system: means over seeds, and a bootstrap interval over queries of the difference to the first."""
    first, *_ = scores
    untouched = scores[first][0].ndcg_at_10
    rows = []
    for name, runs in scores.items():
        row: dict[str, Any] = {
            "system": name,
            "ndcg@10": float(np.mean([run.ndcg_at_10.mean() for run in runs])),
            "ndcg@10 by seed": [float(run.ndcg_at_10.mean()) for run in runs],
            "recall@100": float(np.mean([run.recall_at_100.mean() for run in runs])),
        }
        if name != first:
            gain = difference([untouched], [np.mean([run.ndcg_at_10 for run in runs], axis=0)])
            row |= {"difference": gain.points, "95 %": [gain.low, gain.high]}
        rows.append(row)
    return rows
