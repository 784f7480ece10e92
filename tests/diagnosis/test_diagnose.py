from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from torch import Tensor

import st_asym
from st_asym import CachedSentenceTransformer, Diagnosis, EmbeddingCache, asymmetric_model, diagnose
from st_asym.data import load_data
from st_asym.diagnosis import findings

WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "query", "red", "small", "text", "vector"]
DOCUMENTS = {f"d{a}{b}": f"{first} {second}" for a, first in enumerate(WORDS) for b, second in enumerate(WORDS)}
QUERIES = {f"q{n}": f"the {word} {WORDS[n - 1]}" for n, word in enumerate(WORDS)}
QRELS = {f"q{n}": {f"d{n}{n - 1 if n else 11}": 1, f"d{n}0": 2} for n in range(len(WORDS))}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    return EmbeddingCache(tmp_path_factory.mktemp("vectors"))


def layers(model: SentenceTransformer, side: str) -> list[Dense]:
    router = next(module for module in model if isinstance(module, Router))
    return [layer for layer in router.sub_modules[side] if isinstance(layer, Dense)]  # type: ignore[union-attr]


@torch.no_grad()
def shake(model: SentenceTransformer, *sides: str, by: float = 0.1) -> SentenceTransformer:
    torch.manual_seed(1)
    for side in sides:
        for layer in layers(model, side):
            layer.linear.weight += by * torch.randn_like(layer.linear.weight)
    return model


def troubles(diagnosis: Diagnosis) -> set[tuple[str, str | None]]:
    return {(finding.kind, finding.side) for finding in diagnosis.findings if finding.trouble}


@pytest.mark.parametrize("ending", ["normalize", "pooling"])
@pytest.mark.parametrize("options", [{}, {"hidden_features": None}, {"shared": True}, {"document": False}])
def test_fresh_heads_are_still_the_identity(
    make_encoder: Callable[..., SentenceTransformer],
    cache: EmbeddingCache,
    ending: str,
    options: dict[str, bool | None],
) -> None:
    model = asymmetric_model(make_encoder(ending), **options)  # type: ignore[arg-type]
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, QRELS, cache=cache)
    assert troubles(diagnosis) == {("identity", None)}
    assert "still the identity" in str(diagnosis)
    assert diagnosis.ranking.changed == 0.0
    assert diagnosis.judged is not None
    assert diagnosis.judged.difference == pytest.approx(0.0, abs=1e-9)
    assert diagnosis.query.after.mean_cosine == pytest.approx(diagnosis.query.before.mean_cosine, abs=1e-6)
    assert any(f.kind == "no head" and f.side == "document" for f in diagnosis.findings) == ("document" in options)


def test_texts_without_a_vector_and_half_precision_do_not_hide_the_identity(
    make_encoder: Callable[..., SentenceTransformer], cache: EmbeddingCache
) -> None:
    from sentence_transformers.sentence_transformer.modules import BoW

    words = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    unknown = diagnose(asymmetric_model(words), ["nothing", "else", "red head"], DOCUMENTS, cache=cache)
    assert troubles(unknown) == {("identity", None)}
    half = asymmetric_model(make_encoder().bfloat16(), activation="gelu")
    assert troubles(diagnose(half, QUERIES, DOCUMENTS, cache=cache)) == {("identity", None)}


@pytest.mark.parametrize(
    ("trained", "end"),
    [
        (None, ", 2 queries). It counts if these queries were not trained on."),
        ((), ", 2 queries). None of these queries was trained on."),
        (("q",), ", 2 queries)."),
    ],
)
def test_a_gain_says_what_is_known_of_its_queries(trained: Any, end: str) -> None:
    figures = findings.RelevanceFigures(*[0.5] * len(fields(findings.RelevanceFigures)))
    judged = findings.Judged(figures, figures, ("a", "b"), (0.1, 0.2), (0.5, 0.6), 0.4, 0.01, (), ())
    (found,) = findings._relevance(judged, trained)
    assert found.text.endswith(end)


