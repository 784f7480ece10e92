from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset
from report_helpers import (
    DOCUMENTS,
    HOSTILE,
    QUERIES,
    a_comparison,
    a_diagnosis,
    a_fit_report,
    a_trainer_state,
)
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from transformers import TrainerState

from st_asym import (
    Diagnosis,
    EmbeddingCache,
    FitReport,
    IsotropyLoss,
    Settings,
    asymmetric_model,
    diagnose,
    router_mapping,
    watch,
)
from st_asym.report import as_html, check_installed, save_html
from st_asym.report.plots import Plot, by_query


@pytest.fixture
def diagnosis(tiny_encoder: SentenceTransformer, tmp_path: Path) -> Diagnosis:
    return a_diagnosis(tiny_encoder, tmp_path)


@pytest.fixture
def fit_report() -> FitReport:
    return a_fit_report()


@pytest.fixture
def light_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures for dark pages are left out."""
    uri = Plot.uri
    monkeypatch.setattr(Plot, "uri", lambda plot, name: uri(plot, name) if name == "light" else "data:,")


@pytest.fixture(scope="module")
def fit_text() -> str:
    """The page of that fit: drawing it takes seconds."""
    return as_html(a_fit_report())


@pytest.fixture(scope="module")
def comparison_text() -> str:
    return as_html(a_comparison())


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


@pytest.mark.slow
def test_everything_is_in_the_file_and_every_picture_is_one(diagnosis: Diagnosis, fit_report: FitReport) -> None:
    text = as_html(fit_report, diagnosis, a_comparison(), a_trainer_state())
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    assert "http" not in text
    pictures = [base64.b64decode(a.partition(",")[2]) for a in page.addresses if a.startswith("data:image/svg+xml")]
    assert len(pictures) == 2 * page.tags.count("img") == 2 * 25
    for picture in pictures:
        assert ET.fromstring(picture).tag.endswith("svg")  # noqa: S314 - our own
    light = [a for a, tag in zip(pictures[1::2], pictures[::2], strict=True) if a == tag]
    assert not light  # the dark one has other colours
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.usefixtures("blank_pictures")
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


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, header included."""
    rows = re.findall("<tr>(.*?)</tr>", text, re.DOTALL)
    return [[unescape(cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def alts(text: str) -> list[str]:
    return [unescape(alt) for alt in re.findall('alt="([^"]*)"', text)]


def test_a_comparison_shows_verdicts_tables_intervals_and_what_it_rests_on(comparison_text: str) -> None:
    comparison, text = a_comparison(), comparison_text
    words, rows = "".join(Page(text).texts), cells(text)
    _, gains, loses = comparison.rows
    assert (gains.verdict, loses.verdict) == ("works", "fails")
    assert gains.difference is not None
    assert f"{gains.name}: works; {loses.name}: fails." in words
    for step in (*loses.next_steps, *comparison.notes, comparison.created, "mteb 2.26"):
        assert step in words
    assert ["Model", "Avg NDCG@10", "vs Baseline"] in rows
    assert [gains.name, f"{gains.average['ndcg@10']:.4f}", f"{gains.difference.relative:+.1%}"] in rows
    assert any({"MAP@100", "MRR@10", "recall@100", "verdict"} <= set(row) for row in rows)
    for seed, digest in (("7", "c" * 64), ("8", "d" * 64)):
        assert [loses.name, seed, digest] in rows
    assert ["zwölf 十二", "test", "12", "99", "v"] in rows
    # The forest plot in words: everything that is drawn is there, by data set and system.
    (forest,) = (alt for alt in alts(text) if alt.startswith("Forest") and "average" in alt)
    for group, own in (("average", gains.difference), ("one", gains.differences["one"])):
        assert own.low is not None
        assert own.high is not None
        points, low, high = (f"{100 * value:+.2f}" for value in (own.points, own.low, own.high))
        assert f"{group}, {gains.name}: {points} [{low}, {high}]" in forest
    (unseen,) = (alt for alt in alts(text) if alt.startswith("Forest") and "average" not in alt)
    assert f"one, unseen, {gains.name}:" in unseen
    assert any(
        row[:3] == [f"{gains.name}: one, seen", "10", f"{gains.groups['one']['seen'].score:.4f}"] for row in rows
    )


def test_the_queries_of_a_comparison_are_counted_and_the_largest_changes_listed(comparison_text: str) -> None:
    comparison, text = a_comparison(), comparison_text
    counts = [alt for alt in alts(text) if alt.startswith("Scatter")]
    assert ["30 queries gained, 0 lost" in alt for alt in counts] == [True, False, False, False]
    assert "0 queries gained, 12 lost" in counts[3]
    before, after = (comparison.queries["one"]["scores"][row.name]["ndcg@10"][0][29] for row in comparison.rows[:2])
    # The step grows along the queries, so that the last one gains most.
    listed = [row for row in cells(text) if row[0].startswith("q") and row[-1] in ("seen", "unseen")]
    assert listed[0] == ["q29", f"{before:.3f}", f"{after:.3f}", "+0.200", "unseen"]
    assert [row[0] for row in listed[:10]] == [f"q{place}" for place in range(29, 19, -1)]
    # Two seeds: their mean.
    assert listed[-1][0] == "q29"
    assert listed[-1][3] == "-0.150"


@pytest.mark.usefixtures("blank_pictures")
def test_many_data_sets_are_one_scatter_plot_per_system() -> None:
    text = as_html(a_comparison(data=[f"set {place}" for place in range(7)]))
    scatters = [alt for alt in alts(text) if alt.startswith("Scatter")]
    assert ["102 queries gained" in alt for alt in scatters] == [True, False]


@pytest.mark.usefixtures("blank_pictures")
def test_one_model_alone_has_nothing_to_be_compared_with() -> None:
    comparison = replace(a_comparison(), rows=a_comparison().rows[:1])
    words = "".join(Page(as_html(comparison)).texts)
    assert f"untouched: {comparison.rows[0].average['ndcg@10']:.4f}." in words
    assert "Verdicts" not in words


def test_a_fit_shows_its_candidates_and_why_this_one(fit_report: FitReport, fit_text: str) -> None:
    words, rows, (forest, *_) = "".join(Page(fit_text).texts), cells(fit_text), alts(fit_text)
    header = ["candidate", "at its best", "seen documents", "unseen documents", "together", "cuts", "seconds", ""]
    kept, behind = (one.name for one in fit_report.candidates)
    gains = ["+0.100 ± 0.020", "-0.010 ± 0.030", "+0.078 ± 0.017"]
    assert header in rows
    assert [kept, "epoch 2, dial 0.5", *gains, "4 of 4", "6.2", "kept"] in rows
    closed = ["+0.040 ± 0.030", "no queries", "+0.040 ± 0.030", "1 of 4", "0.0", ""]
    assert [behind, "in closed form", *closed] in rows
    assert f"Kept: {kept}, epoch 2, dial 0.5. It has the largest gain of what was rehearsed on all cuts" in words
    assert "the best of 4 choices would look as good in 0.12% of cases" in words
    assert "in proportion of the traffic to expect, 20% of which asks for unseen documents" in words
    assert "fewer cuts than others was clearly behind" in words
    assert "then made of all training queries, those that had been held out included" in words
    # The picture in words: seen and unseen gains with a standard error to either side, where there are queries.
    assert f"kept: {kept}, seen documents: +10.00 [+8.00, +12.00]" in forest
    assert f"kept: {kept}, unseen documents: -1.00 [-4.00, +2.00]" in forest
    assert f"{behind}, seen documents: +4.00 [+1.00, +7.00]" in forest
    assert f"{behind}, unseen" not in forest
    # All choices are there to be opened, and what was kept is marked among them.
    assert [kept, "epoch 2, dial 0.5", *gains, "kept"] in rows
    assert [kept, "epoch 1, dial 1", "+0.050 ± 0.020", "-0.010 ± 0.030", "+0.038 ± 0.017", ""] in rows


@pytest.mark.usefixtures("blank_pictures")
def test_the_page_says_where_a_gain_is_only_likely(fit_report: FitReport) -> None:
    words = "".join(Page(as_html(fit_report)).texts)
    assert "likely" not in words
    words = "".join(Page(as_html(replace(fit_report, likely=True, chance=0.2))).texts)
    assert "largest gain of what was rehearsed on all cuts, trained heads at a dial of 0.7 at most, and loses" in words
    assert "look as good in 20.00% of cases. So the gain is likely, not certain, which is enough where labels" in words


@pytest.mark.usefixtures("blank_pictures")
def test_where_none_is_kept_the_page_says_why(fit_report: FitReport) -> None:
    may_be_chance = replace(fit_report, chosen=None, chance=0.04, refitted=False)
    text = as_html(may_be_chance)
    words = "".join(Page(text).texts)
    assert "None was kept: the largest gain of what was rehearsed on all cuts" in words
    assert "would look as good in 4.00% of cases" in words
    assert "kept: " not in "".join(alts(text))
    assert ["sides", "both"] in cells(text)
    assert ["unlabelled weight", "left to fit"] in cells(text)
    by_dev = "".join(Page(as_html(replace(may_be_chance, by_dev=True))).texts)
    assert "None was kept: the largest gain of what was judged on the dev queries and" in by_dev
    assert "no trained heads beat it on the dev queries, beyond noise" in by_dev
    none_gains = replace(may_be_chance, chance=1.0, log=(), training=())
    words = "".join(Page(as_html(none_gains)).texts)
    assert "None was kept: none gains without a loss beyond noise" in words
    assert "of cases" not in words


@pytest.mark.usefixtures("blank_pictures")
def test_many_candidates_are_listed_and_the_first_drawn(fit_report: FitReport) -> None:
    first = fit_report.candidates[0]
    many = [replace(first, name=f"trial {number}") for number in range(30)]
    text = as_html(replace(fit_report, candidates=many, log=(), training=()))
    (forest,) = (alt for alt in alts(text) if alt.startswith("Forest"))
    assert ("trial 9, seen" in forest, "trial 10, seen" in forest) == (True, False)
    assert "the first 10 of 30 candidates" in "".join(Page(text).texts)
    assert sum(row[0].startswith("trial ") for row in cells(text)) == 30


def test_the_settings_and_trials_of_a_fit_are_listed(fit_text: str) -> None:
    rows = cells(fit_text)
    for row in (
        ["collection", "not given"],
        ["share of traffic on unseen documents", "20%"],
        ["heads start as", "identity"],
        ["contrastive", "in-batch"],
        ["unlabelled weight", "not used"],
        ["learning rate", "0.0003"],
        ["trial", "learning rate", "gain", "stopped early", "error"],
        ["1", "0.001", "0.1", "False", ""],
        ["2", "0.0003", "0", "True", HOSTILE],
    ):
        assert row in rows, row
    assert not any(row[0] == "whitening" for row in rows)  # it shapes no heads that start as the identity


@pytest.mark.usefixtures("blank_pictures")
def test_heads_in_closed_form_have_no_curves(fit_report: FitReport) -> None:
    closed = fit_report.candidates[1].evidence
    settings = Settings(sides="query", init="pairs", whitening=0.3, hidden_features=None, bias=False, epochs=20)
    report = replace(fit_report, settings=settings, chosen=closed, log=(), training=())
    text = as_html(report)
    words, rows = "".join(Page(text).texts), cells(text)
    assert [alt.partition(" ")[0] for alt in alts(text)] == ["Forest"]
    assert "Training" not in words
    assert "No query on unseen documents was held out: the others count alone." in words
    assert ["whitening", "0.3"] in rows
    assert ["hidden features", "none: one linear layer"] in rows
    assert not {"learning rate", "epochs", "contrastive"} & {row[0] for row in rows if len(row) == 2}


@pytest.mark.usefixtures("blank_pictures")
def test_the_training_of_a_fit_is_drawn(fit_report: FitReport, fit_text: str) -> None:
    found = alts(fit_text)
    assert "by epoch" in found[1]
    assert "by dial after epoch 2" in found[2]
    assert "loss from 2.5 to 2.5, contrastive from 2 to 2, isotropy from 0.5 to 0.5" in found[3]
    assert "nearest document is relevant from 0.5 to 0.5" in found[4]
    assert "queries from 0.9 to 0.9, documents from 0.8 to 0.8" in found[5]
    assert "Loss of the last training; loss from 2.25 to 1.75" in found[6]
    words = "".join(Page(as_html(replace(fit_report, log=(), training=()))).texts)
    assert "Training" not in words


@pytest.mark.usefixtures("blank_pictures")
def test_the_log_of_a_trainer_is_drawn(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    rows = Dataset.from_dict({"query": ["red head", "text"], "positive": ["big head", "small text"]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        num_train_epochs=2,
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="epoch",
        router_mapping=router_mapping(rows),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, loss=IsotropyLoss(model)
    )
    watch(trainer)
    trainer.train()
    saved = TrainerState.load_from_json(str(tmp_path / "run" / "checkpoint-2" / "trainer_state.json"))
    for state in (trainer.state, saved):
        found = alts(as_html(state))
        shown = (
            "Loss; loss",
            "contrastive",
            "isotropy",
            "eval loss",
            "In-batch accuracy",
            "Standard deviation",
            "query std",
        )
        for title in (*shown, "Learning rate"):
            assert any(title in alt for alt in found), title
    assert "2 of 2 steps, 2 epochs." in "".join(Page(as_html(saved)).texts)


@pytest.mark.usefixtures("blank_pictures")
def test_evaluators_are_drawn_and_other_figures_listed() -> None:
    text = as_html(a_trainer_state())
    assert any("eval dev cosine ndcg@10 from 0.3 to 0.6" in alt for alt in alts(text))
    assert ["eval loss", "2", "1"] in cells(text)
    assert "Best checkpoint: 0.6 at step 8." in text
    with pytest.raises(ValueError, match="log is empty"):
        as_html(TrainerState())


@pytest.mark.usefixtures("light_pictures")
@pytest.mark.parametrize(
    ("gains", "loses"),
    [("$\\undefined$", "_hidden"), ("名前", ""), ("x" * 999, "a\nb")],
    ids=["signs", "letters", "lengths"],
)
def test_any_name_can_be_drawn(gains: str, loses: str) -> None:
    text = as_html(a_comparison(names=("base", gains, loses), data=(f"{loses} data", f"{gains} data")))
    assert any(f"{loses} data, {gains}: +" in alt and f"{gains} data, {loses}: -" in alt for alt in alts(text))


@pytest.mark.usefixtures("blank_pictures")
def test_without_qrels_and_without_heads_on_a_side(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder, document=False)
    diagnosis = diagnose(model, QUERIES, DOCUMENTS, cache=EmbeddingCache(tmp_path / "vectors"))
    words = "".join(Page(as_html(diagnosis)).texts)
    assert "still the identity" in words
    assert "gains" not in words


def test_a_fit_that_had_nothing_to_train() -> None:
    report = FitReport(Settings())
    assert "there was nothing to train" in "".join(Page(as_html(report)).texts)


@pytest.mark.slow
def test_the_file_is_written_the_same_each_time(diagnosis: Diagnosis, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        save_html(tmp_path / "folder" / name, diagnosis)
    first, second = ((tmp_path / "folder" / name).read_bytes() for name in ("one.html", "two.html"))
    assert first == second
    assert re.match(rb"<!doctype html>", first)


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="a FitReport or a TrainerState, not of a dict"):
        as_html({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nothing to report"):
        as_html()


def test_a_missing_package_is_named(diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "st_asym\[report\]"'):
        as_html(diagnosis)


def test_a_missing_package_is_known_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr("st_asym.report.html.find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(ModuleNotFoundError, match=r'pip install "st_asym\[report\]"'):
        check_installed()


def test_queries_that_stayed_are_neither_gained_nor_lost() -> None:
    drawn = by_query("nDCG@10 by query", [0.5, 0.5, 0.2, 0.0], [0.5, 0.7, 0.1, 1.0], ("before", "after"))
    assert drawn.caption.startswith("2 queries gained, 1 lost, 1 stayed as they were.")
