"""Whatever has columns is read by them, wherever it is given; and rows are told from (queries, corpus, qrels)."""

from __future__ import annotations

import io
from collections import namedtuple
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, Value
from sentence_transformers import SentenceTransformer

from st_asym import diagnose, evaluate
from st_asym.data import RetrievalData, as_retrieval_data
from st_asym.heads.model import asymmetric_model

PAIRS = [("error E17", "Replace the filter."), ("error E18", "Restart the pump."), ("error E17", "Call us.")]
EXPECTED = {"error E17": {"Replace the filter.": 1, "Call us.": 1}, "error E18": {"Restart the pump.": 1}}


def polars_frame(columns: dict[str, list[Any]]) -> Any:
    return pytest.importorskip("polars").DataFrame(columns)


def structured(columns: dict[str, list[Any]]) -> Any:
    rows = list(zip(*columns.values(), strict=True))
    return np.array(rows, dtype=[(name, "U40") for name in columns])


FRAMES: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "pandas": pd.DataFrame,
    "pandas, arrow": lambda columns: pd.DataFrame(columns).convert_dtypes(dtype_backend="pyarrow"),
    "pandas, index": lambda columns: pd.DataFrame(columns).set_index(next(iter(columns))),
    "pandas, indexes": lambda columns: pd.DataFrame({**columns, "n": 1}).set_index(list(columns)),
    "polars": polars_frame,
    "arrow": pa.table,
    "batch": lambda columns: pa.table(columns).to_batches()[0],
    "reader": lambda columns: pa.table(columns).to_reader(),
    "columns": dict,
    "series": lambda columns: {name: pd.Series(values) for name, values in columns.items()},
    "streamed": lambda columns: Dataset.from_dict(columns).to_iterable_dataset(),
    "generated": lambda columns: IterableDataset.from_generator(lambda: iter(Dataset.from_dict(columns))),
    "formatted": lambda columns: Dataset.from_dict(columns).with_format("pandas"),
    "structured": structured,
}
frames = pytest.mark.parametrize("frame", FRAMES.values(), ids=list(FRAMES))


def by_text(data: RetrievalData, split: str = "train") -> dict[str, dict[str, int]]:
    return {data.queries[q]: {data.corpus[d]: g for d, g in ds.items()} for q, ds in data.qrels[split].items()}


@frames
def test_a_table_is_read_by_its_columns_as_train_dev_and_corpus(frame: Callable[..., Any]) -> None:
    train = {"query": [q for q, _ in PAIRS], "positive": [d for _, d in PAIRS]}
    data = as_retrieval_data(
        frame(train),
        dev=frame({"question": ["noise"], "answer": ["Call us."]}),
        corpus=frame({"_id": ["x", "y"], "text": ["One more.", "call  us."], "lang": ["en", "en"]}),
    )
    assert by_text(data) == {**EXPECTED, "error E17": {"Replace the filter.": 1, "call  us.": 1}}
    assert by_text(data, "dev") == {"noise": {"call  us.": 1}}
    assert set(data.corpus) == {"x", "y", "d0", "d1"}
    assert data.corpus["x"] == "One more."


@pytest.mark.parametrize(
    "texts",
    [
        pd.DataFrame({"text": ["one", "two"]}),
        pd.Series(["one", "two"]),
        pa.array(["one", "two"]),
        np.array(["one", "two"]),
        {"text": ("one", "two")},
        pd.DataFrame({"Title": ["one", None], "TEXT": [None, "two"], "n": [1.5, 2.5]}),
    ],
)
def test_a_corpus_of_texts_adds_its_texts_alone(texts: Any) -> None:
    data = as_retrieval_data(PAIRS, corpus=texts)
    assert sorted(set(data.corpus.values()) - {d for _, d in PAIRS}) == ["one", "two"]


def test_what_is_missing_in_a_data_frame_is_missing() -> None:
    rows = {"query": ["a", None, "b", "c"], "positive": ["x", "y", None, "z"], "grade": [1, 1, 1, 2]}
    for data_frame in (pd.DataFrame(rows), pd.DataFrame(rows).convert_dtypes(), pd.DataFrame(rows, dtype=object)):
        data = as_retrieval_data(data_frame)
        assert by_text(data) == {"a": {"x": 1}, "c": {"z": 2}}
        assert data.notes == ("train: 2 pairs with an empty text left out (train, row 1, train, row 2).",)
    ids = pd.DataFrame({"id": [7, None], "text": ["one", "two"], "title": [np.nan, pd.NA]})
    data = as_retrieval_data([("q", "a"), ("r", "b")], corpus=ids)
    assert data.corpus == {"7": "one", "d1": "two", "d0": "a", "train:d1": "b"}


