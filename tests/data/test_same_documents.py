"""One rule for what one document is, wherever documents meet: reading, mining, splitting, evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from st_asym import diagnose, evaluate, mine_negatives
from st_asym.data import RetrievalData, as_retrieval_data, copies, from_pairs, load_data, text_key
from st_asym.data.collection import own_documents
from st_asym.data.holdout import hold_out, seen_unseen
from st_asym.heads.model import asymmetric_model

Make = Callable[..., SentenceTransformer]


def relevant_texts(data: RetrievalData, split: str = "train") -> dict[str, set[str]]:
    return {data.queries[q]: {data.corpus[d] for d in ids} for q, ids in data.relevant(split).items()}


# The rule


@pytest.mark.parametrize(
    "other",
    [" d", "D", "\td\r\n", "\u00a0d", "\uff44", "\u3000 d", "\ufeffd", "d\u200b", "\u00add", "\u200ed"],
    ids=["space", "case", "lines", "no-break", "wide", "ideographic", "mark", "zero-width", "soft-hyphen", "direction"],
)
def test_spellings_of_one_text_have_one_key(other: str) -> None:
    assert text_key(other) == text_key("d")
    assert text_key("Stra\u00dfe  i\u0301n") == text_key("STRASSE \u00edn")
    assert text_key("a b") != text_key("ab")
    assert text_key("d.") != text_key("d")


@given(st.text())
def test_white_space_and_the_ascii_path_make_no_difference(text: str) -> None:
    assert text_key(f"  {text}\n") == text_key(text)
    assert text_key(f"\u00e9 {text}").removeprefix("\u00e9").strip() == text_key(text)


def test_copies_are_those_of_relevant_documents_that_are_not_relevant_themselves() -> None:
    corpus = {"a": "Red head", "b": "red  head", "c": "RED HEAD", "d": "blue", "e": "Blue ", "f": "own"}
    qrels = {"q": {"a": 1, "b": 2, "c": 0}, "r": {"d": 1, "f": 1}, "s": {"e": 0}, "t": {"f": 1}}
    assert copies(qrels, corpus) == {"q": {"c": 1}, "r": {"e": 1}}
    assert copies({}, corpus) == copies({"q": {"a": 0}}, corpus) == {}


# Reading


@pytest.mark.parametrize("corpus", [["d", "e"], {"x": "d", "y": "e"}, [{"text": "d"}, {"text": "e"}]])
def test_pairs_and_a_corpus_meet(corpus: Any) -> None:
    data = as_retrieval_data([("q", " d"), ("r", "E")], corpus=corpus)
    assert sorted(data.corpus.values()) == ["d", "e"]
    assert relevant_texts(data) == {"q": {"d"}, "r": {"e"}}
    (note,) = data.notes
    assert note.startswith("corpus: 2 documents are the same as another but for white space, case or Unicode form")


def test_the_ids_of_a_corpus_are_kept_and_those_of_pairs_give_way(tmp_path: Path) -> None:
    rows = [
        {"_id": "x", "title": "Care of", "text": "pumps"},
        {"_id": "y", "text": "care of  PUMPS"},
        {"_id": "d0", "text": "e"},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for corpus in (tmp_path, tmp_path / "corpus.jsonl", {row["_id"]: row for row in rows}, Dataset.from_list(rows)):
        data = as_retrieval_data([("q", "Care of pumps "), ("r", "new")], corpus=corpus)
        assert data.corpus == {"x": "Care of pumps", "y": "care of  PUMPS", "d0": "e", "d1": "new"}
        assert data.relevant("train") == {"q0": {"x"}, "q1": {"d1"}}
        assert "1 document has the text of a relevant one under another id: neither relevant nor not" in data.notes[-1]
        assert copies(data.qrels["train"], data.corpus) == {"q0": {"y": 1}}
    data = as_retrieval_data([("q", "Care of pumps "), ("r", "new"), ("s", "E")], corpus={"d1": "other", "z": "e"})
    assert data.corpus == {"d1": "other", "z": "e", "d0": "Care of pumps ", "train:d1": "new"}
    assert data.relevant("train") == {"q0": {"d0"}, "q1": {"train:d1"}, "q2": {"z"}}


def test_a_query_that_is_numbered_is_no_document_of_a_corpus_with_such_ids() -> None:
    data = as_retrieval_data([("q", "a"), ("r", "b")], corpus={"q0": "other", "x": "b"}, dev=[("s", "a")])
    assert relevant_texts(data) == {"q": {"a"}, "r": {"b"}}
    assert relevant_texts(data, "dev") == {"s": {"a"}}
    assert set(data.queries) == {"query:q0", "q1", "dev:q0"}
    assert own_documents(data.corpus, data.qrels["train"]) == []


def test_a_collection_with_ids_keeps_them_and_its_spellings() -> None:
    data = RetrievalData({"q": "a"}, {"x": "One", "y": "two"}, {"train": {"q": {"x": 1}}})
    more = as_retrieval_data(data, corpus={"m": "ONE", "n": "three"})
    assert more.corpus == {"x": "One", "y": "two", "n": "three"}
    assert "corpus: 1 document is the same as another" in more.notes[0]


@pytest.mark.parametrize(
    "train",
    [
        [("q", "Red  head"), ("r", "red head"), ("q", "RED HEAD"), ("s", "blue")],
        [
            {"query": "q", "pos": ["Red  head", "RED HEAD"]},
            {"query": "r", "pos": "red head"},
            {"query": "s", "pos": "blue"},
        ],
        DatasetDict(
            train=Dataset.from_list([{"query": "q", "text": "Red  head"}, {"query": "s", "text": "blue"}]),
            more=Dataset.from_list([{"query": "r", "text": "red head"}]),
        ),
    ],
    ids=["pairs", "lists", "splits"],
)
def test_spellings_among_pairs_are_one_document(train: Any) -> None:
    data = as_retrieval_data(train)
    assert list(data.corpus.values()) == ["Red  head", "blue"]
    assert relevant_texts(data)["q"] == {"Red  head"}
    assert any("the same as another but for white space, case or Unicode form" in note for note in data.notes)


def test_a_negative_that_is_the_positive_in_capitals_is_the_positive() -> None:
    rows = [{"query": "q", "positive": "d", "negative_1": "D ", "negative_2": "e"}]
    data = as_retrieval_data(rows)
    assert data.corpus == {"d0": "d", "d1": "e"}
    assert data.qrels == {"train": {"q0": {"d0": 1, "d1": 0}}}
    assert any("1 pair given again with another grade" in note for note in data.notes)


def test_a_pair_without_the_title_that_the_corpus_has_is_its_document() -> None:
    corpus = {"a": {"title": "T", "text": "x"}, "b": {"title": "U", "text": "y"}, "c": {"title": "V", "text": "y"}}
    corpus |= {"d": {"title": "W", "text": "z"}, "e": {"text": "z"}}
    for documents in (corpus, [*corpus.values()]):
        data = as_retrieval_data([("p", "X"), ("q", "y"), ("r", "z")], corpus=documents, dev=[("s", "x")])
        assert relevant_texts(data) == {"p": {"T x"}, "q": {"y"}, "r": {"z"}}  # which y it is cannot be told
        assert relevant_texts(data, "dev") == {"s": {"T x"}}
        assert sorted(data.corpus.values()) == ["T x", "U y", "V y", "W z", "y", "z"]
        assert any("document of pairs taken with the title that corpus has" in note for note in data.notes)


def test_a_title_beside_a_text_is_joined_as_in_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,title,text\nq,Care of,pumps\nr,,bare\n")
    rows = [{"query": "q", "title": "Care of", "text": "pumps"}, {"query": "r", "title": None, "text": "bare"}]
    nested = [{"query": "q", "pos": [{"title": "Care of", "text": "pumps"}]}, {"query": "r", "pos": [{"text": "bare"}]}]
    corpus = {"x": {"title": "CARE", "text": "of pumps"}, "y": "other"}
    for source in (tmp_path / "a.csv", rows, Dataset.from_list(rows), nested):
        data = as_retrieval_data(source)
        assert relevant_texts(data) == {"q": {"Care of pumps"}, "r": {"bare"}}
        assert as_retrieval_data(source, corpus=corpus).relevant("train")["q0"] == {"x"}
    # The title of an answer is that of its question.
    data = as_retrieval_data([{"question": "q", "title": "Help", "answer": "a"}, {"question": "r", "answer": "b"}])
    assert relevant_texts(data) == {"q": {"a"}, "r": {"b"}}


def test_dev_documents_are_those_of_training() -> None:
    data = as_retrieval_data([("q", "Red head"), ("r", "blue")], dev=[("s", "red  head"), ("t", "BLUE")])
    assert data.corpus == {"d0": "Red head", "d1": "blue"}
    assert relevant_texts(data, "dev") == {"s": {"Red head"}, "t": {"blue"}}
    assert any(note.startswith("dev: 2 documents are the same") for note in data.notes)


def test_a_query_whose_other_documents_are_copies_has_nothing_to_find() -> None:
    corpus = {"a": "red", "b": "RED", "c": "red "}
    with pytest.raises(ValueError, match="1 query of train for which every document is relevant left out"):
        as_retrieval_data(({"q": "x"}, corpus, {"q": {"a": 1}}))


def test_spellings_of_a_query_are_in_one_split(tmp_path: Path) -> None:
    pairs = [(f"{q} {i}", f"document {i} {q}") for i in range(60) for q in ("Error E", "error  e", "ERROR E")]
    data = from_pairs(pairs)
    split_of = {data.queries[q]: split for split, judged in data.qrels.items() for q in judged}
    assert {len({split_of[f"{q} {i}"] for q in ("Error E", "error  e", "ERROR E")}) for i in range(60)} == {1}
    assert set(split_of.values()) == {"train", "dev", "test"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"query": q, "text": d}) + "\n" for q, d in pairs))
    assert load_data(tmp_path / "a.jsonl").qrels == data.qrels
    apart = as_retrieval_data(tmp_path / "a.jsonl", hold_out_test=True)
    assert set(apart.qrels["test"]) == set(data.qrels["test"])
    cut = RetrievalData(data.queries, data.corpus, {"train": as_retrieval_data(pairs).qrels["train"]}).with_dev_split()
    keys = [{text_key(cut.queries[q]) for q in cut.qrels[split]} for split in ("train", "dev")]
    assert not keys[0] & keys[1]


# Mining, splitting, evaluation


def test_mined_negatives_are_never_the_positive_in_another_spelling() -> None:
    model = SentenceTransformer(modules=[BoW(["red", "small", "head", "blue"])], device="cpu")
    corpus = {"a": "red head", "b": "Red  Head", "c": "RED HEAD", "d": "small head", "e": "Small Head", "f": "blue"}
    data = RetrievalData({"q": "head red"}, corpus, {"train": {"q": {"b": 1}}})
    found = mine_negatives(model, data, num_negatives=2)
    assert found.to_list() == [
        {"query": "head red", "document": "Red  Head", "negative_1": "small head", "negative_2": "blue"}
    ]
    found = mine_negatives(model, data, ignored={"q": {"e": 1}})
    assert found["negative_1"][:] == ["blue"]


def test_documents_are_seen_by_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = {"a": "Red head", "b": "red  head", "c": "blue", "e": "BLUE"}
    assert seen_unseen({"q": {"a": 1}}, {"r": {"b": 1}, "s": {"c": 1}}, corpus=corpus) == (("r",), ("s",))
    monkeypatch.setattr("st_asym.data.holdout._UNSEEN", 1.0)
    cut = hold_out({"q": {"a": 1}, "r": {"b": 1}, "s": {"c": 1}, "t": {"e": 1}}, share=0.5, corpus=corpus)
    assert set(cut.dev) in ({"q", "r"}, {"s", "t"})


def collection() -> RetrievalData:
    words = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "query", "red", "small"]
    corpus = {f"d{i}": f"{a} {b}" for i, (a, b) in enumerate(zip(words, words[1:] + words[:1], strict=True))}
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(10)}
    return RetrievalData({f"q{i}": f"{word} text" for i, word in enumerate(words)}, corpus, {"test": qrels})


def with_copies(data: RetrievalData) -> RetrievalData:
    copied = {f"copy{i}": f" {text.upper()}" for i, text in enumerate(data.corpus.values())}
    return RetrievalData(data.queries, {**copied, **data.corpus}, data.qrels)


def test_an_evaluation_names_copies_and_scores_them_as_mteb_does(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    found = evaluate(
        {"plain": tiny_encoder},
        {"one": data, "copied": with_copies(data)},
        results=None,
        train={name: {"t": {"copy3": 1, "d5": 1}} for name in ("one", "copied")},
        baselines=(),
    )
    assert found.queries["copied"]["seen"] == ["q3", "q5"]
    assert found.queries["one"]["seen"] == ["q5"]
    (note,) = found.notes
    assert note.startswith("10 documents have the text of one that is relevant, under another id (copy0, copy1, ")


def test_copies_are_no_negatives_of_a_diagnosis(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    data, model = collection(), asymmetric_model(tiny_encoder)
    copied = with_copies(data)
    one = diagnose(model, data.queries, data.corpus, data.qrels["test"], cache=tmp_path).judged
    found = diagnose(model, copied.queries, copied.corpus, copied.qrels["test"], cache=tmp_path)
    assert one is not None
    assert found.judged is not None
    assert found.judged.after.positive == pytest.approx(one.after.positive)
    assert found.judged.after.hard_margin <= one.after.hard_margin + 1e-6
    assert sum(found.histograms.negative_after) == 10 * 20 - 10 - 10


def test_a_negative_is_the_document_that_has_its_text_and_a_title() -> None:
    rows = [
        {"query": "pump", "title": "Pump", "document": "Restart it.", "negatives": ["replace  it.", "Restart it."]},
        {"query": "filter", "title": "Filter", "document": "Replace it.", "negatives": ["Other.", "Twice.", "Bare."]},
        {"query": "a", "title": "One", "document": "Twice.", "negatives": []},
        {"query": "b", "title": "Two", "document": "Twice.", "negatives": []},
        {"query": "c", "title": "Three", "document": "Bare.", "negatives": []},
        {"query": "d", "title": "", "document": "Bare.", "negatives": []},
    ]
    data = as_retrieval_data(rows)
    judged = {
        data.queries[query]: {data.corpus[document]: grade for document, grade in own.items()}
        for query, own in data.qrels["train"].items()
    }
    assert judged["pump"] == {"Pump Restart it.": 1, "Filter Replace it.": 0}
    assert judged["filter"] == {"Filter Replace it.": 1, "Other.": 0, "Twice.": 0, "Bare.": 0}
    assert judged["d"] == {"Bare.": 1}
    assert "2 negatives taken as the document with a title that has its text" in " ".join(data.notes)
