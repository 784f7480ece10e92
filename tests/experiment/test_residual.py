from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from experiment.predictors import predictor
from experiment.residual import ResidualPredictor, ResidualRouter, add_residual
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.base.modules import Dense, Router

from st_asym import AsymmetricProjection


def residual_router(alpha: float = 0.3) -> ResidualRouter:
    router = add_residual(AsymmetricProjection(6, init="random", shared=True), "random")
    with torch.no_grad():
        router.sub_modules["query"][-1].alpha.fill_(alpha)
    return router


def vectors_of(router: Router, vectors: torch.Tensor, task: str) -> torch.Tensor:
    return router({"sentence_embedding": vectors.clone()}, task=task)["sentence_embedding"]


def test_the_correction_is_alpha_times_the_tanh_of_the_predictor() -> None:
    layers = predictor(4, "random")
    queries = torch.randn(3, 4)
    features = ResidualPredictor(layers, 0.7)({"sentence_embedding": queries})
    first, second = (layer.linear for layer in layers)
    expected = 0.7 * torch.tanh(second(torch.relu(first(queries))))
    torch.testing.assert_close(features["correction"], expected)
    torch.testing.assert_close(features["sentence_embedding"], queries + expected)
    assert first.weight.shape == (8, 4)


@given(
    features=st.integers(1, 9),
    alpha=st.sampled_from([0.0, 0.1, -2.5]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_stock_form_is_the_same_function_and_gives_the_module_back(
    features: int, alpha: float, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    residual = ResidualPredictor(predictor(features, "random"), alpha)
    layers = residual.stock()
    assert {type(layer) for layer in layers} == {Dense}
    queries = torch.randn(5, features) * scale
    stock = {"sentence_embedding": queries.clone()}
    for layer in layers:
        stock = layer(stock)
    expected = residual({"sentence_embedding": queries.clone()})["sentence_embedding"]
    torch.testing.assert_close(stock["sentence_embedding"], expected, rtol=1e-6, atol=1e-6)
    if alpha == 0.0:
        assert torch.equal(stock["sentence_embedding"], queries)
    again = ResidualPredictor.from_stock(layers).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in residual.state_dict().items())


def test_documents_get_the_head_alone() -> None:
    router = residual_router()
    vectors = torch.randn(3, 6)
    head = Router.for_query_document([], list(router.sub_modules["document"]))
    assert torch.equal(vectors_of(router, vectors, "document"), vectors_of(head, vectors, "document"))
    assert not torch.allclose(vectors_of(router, vectors, "query"), vectors_of(router, vectors, "document"))


def test_what_it_saves_loads_as_a_stock_router_and_as_itself(tmp_path: Path) -> None:
    router = residual_router()
    router.save(str(tmp_path))
    loaded = Router.load(str(tmp_path))
    assert type(loaded) is Router
    assert {type(module) for route in loaded.sub_modules.values() for module in route} == {Dense}
    vectors = torch.randn(3, 6)
    for task in ("query", "document"):
        torch.testing.assert_close(vectors_of(loaded, vectors, task), vectors_of(router, vectors, task))
    again = ResidualRouter.load(str(tmp_path))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in router.state_dict().items())


def test_by_itself_the_residual_refuses_to_be_saved(tmp_path: Path) -> None:
    router = residual_router()
    plain = Router.for_query_document(list(router.sub_modules["query"]), list(router.sub_modules["document"]))
    with pytest.raises(NotImplementedError, match="save that, or the Dense modules"):
        plain.save(str(tmp_path))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda router: pickle.loads(pickle.dumps(router))])  # noqa: S301
def test_copies_are_whole_and_independent(clone: object) -> None:
    router = residual_router()
    vectors = torch.randn(3, 6)
    expected = vectors_of(router, vectors, "query")
    other = clone(router)  # type: ignore[operator]
    assert isinstance(other, ResidualRouter)
    assert torch.equal(vectors_of(other, vectors, "query"), expected)
    with torch.no_grad():
        other.sub_modules["query"][-1].alpha.fill_(5.0)
    assert torch.equal(vectors_of(router, vectors, "query"), expected)
