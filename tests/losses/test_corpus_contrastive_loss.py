from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import in_two_processes
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import BoW
from sentence_transformers.util import get_world_size

import st_asym
from st_asym import CachedSentenceTransformer, EmbeddingCache, IsotropyLoss, asymmetric_model, router_mapping
from st_asym.data import RetrievalData
from st_asym.losses import isotropy
from st_asym.losses.sampled import Sample

# Most of what is tested here does not depend on what unlabelled documents count.
CorpusContrastiveLoss = partial(st_asym.CorpusContrastiveLoss, unlabelled_weight=1.0)

DIMENSION = 6
DATA = RetrievalData(
    queries={"q1": "frozen encoder", "q2": "red head", "q3": "small text", "q4": "query vector", "q5": "learns"},
    corpus={
        "d1": "the encoder learns",
        "d2": "big red head",
        "d3": "text",
        "d4": "answers query",
        "d5": "vector document",
        "d6": "small head",
        "d7": "frozen text answers",
    },
    qrels={
        "train": {"q1": {"d1": 2, "d7": 1, "d3": 0}, "q2": {"d2": 1}, "q3": {"d6": 0}, "q4": {"d4": 1}, "q5": {"d1": 1}}
    },
)


def vector_model(dtype: torch.dtype = torch.float32, **heads: Any) -> SentenceTransformer:
    """Heads with random weights on vectors that are given as such."""
    encoder = SentenceTransformer(modules=[BoW([f"w{i}" for i in range(DIMENSION)])], device="cpu")
    torch.manual_seed(5)
    return asymmetric_model(encoder, **{"init": "random", "hidden_features": 9, **heads}).to(dtype)


MODEL_64 = vector_model(torch.float64)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ids(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


def embed(model: SentenceTransformer, vectors: torch.Tensor, task: str) -> torch.Tensor:
    return model({"sentence_embedding": vectors, "task": task})["sentence_embedding"]


def gradients(model: SentenceTransformer, value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad]))


def hard_negatives(loss: Any) -> torch.Tensor:
    """Positions of documents, a row for each query, -1 where there are none."""
    return loss._hard.documents


def by_hand(
    queries: torch.Tensor,
    documents: torch.Tensor,
    grades: list[dict[int, float]],
    temperature: float,
    unlabelled_weight: float = 1.0,
    negatives: str = "corpus",
    ignored: Sequence[set[int]] | None = None,
) -> torch.Tensor:
    """The formula, one query and one positive at a time."""
    if negatives == "both":
        shared = (queries, documents, grades, temperature, unlabelled_weight)
        return (by_hand(*shared, "corpus", ignored) + by_hand(*shared, "batch", ignored)) / 2
    ignored = [set()] * len(grades) if ignored is None else ignored
    labelled = {document for own in grades for document, grade in own.items() if grade > 0}
    unlabelled = unlabelled_weight if negatives == "corpus" else 0.0
    losses = []
    for query, own, left_out in zip(queries, grades, ignored, strict=True):
        relevant = {document: grade for document, grade in own.items() if grade > 0}
        s = torch.stack([torch.cosine_similarity(query, document, dim=0) / temperature for document in documents])
        weights = [1.0 if n in labelled or n in own else unlabelled for n in range(len(documents))]
        rest = torch.zeros((), dtype=s.dtype)
        for n, weight in enumerate(weights):
            if n not in relevant and n not in left_out:
                rest = rest + weight * s[n].exp()
        loss = sum(g * -(s[p].exp() / (s[p].exp() + rest)).log() for p, g in relevant.items()) / sum(relevant.values())
        losses.append(loss)
    return torch.stack(losses).mean()


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, list[dict[int, float]], int, int]:
    documents = draw(st.integers(1, 9))
    grade = st.sampled_from([-1.0, 0.0, 1.0, 2.0, 0.5])
    own = st.dictionaries(st.integers(0, documents - 1), grade, min_size=1)
    grades = draw(st.lists(own.filter(lambda g: max(g.values()) > 0), min_size=1, max_size=5))
    return documents, grades, draw(st.integers(1, 10)), draw(st.integers(0, 99))


