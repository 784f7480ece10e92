from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_two_processes
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    ContrastiveTensionLoss,
    CosineSimilarityLoss,
    GlobalOrthogonalRegularizationLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from st_asym import IsotropyLoss, asymmetric_model
from st_asym.losses import isotropy

KINDS = ["covariance", "sigreg", "uniformity"]
QUERIES = ["frozen encoder", "red head", "small text", "query vector"]
DOCUMENTS = ["the encoder learns", "big red head", "text", "answers query"]


@pytest.fixture
def model(tiny_encoder: SentenceTransformer) -> SentenceTransformer:
    return asymmetric_model(tiny_encoder)


def features(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Any]]:
    tasks = ["query", *["document"] * (len(columns) - 1)]
    return [{**model.preprocess(texts), "task": task} for texts, task in zip(columns, tasks, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_the_wrapped_loss_and_the_weighted_mean_over_columns(
    model: SentenceTransformer, kind: str
) -> None:
    columns = features(model, QUERIES, DOCUMENTS)
    torch.manual_seed(3)
    parts = IsotropyLoss(model, weight=0.7, kind=kind, slices=40, knots=4)(columns)
    assert set(parts) == {"contrastive", "isotropy"}
    vectors = [model(column)["sentence_embedding"] for column in columns]
    torch.testing.assert_close(parts["contrastive"], MultipleNegativesRankingLoss(model)(columns, None))
    torch.manual_seed(3)
    directions = torch.randn(16, 40)
    measure = {
        "covariance": isotropy.covariance,
        "sigreg": lambda column: isotropy.sigreg(column, directions, knots=4),
        "uniformity": isotropy.uniformity,
    }[kind]
    torch.testing.assert_close(parts["isotropy"], 0.7 * (measure(vectors[0]) + measure(vectors[1])) / 2)


def test_each_column_is_embedded_once(model: SentenceTransformer) -> None:
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    IsotropyLoss(model)(features(model, QUERIES, DOCUMENTS, DOCUMENTS[::-1]))
    assert len(calls) == 3


def test_a_loss_with_parts_keeps_their_names(model: SentenceTransformer) -> None:
    loss = IsotropyLoss(model, GlobalOrthogonalRegularizationLoss(model))
    assert set(loss(features(model, QUERIES, DOCUMENTS))) == {"gor_mean", "gor_second_moment", "isotropy"}


def test_a_loss_that_is_not_contrastive_goes_by_its_own_name(model: SentenceTransformer) -> None:
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])
    columns = features(model, QUERIES, DOCUMENTS)
    parts = IsotropyLoss(model, CosineSimilarityLoss(model))(columns, labels)
    assert set(parts) == {"CosineSimilarityLoss", "isotropy"}
    torch.testing.assert_close(parts["CosineSimilarityLoss"], CosineSimilarityLoss(model)(columns, labels))
    parts = IsotropyLoss(model, MarginMSELoss(model))(features(model, QUERIES, DOCUMENTS, DOCUMENTS[::-1]), labels)
    assert set(parts) == {"MarginMSELoss", "isotropy"}


CLASSES, SCORES = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.0, 0.5, 0.2])
TEACHER = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "columns", "labels"),
    [
        ("AnglELoss", 2, SCORES),
        ("BatchAllTripletLoss", 1, CLASSES),
        ("BatchHardSoftMarginTripletLoss", 1, CLASSES),
        ("BatchHardTripletLoss", 1, CLASSES),
        ("BatchSemiHardTripletLoss", 1, CLASSES),
        ("CoSENTLoss", 2, SCORES),
        ("ContrastiveLoss", 2, CLASSES),
        ("CosineSimilarityLoss", 2, SCORES),
        ("DistillKLDivLoss", 3, TEACHER[:, 0, :2]),
        ("EmbedDistillLoss", 2, TEACHER[:, 0]),
        ("EmbedDistillLoss", 3, TEACHER),
        ("GlobalOrthogonalRegularizationLoss", 2, None),
        ("MSELoss", 1, TEACHER[:, 0]),
        ("MSELoss", 3, TEACHER),
        ("MarginMSELoss", 3, SCORES),
        ("MultipleNegativesRankingLoss", 3, None),
        ("MultipleNegativesSymmetricRankingLoss", 2, None),
        ("OnlineContrastiveLoss", 2, CLASSES),
        ("TripletLoss", 3, None),
    ],
)
def test_without_weight_each_loss_of_the_library_is_as_it_is_alone(
    model: SentenceTransformer, name: str, columns: int, labels: torch.Tensor | None
) -> None:
    settings = {"distance_metric": "cosine"} if name == "EmbedDistillLoss" else {}
    alone = getattr(losses, name)(model, **settings)
    batch = features(model, *[QUERIES, DOCUMENTS, DOCUMENTS[::-1]][:columns])
    value = alone(batch, labels)
    parts = IsotropyLoss(model, alone, weight=0.0)(batch, labels)
    assert sum(parts.values()) == (sum(value.values()) if isinstance(value, dict) else value)


def test_no_loss_of_the_library_that_is_computed_from_embeddings_is_left_untried() -> None:
    (mark,) = test_without_weight_each_loss_of_the_library_is_as_it_is_alone.pytestmark
    there = {name for name, kind in vars(losses).items() if hasattr(kind, "compute_loss_from_embeddings")}
    assert there == {name for name, _, _ in mark.args[1]}


