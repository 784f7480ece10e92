from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_asym import Diagnosis, EmbeddingCache, FitReport, Settings, asymmetric_model, diagnose
from st_asym.fitting.gate import Choice, Evidence, Gain
from st_asym.report import as_html, save_html

HOSTILE = '<script>alert("1")</script> & "quotes" </style>'
QUERIES = {"q0": f"red {HOSTILE}", "q1": "small text", "q2": "big head"}
DOCUMENTS = {"d0": f"red vector {HOSTILE}", "d1": "small answers", "d2": "the big document", "d3": "query"}
QRELS = {"q0": {"d3": 1}, "q1": {"d0": 1}, "q2": {"d3": 2}}


@pytest.fixture
def diagnosis(tiny_encoder: SentenceTransformer, tmp_path: Path) -> Diagnosis:
    model = asymmetric_model(tiny_encoder, hidden_features=None)
    for name, parameter in model.named_parameters():
        if "sub_modules.query" in name and name.endswith("weight"):
            parameter.data *= -1
    return diagnose(model, QUERIES, DOCUMENTS, QRELS, cache=EmbeddingCache(tmp_path / "vectors"))


@pytest.fixture
def fit_report() -> FitReport:
    gains = Gain(80, 0.67, 0.1, 0.02), Gain(0, 0.0, 0.0, 0.0)
    evidence = [Evidence(Choice(epoch, dial), *gains, 0.1, 0.02) for epoch, dial in ((1, 1.0), (2, 0.5), (2, 1.0))]
    return FitReport(
        "asymmetric",
        "identity",
        None,
        Settings(),
        0,
        counts={"documents": 5183},
        held_out=["A cut."],
        chosen=evidence[1],
        evidence=evidence,
        notes=[HOSTILE],
        trials=[{"learning_rate": 1e-3, "gain": 0.1}, {"learning_rate": 3e-4, "gain": None}],
        seconds={"train": 1.25},
    )


class Page(HTMLParser):
    """Tags, the addresses of what is loaded, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_everything_is_in_the_file_and_every_picture_is_one(diagnosis: Diagnosis, fit_report: FitReport) -> None:
    text = as_html(fit_report, diagnosis)
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    assert "http" not in text
    pictures = [base64.b64decode(a.partition(",")[2]) for a in page.addresses if a.startswith("data:image/svg+xml")]
    assert len(pictures) == 2 * page.tags.count("img") == 2 * 8
    for picture in pictures:
        assert ET.fromstring(picture).tag.endswith("svg")  # noqa: S314 - our own
    light = [a for a, tag in zip(pictures[1::2], pictures[::2], strict=True) if a == tag]
    assert not light  # the dark one has other colours
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_figures_findings_and_examples_are_shown_and_escaped(diagnosis: Diagnosis, fit_report: FitReport) -> None:
    text = as_html(diagnosis, fit_report)
    words = "".join(Page(text).texts)
    for finding in diagnosis.findings:
        assert finding.text in words
    assert f"{diagnosis.document.before.effective_rank:.1f}" in words
    assert diagnosis.first_line in words
    assert fit_report.first_line in words
    assert "+0.100 ± 0.020" in words
    assert HOSTILE in words
    assert "<script" not in text
    assert text.count("</style>") == 1


def test_without_qrels_and_without_heads_on_a_side(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder, document=False)
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, cache=EmbeddingCache(tmp_path / "vectors"))
    words = "".join(Page(as_html(diagnosis)).texts)
    assert "still the identity" in words
    assert "gains" not in words


def test_a_fit_that_had_nothing_to_train() -> None:
    report = FitReport("frozen", "identity", None, Settings(), 0)
    assert "there was nothing to train" in "".join(Page(as_html(report)).texts)


def test_the_file_is_written_the_same_each_time(diagnosis: Diagnosis, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        save_html(tmp_path / "folder" / name, diagnosis)
    first, second = ((tmp_path / "folder" / name).read_bytes() for name in ("one.html", "two.html"))
    assert first == second
    assert re.match(rb"<!doctype html>", first)


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="not of a dict"):
        as_html({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nothing to report"):
        as_html()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "st_asym\[report\]"'):
        as_html(diagnosis)
