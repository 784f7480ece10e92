from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from journal import Journal
from nine_collections import Bench
from random_labels import shuffled
from sentence_transformers import SentenceTransformer
from sklearn.metrics import ndcg_score

from st_asym import EmbeddingCache
from st_asym.data import RetrievalData

WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "red", "small", "text", "vector", "query"]


def entry(seed: int, score: float) -> dict[str, object]:
    return {"block": "collections", "row": "fit", "collection": "c", "seed": seed, "all": score}


def test_a_journal_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "journal.jsonl"
    Journal(path).add(entry(0, 0.5))
    with path.open("a") as file:
        file.write('{"block": "sys')
    journal = Journal(path)
    assert ("collections", "fit", "c", 0) in journal
    assert ("collections", "fit", "c", 1) not in journal
    journal.add(entry(1, 1.0))
    assert [found["seed"] for found in Journal(path).of("collections", "fit")] == [0, 1]


@pytest.fixture
def bench(tiny_encoder: SentenceTransformer, tmp_path: Path) -> Bench:
    """Twelve documents; half of the test queries ask for one that training has seen."""
    corpus = {f"d{i}": f"{word} {WORDS[i - 1]}" for i, word in enumerate(WORDS)}
    train = {f"q{i}": {f"d{i}": 1} for i in range(4)}
    test = {f"t{i}": {f"d{i}": 1} for i in (0, 1, 8, 9)}
    queries = {key: f"{key} {WORDS[int(key[1:])]}" for key in (*train, *test)}
    data = RetrievalData(queries, corpus, {"train": train, "test": test})
    return Bench("words", data, tiny_encoder.requires_grad_(False), EmbeddingCache(tmp_path / "vectors"))


def test_a_row_is_measured_on_all_seen_and_unseen_documents_once(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    journal = Journal(tmp_path / "journal.jsonl")
    rows = {row: (seeds, make) for row, seeds, make in bench.rows([0]) if row != "NUDGE-N"}
    for _ in range(2):
        for row, (seeds, make) in rows.items():
            bench.measure("collections", row, make, seeds, journal)
    assert [key[1] for key in journal.entries] == list(rows)
    (untouched,), (words,) = (journal.of("collections", row) for row in ("untouched", "BM25"))
    assert (untouched["all, to untouched"], untouched["all, p"]) == (0.0, 1.0)
    assert [words[f"{half}, queries"] for half in ("all", "seen", "unseen")] == [4, 2, 2]
    assert words["all"] == pytest.approx((words["seen"] + words["unseen"]) / 2, abs=1e-4)
    assert words["all, to untouched"] == pytest.approx(words["all"] - untouched["all"], abs=1e-4)


def test_ndcg_is_that_of_the_field(bench: Bench) -> None:
    random = np.random.default_rng(0)
    corpus = {f"d{i}": f"text {i}" for i in range(40)}
    qrels = {f"q{i}": {f"d{d}": int(random.integers(-1, 3)) for d in range(40)} for i in range(8)}
    bench.data = RetrievalData({q: q for q in qrels}, corpus, {"train": {}, "test": qrels})
    similarities = random.random((8, 40))
    relevance = [[max(grade, 0) for grade in judged.values()] for judged in qrels.values()]
    found = bench.ndcg(similarities, "test")
    assert found.mean() == pytest.approx(ndcg_score(relevance, similarities, k=10))


def test_labels_at_random_are_those_of_other_queries(bench: Bench) -> None:
    dealt = shuffled(bench.data, 4, seed=1).qrels
    train = bench.data.qrels["train"]
    assert dealt["test"] == bench.data.qrels["test"]
    assert sorted(dealt["train"]) == sorted(train)
    assert sorted(map(str, dealt["train"].values())) == sorted(map(str, train.values()))
    assert not any(dealt["train"][query] == judged for query, judged in train.items())
    some = shuffled(bench.data, 4, seed=1, dev=0.25).qrels
    assert {split: len(some[split]) for split in ("train", "dev")} == {"train": 3, "dev": 1}
    assert some["train"] | some["dev"] == dealt["train"]