@given(
    problems(),
    st.sampled_from([0.05, 1.0]),
    st.sampled_from([1.0, 0.1, 0.0]),
    st.sampled_from(["corpus", "batch", "both"]),
    st.lists(st.sets(st.integers(0, 8)), min_size=5, max_size=5),
)
def test_the_loss_and_its_gradient_are_those_of_the_formula_in_chunks_too(
    problem: tuple[int, list[dict[int, float]], int, int],
    temperature: float,
    unlabelled_weight: float,
    negatives: Any,
    left_out: list[set[int]],
) -> None:
    count, grades, chunk_size, seed = problem
    model = vector_model(torch.float64)
    corpus = normal(count, DIMENSION, seed=seed, dtype=torch.float64)
    queries = normal(len(grades), DIMENSION, seed=seed + 100, dtype=torch.float64)
    rest = (grades, temperature, unlabelled_weight, negatives, left_out[: len(grades)])
    expected = by_hand(embed(model, queries, "query"), embed(model, corpus, "document"), *rest)
    relevant = {f"q{i}": {f"d{d}": g for d, g in own.items()} for i, own in enumerate(grades)}
    ignored = {f"q{i}": [f"d{d}" for d in own] for i, own in enumerate(left_out)}
    ways: dict[str, Any] = {"unlabelled_weight": unlabelled_weight, "negatives": negatives, "ignored": ignored}
    # The whole corpus, in chunks, and as a sample of everything with and without hard negatives.
    sampled = [{"max_documents": 1, "sampled_documents": 9, "hard_negatives": hard} for hard in (0, 2)]
    for options in ({}, {"chunk_size": chunk_size}, *sampled):
        loss = CorpusContrastiveLoss(model, (ids(count), corpus), relevant, temperature=temperature, **ways, **options)
        value = loss([{"sentence_embedding": queries, "task": "query"}], torch.arange(len(grades)))["contrastive"]
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
        for own, other in zip(gradients(model, value), gradients(model, expected), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
        expected = by_hand(embed(model, queries, "query"), embed(model, corpus, "document"), *rest)


def test_hard_negatives_of_the_corpus_are_none_of_the_batch() -> None:
    model = vector_model(torch.float64)
    corpus, queries = (normal(n, DIMENSION, seed=n, dtype=torch.float64) for n in (30, 3))
    grades = [{0: 1.0}, {1: 1.0}, {2: 1.0}]
    expected = by_hand(embed(model, queries, "query"), embed(model, corpus, "document"), grades, 1.0, 1.0, "both")
    relevant = {f"q{i}": {f"d{d}": g for d, g in own.items()} for i, own in enumerate(grades)}
    options: dict[str, Any] = {"max_documents": 1, "sampled_documents": 30, "hard_negatives": 4, "temperature": 1.0}
    loss = CorpusContrastiveLoss(model, (ids(30), corpus), relevant, negatives="both", **options)
    for step in range(2):  # they are known from the second on
        assert (hard_negatives(loss) >= 0).any() == bool(step)
        value = loss([{"sentence_embedding": queries, "task": "query"}], torch.arange(3))["contrastive"]
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("heads", [{}, {"shared": True}, {"query": False, "out_features": DIMENSION}])
def test_chunks_change_neither_the_loss_nor_its_gradient(
    dtype: torch.dtype, tolerance: float, heads: dict[str, Any]
) -> None:
    model = vector_model(dtype, **heads)
    corpus, queries = normal(3000, DIMENSION, seed=1, dtype=dtype), normal(40, DIMENSION, seed=2, dtype=dtype)
    relevant = {f"q{i}": {f"d{i * 7}": 1, f"d{2999 - i}": 3} for i in range(40)}
    results = []
    for size in (None, 77):
        loss = CorpusContrastiveLoss(model, (ids(3000), corpus), relevant, chunk_size=size)
        value = loss([{"sentence_embedding": queries, "task": "query"}], torch.arange(40))["contrastive"]
        results.append([value.detach(), *gradients(model, value)])
    for plain, chunked in zip(*results, strict=True):
        assert (plain - chunked).abs().max() <= tolerance * max(1.0, plain.abs().max().item())


def test_lengths_do_not_matter_and_a_relevant_document_is_no_negative() -> None:
    model = vector_model(query=False, document=True, out_features=DIMENSION)
    corpus, query = normal(5, DIMENSION, seed=1), normal(1, DIMENSION, seed=2)
    loss = CorpusContrastiveLoss(model, (ids(5), corpus), {"q": ["d0", "d1"], "all": ids(5)})
    label = torch.tensor([0])
    small, large = (loss.compute_loss_from_embeddings([query * scale], label)["contrastive"] for scale in (1e-8, 1e25))
    torch.testing.assert_close(small, large)
    embeddings = torch.nn.Parameter(query.clone())
    without_negatives = loss.compute_loss_from_embeddings([embeddings], torch.tensor([1]))["contrastive"]
    without_negatives.backward()
    assert without_negatives.item() == 0.0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_texts_come_through_the_models_own_encoder_with_its_prompt_for_documents(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    encoder = make_encoder(prompts={"query": "small ", "document": "big "})
    model = asymmetric_model(encoder, init="random")
    cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path))
    queries = model.encode_query(list(DATA.queries.values()), convert_to_tensor=True)
    documents = model.encode_document(list(DATA.corpus.values()), convert_to_tensor=True)
    grades = [{list(DATA.corpus).index(d): g for d, g in own.items()} for own in DATA.qrels["train"].values()]
    rows = torch.tensor(DATA.labelled_queries("train")["label"])
    expected = by_hand(queries[rows], documents, [grades[row] for row in rows], 0.05)
    for variant in (model, cached):
        loss = CorpusContrastiveLoss(variant, DATA.corpus, DATA.qrels["train"])
        value = loss.compute_loss_from_embeddings([queries[rows].clone()], rows)["contrastive"]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_never_runs_again(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    cached = CachedSentenceTransformer(asymmetric_model(tiny_encoder), EmbeddingCache(tmp_path))
    cached.cache.fill(cached, [*DATA.corpus.values(), *DATA.queries.values()])
    tiny_encoder.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    tiny_encoder[0].register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    loss = CorpusContrastiveLoss(cached, DATA.corpus, DATA.qrels["train"])
    rows = DATA.labelled_queries("train")
    loss([{**cached.preprocess(rows["query"][:]), "task": "query"}], torch.tensor(rows["label"]))


def test_labelled_queries_are_those_with_a_relevant_document() -> None:
    rows = DATA.labelled_queries("train")
    assert rows["query"][:] == ["frozen encoder", "red head", "query vector", "learns"]
    assert rows["label"][:] == [0, 1, 3, 4]
    assert router_mapping(rows) == {"query": "query"}
    with pytest.raises(KeyError, match="There is no split 'test'"):
        DATA.labelled_queries("test")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("isotropic", [True, False])
def test_the_stock_trainer_lowers_the_loss(
    tiny_encoder: SentenceTransformer, tmp_path: Path, *, cached: bool, isotropic: bool
) -> None:
    model = asymmetric_model(tiny_encoder)
    if cached:
        model = CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "cache"))
    loss: torch.nn.Module = CorpusContrastiveLoss(model, DATA.corpus, DATA.qrels["train"], temperature=0.2)
    if isotropic:
        loss = IsotropyLoss(model, loss, weight=0.1)
    rows = DATA.labelled_queries("train")
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            num_train_epochs=20,
            per_device_train_batch_size=3,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            router_mapping=router_mapping(rows),
        ),
        train_dataset=rows,
        eval_dataset=rows,
        loss=loss,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before
    names = {"contrastive", "isotropy"} if isotropic else {"contrastive"}
    assert names <= set(trainer.state.log_history[1])