def test_lists_in_a_data_frame_are_lists() -> None:
    table = pa.table({"query": ["a", "b"], "pos": [["x", "y"], ["z"]], "neg": [["z"], []]})
    for source in (table, table.to_pandas(), Dataset(table)):
        assert by_text(as_retrieval_data(source)) == {"a": {"x": 1, "y": 1, "z": 0}, "b": {"z": 1}}


def test_splits_of_data_frames() -> None:
    listed = as_retrieval_data({"train": PAIRS, "dev": [{"query": "noise", "text": "Call us."}]})
    assert (by_text(listed), by_text(listed, "dev")) == (EXPECTED, {"noise": {"Call us.": 1}})
    train = pd.DataFrame({"query": [q for q, _ in PAIRS], "text": [d for _, d in PAIRS]})
    splits = {"train": train, "validation": pd.DataFrame({"query": ["noise"], "text": ["Call us."]})}
    data = as_retrieval_data(splits)
    assert by_text(data) == EXPECTED
    assert by_text(data, "dev") == {"noise": {"Call us.": 1}}
    data = as_retrieval_data({"train": np.array(PAIRS), "dev": (("noise", "Call us."),)})
    assert (by_text(data), by_text(data, "dev")) == (EXPECTED, {"noise": {"Call us.": 1}})


def test_columns_that_cannot_be_told_are_named() -> None:
    with pytest.raises(ValueError, match=r"train has the columns \['a', 'b'\]: none is the query"):
        as_retrieval_data(pd.DataFrame({"a": ["x"], "b": ["y"]}))
    with pytest.raises(ValueError, match=r"train has the columns \[0, 1\]: none is the query"):
        as_retrieval_data(pd.DataFrame(PAIRS))
    with pytest.raises(ValueError, match="train: a column name occurs twice"):
        as_retrieval_data(pd.DataFrame([["a", "b", "c"]], columns=["query", "text", "text"]))
    with pytest.raises(ValueError, match=r"train: columns of different lengths, \{'query': 2, 'text': 1\}"):
        as_retrieval_data({"query": ["a", "b"], "text": ["x"]})
    with pytest.raises(ValueError, match="corpus is empty"):
        as_retrieval_data(PAIRS, corpus=pd.DataFrame({"text": []}))


class Frame:
    """Of a library that nobody here knows, which gives its columns' names, as many do."""

    columns = ("query", "text")

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    "source",
    [
        7,
        b"query,text",
        io.StringIO("query,text\na,b\n"),
        [pd.DataFrame({"a": [1]})],
        object(),
        len,
        [object()],
        Frame(),
    ],
    ids=["number", "bytes", "file", "list", "object", "function", "objects", "frame"],
)
def test_what_cannot_be_read_is_a_type_error_that_names_what_can(source: Any) -> None:
    for arguments in ({"train": source}, {"train": PAIRS, "corpus": source}, {"train": PAIRS, "dev": source}):
        with pytest.raises(
            TypeError,
            match=r"give a path, a data set or data frame, pairs|expected \(query, document\)|expected a text, or a",
        ):
            as_retrieval_data(**arguments)


def test_a_list_of_paths_is_no_list_of_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(TypeError, match="corpus is a list of paths"):
        as_retrieval_data(PAIRS, corpus=[str(tmp_path / "a.jsonl")])
    assert "manual.csv" in as_retrieval_data(PAIRS, corpus=["manual.csv"]).corpus.values()


def test_named_tuples_are_read_by_their_names() -> None:
    row = namedtuple("row", "document query")
    assert by_text(as_retrieval_data([row(d, q) for q, d in PAIRS])) == EXPECTED
    frame = pd.DataFrame({"query": [q for q, _ in PAIRS], "positive": [d for _, d in PAIRS]})
    assert by_text(as_retrieval_data(list(frame.itertuples()))) == EXPECTED
    plain = namedtuple("plain", "left right")
    assert by_text(as_retrieval_data([plain(q, d) for q, d in PAIRS])) == EXPECTED


def test_documents_that_come_with_ids_are_no_pairs() -> None:
    bare, titled = namedtuple("GenericDoc", "doc_id text"), namedtuple("TitleDoc", "doc_id title text")
    assert as_retrieval_data(PAIRS, corpus=[bare("D1", "New one.")]).corpus["D1"] == "New one."
    assert as_retrieval_data(PAIRS, corpus=[titled("D1", "New", "one.")]).corpus["D1"] == "New one."
    for documents in ([bare("D1", "one"), bare("D2", "two")], [namedtuple("Query", "query_id text")("q", "one")]):
        with pytest.raises(ValueError, match=r"none is the (query|document)"):
            as_retrieval_data(documents)
    for arguments in ({"train": PAIRS, "corpus": [("D1", "one"), ("D2", "two")]}, {"corpus": [("D1", "one")]}):
        with pytest.raises(TypeError, match=r"got a tuple. Give documents that have ids as \{id: text\}"):
            as_retrieval_data(**arguments)


