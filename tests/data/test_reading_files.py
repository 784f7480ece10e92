"""What public bug reports say of files: quotation marks, suffixes, layouts, other people's forms."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_helpers import EXPECTED, PAIRS, Write, beir, by_text
from datasets import Dataset

from st_asym.data import as_retrieval_data, load_data

TRAIN = "q0\td0\t1\nq1\td1\t2\n"
JUDGED = {"q0": {"d0": 1}, "q1": {"d1": 2}}


# Quotation marks


def test_a_tsv_has_no_quoting(write: Write) -> None:
    rows = [f"query {i}\tdocument {i}" for i in range(100)]
    lines = [
        "query\tpositive",
        '"pump noise\tReplace the pump.',
        *rows,
        'fan noise"\tOil the fan.',
        '24" screen\tA "big" one.',
    ]
    data = as_retrieval_data(write("a.tsv", "\r\n".join(lines)))
    assert len(data.queries) == 103
    assert by_text(data)['"pump noise'] == {"Replace the pump.": 1}
    assert by_text(data)['24" screen'] == {'A "big" one.': 1}
    assert data.notes == ()


def test_a_tsv_that_was_written_with_quotes_is_named(write: Write) -> None:
    data = as_retrieval_data(write("a.tsv", 'query\tpositive\n"a ""b"""\tc\nd\te\n'))
    assert list(data.queries.values()) == ['"a ""b"""', "d"]
    assert data.notes[0].startswith("a.tsv: 1 row with a field in quotation marks, which are part of it")
    assert "(line 2)" in data.notes[0]
    with pytest.raises(
        ValueError, match=r"a\.tsv: the column names .* are in quotation marks, and a \.tsv has no quot"
    ):
        as_retrieval_data(write("a.tsv", '"query"\t"positive"\n"a"\t"b"\n'))
    with pytest.raises(ValueError, match=r"a\.tsv, line 2: 1 fields, but the header has 2.*holds no tab or line end"):
        as_retrieval_data(write("a.tsv", 'query\tpositive\n"two\nlines"\tb\n'))


def test_a_quoted_field_over_many_lines_is_counted(write: Write) -> None:
    swallowed = (
        'query,positive\n"pump noise,p1\n' + "".join(f"q{i},p{i}\n" for i in range(100)) + 'fan noise",p2\nb,c\n'
    )
    data = as_retrieval_data(write("a.csv", swallowed))
    assert len(data.queries) == 2
    (note,) = data.notes
    assert note.startswith("a.csv: 1 row with a quoted field over more than two lines; where that is not meant, a quo")
    assert note.endswith("(line 2).")
    documents = as_retrieval_data(PAIRS, corpus=write("c.csv", 'id,text\n1,"a\nb\nc"\n2,d\n'))
    assert "c.csv: 1 row with a quoted field over more than two lines" in documents.notes[0]
    assert as_retrieval_data(write("a.csv", 'query,positive\n"one\nmore",p1\nb,c\n')).notes == ()


def test_what_excel_writes_before_the_header_says_what_separates(write: Write) -> None:
    rows = "query;positive\n" + "".join(f"{q};{d}\n" for q, d in PAIRS)
    for line in ("sep=;\n", '"sep=;"\r\n', "\ufeffSEP=;\n"):
        assert by_text(as_retrieval_data(write("a.csv", line + rows))) == EXPECTED
    with pytest.raises(ValueError, match=r"a\.csv, line 6: 1 fields, but the header has 2"):
        as_retrieval_data(write("a.csv", "sep=;\n" + rows + "one\n"))
    tabs = "query\tpositive\n" + "".join(f"{q}\t{d}\n" for q, d in PAIRS)
    assert by_text(as_retrieval_data(write("a.tsv", "sep=\t\n" + tabs))) == EXPECTED


