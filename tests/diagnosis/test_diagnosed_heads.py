from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from torch import Tensor

from st_asym import asymmetric_model
from st_asym.diagnosis.geometry import HeadModules, explained, mean_derivative


def vectors(n: int = 200, d: int = 16) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))


def shaken(model: SentenceTransformer, by: float = 0.05) -> SentenceTransformer:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "nonlinear"),
        ({"activation": "gelu"}, "nonlinear"),
        ({"hidden_features": None}, "linear"),
        ({"hidden_features": (40, 32)}, "nonlinear"),
        ({"out_features": 5}, "nonlinear"),
    ],
)
def test_fresh_heads_are_the_identity(tiny_encoder: SentenceTransformer, options: dict[str, object], kind: str) -> None:
    heads = HeadModules(asymmetric_model(tiny_encoder, **options))  # type: ignore[arg-type]
    x = vectors()
    head = heads.describe("query", x, heads(x, "query"))
    assert head.kind == kind
    assert head.change < 1e-6
    assert head.largest_turn < 1e-6
    assert head.map_distance == pytest.approx(0.0, abs=1e-6)
    assert head.singular_values == pytest.approx([1.0] * int(options.get("out_features", 16)), abs=1e-6)  # type: ignore[call-overload]


@pytest.mark.parametrize("options", [{}, {"activation": "silu"}, {"hidden_features": None}, {"out_features": 5}])
def test_the_linear_map_is_the_mean_of_the_derivatives(
    tiny_encoder: SentenceTransformer, options: dict[str, object]
) -> None:
    heads = HeadModules(shaken(asymmetric_model(tiny_encoder, **options)))  # type: ignore[arg-type]
    x = vectors(n=20)

    def run(row: Tensor) -> Tensor:
        for layer in heads.on_side("query"):
            row = layer({"sentence_embedding": row})["sentence_embedding"]
        return row

    expected = torch.stack([torch.autograd.functional.jacobian(run, row).T for row in x]).mean(dim=0)
    found = mean_derivative(heads.on_side("query"), x)
    assert found is not None
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)


def test_a_linear_head_is_its_matrix_and_explains_itself(tiny_encoder: SentenceTransformer) -> None:
    heads = HeadModules(shaken(asymmetric_model(tiny_encoder, hidden_features=None)))
    x = vectors()
    head = heads.describe("document", x, heads(x, "document"))
    layer = heads.on_side("document")[0]
    assert isinstance(layer, Dense)
    weight = layer.linear.weight.detach().double()
    assert head.singular_values == pytest.approx(torch.linalg.svdvals(weight).tolist())
    assert head.map_distance == pytest.approx(float((weight - torch.eye(16)).norm() / 4), rel=1e-6)
    assert head.linear_share == pytest.approx(1.0, abs=1e-6)


def test_of_a_nonlinear_head_a_linear_map_explains_only_a_part(tiny_encoder: SentenceTransformer) -> None:
    heads = HeadModules(shaken(asymmetric_model(tiny_encoder), by=0.3))
    x = vectors()
    y = heads(x, "query")
    matrix = mean_derivative(heads.on_side("query"), x)
    assert matrix is not None
    share = explained(x, y, matrix)
    assert share is not None
    assert share < 0.99


def test_a_head_that_only_scales_turns_nothing(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder, hidden_features=None)
    heads = HeadModules(model)
    layer = heads.on_side("query")[0]
    assert isinstance(layer, Dense)
    layer.linear.weight.data *= 3
    x = vectors()
    head = heads.describe("query", x, heads(x, "query"))
    assert head.change == pytest.approx(2.0, rel=1e-5)
    assert head.turn < 1e-6
    assert head.singular_values == pytest.approx([3.0] * 16)


def test_sides_without_a_head_and_shared_heads(tiny_encoder: SentenceTransformer) -> None:
    x = vectors()
    one = HeadModules(asymmetric_model(tiny_encoder, document=False))
    assert one.describe("document", x, one(x, "document")).kind == "none"
    assert one.describe("document", x, one(x, "document")).parameters == 0
    assert torch.equal(one(x, "document"), x)
    shared = HeadModules(asymmetric_model(tiny_encoder, shared=True))
    assert shared.describe("document", x, shared(x, "document")).shared
    assert not one.describe("query", x, one(x, "query")).shared


def test_training_mode_and_weights_are_left_as_they_were(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heads, x = HeadModules(model), vectors()
    heads.describe("query", x, heads(x, "query"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    router = next(module for module in model if isinstance(module, Router))
    assert router.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_heads_is_refused(tiny_encoder: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match=r"no Router among its modules \[Transformer, Pooling, Normalize\]"):
        HeadModules(tiny_encoder)


def test_weights_that_are_not_finite_are_named(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    heads = HeadModules(model)
    layer = heads.on_side("document")[1]
    assert isinstance(layer, Dense)
    layer.linear.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"document head makes 200 of 200 .* its weight 1.linear.weight is not finite"):
        heads(vectors(), "document")