def test_a_collapsed_model_is_named(tiny_encoder: SentenceTransformer, cache: EmbeddingCache) -> None:
    model = asymmetric_model(tiny_encoder)
    for side in ("query", "document"):
        layers(model, side)[-1].linear.bias.data += 10.0
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, QRELS, cache=cache)
    assert {("collapse", "query"), ("collapse", "document")} <= troubles(diagnosis)
    assert "query vectors have collapsed: their standard deviation went from" in str(diagnosis)


def test_a_collapse_onto_few_axes_is_named(tiny_encoder: SentenceTransformer, cache: EmbeddingCache) -> None:
    model = asymmetric_model(tiny_encoder, hidden_features=None)
    weight = layers(model, "document")[0].linear.weight
    weight.data[2:] = 0.0
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, cache=cache)
    assert ("collapse", "document") in troubles(diagnosis)
    assert diagnosis.document.after.effective_rank <= 2.01


def test_heads_to_fewer_dimensions_are_a_cut_and_no_collapse(make_encoder: Callable[..., SentenceTransformer]) -> None:
    model = asymmetric_model(make_encoder(), out_features=3)
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, QRELS)
    kinds = {finding.kind for finding in diagnosis.findings}
    assert "the model is the untouched encoder, cut to 3 dimensions." in diagnosis.findings[0].text
    assert "collapse" not in kinds
    assert diagnosis.judged is not None
    assert (diagnosis.judged.difference < -2 * (diagnosis.judged.error or 0)) == ("worse" in kinds)
    assert "Lower the learning rate" not in str(diagnosis)


def test_what_compares_by_dot_product_is_said_to_be_shown_by_cosine(
    make_encoder: Callable[..., SentenceTransformer], cache: EmbeddingCache
) -> None:
    model = asymmetric_model(make_encoder("pooling"))
    open_ended = SentenceTransformer(modules=list(model.children())[:-1], device="cpu", similarity_fn_name="dot")
    assert "The model compares by dot, and all figures here are by cosine." in str(
        diagnose(open_ended, QUERIES, DOCUMENTS, cache=cache)
    )
    assert "by dot" not in str(diagnose(model, QUERIES, DOCUMENTS, cache=cache))
    model.similarity_fn_name = "dot"  # of unit vectors it is the cosine, until they are cut
    assert "by dot" not in str(diagnose(model, QUERIES, DOCUMENTS, cache=cache))
    model.truncate_dim = 6
    assert "by dot" in str(diagnose(model, QUERIES, DOCUMENTS, cache=cache))


@pytest.mark.parametrize(("factor", "kind"), [(100.0, "length explosion"), (0.01, "length collapse")])
def test_lengths_out_of_range_are_named(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache, factor: float, kind: str
) -> None:
    model = shake(asymmetric_model(tiny_encoder), "query", "document")
    layers(model, "query")[-1].linear.weight.data *= factor
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, cache=cache)
    assert (kind, "query") in troubles(diagnosis)
    assert (kind, "document") not in troubles(diagnosis)


def test_without_a_last_normalize_lengths_matter_sooner(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache
) -> None:
    model = shake(asymmetric_model(tiny_encoder), "query", "document")
    layers(model, "query")[-1].linear.weight.data *= 4
    assert ("length explosion", "query") not in troubles(diagnose(model, QUERIES, DOCUMENTS, cache=cache))
    open_ended = SentenceTransformer(modules=list(model.children())[:-1], device="cpu")
    assert ("length explosion", "query") in troubles(diagnose(open_ended, QUERIES, DOCUMENTS, cache=cache))


@pytest.mark.parametrize(("moved", "idle"), [("document", "query"), ("query", "document")])
def test_a_side_that_did_not_train_is_named(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache, moved: str, idle: str
) -> None:
    model = shake(asymmetric_model(tiny_encoder), moved)
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, cache=cache)
    assert ("idle side", idle) in troubles(diagnosis)
    assert f"The {idle} head is still the identity" in str(diagnosis)


