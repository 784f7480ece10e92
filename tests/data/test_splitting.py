from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_asym.data import Qrels, as_retrieval_data, holdout
from st_asym.data.holdout import HeldOut, apart, folds, groups, hold_out, seen_unseen


@st.composite
def collections(draw: st.DrawFn) -> Qrels:
    documents = draw(st.integers(1, 12))
    grades = st.dictionaries(st.integers(0, documents - 1).map("d{}".format), st.integers(-1, 2), max_size=4)
    rows = draw(st.lists(grades, min_size=2, max_size=25))
    # Each query has at least one relevant document.
    return {f"q{i}": {**row, f"d{i % documents}": 1} for i, row in enumerate(rows)}


def positives(qrels: Qrels) -> set[tuple[str, str]]:
    return {(q, d) for q, documents in qrels.items() for d, grade in documents.items() if grade > 0}


def check(cut: HeldOut, qrels: Qrels) -> None:
    assert not set(cut.train) & set(cut.dev)
    assert set(cut.train) | set(cut.dev) | set(cut.lost_queries) == set(qrels)
    assert not set(cut.lost_queries) & (set(cut.train) | set(cut.dev))
    assert all(cut.dev[query_id] == qrels[query_id] for query_id in cut.dev)
    # Nothing invented, and what is lost is counted.
    assert positives(cut.train) | positives(cut.dev) | positives(cut.withheld) == positives(qrels)
    assert len(positives(cut.train)) + len(positives(cut.dev)) + cut.lost_positives == len(positives(qrels))
    for query_id, documents in cut.train.items():
        assert documents.items() <= qrels[query_id].items()
        assert any(grade > 0 for grade in documents.values())
    known = {document_id for _, document_id in positives(cut.train)}
    relevant = {q: {d for d, grade in documents.items() if grade > 0} for q, documents in cut.dev.items()}
    assert set(cut.unseen) == {query_id for query_id in cut.dev if not relevant[query_id] & known}
    assert set(cut.seen) == set(cut.dev) - set(cut.unseen)
    assert seen_unseen(cut.train, cut.dev) == (cut.seen, cut.unseen)


@given(collections(), st.integers(0, 3))
def test_queries_apart_share_no_relevant_document_and_leave_none_that_could_join_them(qrels: Qrels, seed: int) -> None:
    cut = hold_out(qrels)
    found = apart(cut.train, cut.dev, seed=seed)
    assert all(set(names) <= set(part) for names, part in zip(found, (cut.train, cut.dev), strict=True))
    given = {**cut.train, **cut.dev}
    relevant = {q: {d for d, grade in documents.items() if grade > 0} for q, documents in given.items()}
    taken = [document for names in found for query_id in names for document in relevant[query_id]]
    assert len(taken) == len(set(taken))
    assert all(relevant[query_id] & set(taken) for query_id in given)


@given(collections(), st.floats(0.05, 0.9), st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 5))
def test_a_cut_shares_no_query_and_no_unseen_document_and_counts_what_it_costs(
    qrels: Qrels, share: float, unseen: float, max_lost: float, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout, "_UNSEEN", unseen)
        patch.setattr(holdout, "_MOST_LOST", max_lost)
        cut = hold_out(qrels, share=share, seed=seed)
    check(cut, qrels)
    assert len(cut.dev) == min(max(round(share * len(qrels)), 1), len(qrels) - 1)
    assert cut.train
    training = len(positives(cut.train)) + cut.lost_positives
    # Queries that are swapped change how many positives training has, so the limit is that of all of them.
    assert cut.lost_positives <= max_lost * len(positives(qrels))
    assert training + len(positives(cut.dev)) == len(positives(qrels))


@given(collections(), st.integers(0, 3), st.randoms())
def test_a_cut_depends_on_the_seed_and_not_on_the_order(qrels: Qrels, seed: int, shuffler: random.Random) -> None:
    items = [(q, list(documents.items())) for q, documents in qrels.items()]
    shuffler.shuffle(items)
    for _, documents in items:
        shuffler.shuffle(documents)
    shuffled = {query_id: dict(documents) for query_id, documents in items}
    assert repr(hold_out(qrels, seed=seed)) == repr(hold_out(qrels, seed=seed))
    one, other = hold_out(qrels, seed=seed), hold_out(shuffled, seed=seed)
    assert one == other
    assert list(one.train) == list(other.train)
    assert folds(qrels, 2, seed=seed) == folds(shuffled, 2, seed=seed)


@given(collections(), st.integers(2, 6), st.integers(0, 3))
def test_folds_hold_each_query_out_once(qrels: Qrels, k: int, seed: int) -> None:
    k = min(k, len(qrels))
    cuts = folds(qrels, k, seed=seed)
    assert len(cuts) == k
    assert sorted(query_id for cut in cuts for query_id in cut.dev) == sorted(qrels)
    for cut in cuts:
        check(cut, qrels)


def test_a_fold_that_nothing_is_left_for_is_left_out() -> None:
    qrels = {f"q{i}": {"a": 1} for i in range(30)} | {f"r{i}": {"b": 1} for i in range(6)}
    texts = {query_id: "login" if qrels[query_id] == {"a": 1} else query_id for query_id in qrels}
    assert sorted(len(cut.dev) for cut in folds(qrels, 5, queries=texts)) == [6, 30]


