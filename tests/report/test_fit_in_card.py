"""What a card says of a fit, from the report beside the model, of this version and of 0.1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from report_helpers import a_fit_report
from sentence_transformers import SentenceTransformer

from st_asym import FitReport, asymmetric_model, write_card
from st_asym.trainer.columns import encode_caveat

KEPT, BEHIND = "both sides, identity start, in-batch", "query side, whitening 1"


@pytest.fixture(autouse=True)
def no_pictures_in_cards() -> None:
    """They are drawn here."""


@pytest.fixture
def card_with(tmp_path: Path, tiny_encoder: SentenceTransformer) -> Callable[..., str]:
    """The text of a new card for a model with that report beside it."""

    def write(report: dict[str, Any]) -> str:
        asymmetric_model(tiny_encoder, init="random").save_pretrained(str(tmp_path), create_model_card=False)
        (tmp_path / "st_asym_report.json").write_text(json.dumps(report))
        text: str = ModelCard.load(write_card(tmp_path, new=True)).text
        return text

    return write


def a_report_of_0_1(*, kept: bool = True) -> dict[str, Any]:
    """As 0.1 wrote it; it knew no standard error of a single query."""
    seen = {"queries": 80, "untouched": 0.67, "mean": 0.1, "error": 0.02}
    unseen = {"queries": 1, "untouched": 0.5, "mean": 0.01, "error": None}
    evidence = [
        {"choice": {"epoch": epoch, "dial": dial}, "seen": seen, "unseen": unseen, "gain": gain, "error": 0.02}
        for epoch, dial, gain in ((1, 1.0, 0.05), (2, 0.5, 0.1), (2, 1.0, 0.08))
    ]
    return {
        "first_line": "What came of it.",
        "system": "asymmetric",
        "init": "identity",
        "collection": None,
        "settings": {"sides": "both", "hidden_features": None, "learning_rate": 1e-3, "epochs": 2},
        "seed": 3,
        "labels": "judged",
        "counts": {"documents": 5183, "train": 81},
        "held_out": ["A cut."],
        "chosen": evidence[1] if kept else None,
        "evidence": evidence,
        "log": [{"epoch": 1, "loss": 2.5}],
        "refitted": kept,
        "trials": [],
        "notes": [],
        "seconds": {"train": 1.25},
        "versions": {"st_asym": "0.1.0"},
    }


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def test_the_candidates_and_why_this_one(tmp_path: Path, card_with: Callable[..., str]) -> None:
    text = card_with(a_fit_report().as_dict())
    gains = ["+0.100 ± 0.020", "-0.010 ± 0.030", "+0.078 ± 0.017"]
    assert [KEPT, "epoch 2, dial 0.5", *gains, "4 of 4", "6.2", "kept"] in rows(text)
    assert [BEHIND, "in closed form", "+0.040 ± 0.030", "no queries", "+0.040 ± 0.030", "1 of 4", "0.0", ""] in rows(
        text
    )
    assert ["on unseen documents", "20", "0.7000", "0.6900", "-0.0100 ± 0.0300"] in rows(text)
    assert f"Kept: {KEPT}, epoch 2, dial 0.5. It has the largest gain" in text
    assert "would look as good in 0.12% of cases" in text
    assert "20% of which asks for unseen documents" in text
    settings = {row[0]: row[1] for row in rows(text) if len(row) == 2}
    assert settings["candidate that was kept"] == KEPT
    assert settings["epoch and dial that were kept"] == "epoch 2, dial 0.5"
    assert (settings["heads start as"], settings["unlabelled weight"]) == ("identity", "not used")
    assert "![Gain in nDCG@10 of 2 candidates on held-out queries" in text
    assert (tmp_path / "held_out_queries.png").read_bytes().startswith(b"\x89PNG")


def test_without_kept_heads_the_card_says_what_was_left_to_fit(card_with: Callable[..., str]) -> None:
    text = card_with({**a_fit_report().as_dict(), "chosen": None, "chance": 0.04, "refitted": False})
    assert "None was kept: the largest gain" in text
    assert f"The best of what was tried, {KEPT}, epoch 2, dial 0.5, which was not kept" in text
    assert "Settings that were tried." in text
    assert ["unlabelled weight", "left to fit"] in rows(text)


def test_of_many_candidates_the_card_lists_the_first(card_with: Callable[..., str]) -> None:
    report = a_fit_report().as_dict()
    report["candidates"] = [{**report["candidates"][0], "name": f"trial {number}"} for number in range(12)]
    text = card_with(report)
    assert [row[0] for row in rows(text) if row[0].startswith("trial ")] == [f"trial {number}" for number in range(10)]
    assert "2 more candidates behind these: `st_asym_report.json`." in text


def test_a_report_of_0_1_still_gives_a_card(tmp_path: Path, card_with: Callable[..., str]) -> None:
    text = card_with(a_report_of_0_1())
    assert "**What came of it.**" in text
    name, found = "asymmetric, identity start", {row[0]: row[1] for row in rows(text) if len(row) == 2}
    assert [name, "epoch 2, dial 0.5", "+0.100 ± 0.020", "+0.010", "+0.100 ± 0.020", "", "", "kept"] in rows(text)
    assert ["on unseen documents", "1", "0.5000", "0.5100", "+0.0100"] in rows(text)
    assert (found["system"], found["heads start as"], found["seed"]) == ("asymmetric", "identity", "3")
    assert found["epoch and dial that were kept"] == "epoch 2, dial 0.5"
    assert "It has the largest gain" not in text  # 0.1 had another rule
    assert (tmp_path / "held_out_queries.png").is_file()
    text = card_with(a_report_of_0_1(kept=False))
    assert f"The best of what was tried, {name}, epoch 2, dial 0.5, which was not kept" in text
    text = card_with({**a_report_of_0_1(kept=False), "evidence": []})
    assert "Held-out queries" not in text


def test_plain_encode_goes_through_the_document_side_and_the_card_has_the_remedy(
    card_with: Callable[..., str], make_encoder: Callable[..., SentenceTransformer]
) -> None:
    text = card_with(a_fit_report().as_dict())
    assert encode_caveat() in text.splitlines()
    model = asymmetric_model(make_encoder(prompts={"query": "red ", "document": "big "}), init="random")
    (call,) = {part for part in encode_caveat().split("`") if part.startswith("encode(")}
    remedied = eval(f"model.{call}", {"model": model, "texts": ["small text"]})  # noqa: S307 - our own
    np.testing.assert_array_equal(remedied, model.encode_query(["small text"]))
    assert not np.allclose(model.encode(["small text"]), remedied)


def test_the_report_says_it_in_one_line_where_heads_are_kept() -> None:
    report = a_fit_report()
    assert str(report).splitlines().count(encode_caveat()) == 1
    assert 'task="query"' in encode_caveat()
    assert "Plain `encode`" not in str(FitReport(report.settings))