@pytest.mark.parametrize("kind", [Image(), [Image()], {"in": Image()}])
@pytest.mark.parametrize("streams", [False, True])
def test_pictures_beside_the_texts_are_not_read(kind: Any, streams: bool) -> None:
    gone = "/nowhere.png" if isinstance(kind, Image) else ["/nowhere.png"] if isinstance(kind, list) else {"in": "/n"}
    columns = {"query": [q for q, _ in PAIRS], "positive": [d for _, d in PAIRS]}
    features = Features({name: Value("string") for name in columns} | {"page": kind})
    rows = Dataset.from_dict({**columns, "page": [gone] * len(PAIRS)}, features=features)
    assert by_text(as_retrieval_data(rows.to_iterable_dataset() if streams else rows)) == EXPECTED


@pytest.mark.parametrize("kind", [None, "torch"])
def test_columns_that_a_data_set_does_not_show_are_not_there(kind: str | None) -> None:
    rows = Dataset.from_list([{"text": "x", "query": query, "positive": document} for query, document in PAIRS])
    assert by_text(as_retrieval_data(rows.with_format(kind, columns=["query", "positive"]))) == EXPECTED
    assert rows.column_names == ["text", "query", "positive"]


# Three of something


@pytest.mark.parametrize("kind", [tuple, list])
def test_three_rows_are_rows(kind: Callable[..., Any]) -> None:
    assert by_text(as_retrieval_data(kind({"query": q, "positive": d} for q, d in PAIRS))) == EXPECTED
    rows = kind({"query": q, "pos": [d], "neg": []} for q, d in PAIRS)
    assert by_text(as_retrieval_data(rows)) == EXPECTED
    documents = kind({"_id": f"x{i}", "text": text} for i, text in enumerate(("one", "two", "three")))
    assert {"x0", "x1", "x2"} < set(as_retrieval_data(PAIRS, corpus=documents).corpus)


QUERIES = {"a": "error E17", "b": "error E18"}
CORPUS = {"x": "Replace the filter.", "y": "Restart the pump.", "z": "Call us."}
GRADES = {"query-id": ["a", "b", "a"], "corpus-id": ["x", "y", "z"], "score": [1, 1, 1]}


@pytest.mark.parametrize(
    "qrels",
    [
        {"a": {"x": 1, "z": 1}, "b": {"y": 1}},
        {"a": ["x", "z"], "b": ["y"]},
        {"a": {"x", "z"}, "b": {"y"}},
        {"train": {"a": {"x": 1, "z": 1}, "b": {"y": 1}}},
        {"train": {"a": ["x", "z"], "b": {"y": 1}}},
        {"train": {"a": ["x", "z"], "b": ["y"]}},
        {"train": {"a": {"x", "z"}, "b": {"y"}}},
        {"a": pd.Series({"x": 1, "z": 1}), "b": pd.Series({"y": Decimal(1)})},
        pd.DataFrame(GRADES),
        GRADES,
        DatasetDict({"train": Dataset.from_dict(GRADES)}),
    ],
    ids=[
        "grades",
        "lists",
        "sets",
        "split",
        "split, mixed",
        "split of lists",
        "split of sets",
        "series of grades",
        "frame",
        "columns",
        "splits of the Hub",
    ],
)
def test_qrels_in_all_forms(qrels: Any) -> None:
    queries = pd.DataFrame({"id": list(QUERIES), "query": list(QUERIES.values()), "language": "en"})
    corpus = Dataset.from_dict({"_id": list(CORPUS), "title": [None] * 3, "text": list(CORPUS.values())})
    for triple in ((QUERIES, CORPUS, qrels), (queries, corpus, qrels), [QUERIES, corpus, qrels]):
        data = as_retrieval_data(triple)
        assert by_text(data) == EXPECTED
        assert set(data.corpus) == set(CORPUS)


def test_three_data_sets_of_the_hub_are_read() -> None:
    """As BEIR's are there: ``load_dataset("BeIR/scifact", "queries")`` has one split of this name."""
    queries = Dataset.from_dict({"_id": list(QUERIES), "text": list(QUERIES.values())})
    corpus = Dataset.from_dict({"_id": list(CORPUS), "title": [""] * 3, "text": list(CORPUS.values())})
    parts = DatasetDict(queries=queries), DatasetDict(corpus=corpus), DatasetDict(train=Dataset.from_dict(GRADES))
    data = as_retrieval_data(parts)
    assert by_text(data) == EXPECTED
    assert set(data.corpus) == set(CORPUS)
    for name in ("default", "qrels"):  # the first is MTEB's
        assert by_text(as_retrieval_data({"queries": parts[0], "corpus": parts[1], name: parts[2]})) == EXPECTED
        assert by_text(as_retrieval_data({"queries": queries, "corpus": corpus, name: parts[2]["train"]})) == EXPECTED
    with pytest.raises(ValueError, match=r"corpus has the splits \['a', 'b'\]: give one of them"):
        as_retrieval_data((parts[0], DatasetDict(a=corpus, b=corpus), parts[2]))


