from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW
from sentence_transformers.util import hard_negatives

from st_asym import CachedSentenceTransformer, EmbeddingCache, Settings, fit, mine_negatives
from st_asym.data import RetrievalData
from st_asym.fitting.candidates import with_hard_negatives
from st_asym.fitting.vectors import read_vectors
from st_asym.trainer import negatives

MakeEncoder = Callable[..., SentenceTransformer]
WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "red", "small", "text", "vector"]
QUERIES = {f"q{i}": f"query {word} {WORDS[i - 1]}" for i, word in enumerate(WORDS)}
CORPUS = {f"d{i}{j}": f"{a} {b} document" for i, a in enumerate(WORDS) for j, b in enumerate(WORDS) if i != j}
RELEVANT = {f"q{i}": {f"d{i}{(i + 1) % 11}": 2, f"d{(i + 1) % 11}{i}": 1, f"d{i}{(i + 2) % 11}": 0} for i in range(11)}
DATA = RetrievalData(QUERIES, CORPUS, {"train": RELEVANT})


def filled(encoder: SentenceTransformer, folder: Path, data: RetrievalData = DATA) -> EmbeddingCache:
    cache = EmbeddingCache(folder)
    cache.fill(encoder, data.queries.values(), prompt=encoder.prompts.get("query"), task="query")
    cache.fill(encoder, data.corpus.values(), prompt=encoder.prompts.get("document"), task="document")
    return cache


def test_they_are_the_nearest_that_are_not_relevant_and_the_encoder_does_not_run_for_them(
    make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoder = make_encoder(prompts={"query": "red ", "document": "text "})
    cached = CachedSentenceTransformer(encoder.requires_grad_(False).eval(), filled(encoder, tmp_path))
    runs: list[int] = []
    handle = encoder[0].register_forward_hook(lambda *_: runs.append(1))
    found = mine_negatives(cached, DATA, num_negatives=3)
    assert runs == []
    handle.remove()

    assert found.column_names == ["query", "document", "negative_1", "negative_2", "negative_3"]
    similarity = encoder.encode_query(list(QUERIES.values())) @ encoder.encode_document(list(CORPUS.values())).T
    texts = list(CORPUS.values())
    expected = []
    for row, query_id in enumerate(QUERIES):
        relevant = {CORPUS[d] for d, grade in RELEVANT[query_id].items() if grade > 0}
        nearest = [texts[i] for i in np.argsort(-similarity[row]) if texts[i] not in relevant][:3]
        expected += [(QUERIES[query_id], document, *nearest) for document in relevant]
    assert sorted(zip(*(found[name] for name in found.column_names), strict=True)) == sorted(expected)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=25),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=10),
    st.integers(1, 3),
)
def test_known_positives_and_ignored_documents_are_never_negatives(
    judged: list[tuple[int, int, int]], ignored: list[tuple[int, int]], count: int
) -> None:
    model = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    corpus = {f"d{i}": f"{WORDS[i // 2]} {WORDS[-1 - i // 4]}" for i in range(10)}  # some texts come twice
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in judged:
        qrels.setdefault(f"q{query}", {})[f"d{document}"] = grade
    passed: dict[str, dict[str, int]] = {}
    for query, document in ignored:
        passed.setdefault(f"q{query}", {})[f"d{document}"] = 1
    data = RetrievalData({f"q{i}": WORDS[i] for i in range(5)}, corpus, {"train": qrels})
    barred = {
        data.queries[q]: {corpus[d] for part in (data.relevant("train"), passed) for d in part.get(q, ())}
        for q in qrels
    }
    asked = set(zip(*(data.pairs("train")[name] for name in ("query", "document")), strict=True))
    enough = {pair for pair in asked if len(set(corpus.values()) - barred[pair[0]]) >= count}
    if not enough:
        with pytest.raises(ValueError):
            mine_negatives(model, data, num_negatives=count, ignored=passed)
        return
    found = mine_negatives(model, data, num_negatives=count, ignored=passed)
    assert set(zip(found["query"], found["document"], strict=True)) == enough
    assert len(found) == len(enough)
    for row in found:
        chosen = [row[f"negative_{i + 1}"] for i in range(count)]
        assert not barred[row["query"]].intersection(chosen)
        assert len(set(chosen)) == count


def test_a_query_that_is_a_document_is_not_its_own_negative() -> None:
    model = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    corpus = {f"d{i}": f"{WORDS[i]} {WORDS[i + 1]}" for i in range(4)}
    data = RetrievalData({"d0": corpus["d0"]}, corpus, {"train": {"d0": {"d3": 1}}})
    assert mine_negatives(model, data)["negative_1"] == [corpus["d1"]]


