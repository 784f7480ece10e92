from __future__ import annotations

from typing import Any

import pytest
import torch
from experiment.losses import PredictiveLoss, ResidualLoss
from experiment.predictors import target_and_head
from experiment.systems import get_system
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from st_asym import IsotropyLoss, asymmetric_model

QUERIES = ["frozen encoder", "red head", "small text", "query vector"]
DOCUMENTS = ["the encoder learns", "big red head", "text", "answers query"]


@pytest.fixture
def iso_pred(tiny_encoder: SentenceTransformer) -> SentenceTransformer:
    return get_system("iso_pred").build(tiny_encoder)


@pytest.fixture
def respred(tiny_encoder: SentenceTransformer) -> SentenceTransformer:
    return get_system("respred").build(tiny_encoder)


def features(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Any]]:
    tasks = ["query", *["document"] * (len(columns) - 1)]
    return [{**model.preprocess(texts), "task": task} for texts, task in zip(columns, tasks, strict=True)]


def unit_distance(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    normalize = torch.nn.functional.normalize
    return (normalize(predictions) - normalize(targets)).pow(2).sum(dim=1).mean()


def targets(model: SentenceTransformer) -> list[torch.Tensor]:
    return [target.detach().clone() for target, _ in target_and_head(model.modules())]


def head_weights(model: SentenceTransformer) -> list[torch.nn.Parameter]:
    return [head for _, head in target_and_head(model.modules())]


def train_step(model: SentenceTransformer, loss: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sum(loss(features(model, QUERIES, DOCUMENTS)).values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_both_directions_are_the_squared_distance_of_unit_vectors(iso_pred: SentenceTransformer) -> None:
    parts = PredictiveLoss(iso_pred, weight=1.2)(features(iso_pred, QUERIES, DOCUMENTS))
    query, document = (iso_pred(column) for column in features(iso_pred, QUERIES, DOCUMENTS))
    there = unit_distance(query["prediction"], document["target"])
    back = unit_distance(document["prediction"], query["target"])
    torch.testing.assert_close(parts["predictive"], 1.2 * (there + back) / 2)


def test_a_corrected_query_is_pulled_to_the_documents_own_vector(respred: SentenceTransformer) -> None:
    parts = ResidualLoss(respred, weight=0.5, residual_weight=2.0)(features(respred, QUERIES, DOCUMENTS))
    query, document = (respred(column) for column in features(respred, QUERIES, DOCUMENTS))
    expected = unit_distance(query["sentence_embedding"], document["sentence_embedding"])
    torch.testing.assert_close(parts["predictive"], 0.5 * expected)
    torch.testing.assert_close(parts["residual"], 2.0 * query["correction"].pow(2).sum(dim=1).mean())


def test_the_targets_side_takes_no_gradient(respred: SentenceTransformer) -> None:
    query, document = (respred.train()(column) for column in features(respred, QUERIES, DOCUMENTS))
    query["prediction"].retain_grad()
    document["sentence_embedding"].retain_grad()
    PredictiveLoss(respred).compute_loss_from_outputs([query, document])["predictive"].backward()
    assert query["prediction"].grad.abs().sum() > 0
    assert document["sentence_embedding"].grad is None


def test_equal_predictions_and_targets_give_zero_and_opposite_ones_four(iso_pred: SentenceTransformer) -> None:
    vectors = torch.randn(5, 16)
    loss = PredictiveLoss(iso_pred)
    for sign, value in ((3.0, 0.0), (-2.0, 4.0)):
        outputs = [{"sentence_embedding": vectors, "prediction": vectors, "target": sign * vectors}] * 2
        assert loss.compute_loss_from_outputs(outputs)["predictive"].item() == pytest.approx(value, abs=1e-5)


def test_lengths_do_not_count_and_the_term_is_computed_in_float32(iso_pred: SentenceTransformer) -> None:
    loss = PredictiveLoss(iso_pred)
    outputs = [{name: torch.randn(5, 16) for name in ("sentence_embedding", "prediction", "target")} for _ in range(2)]
    longer = [{name: 50.0 * value for name, value in output.items()} for output in outputs]
    expected = loss.compute_loss_from_outputs(outputs)["predictive"]
    torch.testing.assert_close(loss.compute_loss_from_outputs(longer)["predictive"], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss.compute_loss_from_outputs(outputs)["predictive"], expected)


def test_the_target_starts_as_the_head_and_follows_each_step_as_a_moving_average(
    iso_pred: SentenceTransformer,
) -> None:
    assert all(map(torch.equal, targets(iso_pred), head_weights(iso_pred)))
    loss = PredictiveLoss(iso_pred.train(), momentum=0.9)
    optimizer = torch.optim.AdamW(iso_pred.parameters(), lr=1e-2, fused=True)
    train_step(iso_pred, loss, optimizer)
    before = targets(iso_pred)
    train_step(iso_pred, loss, optimizer)
    train_step(iso_pred, loss, optimizer)
    assert not any(map(torch.equal, before, targets(iso_pred)))
    before, heads = targets(iso_pred), [head.detach().clone() for head in head_weights(iso_pred)]
    train_step(iso_pred, loss, optimizer)
    for old, head, now in zip(before, heads, targets(iso_pred), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * head)


def test_the_target_rests_within_a_step_and_outside_training(iso_pred: SentenceTransformer) -> None:
    loss = PredictiveLoss(iso_pred.train(), momentum=0.5)
    optimizer = torch.optim.AdamW(iso_pred.parameters(), lr=1e-2)
    train_step(iso_pred, loss, optimizer)
    columns = [QUERIES, DOCUMENTS]
    before = targets(iso_pred)
    with torch.no_grad():
        loss(features(iso_pred, *columns))
    loss.model.eval()
    loss(features(iso_pred, *columns))
    assert all(map(torch.equal, before, targets(iso_pred)))
    loss.model.train()
    loss(features(iso_pred, *columns))
    after = targets(iso_pred)
    assert not any(map(torch.equal, before, after))
    loss(features(iso_pred, *columns))
    assert all(map(torch.equal, after, targets(iso_pred)))


def test_the_target_takes_no_gradient_and_is_not_trained(iso_pred: SentenceTransformer) -> None:
    loss = PredictiveLoss(iso_pred.train())
    sum(loss(features(iso_pred, QUERIES, DOCUMENTS)).values()).backward()
    pairs = target_and_head(iso_pred.modules())
    assert len(pairs) == 4
    for target, head in pairs:
        assert not target.requires_grad
        assert target.grad is None
        assert head.grad.abs().sum() > 0


def test_other_losses_keep_their_names_and_see_the_models_vectors_once(iso_pred: SentenceTransformer) -> None:
    calls = []
    iso_pred.register_forward_hook(lambda *_: calls.append(1))
    columns = features(iso_pred, QUERIES, DOCUMENTS, DOCUMENTS[::-1])
    parts = PredictiveLoss(iso_pred, IsotropyLoss(iso_pred, weight=0.3))(columns)
    assert len(calls) == 3
    assert set(parts) == {"contrastive", "isotropy", "predictive"}
    expected = IsotropyLoss(iso_pred, weight=0.3)(features(iso_pred, QUERIES, DOCUMENTS, DOCUMENTS[::-1]))
    torch.testing.assert_close({name: parts[name] for name in expected}, expected)
    parts = PredictiveLoss(iso_pred, MultipleNegativesRankingLoss(iso_pred))(features(iso_pred, QUERIES, DOCUMENTS))
    assert set(parts) == {"contrastive", "predictive"}


def test_impossible_settings_and_models_are_refused(
    iso_pred: SentenceTransformer, tiny_encoder: SentenceTransformer
) -> None:
    with pytest.raises(TypeError, match="CachedMultipleNegativesRankingLoss has no compute_loss_from_embeddings"):
        PredictiveLoss(iso_pred, CachedMultipleNegativesRankingLoss(iso_pred))
    for options, message in (({"weight": -1.0}, "weight must"), ({"momentum": 1.0}, "momentum must")):
        with pytest.raises(ValueError, match=message):
            PredictiveLoss(iso_pred, **options)
    with pytest.raises(ValueError, match="residual_weight must"):
        ResidualLoss(iso_pred, residual_weight=float("nan"))
    with pytest.raises(ValueError, match="needs a query and a document column, and got 1"):
        PredictiveLoss(iso_pred)(features(iso_pred, QUERIES))
    with pytest.raises(ValueError, match="No column was corrected"):
        ResidualLoss(iso_pred)(features(iso_pred, QUERIES, DOCUMENTS))
    plain = asymmetric_model(tiny_encoder)
    with pytest.raises(ValueError, match="The model makes no predictions"):
        PredictiveLoss(plain)(features(plain, QUERIES, DOCUMENTS))


def test_settings_and_citation(iso_pred: SentenceTransformer) -> None:
    loss = PredictiveLoss(iso_pred, IsotropyLoss(iso_pred), weight=1.2)
    assert loss.get_config_dict() == {"loss": "IsotropyLoss", "weight": 1.2, "momentum": 0.996}
    assert ResidualLoss(iso_pred).get_config_dict() == {"loss": None, "weight": 1.0, "residual_weight": 1.0}
    assert "2006.07733" in loss.citation
    assert "2011.10566" in ResidualLoss(iso_pred).citation