def test_isotropy_measures_the_corpus_beside_the_queries() -> None:
    model = vector_model()
    corpus, queries = normal(40, DIMENSION, seed=1), normal(12, DIMENSION, seed=2)
    loss = CorpusContrastiveLoss(model, (ids(40), corpus), {f"q{i}": [f"d{i}"] for i in range(12)})
    torch.manual_seed(3)
    sample = loss.sample_documents(12)
    torch.manual_seed(3)
    columns = [{"sentence_embedding": queries, "task": "query"}]
    parts = IsotropyLoss(model, loss, weight=0.7)(copy.deepcopy(columns), torch.arange(12))
    assert set(parts) == {"contrastive", "isotropy"}
    expected = isotropy.covariance(embed(model, queries, "query")) + isotropy.covariance(sample)
    torch.testing.assert_close(parts["isotropy"], 0.7 * expected / 2)
    torch.testing.assert_close(parts["contrastive"], loss(columns, torch.arange(12))["contrastive"])
    documents = embed(model, corpus, "document")
    assert sample.requires_grad
    assert ((sample @ documents.T) > 1 - 1e-5).any(dim=1).all()
    assert len(loss.sample_documents(100)) == 40


def test_rows_without_a_corpus_use_the_documents_of_the_batch() -> None:
    model = vector_model()
    corpus, queries, documents = (normal(n, DIMENSION, seed=n) for n in (20, 5, 6))
    loss = CorpusContrastiveLoss(model, (ids(20), corpus), {"a": ["d3"], "b": ["d5", "d6"]})
    columns = [embed(model, queries, "query"), embed(model, documents[:5], "document")]
    labels = torch.tensor([1, -1, 0, -1, -1])
    value = loss.compute_loss_from_embeddings(columns, labels)["contrastive"]
    judged, pairs = labels >= 0, labels < 0
    with_corpus = loss.compute_loss_from_embeddings([columns[0][judged]], labels[judged])["contrastive"]
    in_batch = MultipleNegativesRankingLoss(model, scale=20.0)
    without = in_batch.compute_loss_from_embeddings([column[pairs] for column in columns], None)  # type: ignore[arg-type]
    torch.testing.assert_close(value, (2 * with_corpus + 3 * without) / 5)
    with pytest.raises(ValueError, match="3 of 5 rows have the label -1"):
        loss.compute_loss_from_embeddings(columns[:1], labels)


def test_columns_that_no_row_needs_are_not_embedded() -> None:
    model = vector_model()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    loss = CorpusContrastiveLoss(model, (ids(9), normal(9, DIMENSION, seed=1)), {"a": ["d3"]})
    columns = [{"sentence_embedding": normal(1, DIMENSION, seed=2), "task": task} for task in ("query", "document")]
    loss(columns, torch.tensor([0]))
    assert len(calls) == 1
    loss(columns, torch.tensor([-1]))
    assert len(calls) == 3


def test_a_document_side_that_does_not_train_is_computed_once() -> None:
    model = vector_model(document=False, out_features=DIMENSION)
    loss = CorpusContrastiveLoss(model, (ids(9), normal(9, DIMENSION, seed=1)), {"a": ["d3"]})
    trained = vector_model(query=False, out_features=DIMENSION)
    other = CorpusContrastiveLoss(trained, (ids(9), normal(9, DIMENSION, seed=1)), {"a": ["d3"]})
    rows = normal(1, DIMENSION, seed=2), torch.tensor([0])
    for each, expected in ((loss, 1), (other, 3)):
        calls: list[int] = []
        list(each.model.children())[-1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for _ in range(3):
            each.compute_loss_from_embeddings([rows[0]], rows[1])
        assert len(calls) == expected
    with torch.no_grad():
        before = other.compute_loss_from_embeddings([rows[0]], rows[1])["contrastive"]
        next(p for p in trained.parameters() if p.requires_grad).add_(1.0)
        assert other.compute_loss_from_embeddings([rows[0]], rows[1])["contrastive"] != before


@pytest.mark.parametrize("way", ["fused", "data", "vector"])
def test_an_evaluation_is_of_the_head_as_it_is_now_whatever_has_changed_it(way: str) -> None:
    model = vector_model()
    loss = CorpusContrastiveLoss(model, (ids(9), normal(9, DIMENSION, seed=1)), {"a": ["d3"]})
    heads = [p for p in model.parameters() if p.requires_grad]

    def evaluated(loss: Any) -> torch.Tensor:
        with torch.no_grad():
            return loss.compute_loss_from_embeddings([normal(1, DIMENSION, seed=2)], torch.tensor([0]))["contrastive"]

    before = evaluated(loss)
    if way == "fused":
        loss.sample_documents(9).sum().backward()
        torch.optim.AdamW(heads, lr=0.1, fused=True).step()
    elif way == "data":
        for parameter in heads:
            parameter.data.mul_(torch.arange(parameter.shape[-1]))
    else:
        torch.nn.utils.vector_to_parameters(normal(sum(map(torch.numel, heads)), seed=3), heads)
    fresh = CorpusContrastiveLoss(model, (ids(9), normal(9, DIMENSION, seed=1)), {"a": ["d3"]})
    assert evaluated(loss) == evaluated(fresh) != before


# Documents that are neither relevant nor not.


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"max_documents": 5, "sampled_documents": 20}])
def test_ignored_documents_are_as_if_they_were_not_there(options: dict[str, Any]) -> None:
    model = vector_model(torch.float64)
    corpus = normal(20, DIMENSION, seed=1, dtype=torch.float64)
    query = normal(1, DIMENSION, seed=2, dtype=torch.float64)
    relevant = {"q": {"d3": 2, "d8": 1}}
    left = [i for i in range(20) if i not in (1, 4, 19)]
    without = CorpusContrastiveLoss(model, ([f"d{i}" for i in left], corpus[left]), relevant)
    # What is relevant, or not in the corpus, does not matter.
    ignored = {"q": ["d1", "d3", "d4", "d19", "elsewhere"], "another": ["d2"]}
    loss = CorpusContrastiveLoss(model, (ids(20), corpus), relevant, ignored=ignored, **options)
    expected = without.compute_loss_from_embeddings([embed(model, query, "query")], torch.tensor([0]))["contrastive"]
    for _ in range(3):  # hard negatives of a larger corpus must not be ignored documents either
        value = loss.compute_loss_from_embeddings([embed(model, query, "query")], torch.tensor([0]))["contrastive"]
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)
    for own, other in zip(gradients(model, value), gradients(model, expected), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)
    if options.get("max_documents"):
        assert not {1, 4, 19} & set(hard_negatives(loss)[0].tolist())


