from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_asym import EmbeddingCache, asymmetric_model, export_side
from st_asym.data import RetrievalData

pytest.importorskip("qdrant_client")
pytest.importorskip("starlette")

import search_service
import serving
from qdrant_client import QdrantClient
from starlette.testclient import TestClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "red", "small", "text", "vector", "query"]


@pytest.fixture
def data() -> RetrievalData:
    corpus = {f"d{i}": f"{word} {WORDS[i - 1]}" for i, word in enumerate(WORDS)}
    queries = {f"q{i}": word for i, word in enumerate(WORDS)}
    return RetrievalData(queries, corpus, {"test": {f"q{i}": {f"d{i}": 1} for i in range(len(WORDS))}})


@pytest.fixture
def folder(tmp_path: Path, tiny_encoder: SentenceTransformer, data: RetrievalData) -> Path:
    """An index of the untouched encoder, and the exported queries' side of a model."""
    search_service.build_index(tmp_path / "index", tiny_encoder, data, EmbeddingCache(tmp_path / "vectors"))
    export_side(asymmetric_model(tiny_encoder, document=False), "query", tmp_path / "query", texts=WORDS)
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    index = QdrantClient(path=str(folder / "index"))
    with TestClient(search_service.search_app(index, search_service.query_encoder(folder / "query"))) as client:
        yield client
    index.close()


def test_the_service_finds_what_the_encoder_finds(
    client: TestClient, tiny_encoder: SentenceTransformer, data: RetrievalData
) -> None:
    answer = client.post("/search", json={"query": "red head", "top": 4})
    assert answer.status_code == 200
    hits = answer.json()["hits"]
    similarities = tiny_encoder.encode(list(data.corpus.values())) @ tiny_encoder.encode("red head")
    best = np.argsort(-similarities)[:4]
    assert [hit["id"] for hit in hits] == [f"d{i}" for i in best]
    np.testing.assert_allclose([hit["score"] for hit in hits], similarities[best], atol=1e-5)
    assert [hit["text"] for hit in hits] == [data.corpus[hit["id"]] for hit in hits]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "send {"),
        (b"[1]", "send {"),
        (b"{}", "send {"),
        (b'{"query": ""}', "query must be a text"),
        (b'{"query": 7}', "query must be a text"),
        (json.dumps({"query": "a" * 10_001}).encode(), "query must be a text"),
        (b'{"query": "red", "top": 0}', "top must be a whole number"),
        (b'{"query": "red", "top": true}', "top must be a whole number"),
    ],
)
def test_what_is_no_search_is_answered_with_400(client: TestClient, body: bytes, message: str) -> None:
    answer = client.post("/search", content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_the_score_is_that_of_what_the_index_answers(folder: Path, data: RetrievalData) -> None:
    index = QdrantClient(path=str(folder / "index"))
    vectors = {
        point.payload["id"]: point.vector for point in index.scroll("documents", limit=100, with_vectors=True)[0]
    }  # type: ignore[index]

    def perfect(texts: list[str]) -> Any:
        return np.array([vectors[f"d{WORDS.index(text)}"] for text in texts], dtype=np.float32)

    def opposite(texts: list[str]) -> Any:
        return -perfect(texts)

    assert search_service.ndcg(index, perfect, data) == pytest.approx(1.0)
    assert search_service.ndcg(index, opposite, data) < 0.5
    index.close()


@pytest.mark.slow
def test_the_load_test_counts_answers(folder: Path, data: RetrievalData) -> None:
    (folder / "query").rename(folder / "0")
    options = argparse.Namespace(rounds=2, requests=12, clients=3, seconds=60.0)
    with search_service.served(serving.every_model, folder, 1) as port:
        found = serving.summary(serving.measure(port, list(data.queries.values()), 1, options)[0])
    assert found["answered"] == 24
    assert 0 < found["p50 ms"] <= found["p99 ms"]
    assert found["requests per second"] > 0
    assert found["cpu ms per request"] > 0


@pytest.mark.slow
def test_the_example_on_pairs_of_its_own(real_encoder_path: str, tmp_path: Path) -> None:
    assert real_encoder_path
    lines = [{"query": f"error E{i}", "positive": f"part number {i * 7919 % 1000} failed"} for i in range(120)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, str(EXAMPLES / "serve.py"), "--data", "pairs.jsonl"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    untouched, fitted = re.findall(r"\| (?:untouched encoder|fitted) \| (.*) \|", process.stdout)
    assert untouched.split(" | ")[1] == fitted.split(" | ")[1]  # BM25 knows nothing of heads
    assert (tmp_path / "runs" / "serve" / "modules.json").is_file()


def test_the_index_of_the_example_gives_bm25_and_reciprocal_ranks() -> None:
    bm25s = pytest.importorskip("bm25s")
    import serve

    texts = ["red fox runs", "red dog", "blue fox fox", "green", "a"]
    bm25 = bm25s.BM25()
    bm25.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    index = serve.build_index(np.eye(5, dtype=np.float32), bm25)
    (words,) = bm25s.tokenize(["fox red fox unknown"], return_ids=False, show_progress=False)
    known = bm25.get_tokens_ids(words)
    exact = bm25.get_scores_from_ids(known)
    asked = np.array([0.2, 0.1, 0.3, 0.9, 0.0], dtype=np.float32)
    dense, sparse, both = serve.search(index, asked, known)
    assert [point.id for point in dense] == [3, 2, 0, 1, 4]
    assert [point.id for point in sparse] == [place for place in np.argsort(-exact) if exact[place] > 0]
    found = index.query_points("documents", query=sparse_vector(known), using="bm25").points
    assert {point.id: point.score for point in found} == pytest.approx({p.id: exact[p.id] for p in sparse})
    ranks = [{point.id: rank for rank, point in enumerate(one)} for one in (dense, sparse)]
    fused = {i: sum(1 / (2 + rank[i]) for rank in ranks if i in rank) for i in ranks[0]}
    assert [point.id for point in both] == sorted(fused, key=lambda i: -fused[i])
    assert [point.id for point in serve.search(index, asked, [])[2]] == [3, 2, 0, 1, 4]  # no known word


def sparse_vector(words: list[int]) -> Any:
    from qdrant_client.models import SparseVector

    known, counts = np.unique(words, return_counts=True)
    return SparseVector(indices=known.tolist(), values=counts.tolist())