def test_what_spreadsheets_and_shells_leave_in_a_table_is_passed_over(write: Write) -> None:
    rows = "".join(f"{q},{d},,\n" for q, d in PAIRS)
    assert by_text(as_retrieval_data(write("a.csv", "query,positive,,\n" + rows))) == EXPECTED  # columns without names
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        header = f"query{separator}positive\n"
        table = header + "".join(f"{q}{separator}{d}\n" for q, d in PAIRS)
        assert by_text(as_retrieval_data(write(name, table + " \n"))) == EXPECTED
        data = as_retrieval_data(write(name, table + "\ufeff" + table))  # cat monday.csv tuesday.csv
        assert by_text(data) == EXPECTED
        assert data.notes == (
            f"{name}: 1 row the same as the header left out, as where files were put together (line 5).",
        )


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", '"query","text"\r"a","b"\r', 1),
        ("a.csv", "query,text\na,b\rc,d\r", 2),
        ("a.jsonl", '{"query": "a", "text": "b"}\r{"query": "c", "text": "d"}\r', 1),
    ],
)
def test_carriage_returns_alone_are_named(write: Write, name: str, content: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}, line {line}: lines end in a carriage return alone"):
        as_retrieval_data(write(name, content))


def test_a_column_of_splits_is_not_passed_over_in_silence(write: Write) -> None:
    data = as_retrieval_data(write("a.csv", "query,text,Split\na,b,train\nc,d,test\n"))
    assert data.notes == ("a.csv: the column split is not read. Give the rows of each split apart, as train and dev.",)


# Names


@pytest.mark.parametrize(
    ("name", "separator"),
    [("UP.TSV", "\t"), ("UP.CSV.GZ", ","), ("Up.Tsv.Gz", "\t"), ("my.tsv.export.csv", ","), ("a.csv.tsv", "\t")],
)
def test_the_last_suffix_in_any_case_decides(write: Write, name: str, separator: str) -> None:
    content = f"query{separator}positive\n" + "".join(f"{q}{separator}{d}\n" for q, d in PAIRS)
    assert by_text(as_retrieval_data(write(name, content))) == EXPECTED