def test_only_the_query_that_ignores_a_document_does_without_it() -> None:
    model = vector_model()
    corpus, queries = normal(9, DIMENSION, seed=1), embed(model, normal(2, DIMENSION, seed=2), "query").detach()
    relevant = {"q": ["d0"], "r": ["d1"]}
    plain, ignoring = (
        CorpusContrastiveLoss(model, (ids(9), corpus), relevant, ignored=ignored) for ignored in (None, {"q": ids(9)})
    )
    for row, changes in ((0, True), (1, False)):
        each = [queries[row : row + 1]], torch.tensor([row])
        before, after = (loss.compute_loss_from_embeddings(*each)["contrastive"].item() for loss in (plain, ignoring))
        assert after == 0.0 if changes else after == before


# What unlabelled documents count, and the documents of the batch.


@given(problems(), st.floats(0, 1), st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_loss_grows_with_what_unlabelled_documents_count_and_ids_do_not_matter(
    problem: tuple[int, list[dict[int, float]], int, int], one: float, other: float, random: Random
) -> None:
    count, grades, _, seed = problem
    model = MODEL_64
    corpus = normal(count, DIMENSION, seed=seed, dtype=torch.float64)
    queries = normal(len(grades), DIMENSION, seed=seed + 100, dtype=torch.float64)
    names = ids(count)
    random.shuffle(names)

    def value(names: list[str], weight: float) -> float:
        relevant = {f"q{i}": {names[d]: g for d, g in own.items()} for i, own in enumerate(grades)}
        with torch.no_grad():
            return step(
                CorpusContrastiveLoss(model, (names, corpus), relevant, unlabelled_weight=weight), queries
            ).item()

    least, most = sorted((one, other))
    assert value(ids(count), least) <= value(ids(count), most) + 1e-12
    assert value(names, one) == pytest.approx(value(ids(count), one), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("max_documents", [90, 20])
def test_only_documents_that_count_go_through_the_head(*, trains: bool, max_documents: int) -> None:
    model = vector_model(document=trains, out_features=DIMENSION)
    corpus, queries = normal(90, DIMENSION, seed=1), embed(model, normal(2, DIMENSION, seed=2), "query")
    relevant = {"q0": {"d0": 1, "d1": 1, "d50": 0}, "q1": {"d2": 1}, "q2": {"d3": 1}}
    seen: list[int] = []
    model[-1].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["sentence_embedding"])))
    ways: list[tuple[dict[str, Any], int]] = [({"negatives": "batch"}, 3), ({"unlabelled_weight": 0.0}, 4)]
    for way, shared in ways:
        loss = CorpusContrastiveLoss(
            model, (ids(90), corpus), relevant, ignored={"q1": ["d60"]}, max_documents=max_documents, **way
        )
        seen.clear()
        loss.compute_loss_from_embeddings([queries], torch.tensor([0, 1]))
        assert seen == [shared + 1]  # and what was judged for q0


def test_a_batch_without_negatives_has_no_loss_and_a_gradient_of_zero() -> None:
    model = vector_model()
    loss = CorpusContrastiveLoss(
        model, (ids(9), normal(9, DIMENSION, seed=1)), {"q": ["d0", "d1"], "r": ["d1", "d0"]}, negatives="batch"
    )
    value = step(loss, normal(3, DIMENSION, seed=2), torch.tensor([0, 1, 0]))
    assert value.item() == 0.0
    assert not any(gradient.any() for gradient in gradients(model, value))


@pytest.mark.parametrize("options", [{}, {"max_documents": 20}, {"negatives": "batch"}, {"negatives": "both"}])
def test_vectors_in_memory_are_not_copied_and_float16_ones_are_computed_in_float32(options: dict[str, Any]) -> None:
    model = vector_model()
    corpus, queries = normal(60, DIMENSION, seed=1).half(), embed(model, normal(4, DIMENSION, seed=2), "query").half()
    relevant = {f"q{i}": [f"d{i}"] for i in range(4)}
    options = {"sampled_documents": 60, **options}
    values = []
    for vectors in (corpus, corpus.float(), corpus.numpy()):
        loss = CorpusContrastiveLoss(model, (ids(60), vectors), relevant, **options)
        values.append(loss.compute_loss_from_embeddings([queries], torch.arange(4))["contrastive"])
    assert {value.dtype for value in values} == {torch.float32}
    assert values[0] == values[1] == values[2]
    whole = corpus.float()
    loss = CorpusContrastiveLoss(model, (ids(60), whole), relevant, **options)
    assert loss._corpus.take(None).data_ptr() == whole.data_ptr()