def test_moved_on_both_sides_is_no_idle_side_and_no_identity(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache
) -> None:
    kinds = {
        kind
        for kind, _ in troubles(
            diagnose(shake(asymmetric_model(tiny_encoder), "query", "document"), QUERIES, DOCUMENTS, cache=cache)
        )
    }
    assert not kinds & {"identity", "idle side", "unchanged ranking"}


def test_a_model_that_ranks_worse_is_named_with_its_losses(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache
) -> None:
    model = asymmetric_model(tiny_encoder, hidden_features=None)
    encoded = model.encode_query(list(QUERIES.values())), model.encode_document(list(DOCUMENTS.values()))
    nearest = (encoded[0] @ encoded[1].T).argmax(axis=1)
    qrels = {query: {list(DOCUMENTS)[row]: 1} for query, row in zip(QUERIES, nearest, strict=True)}
    layers(model, "query")[0].linear.weight.data *= -1
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, qrels, cache=cache)
    assert {("worse", None), ("margin", None)} <= troubles(diagnosis)
    judged = diagnosis.judged
    assert judged is not None
    assert judged.difference == pytest.approx(-1.0)
    assert len(judged.losses) == 10
    assert not judged.gains
    assert judged.losses[0].query == QUERIES[judged.losses[0].query_id]
    assert judged.losses[0].first_before == judged.losses[0].relevant
    assert diagnosis.ranking.changed == 1.0


def test_figures_are_those_of_the_encoded_texts(tiny_encoder: SentenceTransformer, cache: EmbeddingCache) -> None:
    model = shake(asymmetric_model(tiny_encoder), "query", "document")
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, QRELS, cache=cache)
    queries = model.encode_query(list(QUERIES.values())).astype(np.float64)
    documents = model.encode_document(list(DOCUMENTS.values())).astype(np.float64)
    cosines = queries @ documents.T
    positive = np.zeros_like(cosines, dtype=bool)
    for row, query in enumerate(QUERIES):
        for document in QRELS[query]:
            positive[row, list(DOCUMENTS).index(document)] = True
    judged, histograms = diagnosis.judged, diagnosis.histograms
    assert judged is not None
    assert judged.after.positive == pytest.approx(cosines[positive].mean(), abs=1e-5)
    assert judged.after.negative == pytest.approx(cosines[~positive].mean(), abs=1e-5)
    assert judged.after.alignment == pytest.approx(2 - 2 * cosines[positive].mean(), abs=1e-5)
    hard = [cosines[q][positive[q]].mean() - cosines[q][~positive[q]].max() for q in range(len(queries))]
    assert judged.after.hard_margin == pytest.approx(np.mean(hard), abs=1e-5)
    run = {
        query: {document: float(value) for document, value in zip(DOCUMENTS, cosines[row], strict=True)}
        for row, query in enumerate(QUERIES)
    }
    expected = pytrec_eval.RelevanceEvaluator(QRELS, {"ndcg_cut.10"}).evaluate(run)
    assert judged.ndcg_after == pytest.approx([expected[q]["ndcg_cut_10"] for q in judged.query_ids], abs=1e-6)
    assert sum(histograms.positive_after) == positive.sum()
    assert sum(histograms.negative_after) == (~positive).sum()
    counts, _ = np.histogram(cosines[~positive], bins=np.array(histograms.edges))
    assert np.abs(counts - np.array(histograms.negative_after)).sum() <= 4


def test_a_truncated_model_is_diagnosed_as_it_encodes(tiny_encoder: SentenceTransformer, cache: EmbeddingCache) -> None:
    model = asymmetric_model(tiny_encoder)
    model.truncate_dim = 6
    fresh = diagnose(model, QUERIES, DOCUMENTS, QRELS, cache=cache)
    assert troubles(fresh) == {("identity", None)}
    assert fresh.ranking.changed == 0.0
    assert fresh.query.head.map_distance == pytest.approx(0.0, abs=1e-6)
    assert len(fresh.query.head.singular_values) == 6
    diagnosis = diagnose(shake(model, "query", "document"), QUERIES, DOCUMENTS, QRELS, cache=cache)
    vectors = [model.encode_query(list(QUERIES.values())), model.encode_document(list(DOCUMENTS.values()))]
    queries, documents = (found / np.linalg.norm(found, axis=1, keepdims=True) for found in vectors)
    cosines = queries @ documents.T
    positive = [cosines[q, list(DOCUMENTS).index(d)] for q, query in enumerate(QUERIES) for d in QRELS[query]]
    assert queries.shape[1] == diagnosis.query.after.dimension == diagnosis.query.before.dimension == 6
    assert diagnosis.judged is not None
    assert diagnosis.judged.after.positive == pytest.approx(np.mean(positive), abs=1e-5)
    assert diagnosis.query.after.mean_cosine == pytest.approx(
        (queries @ queries.T)[~np.eye(12, dtype=bool)].mean(), abs=1e-5
    )


