"""What the benchmarks of whole systems share: collections, nDCG@10 of each test query, and a test of differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
from numpy.typing import NDArray
from scipy.stats import permutation_test
from sentence_transformers import SentenceTransformer

from st_asym import CachedSentenceTransformer, EmbeddingCache
from st_asym.data import Qrels, RetrievalData, load_data
from st_asym.data.holdout import seen_unseen

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Precision = Any  # "fp32" or "bf16"


@dataclass(frozen=True)
class Collection:
    """A collection with a test split, and how its texts are encoded."""

    name: str
    data: RetrievalData
    precision: Precision = "fp32"

    @cached_property
    def test(self) -> Qrels:
        """The test queries that have a relevant document."""
        relevant = self.data.relevant("test")
        return {q: {d: max(g, 0) for d, g in self.data.qrels["test"][q].items()} for q in relevant}

    @cached_property
    def unseen(self) -> NDArray[np.bool_]:
        """Which test queries have no relevant document among the training positives."""
        _, unseen = seen_unseen(self.data.qrels["train"], self.test, corpus=self.data.corpus)
        return np.isin(list(self.test), unseen)

    def vectors(self, model: SentenceTransformer, cache: EmbeddingCache) -> tuple[Vectors, Vectors]:
        """Unit vectors of the test queries and of all documents, from cached vectors of the encoder."""
        cached = CachedSentenceTransformer(model.requires_grad_(False), cache, precision=self.precision)
        queries = cached.encode_query(
            [self.data.queries[q] for q in self.test], batch_size=1024, show_progress_bar=False
        )
        documents = cached.encode_document(list(self.data.corpus.values()), batch_size=1024, show_progress_bar=False)
        return unit(queries), unit(documents)

    def ndcg(self, similarities: NDArray[Any]) -> Floats:
        """nDCG@10 of each test query, of similarities of shape ``(queries, documents)``."""
        ids = np.array(list(self.data.corpus))
        best = np.argpartition(-similarities, min(10, similarities.shape[1] - 1), axis=1)[:, :10]
        run = {
            query_id: {str(ids[place]): float(row[place]) for place in places}
            for query_id, row, places in zip(self.test, similarities, best, strict=True)
        }
        found = pytrec_eval.RelevanceEvaluator(self.test, {"ndcg_cut.10"}).evaluate(run)
        return np.array([found[query_id]["ndcg_cut_10"] for query_id in self.test])


def unit(vectors: Any) -> Vectors:
    """The vectors in float32, of length 1."""
    array = np.asarray(vectors, dtype=np.float32)
    lengths: Vectors = np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return array / lengths


def beir(path: Path) -> Collection:
    """A BEIR folder or zip with train and test splits."""
    return Collection(path.stem, load_data(path))


def cut(data: RetrievalData, documents: int, seed: int = 0) -> RetrievalData:
    """The same collection with so many documents, drawn at random, and the queries that ask for these alone."""
    ids = list(data.corpus)
    drawn = np.random.default_rng(seed).permutation(len(ids))[:documents]
    corpus = {ids[place]: data.corpus[ids[place]] for place in sorted(drawn)}

    def inside(judged: dict[str, int]) -> bool:
        return all(document_id in corpus for document_id in judged)

    qrels = {split: {q: judged for q, judged in found.items() if inside(judged)} for split, found in data.qrels.items()}
    return replace(data, corpus=corpus, qrels=qrels)


def with_dev_in_train(data: RetrievalData) -> RetrievalData:
    """The same collection without a dev split, its queries among those of train."""
    qrels = {"train": {**data.qrels["train"], **data.qrels.get("dev", {})}, "test": data.qrels["test"]}
    return replace(data, qrels=qrels)


def p_value(differences: Floats) -> float:
    """Of a paired randomisation test, two-sided: how often random signs give a mean at least as far from 0."""
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    mean: Callable[..., Any] = np.mean
    result = permutation_test((differences,), mean, permutation_type="samples", n_resamples=9999, rng=0)
    return float(result.pvalue)


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds, 0 for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
