"""nDCG@10 against scikit-learn's, over all documents at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting_helpers import DIMENSION, QUICK, bench_of, encoder_of, rotated
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from st_asym.data import Qrels, RetrievalData
from st_asym.fitting import judging
from st_asym.fitting.judging import Judge
from st_asym.ndcg import Ndcg


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(2, 30), st.integers(0, 999), st.sampled_from([4, 65_536]))
def test_scores_are_those_of_scikit_learn(
    tmp_path_factory: pytest.TempPathFactory, draw: Any, documents: int, seed: int, chunk: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = {f"q{i}": random.standard_normal(DIMENSION) for i in range(3)}
    vectors |= {f"d{i}": random.standard_normal(DIMENSION) for i in range(documents)}
    grades = st.dictionaries(st.integers(0, documents - 1), st.integers(-1, 3), min_size=1)
    qrels: Qrels = {
        f"q{i}": {f"d{d}": grade for d, grade in own.items()}
        for i in range(3)
        if max((own := draw.draw(grades)).values()) > 0
    }
    assume(qrels)
    queries, corpus = ({key: key for key in vectors if key[0] == letter} for letter in "qd")
    encoder = encoder_of(vectors)
    bench = bench_of(encoder, RetrievalData(queries, corpus, {"train": qrels}), tmp_path_factory.mktemp("cache"))
    stage = bench.stage(QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "_CHUNK", chunk)
        judge = Judge(stage.model, bench.searched(stage, qrels), queries, qrels)
        found = judge()
    assert judge.queries == tuple(qrels)
    for query_id, score in zip(judge.queries, found, strict=True):
        similar = [
            np.dot(vectors[query_id], vectors[d]) / np.linalg.norm(vectors[query_id]) / np.linalg.norm(vectors[d])
            for d in corpus
        ]
        # The discounts of trec_eval are of the grades themselves, and those below zero count as zero.
        relevance = [[max(qrels[query_id].get(d, 0), 0) for d in corpus]]
        assert score == pytest.approx(ndcg_score(relevance, [similar], k=10), abs=1e-5)


def test_negative_grades_count_as_not_relevant() -> None:
    ndcg = Ndcg({"only": {"a": -2}, "other": {"a": -2, "b": 1}})
    found = ndcg(["a", "b"], [[0, 1], [0, 1]], [[0.9, 0.8], [0.9, 0.8]])
    assert found == pytest.approx([0, 1 / np.log2(3)])


def test_accuracy_and_spread_are_those_of_the_vectors(tmp_path: Path) -> None:
    encoder, data = rotated(30, noise=2.0)
    stage = (bench := bench_of(encoder, data, tmp_path)).stage(QUICK)
    judge = Judge(stage.model, bench.searched(stage, {}), data.queries, data.qrels["train"])
    judge()
    queries = encoder.encode_query(list(data.queries), normalize_embeddings=True)
    documents = encoder.encode_document(list(data.corpus), normalize_embeddings=True)
    nearest = (queries @ documents.T).argmax(axis=1)
    assert 0 < judge.figures["accuracy"] == np.mean(nearest == np.arange(30)) < 1
    for side, vectors in (("query", queries), ("document", documents)):
        expected = vectors.std(axis=0, ddof=1).mean() * DIMENSION**0.5
        assert judge.figures[f"{side}_std"] == pytest.approx(expected, abs=1e-5)


def test_the_heads_are_judged_as_they_are_and_stay_in_their_mode(tmp_path: Path) -> None:
    encoder, data = rotated(30)
    bench = bench_of(encoder, data, tmp_path)
    stage = bench.stage(QUICK)
    judge = Judge(stage.model, bench.searched(stage, {}), data.queries, data.qrels["train"])
    before = judge()
    with torch.no_grad():
        for parameter in stage.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    stage.model.train()
    assert judge().mean() < before.mean() - 0.2
    assert stage.model.training
    with torch.no_grad():
        parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite: they have diverged"):
        judge()
