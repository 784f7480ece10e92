"""BM25, and what it adds to each model, as rows like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from evaluation_helpers import collection, with_heads
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from st_asym import Comparison, evaluate
from st_asym.data import RetrievalData
from st_asym.evaluation.baselines import Bm25Search
from st_asym.retrieval import Judgments
from st_asym.retrieval.search import Bm25Index, standardised

Make = Callable[..., SentenceTransformer]


def with_dev(data: RetrievalData, count: int = 24) -> RetrievalData:
    """Dev queries that share their words with one document each."""
    keys = list(data.corpus)
    dev = {f"v{i}": keys[i % len(keys)] for i in range(count)}
    queries = data.queries | {query: data.corpus[key] for query, key in dev.items()}
    return replace(data, queries=queries, qrels={**data.qrels, "dev": {query: {key: 1} for query, key in dev.items()}})


def by_hand(model: SentenceTransformer, data: RetrievalData, weight: float) -> list[float]:
    """nDCG@10 of the cosine plus weighted BM25, in the order of the query ids."""
    judged = dict(sorted(data.qrels["test"].items()))
    texts = [data.queries[query] for query in judged]
    both = model.encode_query(texts, normalize_embeddings=True) @ (
        model.encode_document(list(data.corpus.values()), normalize_embeddings=True).T
    )
    both = both + weight * standardised(Bm25Index(list(data.corpus.values())).similarities(texts))
    places = {key: place for place, key in enumerate(data.corpus)}
    return list(Judgments(judged, places).ndcg(np.argsort(-both, axis=1, kind="stable")))


def test_bm25_stands_second_and_beside_every_model(make_encoder: Make, tmp_path: Path) -> None:
    data, encoder = collection(), make_encoder()
    models = {"plain": encoder, "heads": [with_heads(encoder, 1), with_heads(encoder, 2)]}
    found = evaluate(models, {"tiny": data}, results=tmp_path, baselines=("bm25", "hybrid"))
    assert [row.name for row in found.rows] == ["plain", "BM25", "plain + BM25", "heads", "heads + BM25"]
    assert [row.baseline for row in found.rows] == [False, True, True, False, True]
    assert [row.verdict is None for row in found.rows] == [True, True, True, False, True]
    assert all(row.difference is not None for row in found.rows[1:])
    assert len(found["heads + BM25"].digests) == 2
    expected = by_hand(encoder, data, 0.02)
    assert found.queries["tiny"]["scores"]["plain + BM25"]["ndcg@10"][0] == pytest.approx(expected)
    assert "to 'plain + BM25'" in found["heads + BM25"].next_steps[0]
    assert "plain + BM25: BM25 weighs 0.02 on tiny, without dev queries." in found.notes
    assert "| BM25 |" in found.to_markdown(wide=False)
    found.to_json(tmp_path / "found.json")
    assert Comparison.load(tmp_path / "found.json") == found


def test_what_is_added_on_one_query_is_said_of_one_query(make_encoder: Make, tmp_path: Path) -> None:
    data, encoder = collection(), make_encoder()
    one = replace(data, qrels={"test": {"q0": data.qrels["test"]["q0"]}})
    found = evaluate({"plain": encoder, "heads": with_heads(encoder, 1)}, {"tiny": one}, results=tmp_path)
    assert found["heads + BM25"].next_steps[0].endswith("on 1 query that neither was trained on.")


def test_what_was_measured_is_not_measured_again(
    make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    models = {"plain": make_encoder()}
    first = evaluate(models, {"tiny": collection()}, results=tmp_path, baselines=("bm25", "hybrid"))
    monkeypatch.setattr("st_asym.evaluation.mteb.mteb.evaluate", refuse)
    assert evaluate(models, {"tiny": collection()}, results=tmp_path, baselines=("bm25", "hybrid")).rows == first.rows


def test_a_corpus_is_indexed_once_for_all_rows(make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed: list[int] = []

    class Counted(Bm25Index):
        def __init__(self, documents: list[str]) -> None:
            indexed.append(len(documents))
            super().__init__(documents)

    monkeypatch.setattr("st_asym.evaluation.baselines.Bm25Index", Counted)
    encoder, data = make_encoder(), collection()
    less = replace(data, corpus=dict(list(data.corpus.items())[:-1]))
    models = {"plain": encoder, "heads": [with_heads(encoder, 1), with_heads(encoder, 2)]}
    evaluate(models, {"tiny": data, "smaller": less}, results=None, baselines=("bm25", "hybrid"))
    assert sorted(indexed) == [len(data.corpus) - 1, len(data.corpus)]


def test_models_are_judged_as_without_baselines(make_encoder: Make) -> None:
    encoder = make_encoder()
    models = {"plain": encoder, "heads": with_heads(encoder, 1)}
    alone, beside = (
        evaluate(models, {"tiny": collection()}, results=None, compressed=8, baselines=wanted)
        for wanted in ((), ("bm25", "hybrid"))
    )
    assert [row.name for row in alone.rows] == ["plain", "heads"]
    assert beside["heads"] == alone["heads"]
    assert "8 dims" in str(beside)


def test_one_baseline_may_be_given_by_its_name(make_encoder: Make) -> None:
    found = evaluate({"plain": make_encoder()}, {"tiny": collection()}, results=None, baselines="bm25")
    assert [row.name for row in found.rows] == ["plain", "BM25"]


def test_the_weight_is_chosen_on_dev_queries_and_never_on_those_judged(make_encoder: Make) -> None:
    data, models = with_dev(collection()), {"plain": make_encoder()}
    found = evaluate(models, {"tiny": data}, results=None, baselines=["hybrid"])
    assert [row.name for row in found.rows] == ["plain", "plain + BM25"]
    (note,) = (note for note in found.notes if "weighs" in note)
    assert note.endswith("on tiny, chosen on 24 dev queries.")
    weight = float(note.split("weighs ")[1].split()[0])
    assert found.queries["tiny"]["scores"]["plain + BM25"]["ndcg@10"][0] == pytest.approx(
        by_hand(models["plain"], data, weight)
    )
    found = evaluate(models, {"tiny": data}, results=None, split="dev", baselines=["hybrid"])
    assert "plain + BM25: BM25 weighs 0.02 on tiny, without dev queries." in found.notes
    both = data.qrels["dev"]
    renamed = {f"again {query}": judged for query, judged in both.items()}
    queries = data.queries | {f"again {query}": data.queries[query].upper() for query in both}
    for dev in (both, renamed):
        again = RetrievalData(queries, data.corpus, {"test": both, "dev": dev})
        found = evaluate(models, {"tiny": again}, results=None, baselines=["hybrid"])
        assert "plain + BM25: BM25 weighs 0.02 on tiny, without dev queries." in found.notes


def test_weights_to_choose_from_are_part_of_what_was_measured(
    make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, models = with_dev(collection()), {"plain": make_encoder()}
    for weights in ((0.04,), (0.005, 0.005)):
        monkeypatch.setattr("st_asym.evaluation.baselines.WEIGHTS", weights)
        found = evaluate(models, {"tiny": data}, results=tmp_path, baselines=["hybrid"])
        assert any(f"BM25 weighs {weights[0]:g} on tiny" in note for note in found.notes)


def test_a_query_s_own_document_is_no_result(make_encoder: Make) -> None:
    data = collection()
    own = replace(data, corpus={**data.corpus, "q0": data.queries["q0"]})
    found = evaluate({"plain": make_encoder()}, {"tiny": own}, results=None, baselines=["bm25"])
    places = {key: place for place, key in enumerate(data.corpus)}
    first = found.queries["tiny"]["ids"].index("q0")
    (scores,) = Bm25Index(list(own.corpus.values())).similarities([data.queries["q0"]])
    order = sorted(places, key=lambda key: (scores[places[key]], key), reverse=True)  # equal ones as trec_eval has them
    expected = Judgments({"q0": data.qrels["test"]["q0"]}, places).ndcg([[places[key] for key in order]])
    assert found.queries["tiny"]["scores"]["BM25"]["ndcg@10"][0][first] == pytest.approx(expected[0])


def test_of_a_task_that_reranks_the_documents_given_are_found_alone() -> None:
    search = Bm25Search(Bm25Index)
    search.index(Dataset.from_dict({"id": ["a", "b", "c"], "text": ["red head", "red", "big text"]}))
    queries = Dataset.from_dict({"id": ["q", "r"], "text": ["red head", "big red"]})
    found = search.search(queries)
    assert [set(own) for own in found.values()] == [{"a", "b"}, {"a", "b", "c"}]
    some = search.search(queries, top_ranked={"q": ["b", "c"], "r": []})
    assert some == {"q": {"b": found["q"]["b"]}, "r": {}}


def test_an_instruction_and_a_conversation_are_searched_as_the_model_reads_them() -> None:
    search = Bm25Search(Bm25Index)
    search.index(Dataset.from_dict({"id": ["a", "b"], "text": ["red head", "big text"]}))
    asked = Dataset.from_dict({"id": ["q", "r"], "text": ["small", "red"], "instruction": ["big text", None]})
    assert [set(own) for own in search.search(asked).values()] == [{"b"}, {"a"}]
    turns = Dataset.from_dict({"id": ["q"], "text": [[{"role": "user", "content": "the head"}]]})
    assert set(search.search(turns)["q"]) == {"a"}


def test_what_cannot_be(make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"plain": make_encoder()}
    with pytest.raises(ValueError, match="'bm25' or 'hybrid', got 'bm52'"):
        evaluate(models, {"tiny": collection()}, results=None, baselines=["bm52"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="'BM25' is a row by itself"):
        evaluate({"BM25": make_encoder()}, {"tiny": collection()}, results=None, baselines=["bm25"])
    monkeypatch.setattr("st_asym.evaluation.baselines.MOST_DOCUMENTS", 11)
    found = evaluate(models, {"tiny": collection()}, results=None, baselines=["bm25"])
    assert "There are no rows of BM25: tiny has 12 documents." in found.notes
    monkeypatch.setattr("st_asym.evaluation.baselines.bm25_is_installed", lambda: False)
    with pytest.raises(ImportError, match="pip install 'st_asym\\[eval\\]'"):
        evaluate(models, {"tiny": collection()}, results=None, baselines=["bm25"])
    found = evaluate(models, {"tiny": collection()}, results=None)
    assert [row.name for row in found.rows] == ["plain"]


@given(st.lists(st.text(alphabet="ab é", max_size=12), min_size=1, max_size=6), st.text(alphabet="ab é", max_size=12))
@settings(deadline=None, max_examples=40)
def test_scores_are_finite_and_above_zero_where_a_word_is_shared(documents: list[str], query: str) -> None:
    found = Bm25Index(documents).similarities([query, ""])
    words = {word for word in query.split() if len(word) > 1}
    shared = [bool(words & set(document.split())) for document in documents]
    assert found.shape == (2, len(documents))
    assert list(found[0] > 0) == shared
    assert not found[1].any()
    assert np.isfinite(standardised(found)).all()