def test_a_spreadsheet_is_no_zip_of_a_collection(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", train=TRAIN)
    archive = Path(shutil.make_archive(str(tmp_path / "book"), "zip", folder))
    assert load_data(archive.rename(tmp_path / "BOOK.ZIP")).qrels["train"] == JUDGED
    with pytest.raises(ValueError, match=r"book\.xlsx is not a \.jsonl, \.csv or \.tsv file"):
        load_data((tmp_path / "BOOK.ZIP").rename(tmp_path / "book.xlsx"))
    with pytest.raises(ValueError, match=r"pandas\.read_excel; or save them as \.csv or \.jsonl"):
        load_data(tmp_path / "book.xlsx")


def test_parquet_is_read_like_other_tables(tmp_path: Path) -> None:
    pairs = pd.DataFrame(PAIRS, columns=["query", "positive"])
    listed = pd.DataFrame({"query": ["a", "b"], "pos": [["x", "y"], ["z"]], "neg": [["z"], []]})
    for path in (tmp_path / "part=1" / "pairs.parquet", tmp_path / "PAIRS.PARQUET"):
        path.parent.mkdir(exist_ok=True)
        pairs.to_parquet(path)
        assert by_text(as_retrieval_data(path)) == EXPECTED
    assert len(load_data(path).queries) == 2
    listed.to_parquet(path)
    assert by_text(as_retrieval_data(path)) == {"a": {"x": 1, "y": 1, "z": 0}, "b": {"z": 1}}
    pd.DataFrame({"id": ["k"], "text": ["One more."], "n": [1]}).to_parquet(path)
    assert as_retrieval_data(PAIRS, corpus=path).corpus["k"] == "One more."
    pd.DataFrame({"query": ["a"], "text": [7]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"PARQUET: 1 row with something else than text: PAIRS\.PARQUET, row 0 \(7\)"):
        as_retrieval_data(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"PAIRS\.PARQUET is not a \.jsonl.*, or it is damaged: "):
        as_retrieval_data(path)


# Folders


def test_two_collections_in_a_folder_or_a_zip_are_refused_by_name(tmp_path: Path) -> None:
    beir(tmp_path / "all" / "one", train=TRAIN)
    beir(tmp_path / "all" / ".git", train=TRAIN)
    beir(tmp_path / "all" / "__MACOSX", train=TRAIN)
    assert load_data(tmp_path / "all").qrels["train"] == JUDGED
    beir(tmp_path / "all" / "two", train=TRAIN)
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "all")
    for path in (tmp_path / "all", Path(archive)):
        with pytest.raises(ValueError, match=r"all(\.zip/)? holds 2 collections: one, two\. Give the folder of one"):
            load_data(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "query-id,corpus-id,score\nq0,d0,1\nq1,d1,2\n"),
        ("train.CSV", "query-id;corpus-id;score\nq0;d0;1\nq1;d1;2\n"),
        ("train.txt", "q0 0 d0 1\nq1 0 d1 2\n"),
        ("train.txt", "q0\tQ0\td0\t1\r\nq1\tQ0\td1\t2\r\n\r\n"),
        ("train.trec", "q0 0 d0 1\nq1 0 d1 2\n"),
        ("train.tsv", "q0\t0\td0\t1\nq1\t0\td1\t2\n"),
        ("train.tsv", "corpus_id\tquery_id\trelevance\nd0\tq0\t1\nd1\tq1\t2\n"),
        ("train.tsv", "QID\titer\tdocid\tLabel\nq0\t0\td0\t1\nq1\t0\td1\t2\n"),
        ("train.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t1\t\nq1\td1\t2\n"),
        ("train.tsv.gz", "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t2\n"),
        (
            "train.jsonl",
            '{"query-id": "q0", "corpus-id": "d0", "score": 1}\n{"query_id":"q1","doc_id":"d1","score":2}\n',
        ),
        ("train.json", '[{"query-id": "q0", "corpus-id": "d0", "score": 1},\n{"qid":"q1","docid":"d1","score":"2"}]'),
    ],
)
def test_qrels_in_other_forms_are_read(tmp_path: Path, write: Write, name: str, content: str) -> None:
    folder = beir(tmp_path / "b")
    write(f"b/qrels/{name}", content)
    write("b/qrels/._train.tsv", b"\x00\x05\x16\x07\xff")
    write("b/qrels/.DS_Store", b"\x00")
    data = load_data(folder)
    assert data.qrels == {"train": JUDGED}
    assert data.notes == ()
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    assert load_data(archive) == data


def test_qrels_that_are_not_read_are_named(tmp_path: Path, write: Write) -> None:
    folder = beir(tmp_path / "b", train=TRAIN)
    write("b/qrels/dev.xlsx", "x")
    (folder / "qrels" / "old").mkdir()
    assert load_data(folder).notes == (
        "qrels/dev.xlsx is not read: qrels are .tsv, .csv, .jsonl, or .txt in TREC's form.",
        "qrels/old is not read: qrels are .tsv, .csv, .jsonl, or .txt in TREC's form.",
    )
    write("b/qrels/train.csv", "query-id,corpus-id,score\nq0,d0,1\n")
    with pytest.raises(ValueError, match=r"qrels/train\.csv and qrels/train\.tsv are both 'train': keep one"):
        load_data(folder)
    for file in (folder / "qrels").glob("train.*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file in .*qrels/? that holds judgments: qrels/SPLIT\.tsv"):
        load_data(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.csv", 'query-id,corpus-id,score\n"q0,d0,1\n', r"qrels/test\.csv, line 2: unexpected end of data"),
        (
            "test.csv",
            "query-id,corpus-id,score\nq0,d0,high\n",
            r"qrels/test\.csv, line 2: expected query-id, corpus-id",
        ),
        ("test.tsv", "q0\td0\t\nq1\td1\t1\n", r"qrels/test\.tsv, line 1: expected query-id, corpus-id, score, got"),
        ("test.txt", "q0 Q0 d0 1 0.7 run\n", r"qrels/test\.txt, line 1: expected query-id, corpus-id, score, got"),
        ("test.jsonl", '{"query": "q0", "score": 1}\n', r"qrels/test\.jsonl, line 1: expected .*got the columns"),
        ("test.csv", "query-id,corpus-id,score\nq0,d9,1\n", r"qrels/test\.csv names 1 .* document d9"),
    ],
)
def test_a_broken_line_of_qrels_is_named(tmp_path: Path, write: Write, name: str, content: str, message: str) -> None:
    folder = beir(tmp_path / "b", train=TRAIN)
    write(f"b/qrels/{name}", content)
    with pytest.raises(ValueError, match=message):
        load_data(folder)


