from __future__ import annotations

import gzip
import json
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import EXPECTED, PAIRS, beir, by_text
from datasets import Dataset, DatasetDict

from st_asym.data import RetrievalData, as_retrieval_data


@pytest.mark.parametrize(
    "train",
    [
        PAIRS,
        tuple(map(list, PAIRS)),
        iter(PAIRS),
        [(*pair, 1) for pair in PAIRS],
        [{"question": q, "answer": d} for q, d in PAIRS],
        [{"Anchor": q, "positive": d, "id": 7} for q, d in PAIRS],
        [{"query": q, "pos": list(documents)} for q, documents in EXPECTED.items()],
        Dataset.from_dict({"query": [q for q, _ in PAIRS], "passage": [d for _, d in PAIRS]}),
        DatasetDict(train=Dataset.from_dict({"query": [q for q, _ in PAIRS], "text": [d for _, d in PAIRS]})),
        (
            {"a": "error E17", "b": "error E18"},
            {"x": "Replace the filter.", "y": {"title": "Restart", "text": "the pump."}, "z": "Call us."},
            {"a": {"x": 1, "z": 1}, "b": {"y": 1}},
        ),
    ],
    ids=["tuples", "lists", "iterator", "graded", "dicts", "case", "listed", "dataset", "dict", "triple"],
)
def test_every_form_gives_the_same_training_pairs(train: Any) -> None:
    data = as_retrieval_data(train)
    assert by_text(data) == EXPECTED
    assert set(data.qrels) == {"train"}
    assert (data.labels, data.notes) == ("judged", ())
    again = as_retrieval_data(data)
    assert by_text(again) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.jsonl", "".join(json.dumps({"query": q, "positive": d}) + "\n" for q, d in PAIRS)),
        ("pairs.jsonl.gz", "".join(json.dumps({"query": q, "document": d}) + "\n\n" for q, d in PAIRS)),
        ("pairs.csv", "query,positive\r\n" + "".join(f'"{q}",{d}\r\n' for q, d in PAIRS)),
        ("bom.csv", "\ufeffquery,positive\n" + "".join(f"{q},{d}\n" for q, d in PAIRS)),
        ("semicolons.csv.gz", "id;query;positive\n" + "".join(f"1;{q};{d}\n" for q, d in PAIRS)),
        ("pairs.tsv", "query\tpositive\tscore\n" + "".join(f"{q}\t{d}\t1.0\n" for q, d in PAIRS)),
    ],
)
def test_files_of_pairs_are_all_for_training(
    write: Callable[[str, str | bytes], Path], name: str, content: str
) -> None:
    data = as_retrieval_data(write(name, content))
    assert by_text(data) == EXPECTED
    assert set(data.qrels) == {"train"}


def test_a_table_keeps_line_ends_and_quotes_inside_fields(write: Callable[[str, str | bytes], Path]) -> None:
    data = as_retrieval_data(write("a.csv", 'query,positive\n"two\nlines","says ""hi"", twice"\nb,' + "c" * 200_000))
    assert list(data.queries.values()) == ["two\nlines", "b"]
    assert list(data.corpus.values()) == ['says "hi", twice', "c" * 200_000]


def test_negatives_are_documents_that_are_not_relevant() -> None:
    rows = {"query": ["a", "b"], "positive": ["x", "y"], "negative_1": ["y", "z"], "negative_2": ["w", None]}
    data = as_retrieval_data(Dataset.from_dict(rows))
    assert by_text(data) == {"a": {"x": 1, "y": 0, "w": 0}, "b": {"y": 1, "z": 0}}
    assert as_retrieval_data([{"query": "a", "pos": ["x", "y"], "neg": ["z"]}]).relevant("train") == {
        "q0": {"d0", "d1"}
    }
    assert by_text(as_retrieval_data([("a", "x", ["y", "z"]), ("b", "y")])) == {
        "a": {"x": 1, "y": 0, "z": 0},
        "b": {"y": 1},
    }


