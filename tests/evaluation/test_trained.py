"""Judged queries that a model was trained on are counted, and are no evidence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_helpers import collection, with_heads
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from st_asym import (
    CachedSentenceTransformer,
    Comparison,
    EmbeddingCache,
    asymmetric_model,
    attach_heads,
    diagnose,
    evaluate,
    save_heads,
    save_provenance,
)
from st_asym.cli import app
from st_asym.data import RetrievalData, as_retrieval_data, load_data
from st_asym.report import save_html
from st_asym.trust.provenance import made_with_heads

Make = Callable[..., SentenceTransformer]


def clicks(path: Path, numbers: range) -> Path:
    rows = "".join(f"query {i},answers document {i}\n" for i in numbers)
    path.write_text("query,document\n" + rows, encoding="utf-8")
    return path


def saved(encoder: SentenceTransformer, path: Path, data: Any, seed: int = 1) -> str:
    model = with_heads(encoder, seed)
    model.save_pretrained(str(path))
    save_provenance(path, model, data=data)
    return str(path)


def without_digests(path: str) -> None:
    """As 0.1 wrote it."""
    file = Path(path) / "st_asym.json"
    content = json.loads(file.read_text())
    del content["trained"]
    file.write_text(json.dumps(content))


def test_a_later_export_of_the_same_clicks_is_no_evidence(make_encoder: Make, tmp_path: Path) -> None:
    monday, tuesday = (as_retrieval_data(clicks(tmp_path / "clicks.csv", range(n))) for n in (25, 26))
    path = saved(make_encoder(), tmp_path / "model", monday)
    judged = RetrievalData(
        {key: text.upper() for key, text in tuesday.queries.items()}, tuesday.corpus, {"test": tuesday.qrels["train"]}
    )
    found = evaluate({"plain": make_encoder(), "heads": path}, {"tuesday": judged}, results=None)
    expected = "heads was trained on 25 of 26 judged queries of tuesday (25 with a document that answers them here)"
    assert found.cautions[0].startswith(expected)
    assert "1 says little" in found.cautions[0]
    for text in (str(found), found.to_markdown(), found.to_markdown(wide=False)):
        assert text.startswith(expected)
        assert text.count(expected) == 1
    groups = found["heads"].groups["tuesday"]
    assert {name: group.queries for name, group in groups.items()} == {"trained on": 25, "not trained on": 1}
    assert len(found.queries["tuesday"]["trained on"]) == 25
    assert found["heads"].verdict == "marginal"  # one query is no evidence, whatever the others gained
    assert found["heads"].evidence.queries == 1
    pytest.importorskip("matplotlib")
    save_html(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text()
    assert "<b>Marginal.</b> heads: +0.00 points of nDCG@10 on 1 query." in page
    found.to_json(tmp_path / "comparison.json")
    assert Comparison.load(tmp_path / "comparison.json") == found


def test_the_verdict_is_by_the_queries_that_were_not_trained_on(make_encoder: Make, tmp_path: Path) -> None:
    data = collection()
    part = RetrievalData(data.queries, data.corpus, {"train": {"q0": data.qrels["test"]["q0"], "q1": {"d7": 1}}})
    encoder = make_encoder()
    path = saved(encoder, tmp_path / "model", part)
    models = {"plain": encoder, "heads": path, "others": with_heads(encoder, 1)}
    found = evaluate(models, {"tiny": data}, results=None, baselines=())
    assert "heads was trained on 2 of 6 judged queries of tiny (1 with a document" in found.cautions[0]
    assert len(found.cautions) == 1
    scores = found.queries["tiny"]["scores"]
    rows = [row for row, query in enumerate(found.queries["tiny"]["ids"]) if query not in ("q0", "q1")]
    gain = sum(scores["heads"]["ndcg@10"][0][row] - scores["plain"]["ndcg@10"][0][row] for row in rows) / len(rows)
    group = found["heads"].groups["tiny"]["not trained on"]
    assert group.difference is not None
    assert group.difference.points == pytest.approx(gain)
    assert "on 4 queries" in " ".join(found["heads"].next_steps)
    assert "on 6 queries" in " ".join(found["others"].next_steps)  # the same heads, of whose training nothing is known


def test_a_model_in_memory_or_among_links_is_known_too(
    make_encoder: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = collection()
    model = with_heads(make_encoder(), 1)
    model.save_pretrained(str(tmp_path / "model"))
    save_provenance(
        tmp_path / "model", model, data=RetrievalData(data.queries, data.corpus, {"train": data.qrels["test"]})
    )
    save_heads(model, tmp_path / "heads")
    shutil.move(tmp_path / "model" / "model.safetensors", tmp_path / "weights")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "weights")
    (tmp_path / "model" / "latest").symlink_to("nowhere")
    attached = attach_heads(make_encoder(), tmp_path / "heads")
    for one in (model, CachedSentenceTransformer(model, EmbeddingCache(tmp_path)), attached, tmp_path / "model"):
        made = made_with_heads(one)
        assert made is not None
        assert made.trained_queries is not None
        assert made.trained_queries.among(data.queries) == set(data.qrels["test"])
    assert made_with_heads(with_heads(make_encoder(), 1)) is None
    assert caplog.text == ""
    (tmp_path / "model" / "st_asym.json").write_text("{")
    assert made_with_heads(tmp_path / "model") is None
    assert "made of cannot be read: st_asym.json: is not JSON" in caplog.text


@pytest.mark.usefixtures("blank_pictures")
def test_without_new_queries_there_is_no_verdict(make_encoder: Make, tmp_path: Path) -> None:
    data = collection()
    train = RetrievalData(data.queries, data.corpus, {"train": data.qrels["test"]})
    path = saved(make_encoder(), tmp_path / "model", train)
    found = evaluate({"plain": make_encoder(), "heads": path}, {"tiny": data}, results=None, baselines=())
    assert (found["heads"].verdict, found["heads"].next_steps) == (None, ())
    assert "was trained on all 6 judged queries of tiny" in found.cautions[0]
    assert "It was not trained on those of the split train: evaluate on them." in found.cautions[0]
    assert "not trained on" not in found["heads"].groups["tiny"]
    save_html(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "heads: no verdict" in page
    assert page.count("was trained on all 6 judged queries") == 1


def test_what_was_kept_out_is_recommended_and_not_what_was_done(make_encoder: Make, tmp_path: Path) -> None:
    file = clicks(tmp_path / "clicks.csv", range(80))
    path = saved(make_encoder(), tmp_path / "model", as_retrieval_data(file, hold_out_test=True))
    models = {"plain": make_encoder(), "heads": path}
    assert evaluate(models, file, results=None, baselines=()).cautions == ()
    (note,) = evaluate(models, file, results=None, split="dev", baselines=()).cautions
    dev = len(load_data(file).qrels["dev"])
    assert f"was trained on all {dev} judged queries of clicks (split dev)" in note
    assert "It was not trained on those of the split test: evaluate on them." in note
    assert "Keep a part out" not in note
    (note,) = evaluate(models, file, results=None, split="all", baselines=()).cautions
    left = len(load_data(file).qrels["test"])
    assert f"was trained on {80 - left} of 80 judged queries" in note


def test_models_without_digests_are_read_as_before(make_encoder: Make, tmp_path: Path) -> None:
    file = clicks(tmp_path / "clicks.csv", range(40))
    path = saved(make_encoder(), tmp_path / "model", as_retrieval_data(file))
    without_digests(path)
    found = evaluate({"plain": make_encoder(), "heads": path}, file, results=None, baselines=())
    assert found.notes[0].startswith("heads was trained on all queries of clicks, those judged here included")
    assert found["heads"].verdict is None
    other = clicks(tmp_path / "other.csv", range(41))
    assert evaluate({"plain": make_encoder(), "heads": path}, other, results=None, baselines=()).cautions == ()


def test_too_many_queries_are_left_out_and_that_is_said(
    make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("st_asym.data.document.MOST_QUERIES", 3)
    file = clicks(tmp_path / "clicks.csv", range(40))
    path = saved(make_encoder(), tmp_path / "model", as_retrieval_data(file))
    assert "does not say which queries were trained on, as they are 40" in caplog.text
    other = clicks(tmp_path / "other.csv", range(41))
    (note,) = evaluate({"plain": make_encoder(), "heads": path}, other, results=None, baselines=()).cautions
    assert note == (
        "heads was trained on 40 queries, too many for a digest of each: whether queries of other were among them is "
        "not known."
    )


def test_a_diagnosis_counts_them_too(make_encoder: Make, tmp_path: Path) -> None:
    data = collection()
    train = RetrievalData(data.queries, data.corpus, {"train": {"q0": {"d0": 1}, "q3": {"d6": 1}}})
    model = SentenceTransformer(saved(make_encoder(), tmp_path / "model", train), device="cpu", local_files_only=True)
    queries = {query: data.queries[query].upper() for query in data.qrels["test"]}
    found = diagnose(model, queries, data.corpus, data.qrels["test"], cache=tmp_path / "vectors")
    first = found.findings[0]
    assert first.kind == "queries that were trained on"
    assert first.text.startswith("The model was trained on 2 of 6 judged queries: their gains are no evidence.")
    assert found.judged is not None
    rows = [row for row, query in enumerate(found.judged.query_ids) if query not in ("q0", "q3")]
    before = sum(found.judged.ndcg_before[row] for row in rows) / 4
    assert f"Of the other 4: nDCG@10 {before:.3f} -> " in first.text
    assert "So few say little." in first.text
    part = {query: data.qrels["test"][query] for query in ("q0", "q3")}
    found = diagnose(model, queries, data.corpus, part, cache=tmp_path / "vectors")
    assert "None is left to judge by" in found.findings[0].text


def test_the_command_that_diagnoses_finds_them(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    file = clicks(tmp_path / "clicks.csv", range(40))
    path = saved(tiny_encoder, tmp_path / "model", as_retrieval_data(file))
    options = ["--cache", str(tmp_path / "vectors"), "--quiet"]
    result = CliRunner().invoke(app, ["diagnose", path, str(file), *options])
    assert result.exit_code == 0, result.output
    test = len(load_data(file).qrels["test"])
    assert f"was trained on {test} of {test} judged queries" in result.stdout


class Plain(SentenceTransformer):
    """As frameworks call it."""

    def encode_query(self, *arguments: Any, **options: Any) -> Any:
        return self.encode(*arguments, **options)


@pytest.mark.parametrize("prompts", [None, {"query": "query ", "document": "text "}])
def test_queries_that_go_through_the_document_side_are_pointed_out(make_encoder: Make, prompts: Any) -> None:
    encoder = make_encoder(prompts=prompts)
    stock = with_heads(encoder, 1)
    plain = Plain(modules=list(stock.children()), device="cpu", prompts=prompts)
    (note,) = evaluate(
        {"plain": encoder, "odd": plain, "stock": stock}, {"tiny": collection()}, results=None, baselines=()
    ).cautions
    assert note.startswith("odd: queries go through the document side. Plain `encode` sends every text")
    assert 'task="query"' in note
    assert len(note.splitlines()) == 1
    for same in (asymmetric_model(encoder), asymmetric_model(encoder, document=False)):  # whose sides are one yet
        plain = Plain(modules=list(same.children()), device="cpu", prompts=prompts)
        models = {"plain": encoder, "odd": plain}
        assert evaluate(models, {"tiny": collection()}, results=None, baselines=()).cautions == ()


def test_a_method_that_was_exchanged_is_pointed_out(tiny_encoder: SentenceTransformer) -> None:
    model = with_heads(tiny_encoder, 1)
    model.encode_query = model.encode  # type: ignore[method-assign]
    found = evaluate({"plain": tiny_encoder, "odd": model}, {"tiny": collection()}, results=None, baselines=())
    assert "odd: queries go through the document side." in found.cautions[0]