def test_the_files_of_a_folder_may_be_packed(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", train=TRAIN)
    for name in ("corpus", "queries"):
        file = folder / f"{name}.jsonl"
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert load_data(folder).qrels == {"train": JUDGED}
    (folder / "corpus.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"corpus\.jsonl and corpus\.jsonl\.gz: keep one"):
        load_data(folder)


# Fields


def test_a_missing_title_is_none_wherever_it_stands(tmp_path: Path, write: Write) -> None:
    folder = beir(tmp_path / "b", train=TRAIN)
    rows = [{"_id": f"d{i}", "title": None, "text": f"About part {i}."} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, {"_id": "d3", "text": None, "title": "Bare"}])
    write("b/corpus.jsonl", lines)
    texts = {"d0": "About part 0.", "d1": "About part 1.", "d2": "About part 2.", "d3": "Bare"}
    assert load_data(folder).corpus == texts
    assert as_retrieval_data(PAIRS, corpus=write("c.jsonl", lines)).corpus.items() >= {"d3": "Bare"}.items()
    assert as_retrieval_data(PAIRS, corpus=folder).corpus.items() >= {"d3": "Bare"}.items()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", '{"_id": "x", "title": "Care", "text": "of pumps.", "lang": "en", "tags": ["a"]}\n'),
        ("c.csv", "ID,Title,Text,category\nx,Care,of pumps.,7\n"),
        ("c.tsv", "docid\tcontents\tlang\nx\tCare of pumps.\ten\n"),
        ("c.json", '[\n {"_id": "x", "title": "Care", "text": "of pumps.", "lang": "en"}\n]'),
        ("c.json", '{"queries": {}, "corpus": {"x": "Care of pumps."}, "relevant_docs": {}, "mode": "text"}'),
    ],
)
def test_a_corpus_may_have_other_fields(write: Write, name: str, content: str) -> None:
    data = as_retrieval_data(PAIRS, corpus=write(name, content))
    assert data.corpus["x"] == "Care of pumps."
    assert len(data.corpus) == 4


