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


def test_nothing_is_said_without_bm25s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.fitting.report.bm25_is_installed", lambda: False)
    assert bm25_sentence(DATA, [PART], judged(0.1, 0.1), None) == ""


def test_nothing_is_said_of_a_corpus_of_which_rehearsals_search_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.fitting.report.SEARCHED", len(DATA.corpus) - 1)
    assert bm25_sentence(DATA, [PART], judged(0.1, 0.1), None) == ""
