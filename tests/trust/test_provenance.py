"""What a saved model says of its making, and what it keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_asym import Provenance, asymmetric_model, encoder_fingerprint, save_heads, save_provenance
from st_asym.data import RetrievalData, as_retrieval_data
from st_asym.data.document import TrainedQueries
from st_asym.heads.anatomy import public_name
from st_asym.trust import VerificationError, provenance

PAIRS = [("red head", "big red head"), ("small text", "the small text")]


@pytest.fixture
def model(tiny_encoder: SentenceTransformer, tmp_path: Path) -> SentenceTransformer:
    model = asymmetric_model(tiny_encoder)
    model.save_pretrained(str(tmp_path / "model"))
    return model


def test_it_holds_encoder_data_settings_and_seed(model: SentenceTransformer, tmp_path: Path) -> None:
    data = {"pairs.jsonl": as_retrieval_data(PAIRS), "more": Dataset.from_dict({"query": ["a"], "document": ["b"]})}
    made = save_provenance(tmp_path / "model", model, data=data, settings={"epochs": 3}, seed=7)
    assert Provenance.of(tmp_path / "model") == made
    assert made.encoder["fingerprint"] == encoder_fingerprint(model)
    assert (made.encoder["dimension"], made.encoder["max_seq_length"]) == (16, 32)
    assert made.data["pairs.jsonl"]["qrels"]["train"]["queries"] == 2
    assert made.data["more"]["rows"] == 1
    assert (made.settings, made.seed) == ({"epochs": 3}, 7)
    assert made.versions["sentence-transformers"]
    assert made.heads["query"] == made.heads["document"] is not None


def test_digests_of_data_depend_on_its_content_alone(model: SentenceTransformer, tmp_path: Path) -> None:
    def digest(pairs: list[tuple[str, str]]) -> object:
        data = as_retrieval_data(
            ({"1": pairs[0][0], "2": pairs[1][0]}, dict(zip("ab", "xy", strict=True)), {"1": {"a": 1}})
        )
        return save_provenance(tmp_path / "model", model, data=data).data

    assert digest(PAIRS) == digest(PAIRS) != digest([("red", "big"), *PAIRS[1:]])


@pytest.mark.parametrize("part", ["queries", "corpus", "qrels"])
def test_each_part_of_the_data_has_a_digest_of_its_own(model: SentenceTransformer, tmp_path: Path, part: str) -> None:
    def described(**changes: Any) -> dict[str, Any]:
        parts = {"queries": {"1": "red"}, "corpus": {"a": "big", "b": "small"}, "qrels": {"train": {"1": {"a": 1}}}}
        data = RetrievalData(**{**parts, **changes})
        return dict(save_provenance(tmp_path / "model", model, data=data).data["train"])

    other: Any = {
        "queries": {"1": "blue"},
        "corpus": {"a": "bigger", "b": "small"},
        "qrels": {"train": {"1": {"b": 1}}},
    }
    before, after = described(), described(**{part: other[part]})
    assert {name for name in before if before[name] != after[name]} == {part}


def test_training_queries_are_known_again_and_cannot_be_read(model: SentenceTransformer, tmp_path: Path) -> None:
    more = Dataset.from_dict({"anchor": ["a vector"], "positive": ["big vector"], "negative": ["text"]})
    odd = Dataset.from_dict({"left": ["encoder"], "right": ["learns"]})
    made = save_provenance(
        tmp_path / "model", model, data={"pairs": as_retrieval_data(PAIRS), "more": more, "odd": odd}
    )
    found = made.trained_queries
    assert found is not None
    assert (found.queries, found.pairs) == (3, 3)
    texts = {
        "same": "red head",
        "spelt": " RED  head\n",
        "of the data set": "a vector",
        "odd": "encoder",
        "other": "red",
    }
    assert found.among(texts) == {"same", "spelt", "of the data set"}
    corpus = {"d": "BIG red head", "e": "text"}
    assert found.with_their_documents(texts, corpus, {"same": ["e", "d"], "of the data set": ["e"]}) == {"same"}
    text = (tmp_path / "model" / "st_asym.json").read_text()
    assert not any(query in text for query, _ in PAIRS)
    again = save_provenance(tmp_path / "model", model, data=as_retrieval_data(PAIRS))
    assert made.trained["key"] != again.trained["key"]  # two models cannot be compared
    heads = Provenance.of(save_heads(tmp_path / "model", tmp_path / "heads"))
    assert heads is not None
    assert heads.trained == again.trained


@pytest.mark.parametrize(
    "change",
    [
        {"key": "zz"},
        {"key": ""},
        {"key": 3},
        {"queries": -1},
        {"queries": 1},
        {"queries": None},
        {"query_digests": "?"},
        {"query_digests": 3},
        {"pair_digests": "AAAA"},
        {"more": 1},
    ],
    ids=str,
)
def test_broken_digests_are_refused(model: SentenceTransformer, tmp_path: Path, change: dict[str, Any]) -> None:
    save_provenance(tmp_path / "model", model, data=as_retrieval_data(PAIRS))
    path = tmp_path / "model" / "st_asym.json"
    content = json.loads(path.read_text())
    content["trained"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(VerificationError, match=r"is damaged \(trained\)"):
        Provenance.of(tmp_path / "model")


def test_the_digests_of_many_queries_fit_into_the_file() -> None:
    queries = {f"q{i}": f"question {i}" for i in range(100_000)}
    data = RetrievalData(queries, {"d": "text", "e": "other"}, {"train": {query: {"d": 1} for query in queries}})
    found = TrainedQueries.of([data])
    assert found is not None
    assert found.pair_digests is None  # more than 50,000
    assert len(json.dumps(found.as_dict())) < 1_100_000
    assert TrainedQueries.of_dict(found.as_dict()) == found
    queries["q"] = "one more"
    data.qrels["train"]["q"] = {"d": 1}
    left_out = TrainedQueries.of([data])
    assert left_out is not None
    assert (left_out.queries, left_out.query_digests) == (100_001, None)


def test_requirements_of_others_stay(model: SentenceTransformer, tmp_path: Path) -> None:
    path = tmp_path / "model" / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "requirements": {"peft": {"specifier": ">=0.1", "reason": "adapters"}}}))
    save_provenance(tmp_path / "model", model)
    save_provenance(tmp_path / "model", model)
    assert set(json.loads(path.read_text())["requirements"]) == {"peft", "sentence-transformers"}


def test_neither_paths_nor_tokens_are_written(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    encoder = SentenceTransformer(str(tiny_bert), device="cpu", local_files_only=True)
    model = asymmetric_model(encoder)
    model.save_pretrained(str(tmp_path / "model"))
    save_provenance(tmp_path / "model", model, data={str(tmp_path / "my pairs.csv"): as_retrieval_data(PAIRS)})
    text = (tmp_path / "model" / "st_asym.json").read_text()
    assert Provenance.of(tmp_path / "model").encoder["name"] == tiny_bert.name  # type: ignore[union-attr]
    assert "my pairs.csv" in text
    assert "hf_secret" not in text
    assert str(tmp_path) not in text
    assert str(tiny_bert.parent) not in text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("/home/me/secret/model", "model"),
        ("C:\\Users\\me\\model", "model"),
        ("../other/model/", "model"),
        ("./model", "model"),
        (Path("data/scifact.zip"), "data/scifact.zip"),
        ("https://me:hf_secret@host/data.jsonl?token=hf_secret#part", "data.jsonl"),
        ("s3://me:secret@bucket/data.csv", "data.csv"),
        ("https://me:hf_secret@host", "."),
        ("what?.csv", "what?.csv"),
        ([1], "list"),
    ],
)
def test_paths_are_reduced_to_names(source: object, name: str) -> None:
    assert public_name(source) == name


def test_loading_ignores_it_and_checks_the_requirements(
    model: SentenceTransformer, tmp_path: Path, run_without_st_asym: Callable[..., str]
) -> None:
    path = tmp_path / "model"
    save_provenance(path, model)
    code = (
        "import sys; from sentence_transformers import SentenceTransformer\n"
        "print(SentenceTransformer(sys.argv[1], device='cpu', local_files_only=True).encode_query('red').shape)"
    )
    assert run_without_st_asym(code, str(path)) == "(16,)\n"
    settings = json.loads((path / "config_sentence_transformers.json").read_text())
    assert settings["requirements"]["sentence-transformers"]["specifier"] == ">=6.0"
    settings["requirements"]["sentence-transformers"]["specifier"] = ">=600"
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ImportError, match="sentence-transformers>=600"):
        SentenceTransformer(str(path), device="cpu", local_files_only=True)
    assert sorted(p.name for p in path.glob(".*")) == []


def test_what_would_not_pass_is_named_in_a_warning(
    model: SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_provenance(tmp_path / "model", model)
    assert caplog.text == ""
    (tmp_path / "model" / "training_args.bin").write_bytes(b"a pickle")
    save_provenance(tmp_path / "model", model)
    assert "would not pass st_asym.verify: training_args.bin: is the trainer's" in caplog.text


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"seed": 10**37}, "seed cannot be kept in st_asym.json: it has a number of 38 digits"),
        ({"settings": {"log": ["a line"] * 200_000}}, "settings takes .* bytes of st_asym.json, which may have"),
        ({"settings": {"a": json.loads("[" * 70 + "0" + "]" * 70)}}, "settings cannot be kept .* nested too deeply"),
        ({"settings": {1: 0, "1": 0}}, "settings cannot be kept .* a key twice"),
        ({"settings": {"rate": Path("a")}}, "settings cannot be kept .* not JSON serializable"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    model: SentenceTransformer, tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    settings = tmp_path / "model" / "config_sentence_transformers.json"
    before = settings.read_text()
    with pytest.raises(ValueError, match=message):
        save_provenance(tmp_path / "model", model, **facts)
    assert settings.read_text() == before
    assert not (tmp_path / "model" / "st_asym.json").exists()


def test_it_needs_a_saved_model(model: SentenceTransformer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        save_provenance(tmp_path, model)
    with pytest.raises(TypeError, match="as_retrieval_data"):
        save_provenance(tmp_path / "model", model, data={"pairs": PAIRS})  # type: ignore[dict-item]
    assert Provenance.of(tmp_path / "model") is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", (*provenance._PACKAGES, "not-installed-at-all"))
    assert provenance.installed().keys() == set(provenance._PACKAGES) - {"not-installed-at-all"}


def test_a_file_that_cannot_be_read_says_nothing_of_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.json").write_text("[]")

    def refused(_: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert not provenance.has_heads(tmp_path)


def test_a_model_by_its_hub_id_is_looked_for_where_the_library_keeps_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision, home = "0" * 40, tmp_path / "models--me--heads"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    (home / "snapshots" / revision).mkdir(parents=True)
    (home / "snapshots" / revision / "modules.json").write_text('[{"type": "sentence_transformers.models.Router"}]')
    assert not provenance.has_heads("me/heads")
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    assert provenance.has_heads("me/heads")
