"""What was shown, and what was clicked, as judgments."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_asym.data import RetrievalData, as_retrieval_data


def grades(data: RetrievalData) -> dict[tuple[str, str], int]:
    return {
        (data.queries[query], data.corpus[document]): grade
        for judged in data.qrels.values()
        for query, own in judged.items()
        for document, grade in own.items()
    }


def written(path: Path, text: str) -> RetrievalData:
    (path / "log.csv").write_text(text, encoding="utf-8")
    return as_retrieval_data(path / "log.csv")


def test_what_was_not_shown_may_be_a_number_of_any_kind() -> None:
    yes, no = Decimal("1.00"), Decimal("0.00")
    rows = {"query": ["q", "q", "q"], "document": ["a", "b", "c"], "shown": [yes, no, yes], "clicked": [yes, no, no]}
    assert grades(as_retrieval_data(pd.DataFrame(rows))) == {("q", "a"): 1, ("q", "c"): 0}


def test_what_was_shown_and_not_clicked_is_judged_not_relevant(tmp_path: Path) -> None:
    rows = "query,document,shown,clicked\nq,a,1,1\nq,b,1,0\nq,c,0,0\nq,a,1,0\n"
    for text in (rows, rows.replace("clicked", "click"), rows.replace(",1", ",True").replace(",0", ",False")):
        data = written(tmp_path, text)
        assert grades(data) == {("q", "a"): 1, ("q", "b"): 0}
        assert any("1 pair neither shown nor clicked left out" in note for note in data.notes)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_clicks_on_one_pair_are_one_judgment_with_a_grade(clicks: list[int]) -> None:
    rows = [("q", "a", count) for count in clicks] + [("q", "b", 1), ("r", "c", 8)]
    data = as_retrieval_data([dict(zip(("query", "document", "clicks"), row, strict=True)) for row in rows])
    assert grades(data) == {("q", "a"): sum(clicks).bit_length(), ("q", "b"): 1, ("r", "c"): 4}


def test_a_column_of_grades_comes_before_one_of_clicks(tmp_path: Path) -> None:
    data = written(tmp_path, "query,document,score,clicks\nq,a,0,7\nq,b,2,0\n")
    assert grades(data) == {("q", "a"): 0, ("q", "b"): 2}


def test_a_log_without_clicks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'shown' says what was shown, and none what was clicked"):
        written(tmp_path, "query,document,shown\nq,a,1\n")
    with pytest.raises(ValueError, match="1 grade not a whole number"):
        written(tmp_path, "query,document,clicked\nq,a,often\n")