# Precision.


@pytest.mark.parametrize("options", [{}, {"max_documents": 100, "sampled_documents": 400}])
def test_the_document_head_in_bfloat16_gives_nearly_the_same_loss_in_float32(options: dict[str, Any]) -> None:
    model = vector_model()
    corpus, queries = normal(400, DIMENSION, seed=1), normal(8, DIMENSION, seed=2)
    found = []
    for precision in ("fp32", "bf16"):
        relevant = {f"q{i}": [f"d{i}", f"d{i + 50}"] for i in range(8)}
        loss = CorpusContrastiveLoss(
            model, (ids(400), corpus), relevant, temperature=0.5, precision=precision, **options
        )
        value = loss.compute_loss_from_embeddings([embed(model, queries, "query")], torch.arange(8))["contrastive"]
        found.append((value, torch.cat([gradient.flatten() for gradient in gradients(model, value)])))
    (full, slope), (reduced, other) = found
    assert reduced.dtype == other.dtype == torch.float32
    torch.testing.assert_close(reduced, full, rtol=5e-3, atol=5e-3)
    assert torch.cosine_similarity(slope, other, dim=0) > 0.999


def test_the_document_head_learns_in_bfloat16_after_a_scan_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, older versions of torch kept what a scan had cast, without its gradient."""
    monkeypatch.setattr("st_asym.losses.documents.has_bfloat16", lambda _: True)
    model = vector_model()
    relevant = {f"q{i}": [f"d{i}"] for i in range(4)}
    corpus = normal(90, DIMENSION, seed=1)
    loss = sampled_loss(model, corpus, relevant, sampled_documents=10, refresh_steps=1, precision="bf16")
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = step(loss, normal(4, DIMENSION, seed=2))
        value.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_heads_in_float64_stay_so_whatever_the_precision() -> None:
    model = vector_model(torch.float64)
    corpus, query = normal(30, DIMENSION, seed=1).double(), normal(1, DIMENSION, seed=2).double()
    values = [
        CorpusContrastiveLoss(model, (ids(30), corpus), {"q": ["d0"]}, precision=precision)
        .compute_loss_from_embeddings([embed(model, query, "query")], torch.tensor([0]))["contrastive"]
        .item()
        for precision in ("fp32", "bf16")
    ]
    assert values[0] == values[1]


# Corpora over the limit.


def sampled_loss(
    model: SentenceTransformer, corpus: Any, relevant: Any, **options: Any
) -> st_asym.CorpusContrastiveLoss:
    return CorpusContrastiveLoss(model, (ids(len(corpus)), corpus), relevant, max_documents=20, **options)


def step(
    loss: st_asym.CorpusContrastiveLoss, queries: torch.Tensor, labels: torch.Tensor | None = None
) -> torch.Tensor:
    labels = torch.arange(len(queries)) if labels is None else labels
    return loss([{"sentence_embedding": queries, "task": "query"}], labels)["contrastive"]


@pytest.mark.parametrize("chunk_size", [None, 13])
def test_a_sample_of_everything_is_the_full_loss(chunk_size: int | None) -> None:
    model = vector_model(torch.float64)
    corpus = normal(60, DIMENSION, seed=1, dtype=torch.float64)
    queries = normal(8, DIMENSION, seed=2, dtype=torch.float64)
    relevant = {f"q{i}": {f"d{i}": 1, f"d{i + 20}": 2} for i in range(8)}
    full = step(CorpusContrastiveLoss(model, (ids(60), corpus), relevant), queries)
    expected = gradients(model, full)
    loss = sampled_loss(model, corpus, relevant, sampled_documents=60, hard_negatives=3, chunk_size=chunk_size)
    for _ in range(3):  # from the second step on there are hard negatives, which must not count twice
        value = step(loss, queries)
        torch.testing.assert_close(value, full, rtol=1e-10, atol=1e-10)
        for own, other in zip(gradients(model, value), expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("unlabelled_weight", "drawn", "hard"),
    [
        (0.1, 40, 2),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [(1.0, 40, 2), (0.1, 40, 0), (0.0, 20, 2), (1e-3, 30, 0)]
        ),
    ],
)
def test_the_sample_estimates_the_sum_over_negatives_without_bias(
    unlabelled_weight: float, drawn: int, hard: int
) -> None:
    model = vector_model(torch.float64)
    corpus = normal(203, DIMENSION, seed=1, dtype=torch.float64)
    queries = normal(4, DIMENSION, seed=2, dtype=torch.float64)
    relevant = {f"q{i}": {f"d{i}": 1, f"d{i + 100}": 0} for i in range(4)} | {"other": ids(90)[4::2]}
    options: dict[str, Any] = {
        "unlabelled_weight": unlabelled_weight,
        "ignored": {"q0": ["d7", "d8"]},
        "temperature": 0.5,
    }
    loss = sampled_loss(model, corpus, relevant, sampled_documents=drawn, hard_negatives=hard, **options)
    full = CorpusContrastiveLoss(model, (ids(203), corpus), relevant, **options)
    step(loss, queries)

    def negatives(loss: st_asym.CorpusContrastiveLoss, label: int) -> float:
        value = step(loss, queries[label : label + 1], torch.tensor([label])).item()
        return math.expm1(value) * math.exp(positives[label] / 0.5)

    torch.manual_seed(0)
    with torch.no_grad():
        sides = embed(model, queries[:2], "query"), embed(model, corpus[:2], "document")
        positives = torch.cosine_similarity(*sides).tolist()
    for label in range(2):
        estimates = [negatives(loss, label) for _ in range(300)]
        exact = negatives(full, label)
        assert np.std(estimates) > 0
        assert abs(np.mean(estimates) - exact) < 4 * np.std(estimates) / math.sqrt(300)


@pytest.mark.parametrize(("labelled", "drawn"), [(1, 3), (58, 8), (30, 1)])
def test_each_kind_of_document_is_drawn_however_few_count(labelled: int, drawn: int) -> None:
    is_labelled = torch.arange(60) < labelled
    for weight, total in ((1.0, 60.0), (0.1, labelled + 0.1 * (60 - labelled)), (0.0, float(labelled))):
        found = Sample(is_labelled, weight, drawn).draw()
        assert found.positions is not None
        assert found.weights is not None
        assert found.weights.exp().sum().item() == pytest.approx(total)
        assert found.positions.tolist() == sorted(set(found.positions.tolist()))
        kinds = {*is_labelled[found.positions].tolist()}
        assert kinds == ({True, False} if weight else {True})
        assert len(found.positions) <= max(drawn, 2)


@pytest.mark.parametrize("unlabelled_weight", [0.1, 0.0])
def test_kinds_that_are_drawn_whole_are_the_full_loss(unlabelled_weight: float) -> None:
    model = vector_model(torch.float64)
    corpus, queries = (normal(n, DIMENSION, seed=n, dtype=torch.float64) for n in (60, 8))
    relevant = {f"q{i}": {f"d{i}": 1, f"d{i + 20}": 2, f"d{i + 40}": 0} for i in range(8)}
    drawn = 60 if unlabelled_weight else 16
    options: dict[str, Any] = {"unlabelled_weight": unlabelled_weight, "ignored": {"q1": ["d0", "d55"]}}
    full = step(CorpusContrastiveLoss(model, (ids(60), corpus), relevant, **options), queries)
    loss = sampled_loss(model, corpus, relevant, sampled_documents=drawn, hard_negatives=3, refresh_steps=2, **options)
    for _ in range(4):
        torch.testing.assert_close(step(loss, queries), full, rtol=1e-10, atol=1e-10)


def test_hard_negatives_are_the_most_similar_and_never_relevant() -> None:
    torch.manual_seed(0)
    model = vector_model(query=False, document=True, out_features=DIMENSION)
    corpus, queries = normal(90, DIMENSION, seed=1), normal(5, DIMENSION, seed=2)
    similarities = torch.nn.functional.normalize(queries) @ embed(model, corpus, "document").T
    order = similarities.argsort(dim=1, descending=True).tolist()
    relevant = {f"q{i}": [f"d{order[i][0]}", f"d{order[i][2]}"] for i in range(5)}
    loss = sampled_loss(model, corpus, relevant, sampled_documents=1, hard_negatives=3, refresh_steps=2)
    for _ in range(12):  # five scans of 20 documents cover the 90
        step(loss, queries)
    found = hard_negatives(loss)
    assert found.tolist() == [[own[1], own[3], own[4]] for own in order]


@pytest.mark.parametrize("unlabelled_weight", [0.1, 0.0])
def test_hard_negatives_are_neither_judged_nor_ignored_and_count_something(unlabelled_weight: float) -> None:
    model = vector_model()
    corpus, queries = normal(90, DIMENSION, seed=1), normal(5, DIMENSION, seed=2)
    relevant = {f"q{i}": {f"d{i}": 1, f"d{i + 20}": 1, **dict.fromkeys(ids(60)[30:], 0)} for i in range(5)}
    ignored = {f"q{i}": [f"d{i + 1}", f"d{i + 70}"] for i in range(5)}
    options: dict[str, Any] = {"ignored": ignored, "unlabelled_weight": unlabelled_weight, "refresh_steps": 1}
    loss = sampled_loss(model, corpus, relevant, sampled_documents=4, hard_negatives=20, **options)
    for _ in range(6):
        step(loss, queries)
    allowed = {*range(5), *range(20, 25)} if not unlabelled_weight else {*range(90)}
    for i, own in enumerate(hard_negatives(loss).tolist()):
        found = {document for document in own if document >= 0}
        assert found
        assert found <= allowed - {i, i + 20, i + 1, i + 70, *range(30, 60)}


def test_evaluation_changes_nothing_that_training_has_found() -> None:
    model = vector_model()
    loss = sampled_loss(model, normal(90, DIMENSION, seed=1), {"q": ["d1"]}, sampled_documents=5, refresh_steps=1)
    with torch.no_grad():
        step(loss, normal(1, DIMENSION, seed=2))
    assert (hard_negatives(loss) == -1).all()


@pytest.mark.parametrize("kind", ["sigreg", "uniformity"])
def test_evaluations_draw_the_same_and_leave_the_draws_of_training_as_they_are(kind: Any) -> None:
    model = vector_model()
    inner = sampled_loss(model, normal(90, DIMENSION, seed=1), {"q": ["d1"]}, sampled_documents=5)
    loss = IsotropyLoss(model, inner, kind=kind)
    given = [normal(3, DIMENSION, seed=2)], torch.tensor([0, 0, 0])
    before = torch.get_rng_state()
    with torch.no_grad():
        evaluated = [loss.compute_loss_from_embeddings(*given) for _ in range(2)]
    assert evaluated[0] == evaluated[1]
    assert torch.equal(torch.get_rng_state(), before)
    trained = [loss.compute_loss_from_embeddings(*given) for _ in range(2)]
    assert all(trained[0][part] != trained[1][part] for part in ("contrastive", "isotropy"))


def test_a_large_corpus_is_read_where_it_is_and_never_as_a_whole(tmp_path: Path) -> None:
    file = np.lib.format.open_memmap(tmp_path / "vectors.npy", mode="w+", dtype=np.float16, shape=(5000, DIMENSION))
    file[:] = normal(5000, DIMENSION, seed=1).numpy()
    file.flush()

    class Watched(np.ndarray):
        most = 0

        def __getitem__(self, rows: Any) -> Any:
            part = np.asarray(super().__getitem__(rows))
            Watched.most = max(Watched.most, len(part))
            return part

    watched = np.load(tmp_path / "vectors.npy", mmap_mode="r").view(Watched)
    model = vector_model()
    loss = CorpusContrastiveLoss(
        model,
        (ids(5000), watched),
        {f"q{i}": [f"d{i}"] for i in range(4)},
        max_documents=4500,
        sampled_documents=64,
        refresh_steps=1,
    )
    for _ in range(2):
        step(loss, normal(4, DIMENSION, seed=2)).backward()
    assert 0 < Watched.most <= 4096


def test_texts_of_a_large_corpus_are_looked_up_in_each_step(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path))
    settings: dict[str, Any] = {"max_documents": 3, "sampled_documents": 7}
    loss = CorpusContrastiveLoss(cached, DATA.corpus, DATA.qrels["train"], **settings)
    rows = DATA.labelled_queries("train")
    features = [{**cached.preprocess(rows["query"][:]), "task": "query"}]
    labels = torch.tensor(rows["label"])
    full = CorpusContrastiveLoss(cached, DATA.corpus, DATA.qrels["train"])(copy.copy(features), labels)
    features = [{**cached.preprocess(rows["query"][:]), "task": "query"}]
    torch.testing.assert_close(loss(features, labels), full)
    with pytest.raises(ValueError, match="7 texts, more than max_documents=3"):
        CorpusContrastiveLoss(model, DATA.corpus, DATA.qrels["train"], **settings)


# Several processes.

FORMS: list[dict[str, Any]] = [
    {},
    {"max_documents": 30},
    {"max_documents": 30, "unlabelled_weight": 0.1},
    {"negatives": "batch"},
    {"negatives": "both", "max_documents": 20},
]


def _one_of_two_processes(rank: int, folder: Path) -> None:
    torch.manual_seed(rank)  # each process draws of its own: the first must win
    steps = [found for form in FORMS for found in _steps(form, rank=rank)]
    torch.save((steps, _draw(4)), folder / f"{rank}.pt")


def _steps(form: dict[str, Any], rank: int | None = None) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Loss and gradients of four batches, or of the share of one process."""
    model = vector_model(torch.float64)
    corpus, queries, documents = (normal(n, DIMENSION, seed=n, dtype=torch.float64) for n in (100, 9, 10))
    relevant = {f"q{i}": {f"d{i}": 1, f"d{i + 30}": 2, f"d{i + 29}": 1, f"d{i + 60}": 0} for i in range(9)}
    options = {"max_documents": 100, "sampled_documents": 10, "hard_negatives": 3, "refresh_steps": 2, **form}
    loss = CorpusContrastiveLoss(model, (ids(100), corpus), relevant, ignored={"q3": ["d1", "d90"]}, **options)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if get_world_size() > 1 else model
    loss.model = wrapped
    share = slice(None) if rank is None else slice(0, 5) if rank == 0 else slice(5, 9)
    for labels in ([3, 1, 2, 0, 4, 5, 8, 7, 6], [0, 1, -1, -1, -1, 5, 6, 7, 8], [-1] * 9, [8, 7, 6, 5, 4, 3, 2, 1, 0]):
        model.zero_grad()
        columns = [
            {"sentence_embedding": queries[share].clone(), "task": "query"},
            {"sentence_embedding": documents[:9][share].clone(), "task": "document"},
        ]
        value = loss(columns, torch.tensor(labels)[share])["contrastive"]
        value.backward()
        yield value.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _draw(count: int) -> torch.Tensor:
    corpus = (ids(30), normal(30, DIMENSION, seed=1))
    return CorpusContrastiveLoss(vector_model(), corpus, {"q": ["d0"]}).sample_documents(count).detach()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    in_two_processes(_one_of_two_processes, tmp_path)
    torch.manual_seed(0)
    expected = [found for form in FORMS for found in _steps(form)]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([drawn for _, drawn in ranks]), _draw(8))
    for (value, gradient), *others in zip(expected, *(steps for steps, _ in ranks), strict=True):
        mean = torch.stack([other[0] for other in others]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-9, atol=1e-12)
        for other in others:
            torch.testing.assert_close(other[1], gradient, rtol=1e-9, atol=1e-12)