@given(collections(), st.integers(0, 3))
def test_queries_with_the_same_text_stay_on_one_side(qrels: Qrels, seed: int) -> None:
    texts = {query_id: f" What  is {int(query_id[1:]) % 7}?" for query_id in qrels}
    texts["q0"] = "what IS 0?"
    for cut in (hold_out(qrels, seed=seed, queries=texts), *folds(qrels, 2, seed=seed, queries=texts)):
        sides = [{" ".join(texts[q].lower().split()) for q in side} for side in (cut.train, cut.dev)]
        assert not sides[0] & sides[1]


def test_documents_with_the_same_text_count_as_one() -> None:
    train, dev = {"q1": {"a": 1}}, {"q2": {"b": 1}, "q3": {"c": 1}}
    assert seen_unseen(train, dev) == ((), ("q2", "q3"))
    corpus = {"a": "The pump.", "b": "the  pump.", "c": "The valve."}
    assert seen_unseen(train, dev, corpus=corpus) == (("q2",), ("q3",))
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(10)}
    same = {f"d{i}": "one text" for i in range(10)}
    assert len(hold_out(qrels).unseen) == 2
    assert len(hold_out(qrels, corpus=same).seen) == 2


def test_seeds_hold_out_different_queries() -> None:
    qrels = {f"q{i}": {f"d{i // 2}": 1} for i in range(60)}
    assert len({tuple(hold_out(qrels, seed=seed).dev) for seed in range(5)}) == 5


def test_half_is_unseen_and_half_seen_at_no_cost_where_components_are_small() -> None:
    qrels = {f"q{i}": {f"d{i // 3}": 1} for i in range(300)}
    cut = hold_out(qrels, share=0.2)
    assert (len(cut.dev), len(cut.unseen), len(cut.seen), cut.lost_positives) == (60, 30, 30, 0)
    assert str(cut) == (
        "240 training queries and 60 held out: 30 seen, 30 whose documents are no training positives. "
        "No training positive was lost for that."
    )


def test_documents_are_withheld_within_the_limit_where_all_queries_are_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One hub that all share, and a document of its own that each shares with its neighbour alone.
    qrels = {f"q{i}": {f"own{i // 2}": 1, **({} if i < 40 else {"hub": 1})} for i in range(200)}
    qrels |= {f"link{i}": {"hub": 1, f"own{i}": 1} for i in range(20)}
    cut = hold_out(qrels)
    monkeypatch.setattr(holdout, "_MOST_LOST", 0.0)
    none = hold_out(qrels)
    assert none.lost_positives == 0
    assert len(cut.unseen) > len(none.unseen)
    assert 0 < cut.lost_positives <= 0.05 * len(positives(qrels))
    assert f"That cost {cut.lost_positives} of" in str(cut)


def test_one_document_for_all_leaves_nothing_unseen() -> None:
    cut = hold_out({f"q{i}": {"d": 1} for i in range(50)})
    assert (len(cut.train), len(cut.seen), len(cut.unseen), cut.lost_positives) == (40, 10, 0, 0)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two different queries, got 1"):
        hold_out({"q": {"d": 1}})
    with pytest.raises(ValueError, match="at least two different queries, got 1"):
        hold_out({"q1": {"d": 1}, "q2": {"e": 1}}, queries={"q1": "Who?", "q2": "who? "})
    with pytest.raises(ValueError, match="2 queries have no relevant document: q2, q3"):
        hold_out({"q1": {"d": 1}, "q2": {"d": 0}, "q3": {}})
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 1"):
        hold_out({"q1": {"d": 1}, "q2": {"d": 1}}, share=1)
    with pytest.raises(ValueError, match="number of different queries, 2, got 3"):
        folds({"q1": {"d": 1}, "q2": {"d": 1}}, 3)


def test_scifact_and_nfcorpus(shared_data: Path) -> None:
    data = as_retrieval_data(shared_data / "scifact.zip")
    cut = hold_out(data.qrels["train"], queries=data.queries, corpus=data.corpus)
    assert (len(cut.dev), len(cut.unseen), cut.lost_positives) == (161, 80, 0)
    data = as_retrieval_data(shared_data / "nfcorpus.zip")
    cut = hold_out(data.qrels["train"], queries=data.queries, corpus=data.corpus)
    assert len(cut.unseen) > 200
    assert cut.lost_positives < 0.05 * len(positives(data.qrels["train"]))
    assert len(cut.lost_queries) < 5


def test_queries_of_one_text_or_about_the_same_documents_are_a_group() -> None:
    queries = {"a": "Red", "b": "red ", "c": "blue", "d": "green", "e": "white"}
    corpus = {"x": "one", "y": "two", "z": "ONE"}
    train = {"a": {"x": 1}, "b": {"y": 1}, "c": {"y": 2, "x": 0}, "d": {"x": 1, "y": 1}}
    found = groups([train, {"e": {"z": 1}}], queries, corpus)
    assert found["a"] == found["b"] == found["c"] == found["e"] != found["d"], "a and e by equal documents"