def test_what_is_relevant_to_a_query_in_another_spelling_is_no_negative(tiny_encoder: SentenceTransformer) -> None:
    queries = {"a": "head red", "b": "Head  red"}
    corpus = {"1": "big query", "2": "small text", "3": "frozen learns"}
    data = RetrievalData(queries, corpus, {"train": {"a": {"1": 1}, "b": {"2": 1}}})
    assert mine_negatives(tiny_encoder, data)["negative_1"] == ["frozen learns"] * 2


def test_a_bounded_number_of_similarities_at_once_finds_the_same(
    tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    everything = mine_negatives(tiny_encoder, DATA, num_negatives=2)
    monkeypatch.setattr(negatives, "_AT_ONCE", 2)
    assert mine_negatives(tiny_encoder, DATA, num_negatives=2).to_dict() == everything.to_dict()
    assert capfd.readouterr() == ("", "")
    mine_negatives(tiny_encoder, DATA, show_progress_bar=True)
    assert "similarity" in capfd.readouterr().err


def test_what_others_write_to_standard_error_meanwhile_is_shown(
    tiny_encoder: SentenceTransformer, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_encoder[1].register_forward_hook(lambda *_: sys.stderr.write("a warning\n") and None)
    trange = hard_negatives.trange
    mine_negatives(tiny_encoder, DATA)
    found = capfd.readouterr()
    assert found.out == ""
    assert set(found.err.splitlines()) == {"a warning"}
    assert hard_negatives.trange is trange


def test_pairs_without_enough_negatives_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    corpus = {"a": "red head", "b": "big head", "c": "big text"}
    data = RetrievalData({"near": "red head", "far": "head"}, corpus, {"train": {"near": {"a": 1}, "far": {"c": 1}}})
    assert len(mine_negatives(model, data)) == 2
    with caplog.at_level(logging.WARNING, "st_asym"):
        found = mine_negatives(model, data, relative_margin=0.05)
    assert found.to_list() == [{"query": "red head", "document": "red head", "negative_1": "big head"}]
    assert "1 of 2 pairs of train are dropped" in caplog.text
    with pytest.raises(ValueError, match="None of the 2 pairs of train has 3 negatives among 3 documents"):
        mine_negatives(model, data, num_negatives=3)
    with pytest.raises(KeyError, match="no split 'dev'"):
        mine_negatives(model, data, "dev")


def test_a_margin_is_below_the_relevant_documents_whatever_is_ignored() -> None:
    model = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    corpus = {"a": "red head", "b": "red head text", "c": "big text", "d": "red"}
    data = RetrievalData({"q": "red head"}, corpus, {"train": {"q": {"a": 1}}})
    found = mine_negatives(model, data, relative_margin=0.05, ignored={"q": {"c": 1, "elsewhere": 1}})
    assert found["negative_1"][:] == ["red head text"]


def test_a_fit_trains_on_them_and_leaves_out_what_was_withheld(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    vectors = read_vectors(tiny_encoder, DATA, EmbeddingCache(tmp_path), {})
    nearest = {row["query"]: row["negative_1"] for row in mine_negatives(tiny_encoder, DATA)}
    ids = {text: document_id for document_id, text in CORPUS.items()}
    withheld = {query_id: set[str]() for query_id in RELEVANT} | {"q3": {ids[nearest[QUERIES["q3"]]]}}
    found = with_hard_negatives(vectors, RELEVANT, withheld, 2)
    for query_id, judged in RELEVANT.items():
        mined = found[query_id].keys() - judged.keys()
        assert found[query_id] == {**judged, **dict.fromkeys(mined, 0)}
        assert len(mined) == 2
        assert not mined & withheld[query_id]


def test_fit_takes_them_as_a_setting(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    settings = Settings(sides="both", init="identity", contrastive="in-batch", hard_negatives=1, epochs=2)
    pairs = [(QUERIES[q], CORPUS[d]) for q, documents in RELEVANT.items() for d, grade in documents.items() if grade]
    result = fit(
        tiny_encoder, pairs, output_dir=tmp_path / "model", cache=tmp_path / "vectors", settings=settings,
        show_progress_bar=False,
    )  # fmt: skip
    assert result.report.settings.hard_negatives == 1


def test_they_are_refused_where_they_would_do_nothing() -> None:
    with pytest.raises(ValueError, match="hard_negatives=4 is for contrastive='in-batch'"):
        Settings(contrastive="corpus", hard_negatives=4)
    with pytest.raises(ValueError, match="at least 0"):
        Settings(contrastive="in-batch", hard_negatives=-1)
