from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_asym.data import RetrievalData, as_retrieval_data, from_pairs, load_data


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": "d1", "title": "Paris", "text": "is in France."}, {"_id": "d2", "text": "Dogs bark."}]
    queries = [
        {"_id": "q1", "text": "capital of France"},
        {"_id": "q2", "text": "pets"},
        {"_id": "q3", "text": "noise"},
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq3\td2\t1\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    return folder


def check(data: RetrievalData) -> None:
    assert data.corpus == {"d1": "Paris is in France.", "d2": "Dogs bark."}
    assert data.qrels == {"train": {"q1": {"d1": 2, "d2": 0}, "q3": {"d2": 1}}, "test": {"q2": {"d2": 1}}}
    assert data.relevant("train") == {"q1": {"d1"}, "q3": {"d2"}}
    assert data.pairs("train")["query"][:] == ["capital of France", "noise"]
    assert data.pairs("train")["document"][:] == ["Paris is in France.", "Dogs bark."]


def test_a_beir_folder_a_folder_around_it_and_a_zip_read_the_same(beir: Path, tmp_path: Path) -> None:
    check(load_data(beir))
    (tmp_path / "around").mkdir()
    shutil.copytree(beir, tmp_path / "around" / "tiny")
    check(load_data(tmp_path / "around"))
    check(load_data(shutil.make_archive(str(tmp_path / "top"), "zip", beir)))
    check(load_data(shutil.make_archive(str(tmp_path / "nested"), "zip", tmp_path, "tiny")))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_pairs_read_from_jsonl(tmp_path: Path, name: str) -> None:
    lines = '{"query": "a", "positive": "x"}\n\n{"query": "a", "positive": "y"}\n{"query": "b", "positive": "x"}\n'
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.write(lines)
    data = load_data(tmp_path / name)
    assert sorted(data.queries.values()) == ["a", "b"]
    assert sorted(data.corpus.values()) == ["x", "y"]
    assert sum(len(documents) for split in data.qrels.values() for documents in split.values()) == 3


def test_a_split_of_all_queries_keeps_the_others() -> None:
    qrels = {"train": {"a": {"d": 1}}, "test": {"a": {"e": 2}, "b": {"d": 0}}}
    data = RetrievalData({"a": "one", "b": "two"}, {"d": "red", "e": "big"}, qrels).with_all_split()
    assert data.qrels == {**qrels, "all": {"a": {"d": 1, "e": 2}, "b": {"d": 0}}}
    assert data.with_all_split() is data


texts = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, texts), max_size=30), st.randoms())
def test_a_query_is_in_one_split_whatever_the_order_and_company(pairs: list[tuple[str, str]], random: object) -> None:
    def split_of(data: RetrievalData) -> dict[str, str]:
        return {data.queries[query]: split for split, judged in data.qrels.items() for query in judged}

    before = split_of(from_pairs(pairs))
    shuffled = [*pairs, ("one more", "document")]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    after = split_of(from_pairs(shuffled))
    assert set(before) == {query for query, _ in pairs}
    assert all(after[query] == split for query, split in before.items())


def test_the_splits_have_about_their_shares() -> None:
    data = from_pairs((f"query {i}", f"document {i}") for i in range(5_000))
    shares = {split: len(judged) / 5_000 for split, judged in data.qrels.items()}
    assert shares == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.02)


def test_dev_is_cut_from_train_by_query_and_left_alone_where_it_exists(beir: Path) -> None:
    data = from_pairs((f"query {i}", f"document {i}") for i in range(200))
    assert data.with_dev_split() is data
    cut = RetrievalData(data.queries, data.corpus, {"train": data.qrels["train"]}).with_dev_split(0.3)
    assert set(cut.qrels["train"]) | set(cut.qrels["dev"]) == set(data.qrels["train"])
    assert not set(cut.qrels["train"]) & set(cut.qrels["dev"])
    assert 0 < len(cut.qrels["dev"]) < len(cut.qrels["train"])
    with pytest.raises(KeyError, match=r"no split 'dev': this collection has \['test', 'train'\]"):
        load_data(beir).pairs("dev")


def test_a_missing_file_is_named(beir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_data(tmp_path / "nowhere")
    (beir / "queries.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"queries\.jsonl is missing"):
        load_data(beir)
    (beir / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="not in BEIR's layout"):
        load_data(beir)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}\n{"_id": "d2"', r"corpus\.jsonl, line 2: not a JSON object"),
        ("corpus.jsonl", '["d1"]\n', r"corpus\.jsonl, line 1: not a JSON object with _id, text"),
        ("queries.jsonl", '{"_id": "q1"}\n', r"queries\.jsonl, line 1: .*KeyError\('text'\)"),
        ("queries.jsonl", '{"_id": 7, "text": "x"}\n', r"queries\.jsonl, line 1: a field of .* is not a string"),
        ("qrels/test.tsv", "q2\td2\tyes\n", r"qrels/test\.tsv, line 1: expected query-id, corpus-id, score"),
        ("qrels/test.tsv", "q2\td2\n", r"qrels/test\.tsv, line 1: expected"),
        ("qrels/test.tsv", "q9\td9\t1\n", r"names 2 queries or documents that do not exist: query q9, document d9"),
    ],
)
def test_a_broken_line_is_named(beir: Path, file: str, content: str, message: str) -> None:
    (beir / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_data(beir)


def test_scifact_has_its_published_counts(shared_data: Path) -> None:
    data = load_data(shared_data / "scifact.zip")
    assert len(data.corpus) == 5_183
    assert {split: len(judged) for split, judged in data.qrels.items()} == {"train": 809, "test": 300}
    assert sum(len(documents) for documents in data.qrels["test"].values()) == 339


@pytest.mark.parametrize("pairs", [[{"query": "a b", "document": "c d"}] * 2, ["ab", "cd"]])
def test_pairs_are_tuples_or_lists(pairs: Any) -> None:
    with pytest.raises(TypeError, match=r"pairs, row 0: expected \(query, document\)"):
        from_pairs(pairs)


def test_of_all_splits_the_highest_grade_counts() -> None:
    data = RetrievalData({"q": "a"}, {"d": "b", "e": "c"}, {"train": {"q": {"d": 1}}, "test": {"q": {"d": 0, "e": 1}}})
    assert data.with_all_split().qrels["all"] == {"q": {"d": 1, "e": 1}}


def test_ids_that_are_no_strings_are_named() -> None:
    with pytest.raises(ValueError, match=r"Ids are strings, and 1 is none: make it str\(1\)"):
        as_retrieval_data(({"1": "a", "2": "b"}, {"1": "x", "2": "y"}, {1: {"1": 1}}))
