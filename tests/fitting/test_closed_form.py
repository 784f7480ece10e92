"""Within-pair whitening: exact, and sound where data are few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from st_asym.fitting import whitened_heads
from st_asym.fitting.closed_form import pair_covariance, pair_whitening


def random_pairs(count: int, dimension: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    documents = torch.randn(count, dimension, generator=generator)
    scales = torch.linspace(0.1, 2.0, dimension)
    return documents + scales * torch.randn(count, dimension, generator=generator), documents


def covariance_of(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(queries))
    return pair_covariance(queries, documents, rows, rows, torch.ones(len(rows)))


@given(st.integers(0, 1000), st.integers(1, 30), st.sampled_from([0.1, 1.0, 3.0]))
def test_it_is_the_inverse_root_in_float64(seed: int, count: int, strength: float) -> None:
    """Also for fewer pairs than dimensions."""
    covariance = covariance_of(*random_pairs(count, seed=seed))
    whitening = pair_whitening(covariance, strength)
    shrunk = covariance + strength * covariance.trace() / 6 * torch.eye(6, dtype=torch.float64)
    product = whitening @ shrunk @ whitening
    torch.testing.assert_close(product, torch.eye(6, dtype=torch.float64) * product[0, 0], atol=1e-10, rtol=0)
    torch.testing.assert_close(whitening, whitening.T)
    assert whitening.trace() == pytest.approx(6)


def test_the_covariance_weighs_queries_alike_and_reads_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = random_pairs(20)
    rows, columns = torch.arange(20) // 2, torch.arange(20)
    weights = torch.rand(20) + 0.1
    found = pair_covariance(queries, documents, rows, columns, weights)
    unit = torch.nn.functional.normalize
    difference = unit(queries[rows].double()) - unit(documents[columns].double())
    expected = sum(w * torch.outer(d, d) for w, d in zip(weights, difference, strict=True)) / weights.sum().double()
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr("st_asym.fitting.closed_form._PORTION", 3)
    torch.testing.assert_close(pair_covariance(queries, documents.numpy(), rows, columns, weights), expected)


def test_the_identity_is_the_limit_and_queries_equal_to_documents_are_left_alone() -> None:
    queries, documents = random_pairs(40)
    far = pair_whitening(covariance_of(queries, documents), 1e9)
    torch.testing.assert_close(far, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)
    same = pair_whitening(covariance_of(documents, documents), 0.1)
    torch.testing.assert_close(same, torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("shape", [{}, {"hidden_features": "2x"}, {"hidden_features": (16, 14), "activation": "gelu"}])
@pytest.mark.parametrize("sides", [{}, {"document": False}, {"query": False}, {"shared": True}])
def test_heads_of_any_shape_start_as_the_matrix(shape: dict[str, Any], sides: dict[str, Any]) -> None:
    queries, documents = random_pairs(30)
    heads = whitened_heads(queries, documents, strength=0.5, **shape, **sides)
    whitening = pair_whitening(covariance_of(queries, documents), 0.5)
    one_side = "document" in sides or "query" in sides
    matrix = (whitening @ whitening if one_side else whitening).float()
    for side in ("query", "document"):
        found = heads({"sentence_embedding": queries}, task=side)["sentence_embedding"]
        expected = queries if sides.get(side) is False else queries @ matrix
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model = SentenceTransformer(modules=[torch.nn.Identity(), heads, Normalize()], device="cpu")
    assert all(type(module).__module__.startswith("sentence_transformers.") for module in list(model.children())[1:])


def test_a_smaller_output_is_the_first_dimensions() -> None:
    queries, documents = random_pairs(30)
    whole = whitened_heads(queries, documents)({"sentence_embedding": queries}, task="query")["sentence_embedding"]
    heads = whitened_heads(queries, documents, out_features=4)
    torch.testing.assert_close(heads({"sentence_embedding": queries}, task="query")["sentence_embedding"], whole[:, :4])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((2, 4)), np.ones((3, 4))), {}, r"the shapes \(2, 4\) and \(3, 4\)"),
        ((np.ones((0, 4)), np.ones((0, 4))), {}, "one row for each pair"),
        ((np.full((2, 4), np.nan), np.ones((2, 4))), {}, "not finite"),
        ((np.eye(4), np.ones((4, 4))), {"strength": 0}, "strength must be above 0"),
        ((np.eye(4), np.ones((4, 4))), {"init": "random"}, "leave init out"),
    ],
)
def test_what_cannot_be_whitened_is_named(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whitened_heads(*arguments, **options)
