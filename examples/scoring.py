"""Retrieval scores by query, and what separates systems from chance: nDCG@10, recall@100, bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytrec_eval
from scipy.stats import bootstrap
from sentence_transformers import SentenceTransformer
from sklearn.metrics import ndcg_score

from st_asym.data import RetrievalData


def mean_ndcg(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> float:
    """Mean nDCG@10 of the queries with judgements, by the scores of what was found for each."""
    graded = {query: {document: max(int(grade), 0) for document, grade in own.items()} for query, own in qrels.items()}
    scores = pytrec_eval.RelevanceEvaluator(graded, {"ndcg_cut.10"}).evaluate(run)
    return float(np.mean([score["ndcg_cut_10"] for score in scores.values()]))


@dataclass
class Scores:
    """Scores by test query, in the order of the qrels."""

    ndcg_at_10: np.ndarray[Any, np.dtype[np.float64]]
    recall_at_100: np.ndarray[Any, np.dtype[np.float64]]


def score(model: SentenceTransformer, data: RetrievalData) -> Scores:
    """nDCG@10 and recall@100 of each test query over the whole corpus."""
    test = {q: documents for q, documents in data.qrels["test"].items() if any(r > 0 for r in documents.values())}
    position = {document_id: index for index, document_id in enumerate(data.corpus)}
    queries = model.encode_query([data.queries[query_id] for query_id in test], batch_size=1024)
    documents = model.encode_document(list(data.corpus.values()), batch_size=1024)
    ndcg, recall = [], []
    for query, judged in zip(queries, test.values(), strict=True):
        relevance = np.zeros(len(documents))
        for document_id, grade in judged.items():
            relevance[position[document_id]] = max(grade, 0)
        similarity = documents @ query
        ndcg.append(ndcg_score([relevance], [similarity], k=10))
        best = np.argpartition(-similarity, min(100, len(similarity) - 1))[:100]
        recall.append((relevance[best] > 0).sum() / (relevance > 0).sum())
    return Scores(np.array(ndcg), np.array(recall))


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
            difference = np.mean([run.ndcg_at_10 for run in runs], axis=0) - untouched
            interval = bootstrap((difference,), np.mean, method="percentile", rng=0).confidence_interval
            row |= {"difference": float(difference.mean()), "95 %": [float(interval.low), float(interval.high)]}
        rows.append(row)
    return rows


def print_differences(rows: list[dict[str, Any]]) -> None:
    """The rows of :func:`summarise` as a table."""
    print("| system | nDCG@10 | recall@100 | difference in nDCG@10, 95 % interval |\n|---|---|---|---|")
    for row in rows:
        change = f"{row['difference']:+.3f} [{row['95 %'][0]:+.3f}, {row['95 %'][1]:+.3f}]" if "95 %" in row else ""
        print(f"| {row['system']} | {row['ndcg@10']:.3f} | {row['recall@100']:.3f} | {change} |")