def test_a_query_that_is_a_document_does_not_find_itself(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache
) -> None:
    model = shake(asymmetric_model(tiny_encoder), "query", "document")
    own = {key: DOCUMENTS[key] for key in ("d37", "d52", "d64")}
    documents = dict(list(DOCUMENTS.items())[:90])
    qrels = {"d37": {"d12": 1}, "d52": {"d25": 1, "d52": 0}, "d64": {"d01": 2}}
    assert set(own) < set(documents)
    diagnosis = diagnose(model, own, documents, qrels, cache=cache)
    queries = model.encode_query(list(own.values())).astype(np.float64)
    cosines = queries @ model.encode_document(list(documents.values())).astype(np.float64).T
    run = {
        query: {key: float(value) for key, value in zip(documents, cosines[row], strict=True) if key != query}
        for row, query in enumerate(own)
    }
    expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    judged = diagnosis.judged
    assert judged is not None
    assert judged.ndcg_after == pytest.approx([expected[q]["ndcg_cut_10"] for q in judged.query_ids], abs=1e-6)
    others = [value for q, own_run in run.items() for key, value in own_run.items() if qrels[q].get(key, 0) == 0]
    assert judged.after.negative == pytest.approx(np.mean(others), abs=1e-5)
    assert sum(diagnosis.histograms.negative_after) == len(others)
    chance = diagnose(model, own, documents, {**qrels, "d37": {"d37": 1}}, cache=cache)  # numbered independently
    assert chance.judged is not None
    assert sum(chance.histograms.negative_after) == len(others) + 3


def test_the_saved_model_is_diagnosed_as_the_one_in_memory(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache, tmp_path: Path
) -> None:
    model = shake(asymmetric_model(tiny_encoder), "query", "document")
    model.save_pretrained(str(tmp_path / "model"))
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    cached = CachedSentenceTransformer(model, cache)
    expected = diagnose(cached, QUERIES, DOCUMENTS, QRELS)
    for other in (
        diagnose(loaded, QUERIES, DOCUMENTS, QRELS, cache=cache),
        diagnose(cached, QUERIES, DOCUMENTS, QRELS),
    ):
        assert other.query == expected.query
        assert other.judged == expected.judged
    assert any(parameter.requires_grad for parameter in loaded[0].parameters())


def test_json_is_valid_and_holds_everything(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache, tmp_path: Path
) -> None:
    texts = list(QUERIES.values())
    qrels = {"q0": {f"d{n}": 1 for n in range(len(DOCUMENTS))}}  # no negatives: the margin to the best is undefined
    diagnosis = diagnose(asymmetric_model(tiny_encoder), texts, list(DOCUMENTS.values()), qrels, cache=cache)
    diagnosis.save(tmp_path / "diagnosis.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    saved = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert saved == diagnosis.as_dict()
    # Half of a pair of UTF-16, as some exports have it, is no reason to lose the diagnosis.
    odd = replace(diagnosis, findings=(replace(diagnosis.findings[0], text="a \ud800 b"),))
    odd.save(tmp_path / "diagnosis.json")
    assert json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))["findings"][0]["text"] == "a ? b"
    assert saved["judged"]["after"]["hard_margin"] is None
    assert saved["judged"]["error"] is None
    assert saved["first_line"] == diagnosis.first_line
    assert len(saved["query"]["after"]["spectrum"]) == 16
    assert sum(saved["document"]["before"]["spectrum"]) == pytest.approx(1.0, abs=1e-4)
    assert saved["query"]["head"]["layers"] == "16 -> 32 -> 16"