def test_decimal_grades_are_numbers() -> None:
    """As a column of Arrow or of a database gives them."""
    rows = [("a", "x", "1.00"), ("a", "y", "0"), ("b", "y", "2")]
    data = as_retrieval_data([(query, document, Decimal(grade)) for query, document, grade in rows])
    assert data.qrels == {"train": {"q0": {"d0": 1, "d1": 0}, "q1": {"d1": 2}}}
    with pytest.raises(ValueError, match="1 grade not a whole number"):
        as_retrieval_data([("a", "x", Decimal("1.5")), ("b", "y", Decimal(1))])


def test_qrels_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected query-id, corpus-id, score, got \['a', 'x', 'high'\]"):
        as_retrieval_data((QUERIES, CORPUS, pd.DataFrame({**GRADES, "score": ["high", 1, 1]})))


def test_qrels_of_a_wrong_form_are_no_row() -> None:
    with pytest.raises(TypeError, match="The qrels of query 'a' are 'x': qrels map query id to document id to grade"):
        as_retrieval_data((QUERIES, CORPUS, {"a": "x"}))
    with pytest.raises(TypeError, match="qrels cannot be a list: qrels map query id to document id to grade, or are a"):
        as_retrieval_data((QUERIES, CORPUS, [("a", "x", 1)]))
    for names in ("qestion answer", "search click"):
        with pytest.raises(ValueError, match=r"train has the columns .*: none is the query"):
            as_retrieval_data(tuple(dict(zip(names.split(), pair, strict=True)) for pair in PAIRS))


# Evaluation and diagnosis


def test_evaluate_and_diagnose_take_data_frames(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    pairs = {"query": ["red head", "big text", "frozen"], "positive": ["small red head", "vector", "frozen encoder"]}
    rows = [dict(zip(pairs, values, strict=True)) for values in zip(*pairs.values(), strict=True)]
    judged = (
        dict(zip("abc", pairs["query"], strict=True)),
        dict(zip("xyz", pairs["positive"], strict=True)),
        {"a": {"x": 1}, "b": {"y": 1}, "c": {"z": 1}},
    )
    tuples = list(zip(*pairs.values(), strict=True))
    options: dict[str, Any] = {"results": None, "baselines": ()}
    for source in (pd.DataFrame(pairs), pa.table(pairs), pairs, rows, tuple(rows), tuples, judged):
        found = evaluate({"plain": tiny_encoder}, source, **options, train=pd.DataFrame(pairs).iloc[:1])
        assert found.data["data set 1"]["queries"] == 3
        assert len(found.queries["data set 1"]["seen"]) == 1
    for pairs_or_sets in (np.array(tuples), iter(tuples), iter([tuples]), {"data set 1": np.array(tuples)}):
        assert evaluate({"plain": tiny_encoder}, pairs_or_sets, **options).data["data set 1"]["queries"] == 3
    several = evaluate({"plain": tiny_encoder}, [pd.DataFrame(pairs), Dataset.from_dict(pairs), judged], **options)
    assert list(several.data) == ["data set 1", "data set 2", "data set 3"]
    named = evaluate({"plain": tiny_encoder}, {"mine": pd.DataFrame(pairs)}, **options, train={"mine": tuples})
    assert len(named.queries["mine"]["seen"]) == 3

    model = asymmetric_model(tiny_encoder)
    queries = pd.DataFrame({"qid": list("abc"), "query": pairs["query"]})
    documents = pd.DataFrame({"docid": list("xyz"), "title": "", "text": pairs["positive"], "n": 1})
    qrels = pd.DataFrame({"query_id": list("abc"), "doc_id": list("xyz"), "relevance": [1, 1, 1]})
    with pytest.raises(TypeError, match="queries is one text: give \\[text\\]"):
        diagnose(model, "a query", ["a", "b"], cache=tmp_path)
    expected = diagnose(model, *judged, cache=tmp_path)
    found = diagnose(model, queries, documents, qrels, cache=tmp_path)
    assert found.judged == expected.judged
    assert diagnose(model, queries["query"], documents["text"], cache=tmp_path).query == expected.query