# Bad input.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number above 0"),
        ({"temperature": math.nan}, ValueError, "temperature must be"),
        ({"precision": "fp16"}, ValueError, "precision must be 'fp32' or 'bf16', got 'fp16'"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"hard_negatives": -1}, ValueError, "hard_negatives must be at least 0"),
        ({"unlabelled_weight": 1.1}, ValueError, "unlabelled_weight must be from 0 to 1"),
        ({"negatives": "all"}, ValueError, "negatives must be 'corpus', 'batch' or 'both', got 'all'"),
        ({"corpus": {}}, ValueError, "The corpus is empty"),
        ({"corpus": ["a text"]}, TypeError, "must be a mapping of document id to text"),
        ({"corpus": (["d0"], torch.ones(2, 6))}, ValueError, r"1 ids and vectors of shape \(2, 6\)"),
        ({"corpus": (["d0", "d0"], torch.ones(2, 6))}, ValueError, "1 ids occur more than once in the corpus: 'd0'"),
        ({"corpus": (["d0"], torch.ones(1, 5))}, ValueError, "does not take the vectors"),
        ({"corpus": (["d0", "d1"], torch.tensor([[1.0] * 6, [math.nan] * 6]))}, ValueError, "document 'd1'"),
        ({"relevant": {"q": "d0"}}, TypeError, "query 'q' are the string 'd0'"),
        ({"relevant": {"q": {"d0": math.inf}}}, ValueError, "grade of document 'd0' for query 'q' is inf"),
        ({"relevant": {"q": {"d0": "high"}}}, TypeError, "grade of document 'd0'"),
        ({"relevant": {"q": {"d0": 0}, "r": []}}, ValueError, "None of the 2 queries"),
        ({"relevant": {}}, ValueError, "None of the 0 queries"),
        ({"relevant": {"q": ["d0", "x", "y"], "r": ["z", "u"]}}, ValueError, "4 relevant documents are not in the "
         "corpus of 4; the first are 'x' of query 'q', 'y' of query 'q', 'z' of query 'r', ..."),
    ],
)  # fmt: skip
def test_bad_settings_and_data_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"corpus": (ids(4), normal(4, DIMENSION, seed=1)), "relevant": {"q": ["d0"]}} | changes
    with pytest.raises(error, match=message):
        CorpusContrastiveLoss(vector_model(), **arguments)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs an integer label per row.* it got none"),
        (torch.tensor([0.0, 1.0]), "it got torch.float32"),
        (torch.tensor([0]), r"for 2 rows; it got torch.int64 of shape \(1,\)"),
        (torch.tensor([0, 3]), "1 of 2 labels are no position in `relevant`, which has 3 queries, nor -1: 3"),
        (torch.tensor([-2, 0]), "nor -1: -2"),
        (torch.tensor([1, 0]), "1 of 2 rows are queries without a relevant document: 'bare'"),
    ],
)
def test_bad_labels_are_refused(labels: torch.Tensor | None, message: str) -> None:
    relevant = {"q": ["d0"], "bare": {"d1": 0}, "r": ["d2"]}
    loss = CorpusContrastiveLoss(vector_model(), (ids(4), normal(4, DIMENSION, seed=1)), relevant)
    with pytest.raises(ValueError, match=message):
        loss([{"sentence_embedding": normal(2, DIMENSION, seed=2), "task": "query"}], labels)