def test_grades_count_from_zero(caplog: pytest.LogCaptureFixture) -> None:
    data = as_retrieval_data([("a", "x", 2), ("a", "y", 0), ("a", "z", -2), ("b", "y", "1"), ("b", "y", 3)])
    assert by_text(data) == {"a": {"x": 2, "y": 0, "z": 0}, "b": {"y": 3}}
    assert data.notes == (
        "train: 1 pair given again with another grade; the highest counts (train, row 4).",
        "1 grade below zero in train taken as not relevant (q0 d2).",
    )
    assert caplog.messages == list(data.notes)


def test_a_beir_folder_brings_its_splits_and_more_documents(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", train="q0\td0\t1\nq1\td1\t1\n", dev="q2\td2\t1\n", test="q3\td3\t1\n")
    data = as_retrieval_data(folder, corpus=["Another.", "Part 0 About part 0."])
    assert data.relevant("dev") == {"q2": {"d2"}}
    assert sorted(data.corpus.values()) == ["Another.", *(f"Part {i} About part {i}." for i in range(4))]
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", folder)
    assert as_retrieval_data(archive) == as_retrieval_data(folder)


def test_dev_comes_in_any_form_and_joins_the_corpus() -> None:
    data = as_retrieval_data(PAIRS, dev=[("noise", "Tighten the bolts."), ("phone", "Call us.")])
    assert by_text(data, "dev") == {"noise": {"Tighten the bolts.": 1}, "phone": {"Call us.": 1}}
    assert by_text(data) == EXPECTED
    assert len(data.corpus) == 4
    other = RetrievalData({"q0": "noise"}, {"d0": "Tighten.", "d1": "Loosen."}, {"validation": {"q0": {"d0": 1}}})
    data = as_retrieval_data(PAIRS, dev=other)
    assert by_text(data, "dev") == {"noise": {"Tighten.": 1}}
    assert len(data.corpus) == 5
    splits = {"train": Dataset.from_list([{"query": q, "text": d} for q, d in PAIRS])}
    splits["validation"] = Dataset.from_list([{"query": "noise", "text": "Call us."}])
    assert by_text(as_retrieval_data(DatasetDict(splits)), "dev") == {"noise": {"Call us.": 1}}


def test_training_queries_that_are_judged_too_are_left_out(tmp_path: Path) -> None:
    data = as_retrieval_data(PAIRS, dev=[("Error  e17", "Call us.")])
    assert by_text(data) == {"error E18": {"Restart the pump.": 1}}
    assert data.notes == ("1 query of train left out, in dev too (q0).",)
    folder = beir(tmp_path / "b", train="q0\td0\t1\nq1\td1\t1\n", dev="q1\td2\t1\nq3\td3\t1\n", test="q3\td3\t1\n")
    data = as_retrieval_data(folder)
    assert [list(data.qrels[split]) for split in ("train", "dev", "test")] == [["q0"], ["q1"], ["q3"]]
    with pytest.raises(ValueError, match=r"No train query can be used\. 2 queries of train left out, in dev too"):
        as_retrieval_data(PAIRS, dev=PAIRS)


def test_what_cannot_teach_is_left_out_and_counted() -> None:
    pairs = [("a", "x"), ("b", " "), ("", "y"), (None, "y"), ("c", "z", 0), ("d", "x"), ("d", "z"), ("e", "z")]
    data = as_retrieval_data(pairs)
    assert by_text(data) == {"a": {"x": 1}, "e": {"z": 1}}
    assert data.notes == (
        "train: 3 pairs with an empty text left out (train, row 1, train, row 2, train, row 3).",
        "1 query of train without a relevant document left out (q1).",
        "1 query of train for which every document is relevant left out (q2).",
    )
    data = as_retrieval_data(
        ({"q": "a", "r": ""}, {"d": "x", "e": "", "f": "y"}, {"q": {"d": 1, "e": 1}, "r": {"d": 1}})
    )
    assert (data.qrels, data.corpus) == ({"train": {"q": {"d": 1}}}, {"d": "x", "f": "y"})
    assert data.notes == ("1 empty query left out (r).", "1 empty document left out (e).")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train is empty"),
        ([("a", 7), ("b", "x"), (3.5, "y")], r"train: 2 rows with something else than text: train, row 0 \(7\), train"),
        ([("a", "x", 0.5), ("b", "y", "high")], r"2 grades not a whole number: train, row 0 \(0\.5\), train, row 1"),
        ([("a", "x", "z"), ("b", "y", "x")], r"row 1 \('x'\)\. .*\(query, positive, \[negative\]\)"),
        ([("a", "x"), ("b", "x")], "The corpus holds 1 document"),
        ([("a", "x", 0), ("a", "y", 0)], "No train query can be used. 1 query of train without a relevant document"),
        ([("a", "x"), ("a", "y")], "No train query can be used. 1 query of train for which every document"),
        (
            [{"qestion": "a", "answer": "b"}],
            r"columns \['qestion', 'answer'\]: none is the query. Name it one of query",
        ),
        ([{"query": "a", "anser": "b"}], r"columns \['query', 'anser'\]: none is the document"),
        ([{"search": "a", "click": "b"}], r"none is the query, and none the document. Name the first one of query, "),
        ([{"query": "a", "context": "b", "answer": "c"}], "'answer' and 'context' could each be the document"),
        ([{"query": "a", "text": "b", "score": 1, "label": 1}], "could each be the grade"),
        ([{"query": "a", "text": "b"}, {"query": "a"}], "train, row 1: no 'text', only"),
        (Dataset.from_dict({"a": ["x"]}), r"train has the columns \['a'\]"),
        (({"q": "a"}, {"d": "x", "e": "y"}, {"q": {"f": 1}, "r": {"d": 1}}), "names 2 .* query r, document f"),
        (({"q": "a"}, {"d": "x", "e": "y"}, {"q": {"d": 0.5}}), r"1 grade in train not a whole number: q d \(0\.5\)"),
        (({"q": 5}, {"d": "x", "e": "y"}, {"q": {"d": 1}}), r"queries: 1 text or id not a string: q \(5\)"),
        (RetrievalData({}, {"d": "x", "e": "y"}, {"test": {}}), r"There is no train split, only \['test'\]"),
        (RetrievalData({"q": "a"}, {"d": "x", "e": "y"}, {"dev": {}, "val": {}, "train": {}}), "more than one dev"),
    ],
)
def test_bad_input_is_counted_and_named(train: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_retrieval_data(train)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"query": ["a"], "document": ["b"], "Document": ["c"]},
            "'document' and 'Document' could each be the document",
        ),
        ([{"query": "a", "query ": "c", "text": "b"}], "'query' and 'query ' could each be the query"),
        ([{"query": "a", "text": "b", "Score": 1, "score": 0}], "could each be the grade"),
        ({"query": ["a"], "text": ["b"], "Title": ["c"], "title": ["d"]}, "could each be the title"),
        (
            [{"query": "a", "text": "b"}, {"query": "c", "text": "d", "TEXT": "e"}],
            "row 1: 'TEXT', which the first row has",
        ),
        ({"Text": ["a"], "text": ["b"]}, r"columns \['Text', 'text'\], 'Text' and 'text' have one name\. Keep one"),
    ],
)
def test_names_that_differ_by_case_or_white_space_alone_are_refused(
    write: Callable[[str, str | bytes], Path], train: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        as_retrieval_data(train)
    if isinstance(train, list):
        with pytest.raises(ValueError, match=message.replace("row 1", "line 2")):
            as_retrieval_data(write("a.jsonl", "".join(json.dumps(row) + "\n" for row in train)))
    else:
        rows = "".join(",".join(row) + "\n" for row in zip(*train.values(), strict=True))
        with pytest.raises(ValueError, match=message):
            as_retrieval_data(write("a.csv", ",".join(train) + "\n" + rows))


def test_a_query_that_does_not_exist_is_named_before_queries_are_held_out() -> None:
    texts = {"d": "x", "e": "y"}
    with pytest.raises(ValueError, match="The train split names 1 queries or documents that do not exist: query r"):
        as_retrieval_data(({"q": "a"}, texts, {"q": {"d": 1}, "r": {"d": 1}}), hold_out_test=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl is empty"),
        ("a.csv", "query,positive\n", r"a\.csv is empty"),
        ("a.parquet", "x", r"a\.parquet is not a \.jsonl, \.csv or \.tsv"),
        ("a.jsonl", '{"query": "a", "text": "b"}\n{"query": "a"', r"a\.jsonl, line 2: not a JSON object"),
        ("a.json", '["a"]', r"a\.json, line 1: not a JSON object, but \['a'\]"),
        ("a.jsonl", '{"query": "a", "text": "b"}\n{"query": "c"}', r"a\.jsonl, line 2: no 'text', only \['query'\]"),
        ("a.jsonl", '{"query": 1, "text": "b"}\n', r"a\.jsonl: 1 row with something else than text: a\.jsonl, line 1"),
        ("a.jsonl", '{"qestion": "a", "text": "b"}\n', r"a\.jsonl has the columns \['qestion', 'text'\]"),
        ("a.csv", "query,positive\na,b,c\n", r"a\.csv, line 2: 3 fields, but the header has 2"),
        ("a.csv", 'query,positive\n"a\nb",c\nd,"e\n', r"a\.csv, line 4: unexpected end of data"),
        ("a.csv", "query,query\na,b\n", r"a\.csv: a column name occurs twice"),
        ("a.csv", b"query,positive\nb,c\n" + b"caf\xe9,d\n", r"a\.csv, line 3: not UTF-8 \(byte 0xe9"),
        ("a.jsonl", '{"query": "a"}'.encode("utf-16"), r"a\.jsonl, line 1: not UTF-8 \(byte 0xff"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    write: Callable[[str, str | bytes], Path], name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        as_retrieval_data(write(name, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            gzip.compress(b"query,document\na,b\n", mtime=0),
            r"a\.csv is packed by gzip: its name must end in \.gz",
        ),
        ("a.csv.gz", b"query,document\na,b\n", r"a\.csv\.gz is not packed by gzip"),
        ("a.csv", b"query,document\ra,b\r", r"a\.csv, line 1: lines end in a carriage return alone"),
        ("a.csv", "query,document\na,b\n".encode("utf-16-le"), r"a\.csv, line 1: a NUL, as UTF-16 .* UTF-8 text"),
        ("a.csv", b"PK\x03\x04\x14\x00\x06\x00", r"a\.csv, line 1: a NUL"),
        ("a.tsv", b"query,document\na,b\n", r"Fields of a \.tsv are separated by tabs alone"),
        ("a.xlsx", b"PK", r"Pass other tables as data frames: pandas\.read_excel"),
    ],
)
def test_a_file_of_another_kind_than_its_name_says(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        as_retrieval_data(tmp_path / name)


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    raw = gzip.compress(b"".join(b'{"query": "a%d", "text": "b%d"}\n' % (i, i) for i in range(9_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz, after line \d+: a damaged gzip file"):
        as_retrieval_data(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_cannot_be_unpacked_is_named(tmp_path: Path, packing: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", packing) as archive:
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
            archive.writestr(name, '{"_id": "a", "text": "b"}\n' * 500)
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[50:60] = b"\xff" * 10  # in what was packed first
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.zip is damaged, encrypted or|a damaged zip file"):
        as_retrieval_data(tmp_path / "a.zip")


def test_a_damaged_or_encrypted_zip_is_named(tmp_path: Path) -> None:
    path, text = tmp_path / "a.zip", b"part " * 3
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("corpus.jsonl", b'{"_id": "d", "text": "%s"}\n' % text)
    raw = path.read_bytes()
    encrypted = raw.replace(b"PK\x03\x04\x14\0\0", b"PK\x03\x04\x14\0\1").replace(
        b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1"
    )
    for content, reason in ((raw.replace(text, text.upper()), "Bad CRC-32"), (encrypted, "is encrypted")):
        assert content != raw
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.zip is damaged, encrypted or .* \(.*{reason}.*\): give"):
            as_retrieval_data(path)


@pytest.mark.parametrize("train", [7, [("a", "b", "c", "d")], [("a", "b"), "c"], [{"query": "a", "text": "b"}, 3]])
def test_no_known_form_is_a_type_error(train: Any) -> None:
    with pytest.raises(TypeError):
        as_retrieval_data(train)


def test_ids_given_twice_in_beir_files(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", train="q0\td0\t1\nq1\td1\t1\nq1\td1\t2\n")
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    (folder / "corpus.jsonl").write_text("\n".join([*lines, lines[0]]))
    data = as_retrieval_data(folder)
    assert data.qrels["train"]["q1"] == {"d1": 2}
    assert data.notes == (
        "corpus.jsonl: 1 repeated line left out.",
        "qrels/train.tsv: 1 pair judged again with another grade; the highest counts (line 4).",
    )
    (folder / "corpus.jsonl").write_text("\n".join([*lines, '{"_id": "d2", "text": "Something else."}']))
    with pytest.raises(ValueError, match=r"corpus\.jsonl: 1 id given again to a different text: d2 \(line 5\)"):
        as_retrieval_data(folder)


def test_an_empty_dev_is_refused() -> None:
    with pytest.raises(ValueError, match="dev is empty"):
        as_retrieval_data(PAIRS, dev=[])
    with pytest.raises(ValueError, match="No dev query can be used"):
        as_retrieval_data(PAIRS, dev=[("noise", "Call us.", 0)])
    with pytest.raises(ValueError, match="dev holds documents alone"):
        as_retrieval_data(PAIRS, dev=["Call us."])


SENTENCES = "The pump number {0} runs at night only. It was built by the company {0} in Ulm. Its colour {0} is known."


@pytest.mark.parametrize("form", ["mapping", "jsonl", "folder", "dataset", "keyword"])
def test_titles_are_the_queries_of_a_corpus_alone(tmp_path: Path, form: str) -> None:
    rows = [{"_id": f"d{i}", "title": f"Pump {i}", "text": SENTENCES.format(i)} for i in range(5)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources: dict[str, Any] = {
        "mapping": {row["_id"]: {"title": row["title"], "text": row["text"]} for row in rows},
        "jsonl": tmp_path / "corpus.jsonl",
        "folder": tmp_path,
        "dataset": Dataset.from_list([{"title": row["title"], "text": row["text"]} for row in rows]),
    }
    data = as_retrieval_data(corpus=sources["jsonl"]) if form == "keyword" else as_retrieval_data(sources[form])
    assert data.labels == "titles"
    assert by_text(data) == {f"Pump {i}": {SENTENCES.format(i): 1} for i in range(5)}


def test_a_title_does_not_stand_in_its_text_word_for_word() -> None:
    documents = {
        "heading": {"title": "Care of the pump", "text": "Care of the  Pump. Oil it twice a year."},
        "short": {"title": "Pump", "text": "Pump oil is sold in cans."},
        "inside": {"title": "How to oil the pump", "text": "This page says how to oil the pump in winter."},
        "same1": {"title": "Note", "text": "Call the hotline."},
        "same2": {"title": "note", "text": "Read the manual."},
        "bare": {"title": "Valves", "text": ""},
    }
    data = as_retrieval_data({**documents, **{f"d{i}": {"title": f"T{i}", "text": f"Text {i}."} for i in range(3)}})
    assert set(data.queries) == {"heading", "short", "d0", "d1", "d2"}
    assert data.corpus["heading"] == "Oil it twice a year."
    assert data.corpus["short"] == "Pump oil is sold in cans."
    assert data.corpus["bare"] == "Valves"
    assert len(data.corpus) == 9


def test_sentences_are_cut_out_of_their_documents() -> None:
    boilerplate = "All rights are reserved by the company that made it."
    texts = [f"{SENTENCES.format(i)} {boilerplate}" for i in range(20)]
    data = as_retrieval_data(texts)
    assert data.labels == "sentences"
    assert len(data.queries) == len(data.corpus) == 20
    for query_id, documents in data.qrels["train"].items():
        (document_id,) = documents
        query, document = data.queries[query_id], data.corpus[document_id]
        assert query not in document
        assert sorted([*query.split(), *document.split()]) == sorted(texts[int(document_id[1:])].split())
        assert query != boilerplate
    assert len({data.queries[q].split()[0] for q in data.queries}) == 2  # not always the first sentence
    assert as_retrieval_data(texts[::-1]).queries["d19"] == data.queries["d0"]


def test_where_no_spaces_part_words_signs_are_counted() -> None:
    sentences = [f"这是第{sign}个关于检索模型的句子它足够长可以作为查询。" for sign in "甲乙丙丁戊己庚辛"]
    rest = "我们再加上一句话来说明这篇文章的其余部分使它更长一些。"
    data = as_retrieval_data([f"{sentences[i]}{sentences[i + 1]}{rest}" for i in range(0, 8, 2)])
    assert (data.labels, len(data.queries)) == ("sentences", 4)
    title = "检索模型的第{}种训练方法"
    titled = [{"_id": str(i), "title": title.format(i), "text": f"本文介绍{title.format(i)}和结果。"} for i in range(3)]
    with pytest.raises(ValueError, match="A corpus of 3 documents gives 0 pseudo-queries"):
        as_retrieval_data(corpus=titled)


def test_a_corpus_that_gives_no_queries_or_comes_with_dev_is_refused() -> None:
    with pytest.raises(ValueError, match="A corpus of 2 documents gives 0 pseudo-queries"):
        as_retrieval_data(["Too short.", "Also."])
    with pytest.raises(ValueError, match="dev cannot be given"):
        as_retrieval_data([SENTENCES.format(i) for i in range(3)], dev=PAIRS)
    with pytest.raises(TypeError, match="nothing to train on"):
        as_retrieval_data()


def test_notes_are_logged_as_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="st_asym"):
        as_retrieval_data([SENTENCES.format(i) for i in range(3)])
    assert caplog.messages[0].startswith("No labels: 3 pseudo-queries from the sentences of 3 documents")


@pytest.mark.parametrize("name", ["score", "Label", "clicked", "shown"])
def test_a_grade_that_the_first_row_has_not_is_named(name: str) -> None:
    rows = [{"query": "q", "document": "d"}, {"query": "q", "document": "e", name: 0}]
    with pytest.raises(ValueError, match=rf"row 1: '{name}', which the first row has not"):
        as_retrieval_data(rows)


def test_a_title_that_the_first_row_has_not_is_read() -> None:
    rows = [{"query": "q", "text": "d"}, {"query": "r", "text": "e", "title": "T"}]
    assert list(as_retrieval_data(rows).corpus.values()) == ["d", "T e"]


def test_grades_may_be_numbers_of_numpy() -> None:
    grades = dict(zip(["d", "e"], np.array([1, 0]), strict=True))
    data = as_retrieval_data(({"q": "a"}, {"d": "b", "e": "c"}, {"q": grades}))
    assert data.qrels == {"train": {"q": {"d": 1, "e": 0}}}
