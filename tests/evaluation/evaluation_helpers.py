"""A collection of twelve documents, models with heads that do something, and scores by the textbook."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_asym import asymmetric_model
from st_asym.data import RetrievalData

WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "query", "red", "small", "text", "vector"]


def collection() -> RetrievalData:
    """Twelve documents of two words, six test queries, two of which have two relevant documents, two for training."""
    corpus = {f"d{i}": f"{a} {b}" for i, (a, b) in enumerate(pairwise([*WORDS, WORDS[0]]))}
    queries = {f"q{i}": f"{WORDS[i * 2]} {WORDS[(i * 5 + 3) % 12]}" for i in range(6)} | {"t0": "big red", "t1": "text"}
    test = {f"q{i}": {f"d{i * 2}": 1} for i in range(6)}
    test["q1"]["d5"] = 2
    test["q4"]["d0"] = 1
    return RetrievalData(queries, corpus, {"test": test, "train": {"t0": {"d0": 1}, "t1": {"d2": 1, "d3": 0}}})


def with_heads(encoder: SentenceTransformer, seed: int) -> SentenceTransformer:
    """Different heads for queries and documents."""
    torch.manual_seed(seed)
    return asymmetric_model(encoder, init="random")


def ndcg_at_10(model: SentenceTransformer, data: RetrievalData, split: str = "test") -> list[float]:
    """By the formula, in the order of the query ids."""
    documents = list(data.corpus)
    vectors = model.encode_document(list(data.corpus.values()))
    scores = []
    for query_id, judged in sorted(data.qrels[split].items()):
        query = model.encode_query(data.queries[query_id])
        similar = vectors @ query / np.linalg.norm(vectors, axis=1)  # as by cosine
        ranked = [documents[row] for row in np.argsort(-similar, kind="stable")[:10]]
        gain = sum(judged.get(key, 0) / math.log2(rank + 2) for rank, key in enumerate(ranked))
        best = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(judged.values(), reverse=True)))
        scores.append(gain / best)
    return scores


def count_encoded(model: SentenceTransformer) -> Callable[[], int]:
    """How many texts went through the encoder since."""
    counts: list[int] = []
    model[0].register_forward_hook(lambda _module, inputs, _output: counts.append(len(inputs[0]["input_ids"])))
    return lambda: sum(counts)