@pytest.mark.parametrize("labels", [None, SCORES, TEACHER])
def test_teachers_that_do_not_fit_the_columns_are_refused(
    model: SentenceTransformer, labels: torch.Tensor | None
) -> None:
    loss = IsotropyLoss(model, losses.MSELoss(model))
    with pytest.raises(ValueError, match=r"labels, of shape \(batch, dimension\) for all columns or \(batch, 2, dim"):
        loss(features(model, QUERIES, DOCUMENTS), labels)


def test_two_isotropy_terms_add_up(model: SentenceTransformer) -> None:
    columns = features(model, QUERIES, DOCUMENTS)
    inner = IsotropyLoss(model, weight=0.5)
    outer = IsotropyLoss(model, inner, weight=2.0, kind="uniformity")
    expected = inner(columns)["isotropy"] + IsotropyLoss(model, weight=2.0, kind="uniformity")(columns)["isotropy"]
    torch.testing.assert_close(outer(columns)["isotropy"], expected)


def test_a_loss_that_needs_the_texts_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="CachedMultipleNegativesRankingLoss has no compute_loss_from_embeddings"):
        IsotropyLoss(model, CachedMultipleNegativesRankingLoss(model))


def test_the_advice_is_for_the_loss_that_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="take a large batch"):
        IsotropyLoss(model, CachedMultipleNegativesRankingLoss(model))
    for inner in (MultipleNegativesRankingLoss(model), CachedMultipleNegativesRankingLoss(model)):
        with pytest.raises(TypeError, match=r"MarginMSELoss have\. This one runs the model .* cannot be combined\.$"):
            IsotropyLoss(model, MatryoshkaLoss(model, inner, [16, 8]))
    with pytest.raises(TypeError, match=r"MarginMSELoss have\.$"):
        IsotropyLoss(model, ContrastiveTensionLoss(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vicreg"}, "kind must be one of 'covariance', 'sigreg', 'uniformity'"),
        ({"weight": -0.1}, "weight must be"),
        ({"weight": float("nan")}, "weight must be"),
        ({"slices": 0}, "at least 1 slice"),
        ({"knots": 1}, "2 knots"),
    ],
)
def test_impossible_settings_are_refused(model: SentenceTransformer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IsotropyLoss(model, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_computed_in_float32_under_autocast(model: SentenceTransformer, kind: str) -> None:
    vectors = [torch.randn(8, 16).bfloat16() for _ in range(2)]
    loss = IsotropyLoss(model, kind=kind)
    torch.manual_seed(0)
    expected = loss.compute_loss_from_embeddings([column.float() for column in vectors])["isotropy"]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss.compute_loss_from_embeddings(vectors)["isotropy"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_the_term_alone_spreads_vectors_out(model: SentenceTransformer, kind: str) -> None:
    columns = features(model, QUERIES, DOCUMENTS)
    loss = IsotropyLoss(model, kind=kind)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def spread() -> float:
        with torch.no_grad():
            return isotropy.covariance(model(columns[0])["sentence_embedding"]).item()

    before = spread()
    for _ in range(20):
        optimizer.zero_grad()
        loss(columns)["isotropy"].backward()
        optimizer.step()
    assert spread() < before - 0.01


def test_settings_and_citation(model: SentenceTransformer) -> None:
    assert IsotropyLoss(model, weight=0.3).get_config_dict() == {
        "loss": "MultipleNegativesRankingLoss",
        "weight": 0.3,
        "kind": "covariance",
    }
    assert IsotropyLoss(model, kind="sigreg", slices=64).get_config_dict()["slices"] == 64
    for kind, paper in (("covariance", "1708.06320"), ("sigreg", "2511.08544"), ("uniformity", "2005.10242")):
        assert paper in IsotropyLoss(model, kind=kind).citation


def _one_of_two_processes(rank: int, folder: Path) -> None:
    for kind in KINDS:
        torch.manual_seed(rank)  # each process draws directions of its own: those of the first must win
        torch.save(_half_of_the_batch(rank, kind), folder / f"{kind}-{rank}.pt")


def _half_of_the_batch(rank: int, kind: str) -> dict[str, torch.Tensor]:
    head, columns = _head_and_columns()
    wrapped = torch.nn.parallel.DistributedDataParallel(head)
    local = [wrapped(column[rank * 4 : rank * 4 + 4]) for column in columns]
    loss = IsotropyLoss(SentenceTransformer(modules=[head], device="cpu"), kind=kind)
    value = loss.compute_loss_from_embeddings(local)["isotropy"]
    value.backward()
    return {"value": value.detach(), "gradient": head.weight.grad}


def _head_and_columns() -> tuple[torch.nn.Linear, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    head = torch.nn.Linear(6, 6, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(6, 6, generator=generator))
    return head, [torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.slow
def test_two_processes_give_the_value_and_gradient_of_one(tmp_path: Path) -> None:
    in_two_processes(_one_of_two_processes, tmp_path)
    for kind in KINDS:
        torch.manual_seed(0)
        head, columns = _head_and_columns()
        loss = IsotropyLoss(SentenceTransformer(modules=[head], device="cpu"), kind=kind)
        value = loss.compute_loss_from_embeddings([head(column) for column in columns])["isotropy"]
        value.backward()
        for rank in range(2):
            other = torch.load(tmp_path / f"{kind}-{rank}.pt")
            torch.testing.assert_close(other["value"], value.detach(), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(other["gradient"], head.weight.grad, rtol=1e-9, atol=1e-12)