def test_more_queries_than_a_block_and_ties_in_another_order() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator)) for n in (40, 30))
    documents = torch.cat([documents, documents])  # every document twice
    pairs, none = (torch.arange(40), torch.arange(40) % 60), (torch.empty(0).long(), torch.empty(0).long())
    whole = findings.compare(queries, documents, pairs, none)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "_AT_ONCE", 7 * 60)
        blocks = findings.compare(queries, documents, pairs, none)
    assert blocks.negative_counts == whole.negative_counts
    assert blocks.positive_counts == whole.positive_counts
    np.testing.assert_allclose(blocks.positives, whole.positives, atol=1e-6)
    np.testing.assert_allclose(blocks.best_negative, whole.best_negative, atol=1e-6)
    order = torch.arange(60).flip(0)
    mirrored = findings.compare(queries, documents[order], none, none)
    other: Tensor = order[mirrored.top]
    swapped = findings.Similarities(other, *list(vars(mirrored).values())[1:])
    assert findings.ranking(whole, swapped, queries, documents).replaced == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["one"], DOCUMENTS), "at least two queries, got 1"),
        ((QUERIES, ["one"]), "at least two documents, got 1"),
        ((QUERIES, DOCUMENTS, {"q99": {"d00": 1}}), "qrels names 1 queries or documents that do not exist: query q99"),
        ((QUERIES, DOCUMENTS, {"q1": {"x": 1}}), "document x"),
        ((QUERIES, DOCUMENTS, {"q1": {"d00": 0}}), "judge no document relevant"),
        ((QUERIES, DOCUMENTS, {"test": {"q1": {"d00": 1}}}), "those of one split"),
        (({"q": 1, "r": "x"}, DOCUMENTS), "not a string"),
    ],
)
def test_bad_input_is_named(
    tiny_encoder: SentenceTransformer, cache: EmbeddingCache, arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(asymmetric_model(tiny_encoder), *arguments, cache=cache)  # type: ignore[arg-type]


def test_the_names_are_public() -> None:
    assert {"diagnose", "Diagnosis"} <= set(st_asym.__all__)


@pytest.mark.slow
def test_on_real_text_a_fresh_model_is_the_encoder_and_a_damaged_one_is_worse(
    real_encoder: SentenceTransformer, shared_data: Path, cache: EmbeddingCache
) -> None:
    data = load_data(shared_data / "scifact.zip")
    qrels = dict(list(data.qrels["test"].items())[:25])
    queries = {query: data.queries[query] for query in qrels}
    relevant = {document for judged in qrels.values() for document in judged}
    corpus = {d: text[:200] for d, text in data.corpus.items() if d in relevant or int(d) % 50 == 0}
    model = asymmetric_model(real_encoder)
    fresh = diagnose(model, queries, corpus, qrels, cache=cache)
    assert troubles(fresh) == {("identity", None)}
    assert fresh.query.before.length == pytest.approx(1.0, abs=1e-5)
    assert 0.0 < fresh.document.before.mean_cosine < 0.3
    assert fresh.judged is not None
    assert fresh.judged.before.positive > fresh.judged.before.negative + 0.3
    damaged = diagnose(shake(model, "query", by=0.3), queries, corpus, qrels, cache=cache)
    assert {("idle side", "document"), ("worse", None)} <= troubles(damaged)


def test_in_a_corpus_of_ten_another_order_is_a_move(tiny_encoder: SentenceTransformer, cache: EmbeddingCache) -> None:
    model = asymmetric_model(tiny_encoder, hidden_features=None)
    layers(model, "query")[0].linear.weight.data *= -1
    few = dict(list(DOCUMENTS.items())[:10])  # each query finds all of them, before and after
    diagnosis = diagnose(model, QUERIES, few, cache=cache)
    assert diagnosis.ranking.changed == 0
    assert "unchanged ranking" not in {kind for kind, _ in troubles(diagnosis)}
