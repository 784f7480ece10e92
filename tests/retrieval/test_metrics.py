from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given
from hypothesis import strategies as st

from st_asym.retrieval import Judgments


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
def test_ndcg_is_that_of_trec_eval(seed: int, documents: int, queries: int) -> None:
    random = np.random.default_rng(seed)
    ids = [f"d{i}" for i in range(documents)]
    qrels = {}
    for query in range(queries):
        judged = random.permutation(documents)[: random.integers(1, documents + 1)]
        qrels[f"q{query}"] = {f"d{d}": int(random.integers(-1, 4)) for d in judged} | {"elsewhere": 1}
    order = np.array([random.permutation(documents)[:10] for _ in range(queries)])
    found = Judgments(qrels, {key: place for place, key in enumerate(ids)}).ndcg(order)
    run = {q: {ids[d]: float(-rank) for rank, d in enumerate(row)} for q, row in zip(qrels, order, strict=True)}
    graded = {q: {d: max(grade, 0) for d, grade in judged.items()} for q, judged in qrels.items()}
    expected = pytrec_eval.RelevanceEvaluator(graded, {"ndcg_cut.10"}).evaluate(run)
    assert found == pytest.approx([expected[q]["ndcg_cut_10"] for q in qrels])


def test_grades_of_what_was_found() -> None:
    judged = Judgments({"q": {"a": 2, "b": 0}, "r": {}}, {"a": 0, "b": 1, "c": 2})
    assert judged.grades([[2, 0], [0, 1]]).tolist() == [[0, 2], [0, 0]]
    assert judged.relevant([[0], [0]]).tolist() == [[True], [False]]
    assert judged.relevant(torch.zeros(2, 3, dtype=torch.int64)[:, :1]).tolist() == [[True], [False]]
    assert judged.ndcg([[0, 1], [0, 1]]).tolist() == [1.0, 0.0]
    assert len(judged) == 2
    assert Judgments({}, {}).ndcg(np.zeros((0, 10), dtype=int)).shape == (0,)
