from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.base.modules import Dense, Router

from st_asym import AsymmetricProjection


def project(router: Router, vectors: torch.Tensor, task: str) -> torch.Tensor:
    return router({"sentence_embedding": vectors.clone()}, task=task)["sentence_embedding"]


def test_the_heads_of_the_original_experiment_have_its_parameter_counts() -> None:
    router = AsymmetricProjection(768)
    for side in ("query", "document"):
        assert sum(p.numel() for p in router.sub_modules[side].parameters()) == 2_361_600
    assert sum(p.numel() for p in router.parameters()) == 4_723_200


def test_the_result_is_a_stock_router_of_stock_dense_modules() -> None:
    router = AsymmetricProjection(8)
    assert type(router) is Router
    assert {type(module) for side in router.sub_modules.values() for module in side} == {Dense}


@given(data=st.data())
def test_any_shape_that_can_starts_as_the_identity_or_truncation(data: st.DataObject) -> None:
    in_features = data.draw(st.integers(1, 12), "in_features")
    out_features = data.draw(st.integers(1, in_features), "out_features")
    widths = st.integers(2 * in_features, 3 * in_features)
    hidden = data.draw(st.one_of(st.none(), widths, st.lists(widths, min_size=1, max_size=3).map(tuple)), "hidden")
    activation = data.draw(st.sampled_from(["relu", "gelu", "silu"]), "activation")
    scale = data.draw(st.sampled_from([1e-3, 1.0, 1e3]), "scale")
    vectors = torch.randn(5, in_features) * scale
    router = AsymmetricProjection(in_features, out_features, hidden_features=hidden, activation=activation)
    for task in ("query", "document"):
        result = project(router, vectors, task)
        if activation == "relu" or hidden is None:
            assert torch.equal(result, vectors[:, :out_features])
        else:
            torch.testing.assert_close(result, vectors[:, :out_features], rtol=1e-5, atol=1e-6 * scale)


def test_the_identity_is_exact_in_bfloat16_too() -> None:
    vectors = torch.randn(64, 32).bfloat16()
    router = AsymmetricProjection(32).bfloat16()
    assert torch.equal(project(router, vectors, "query"), vectors)


def test_the_extra_units_of_a_wide_head_learn_though_they_start_without_effect() -> None:
    router = AsymmetricProjection(4, hidden_features=20)
    project(router, torch.randn(16, 4), "query").pow(2).sum().backward()
    last = router.sub_modules["query"][1].linear
    assert torch.count_nonzero(last.weight[:, 8:]) == 0
    assert torch.count_nonzero(last.weight.grad[:, 8:]) > 0


def test_sizes_may_be_numpy_integers() -> None:
    router = AsymmetricProjection(np.int64(4), np.int64(3), hidden_features=np.int64(9))
    assert router.get_embedding_dimension() == 3


def test_extra_units_keep_torchs_default_input_weights() -> None:
    torch.manual_seed(0)
    first = AsymmetricProjection(4, hidden_features=20).sub_modules["query"][0].linear
    torch.manual_seed(0)
    default = torch.nn.Linear(4, 20)
    assert torch.equal(first.weight[8:], default.weight[8:])
    assert torch.equal(first.bias[8:], default.bias[8:])
    assert torch.count_nonzero(first.bias[:8]) == 0


def test_the_two_heads_are_independent_unless_shared() -> None:
    own = AsymmetricProjection(4)
    assert own.sub_modules["query"][0] is not own.sub_modules["document"][0]
    shared = AsymmetricProjection(4, shared=True)
    assert shared.sub_modules["query"][0] is shared.sub_modules["document"][0]


def test_a_shared_head_is_saved_once_and_loads_as_one(tmp_path: Path) -> None:
    AsymmetricProjection(4, shared=True).save(str(tmp_path))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # two layers, one head
    loaded = Router.load(str(tmp_path))
    assert loaded.sub_modules["query"][0] is loaded.sub_modules["document"][0]


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_side_without_a_head_is_left_as_it_is(side: str) -> None:
    router = AsymmetricProjection(4, init="random", **{side: False})
    vectors = torch.randn(3, 4)
    other = "document" if side == "query" else "query"
    assert torch.equal(project(router, vectors, side), vectors)
    assert not torch.equal(project(router, vectors, other), vectors)


def test_the_random_start_is_torchs_default() -> None:
    torch.manual_seed(0)
    router = AsymmetricProjection(4, init="random")
    torch.manual_seed(0)
    assert torch.equal(router.sub_modules["query"][0].linear.weight, torch.nn.Linear(4, 8).weight)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"hidden_features": 7}, "at least 2 x in_features = 8"),
        ({"hidden_features": (8, 7)}, "too narrow"),
        ({"activation": "tanh"}, "not for tanh"),
        ({"out_features": 5}, "out_features=5 is more than in_features=4"),
    ],
)
def test_what_cannot_start_as_the_identity_says_why_and_what_would_work(options: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        AsymmetricProjection(4, **options)
    call = str(error.value).rpartition(": ")[2].removesuffix(".")
    assert call.startswith("AsymmetricProjection(4, ")
    assert isinstance(eval(call), Router)  # noqa: S307 - the call that the message recommends


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": False, "document": False}, "nothing to train"),
        ({"query": False, "shared": True}, "one head for both sides"),
        ({"document": False, "out_features": 2}, "leaves that side at 4 dimensions while the other side gets 2"),
        ({"hidden_features": 0}, "hidden_features must be a whole number of at least 1, got 0"),
        ({"hidden_features": "twice"}, "hidden_features must be a whole number of at least 1, got 'twice'"),
        ({"hidden_features": 16.0}, "hidden_features must be a whole number of at least 1, got 16.0"),
        ({"hidden_features": (8, -1)}, "hidden_features must be a whole number of at least 1, got -1"),
        ({"out_features": 2.5}, "out_features must be a whole number of at least 1, got 2.5"),
        ({"activation": "softmax"}, "Unknown activation 'softmax'"),
        ({"init": "zero"}, "init must be 'identity' or 'random'"),
    ],
)
def test_impossible_calls_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsymmetricProjection(4, **options)


def test_a_call_without_a_task_is_refused_in_training_and_takes_the_document_route_otherwise() -> None:
    router = AsymmetricProjection(4, document=False)
    vectors = torch.randn(3, 4)
    with pytest.raises(ValueError, match="router_mapping"):
        router.train()({"sentence_embedding": vectors})
    assert torch.equal(router.eval()({"sentence_embedding": vectors})["sentence_embedding"], vectors)


@pytest.mark.parametrize("hidden_features", [None, "2x"])
def test_heads_without_bias_start_as_the_identity_too(hidden_features: Any) -> None:
    router = AsymmetricProjection(8, hidden_features=hidden_features, bias=False)
    assert not any(name.endswith("bias") for name, _ in router.named_parameters())
    vectors = torch.randn(4, 8)
    assert torch.equal(router({"sentence_embedding": vectors}, task="query")["sentence_embedding"], vectors)