def test_rows_without_a_document_are_counted(write: Write) -> None:
    rows = [
        {"query": "a", "pos": ["x", "y"]},
        {"query": "b", "pos": []},
        {"query": "c", "pos": ["z"], "neg": ["", "w"]},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for source in (rows, write("a.jsonl", lines)):
        data = as_retrieval_data(source)
        assert by_text(data) == {"a": {"x": 1, "y": 1}, "c": {"z": 1, "w": 0}}
        assert "2 pairs with an empty text left out" in data.notes[0]


# Other people's forms


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_objects_is_read(write: Write, indent: int | None) -> None:
    rows: list[Any] = [{"query": q, "positive": d} for q, d in PAIRS]
    for name in ("a.json", "a.jsonl", "a.json.gz"):
        assert by_text(as_retrieval_data(write(name, "\n" + json.dumps(rows, indent=indent)))) == EXPECTED
    with pytest.raises(ValueError, match=r"a\.json, line 1: not a JSON object, but \["):
        as_retrieval_data(write("a.json", json.dumps([["a", "b"]])))
    with pytest.raises(ValueError, match=r"a\.json is empty"):
        as_retrieval_data(write("a.json", "[]"))


def test_errors_in_an_array_name_the_line(write: Write) -> None:
    with pytest.raises(ValueError, match=r"a\.json, line 5: not a JSON object, nor part of an array"):
        as_retrieval_data(write("a.json", '[\n\n{"query": "a",\n "text": "b"},\n{"query": "c" "text": "d"}\n]'))
    with pytest.raises(ValueError, match=r"a\.json, line 5: no 'text', only \['query'\]"):
        as_retrieval_data(write("a.json", '[\n\n{"query": "a",\n "text": "b"},\n{"query": "c"}\n]'))
    with pytest.raises(ValueError, match=r"a\.json has the columns \['version', 'data'\]: none is the query"):
        as_retrieval_data(write("a.json", json.dumps({"version": 2, "data": []}, indent=1)))


@pytest.mark.parametrize("indent", [None, 4])
def test_llama_index_is_read(write: Write, indent: int | None) -> None:
    form = {
        "queries": {"u1": "error E17", "u2": "error E18"},
        "corpus": {"n1": "Replace the filter.", "n2": "Restart the pump.", "n3": "Call us."},
        "relevant_docs": {"u1": ["n1", "n3"], "u2": ["n2"]},
        "mode": "text",
    }

    class Finetune:
        queries, corpus, relevant_docs = form["queries"], form["corpus"], form["relevant_docs"]

    for source in (write("a.json", json.dumps(form, indent=indent)), form, Finetune()):
        data = as_retrieval_data(source)
        assert by_text(data) == EXPECTED
        assert set(data.corpus) == {"n1", "n2", "n3"}


def test_the_columns_of_flag_embedding_are_read_from_any_file(write: Write) -> None:
    rows = [
        {"query": "a", "pos": ["x", "y"], "neg": ["z"], "pos_scores": [0.9, 0.8], "neg_scores": [0.1], "prompt": "p"},
        {"query": "b", "pos": ["z"], "neg": ["x", "w"], "pos_scores": [1.0], "neg_scores": [0.1, 0.2], "prompt": "p"},
    ]
    expected = {"a": {"x": 1, "y": 1, "z": 0}, "b": {"z": 1, "x": 0, "w": 0}}
    assert by_text(as_retrieval_data(write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))) == expected
    table = "query,pos,neg\n" + "".join(f'''{r["query"]},"{r["pos"]}","{r["neg"]}"\n''' for r in rows)
    data = as_retrieval_data(write("a.csv", table))
    assert by_text(data) == expected
    assert data.notes == ("a.csv: 2 rows with a list written as text, read as a list (a.csv, line 2, a.csv, line 3).",)
    data = as_retrieval_data(write("a.csv", "query,pos\na,[sic] a text [1]\nb,\"['x' 'y']\"\n"))
    assert by_text(data) == {"a": {"[sic] a text [1]": 1}, "b": {"['x' 'y']": 1}}
    assert data.notes == (
        "a.csv: 1 row with what looks like a list that cannot be read, taken as one text (a.csv, line 3).",
    )


