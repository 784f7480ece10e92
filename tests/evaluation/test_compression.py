from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from evaluation_helpers import collection, ndcg_at_10
from sentence_transformers import SentenceTransformer

from st_asym import evaluate
from st_asym.evaluation.compressed import CompressedIndex, Form, check_forms


@pytest.fixture
def vectors() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.normal(size=(5, 24)).astype(np.float32), random.normal(size=(60, 24)).astype(np.float32)


def search(form: Form, queries: Any, documents: Any, k: int = 10) -> Any:
    index = CompressedIndex(form)
    index.add_documents(documents, [str(row) for row in range(len(documents))])
    values, positions = index.search(queries, k, similarity_fn=lambda *_: None)
    assert (np.diff(values, axis=1) <= 1e-6).all()
    return np.array(positions)


def nearest(queries: Any, documents: Any, k: int = 10) -> Any:
    unit = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    return np.argsort(-(queries @ unit.T), axis=1)[:, :k]


def test_truncated_vectors_are_compared_by_cosine(vectors: tuple[Any, Any]) -> None:
    queries, documents = vectors
    assert (search(7, queries, documents) == nearest(queries[:, :7], documents[:, :7])).all()


def test_one_byte_per_dimension_keeps_almost_every_neighbour(vectors: tuple[Any, Any]) -> None:
    queries, documents = vectors
    found, exact = search("int8", queries, documents), nearest(queries, documents)
    assert np.mean([len({*one} & {*other}) for one, other in zip(found, exact, strict=True)]) >= 9.5


def test_bits_are_rescored_with_the_full_query(vectors: tuple[Any, Any]) -> None:
    queries, documents = vectors
    signs = np.where(documents / np.linalg.norm(documents, axis=1, keepdims=True) > 0, 1.0, -1.0)
    assert (search("binary", queries, documents) == np.argsort(-(queries @ signs.T), axis=1)[:, :10]).all()


def test_only_documents_with_nearly_the_same_bits_are_rescored(vectors: tuple[Any, Any]) -> None:
    random = np.random.default_rng(1)
    queries, documents = vectors[0][:1], random.normal(size=(900, 24)).astype(np.float32)
    differing = ((documents > 0) != (queries > 0)).sum(axis=1)
    allowed = np.sort(differing)[399]
    assert (differing[search("binary", queries, documents, k=100)] <= allowed).all()


def test_compressed_columns_stand_beside_the_full_one(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    comparison = evaluate({"plain": tiny_encoder}, {"tiny": data}, results=None, compressed=("int8", "binary", 8))
    found = comparison["plain"].compressed
    assert list(found) == ["int8", "binary", "8"]
    tiny_encoder.truncate_dim = 8
    assert found["8"]["tiny"] == pytest.approx(np.mean(ndcg_at_10(tiny_encoder, data)), abs=1e-5)
    assert found["8"]["average"] == found["8"]["tiny"]
    again = evaluate({"plain": tiny_encoder}, {"tiny": data}, results=None, compressed=np.int64(4), baselines=())
    assert list(again["plain"].compressed) == ["4"]


@pytest.mark.parametrize("form", ["int4", 0, -3, 16, 17, True, 2.5])
def test_impossible_forms_are_refused(form: Any) -> None:
    with pytest.raises(ValueError, match=r"compressed must hold|cannot be truncated"):
        check_forms((form,), 16)
