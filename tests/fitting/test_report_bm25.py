"""A fit says where BM25 alone is better than what it was given, or made."""

from __future__ import annotations

import numpy as np
import pytest

from st_asym.data import RetrievalData
from st_asym.data.holdout import HeldOut
from st_asym.fitting.gate import Choice, Rehearsal
from st_asym.fitting.report import bm25_sentence

DATA = RetrievalData(
    {"q": "the red fox", "own": "blue", "none": "zebra"},
    {"a": "red fox", "b": "blue whale", "own": "blue"},
    {"train": {"q": {"a": 1}, "own": {"b": 2}, "none": {"a": 1}}},
)
PART = HeldOut({}, DATA.qrels["train"], (), (), {}, ())
HEADS = Choice("heads")


def judged(untouched: float, heads: float) -> list[Rehearsal]:
    queries = tuple(DATA.queries)
    scores = [np.full(3, score) for score in (untouched, heads)]
    return [Rehearsal(queries, np.zeros(3, dtype=bool), scores[0], {HEADS: scores[1]})]


def test_bm25_is_named_where_it_is_better_than_either() -> None:
    expected = "BM25 alone has an nDCG@10 of 0.667 on the held-out queries, the untouched encoder 0.5"
    # The first two queries find their document, the second not itself; the third has no word in common with any.
    assert bm25_sentence(DATA, [PART, PART], judged(0.5, 0.9), None).startswith(expected)
    assert "encoder 0.500, the kept heads 0.900: search by" in bm25_sentence(DATA, [PART], judged(0.5, 0.9), HEADS)
    assert "the kept heads 0.600" in bm25_sentence(DATA, [PART], judged(0.7, 0.6), HEADS)
    assert bm25_sentence(DATA, [PART], judged(0.7, 0.9), HEADS) == ""
    assert bm25_sentence(DATA, [], [], None) == ""


def test_heads_are_compared_where_they_were_rehearsed() -> None:
    (first,), (second,) = judged(0.5, 0.9), judged(0.7, 0.9)
    second.scores.clear()  # on this cut, the kept heads were left out
    found = bm25_sentence(DATA, [PART, PART], [first, second], HEADS)
    assert "0.667 on the held-out queries, the untouched encoder 0.500, the kept heads 0.900" in found


def test_numbers_that_queries_and_documents_share_leave_no_document_out() -> None:
    """That one query is relevant to its own number says so of all, whichever of them a cut holds out."""
    queries = {"0": "red", "1": "blue whale frog", "2": "whale"}
    corpus = {"0": "red fox", "1": "blue whale", "2": "green frog"}
    qrels = {"0": {"0": 1}, "1": {"2": 1}, "2": {"1": 1}}
    part = HeldOut({"0": qrels.pop("0")}, qrels, (), (), {}, ())
    data = RetrievalData(queries, corpus, {"train": {**part.train, **part.dev}})
    one = Rehearsal(tuple(part.dev), np.zeros(2, dtype=bool), np.full(2, 0.5), {})
    # The first of the two finds document 1, its own number, before its answer.
    assert bm25_sentence(data, [part], [one], None).startswith("BM25 alone has an nDCG@10 of 0.815")


def test_nothing_is_said_without_bm25s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.fitting.report.bm25_is_installed", lambda: False)
    assert bm25_sentence(DATA, [PART], judged(0.1, 0.1), None) == ""


def test_nothing_is_said_of_a_corpus_of_which_rehearsals_search_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.fitting.report.SEARCHED", len(DATA.corpus) - 1)
    assert bm25_sentence(DATA, [PART], judged(0.1, 0.1), None) == ""
