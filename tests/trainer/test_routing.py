from __future__ import annotations

import logging

import pytest
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from st_asym import check_router_mapping, column_prompts, router_mapping


def columns(*names: str) -> Dataset:
    return Dataset.from_dict({name: ["text"] for name in names})


@pytest.mark.parametrize(
    ("names", "queries"),
    [
        (("query", "document"), {"query"}),
        (("anchor", "positive", "negative"), {"anchor"}),
        (("question", "answer", "negative_1", "negative_2", "score"), {"question"}),
        (("answer", "question"), {"question"}),
        (("Query", "Passage"), {"Query"}),
        (("query_1", "query_2", "document", "label"), {"query_1", "query_2"}),
        (("document_text", "query_text"), {"query_text"}),
        (("positives", "questions"), {"questions"}),
        (("queries", "dataset_name"), {"queries"}),
    ],
)
def test_columns_are_told_by_name(names: tuple[str, ...], queries: set[str]) -> None:
    mapping = router_mapping(columns(*names))
    assert {name for name, route in mapping.items() if route == "query"} == queries
    assert set(mapping) == set(names) - {"score", "label", "dataset_name"}


def test_unknown_names_go_by_position_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert router_mapping(columns("title", "abstract")) == {"title": "query", "abstract": "document"}
    assert "Taking the first column, 'title', for the query" in caplog.text


def test_it_says_which_column_is_what(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "st_asym"):
        router_mapping(columns("query", "body"))
    assert "query is a query, body is a document" in caplog.text


def test_queries_can_be_named() -> None:
    assert router_mapping(columns("body", "title"), query="title") == {"body": "document", "title": "query"}
    with pytest.raises(ValueError, match=r"'head' is not a column of the data set: it has \['body', 'title'\]"):
        router_mapping(columns("body", "title"), query=["head"])


def test_documents_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="None of the columns"):
        router_mapping(columns("positive", "negative"))


def test_several_data_sets_get_a_mapping_each() -> None:
    datasets = DatasetDict({"a": columns("query", "text"), "b": columns("question", "answer")})
    mapping = router_mapping(datasets)
    assert mapping == {
        "a": {"query": "query", "text": "document"},
        "b": {"question": "query", "answer": "document"},
    }
    check_router_mapping(mapping, datasets)
    with pytest.raises(ValueError, match="no route for column 'question'"):
        check_router_mapping({"a": mapping["a"]}, datasets)


def test_a_partial_mapping_is_refused_by_column() -> None:
    with pytest.raises(ValueError, match=r"no route for column 'query'\. "):
        check_router_mapping({"positive": "document"}, columns("query", "positive"))


def test_a_misspelt_column_is_refused_and_recognised() -> None:
    with pytest.raises(ValueError, match=r"no route for column 'query' \(a misspelt 'qeury'\?\)"):
        check_router_mapping({"qeury": "query", "positive": "document"}, columns("query", "positive"))


def test_an_unknown_route_is_refused() -> None:
    with pytest.raises(ValueError, match="sends column 'positive' to 'documents'"):
        check_router_mapping({"query": "query", "positive": "documents"}, columns("query", "positive"))


def test_a_mapping_without_queries_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    check_router_mapping({"a": "document", "b": "document"}, columns("a", "b"))
    assert "no queries are trained" in caplog.text


def test_labels_and_keys_of_other_data_sets_need_no_route() -> None:
    check_router_mapping(
        {"query": "query", "text": "document", "negative": "document"}, columns("query", "text", "label")
    )


def test_without_a_document_column_a_warning_is_logged_unless_there_are_labels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_router_mapping({"query": "query"}, columns("query", "label"))
    assert not caplog.text
    check_router_mapping({"question1": "query", "question2": "query"}, columns("question1", "question2"))
    assert "no documents are trained" in caplog.text


def test_prompts_of_several_data_sets() -> None:
    model = SentenceTransformer(modules=[BoW(["a", "b"])], prompts={"query": "query: "})
    mapping = router_mapping({"one": columns("question", "answer"), "two": columns("query", "positive")})
    assert column_prompts(model, mapping) == {"one": {"question": "query: "}, "two": {"query": "query: "}}