def test_lists_with_a_label_for_each_document_are_read(write: Write) -> None:
    """As ``mine_hard_negatives(output_format="labeled-list")`` writes them."""
    documents, expected = (
        [["x", "y"], ["y", "it's, w", "x"]],
        {"a": {"x": 1, "y": 0}, "b": {"y": 1, "it's, w": 0, "x": 0}},
    )
    columns: dict[str, list[Any]] = {"anchor": ["a", "b"], "positive": documents, "labels": [[1, 0], [1, 0, 0]]}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = pd.DataFrame(columns).to_csv(index=False)
    sources = [Dataset.from_dict(columns), pd.DataFrame(columns), rows, write("a.jsonl", lines), write("a.csv", table)]
    for source in sources:
        assert by_text(as_retrieval_data(source)) == expected
    grades = [{**row, "score": row["labels"], "labels": ["pumps"]} for row in rows]
    assert by_text(as_retrieval_data(grades)) == expected
    scored = [{**row, "labels": ["pumps"] * 3, "scores": [0.9, 0.5, 0.4][: len(row["positive"])]} for row in rows]
    for source in (scored, write("s.csv", pd.DataFrame(scored).to_csv(index=False))):
        with pytest.raises(
            ValueError, match=r"'scores' has a number for each .* which are relevant\. .*output_scores=Fa"
        ):
            as_retrieval_data(source)
    for wrong in ([1, 0], None, ["1", "0", "0"], [1, None, 0]):
        rows[1]["labels"] = wrong
        with pytest.raises(ValueError, match=r"row 1: 'labels' is .*, and not a number for each of 3 documents"):
            as_retrieval_data(rows)
    # Of the other forms, columns say what is relevant.
    topics = [{"query": "a", "pos": ["x"], "neg": ["y"], "labels": [0]}]
    topics += [{"query": "b", "pos": ["y", "x"], "neg": ["z"], "labels": [2, 0]}]
    assert by_text(as_retrieval_data(topics)) == {"a": {"x": 1, "y": 0}, "b": {"y": 1, "x": 1, "z": 0}}
    tuples = [
        {"anchor": "a", "positive": "x", "negative_1": "y", "scores": [0.9, 0.5]},
        {"anchor": "b", "positive": "y"},
    ]
    assert by_text(as_retrieval_data(tuples)) == {"a": {"x": 1, "y": 0}, "b": {"y": 1}}
    listed = [{"query": "a", "pos": ["x", "y"], "neg": ["z"], "scores": [0.9, 0.5]}]
    assert by_text(as_retrieval_data(listed)) == {"a": {"x": 1, "y": 1, "z": 0}}


@pytest.mark.parametrize(
    "names",
    [
        ("query", "positive_passages", "negative_passages"),  # Tevatron
        ("question", "positive_ctxs", "hard_negative_ctxs"),  # DPR
    ],
)
def test_columns_of_passages_are_read(write: Write, names: tuple[str, str, str]) -> None:
    passages = [[{"docid": "1", "title": "Pumps", "text": "x"}], [{"docid": "2", "title": "", "text": "y"}]]
    rows = [dict(zip(names, (query, *passages), strict=True)) for query in "ab"]
    data = as_retrieval_data(write("a.json", json.dumps(rows)))
    assert by_text(data) == {"a": {"Pumps x": 1, "y": 0}, "b": {"Pumps x": 1, "y": 0}}


def test_ids_that_differ_by_white_space_are_named(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", train="q0 \td0\t1\nq1\td1\t1\n")
    with pytest.raises(ValueError, match=r"do not exist: query 'q0 '\. There are such with other white space around"):
        load_data(folder)
    # The id of a query is none of a document.
    folder = beir(tmp_path / "c", train="d0\tq0\t1\n")
    with pytest.raises(ValueError, match=r"names 2 queries or documents that do not exist: query d0, document q0\.$"):
        load_data(folder)


def test_the_case_of_a_split_does_not_matter(tmp_path: Path, write: Write) -> None:
    folder = beir(tmp_path / "b", train=TRAIN)
    write("b/qrels/DEV.TSV", "q2\td2\t1\n")
    assert as_retrieval_data(folder).qrels["dev"] == {"q2": {"d2": 1}}


def test_queries_in_another_form_are_not_passed_over(write: Write, tmp_path: Path) -> None:
    write("b/corpus.jsonl", "".join(json.dumps({"_id": f"d{i}", "text": f"About {i}."}) + "\n" for i in range(3)))
    write("b/queries.tsv", "q0\tpart 0\n")
    with pytest.raises(FileNotFoundError, match=r"queries\.jsonl is missing"):
        load_data(tmp_path / "b")
    assert set(as_retrieval_data(PAIRS, corpus=tmp_path / "b").corpus.values()) >= {"About 0.", "About 1.", "About 2."}
