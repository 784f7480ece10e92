from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from st_asym.retrieval import nearest, search
from st_asym.retrieval.search import Bm25Index


@st.composite
def searches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, list[int], torch.Tensor]:
    """Queries, documents, how many to find, where the documents are cut, and which pairs are excluded."""
    seed = draw(st.integers(0, 10_000))
    queries, documents = draw(st.integers(0, 6)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(seed)
    cuts = sorted({0, documents, *draw(st.lists(st.integers(0, documents), max_size=4))})
    excluded = torch.rand(queries, documents, generator=generator) < draw(st.sampled_from([0.0, 0.3]))
    return (
        torch.randn(queries, 4, generator=generator),
        torch.randn(documents, 4, generator=generator),
        draw(st.integers(1, 25)),
        cuts,
        excluded,
    )


@given(searches())
def test_it_finds_what_sorting_everything_finds(found: Any) -> None:
    queries, documents, k, cuts, excluded = found
    similarities = (queries @ documents.T).masked_fill(excluded, -torch.inf)
    expected = similarities.sort(dim=1, descending=True)
    stretches = [(start, documents[start:stop]) for start, stop in pairwise(cuts)]
    for given_documents in (documents, stretches):
        values, places = nearest(queries, given_documents, k, excluded=tuple(excluded.nonzero().T))
        assert values.shape == places.shape == (len(queries), min(k, len(documents)))
        torch.testing.assert_close(values, expected.values[:, :k])
        finite = values.isfinite()
        torch.testing.assert_close(similarities.gather(1, places)[finite], values[finite])
        assert all(len(set(row.tolist())) == len(row) for row in places)


def test_blocks_of_queries_change_nothing(monkeypatch: Any) -> None:
    queries, documents = torch.randn(50, 8), torch.randn(30, 8)
    whole = nearest(queries, documents, 5, excluded=(torch.arange(30), torch.arange(30)))
    monkeypatch.setattr(search, "_BLOCK", 100)
    blocks = nearest(queries, documents, 5, excluded=(torch.arange(30), torch.arange(30)))
    torch.testing.assert_close(whole, blocks)


def test_an_index_writes_no_debugging_messages() -> None:
    Bm25Index(["red head", "big text"])
    assert not logging.getLogger("bm25s").isEnabledFor(logging.DEBUG)
