from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fitted_rows import summary
from journal import Journal
from retrieval import Collection, cut, p_value
from scipy.stats import wilcoxon
from sklearn.metrics import ndcg_score

from st_asym.data import RetrievalData


def entry(seed: int, scores: list[float]) -> dict[str, object]:
    keys = {"block": "systems", "row": "fit", "collection": "c", "seed": seed}
    return {**keys, "seconds": 1.0, "scores": {"c": scores}, "untouched": {"c": [0.0, 0.5]}, "unseen": {"c": [0, 1]}}


def test_a_journal_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "journal.jsonl"
    Journal(path).add(entry(0, [1.0, 0.5]))
    with path.open("a") as file:
        file.write('{"block": "sys')
    journal = Journal(path)
    assert ("systems", "fit", "c", 0) in journal
    assert ("systems", "fit", "c", 1) not in journal
    journal.add(entry(1, [1.0, 1.0]))
    assert [found["seed"] for found in Journal(path).of("systems", "fit")] == [0, 1]


def test_a_row_is_summarised_over_seeds_and_by_kind_of_document() -> None:
    entries = [entry(0, [1.0, 0.5]), entry(1, [0.5, 1.0])]
    whole = summary(entries, "c")
    assert (whole["mean"], whole["difference"], whole["by seed"]) == (0.75, 0.5, [0.75, 0.75])
    assert summary(entries, "c", documents="unseen")["difference"] == 0.25
    assert summary(entries, "c", documents="seen")["difference"] == 0.75
    assert summary(entries, "another") == {}


def test_ndcg_is_that_of_the_field() -> None:
    random = np.random.default_rng(0)
    corpus = {f"d{i}": f"text {i}" for i in range(40)}
    qrels = {f"q{i}": {f"d{d}": int(random.integers(-1, 3)) for d in range(40)} for i in range(8)}
    data = RetrievalData({q: q for q in qrels}, corpus, {"train": {}, "test": qrels})
    similarities = random.random((8, 40))
    relevance = [[max(grade, 0) for grade in judged.values()] for judged in qrels.values()]
    found = Collection("c", data).ndcg(similarities)
    assert found.mean() == pytest.approx(ndcg_score(relevance, similarities, k=10))


def test_a_cut_keeps_only_queries_whose_documents_it_has() -> None:
    data = RetrievalData(
        {f"q{i}": "" for i in range(20)},
        {f"d{i}": "" for i in range(20)},
        {"train": {f"q{i}": {f"d{i}": 1, f"d{(i + 1) % 20}": 0} for i in range(20)}},
    )
    found = cut(data, 12)
    assert len(found.corpus) == 12
    assert found.qrels["train"]
    assert all(d in found.corpus for judged in found.qrels["train"].values() for d in judged)


def test_p_values_are_those_of_a_paired_test() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, 60)
    assert p_value(differences) == pytest.approx(wilcoxon(differences).pvalue, abs=0.03)
    assert p_value(np.zeros(5)) == 1.0