def test_vectors_that_are_not_finite_are_named_and_a_zero_vector_is_not_nan() -> None:
    model = vector_model()
    loss = CorpusContrastiveLoss(model, (ids(4), normal(4, DIMENSION, seed=1)), {"q": ["d0"], "r": ["d1"]})
    queries = normal(2, DIMENSION, seed=2)
    queries[1, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 2 vectors of column 0 are not finite, the first in row 1"):
        loss.compute_loss_from_embeddings([queries], torch.arange(2))
    zero = torch.zeros(2, DIMENSION, requires_grad=True)
    loss.compute_loss_from_embeddings([zero], torch.arange(2))["contrastive"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite: it has diverged"):
        loss.compute_loss_from_embeddings([normal(2, DIMENSION, seed=2)], torch.arange(2))


def test_all_vectors_of_a_corpus_that_are_not_finite_are_counted() -> None:
    corpus = torch.ones(20_000, DIMENSION)
    corpus[[3, 19_000]] = math.nan
    for vectors in (corpus, corpus.numpy()):
        with pytest.raises(ValueError, match="2 vectors of the corpus are not finite: document 'd3' is the first"):
            CorpusContrastiveLoss(vector_model(), (ids(20_000), vectors), {"q": ["d0"]})


def test_an_encoder_that_trains_is_refused(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    loss = CorpusContrastiveLoss(model, DATA.corpus, DATA.qrels["train"])
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match="The encoder is trainable"):
        CorpusContrastiveLoss(model, DATA.corpus, DATA.qrels["train"])
    with pytest.raises(ValueError, match="The encoder is trainable"):
        loss.compute_loss_from_embeddings([torch.randn(1, 16)], torch.tensor([0]))


def test_the_logits_are_computed_in_float32_under_autocast() -> None:
    model = vector_model(query=False, out_features=DIMENSION)
    loss = CorpusContrastiveLoss(model, (ids(30), normal(30, DIMENSION, seed=1)), {"q": ["d0"]})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        value = loss.compute_loss_from_embeddings([normal(1, DIMENSION, seed=2).bfloat16()], torch.tensor([0]))
    assert value["contrastive"].dtype == torch.float32


def test_settings_and_citation() -> None:
    corpus = normal(30, DIMENSION, seed=1)
    loss = CorpusContrastiveLoss(vector_model(), (ids(30), corpus), {"q": ["d0"]})
    settings = {"temperature": 0.05, "documents": 30, "queries": 1}
    assert loss.get_config_dict() == {"negatives": "corpus", "unlabelled_weight": 1.0, **settings}
    batch = CorpusContrastiveLoss(vector_model(), (ids(30), corpus), {"q": ["d0"]}, negatives="batch")
    assert batch.get_config_dict() == {"negatives": "batch", **settings}
    assert "1807.03748" in loss.citation
    assert "2004.11362" in loss.citation
    large = sampled_loss(vector_model(), corpus, {"q": ["d0"]})
    assert large.get_config_dict()["hard_negatives"] == 16
    assert "2007.00808" in large.citation
