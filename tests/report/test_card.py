"""The model card: what it says, that the Hub can read it, and that completing it leaves the rest as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fitting_helpers import ONE, QUICK, encoder_of, rotated
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from st_asym import Comparison, FitResult, Settings, asymmetric_model, encoder_fingerprint, evaluate, fit, write_card
from st_asym.cli import app
from st_asym.data import RetrievalData
from st_asym.report.card import Card, Own


@pytest.fixture(autouse=True)
def no_pictures_in_cards() -> None:
    """They are drawn here."""


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], tuple[Path, FitResult]]:
    """A fit on words into ``model``, the encoder in a folder with a card of its own; once for equal options."""

    @cache
    def run(labels: str, sides: Any) -> tuple[Path, FitResult]:
        folder = tmp_path_factory.mktemp("fits")
        encoder, data = rotated(60, labels=labels, seed=0 if labels == "true" else 1)
        encoder.save_pretrained(str(folder / "encoder"))
        (folder / "encoder" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Words\n")
        settings = replace(QUICK, sides=sides, init="identity")  # none in closed form
        options: dict[str, Any] = {"cache": folder / "vectors", "show_progress_bar": False}
        return folder, fit(folder / "encoder", data, output_dir=folder / "model", settings=settings, **options)

    return run


@pytest.fixture
def fitted(tmp_path: Path, fits: Callable[[str, Any], tuple[Path, FitResult]]) -> Callable[..., FitResult]:
    """A copy of what a fit wrote, and its result."""

    def run(labels: str = "true", sides: Any = "both") -> FitResult:
        folder, result = fits(labels, sides)
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        assert str(folder) not in (tmp_path / "model" / "README.md").read_text()
        return result

    return run


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., Comparison]:
    """Evaluations on the words that a fit trained on, in other queries; so many of them in the very same."""

    def run(models: dict[str, Any], names: tuple[str, ...] = ("toy",), again: int = 0) -> Comparison:
        _, data = rotated(60)
        few = {query: documents for number, (query, documents) in enumerate(data.qrels["train"].items()) if number % 2}
        texts = {query: query if number < again else f"another {query}" for number, query in enumerate(few)}
        tests = {name: replace(data, queries=texts, qrels={"test": few}) for name in names}
        return evaluate(models, tests, cache=tmp_path / "vectors", results=None)

    return run


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def test_a_fit_says_what_it_made_of_what(tmp_path: Path, fitted: Callable[..., FitResult]) -> None:
    result = fitted()
    card = card_of(tmp_path / "model")
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity"
    assert card.data.tags == ["sentence-transformers", "sentence-similarity", "feature-extraction", "st-asym"]
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("cc-by-4.0", None, None)
    assert result.report.first_line in card.text
    found = {row[0]: row[1] for row in rows(card.text)}
    assert found["its fingerprint (`st_asym.encoder_fingerprint`)"] == f"`{encoder_fingerprint(result.model)}`"
    assert found["head for queries"] == found["head for documents"] == "12 → 24 → 12, ReLU"
    assert found["weights of the heads"] == "1,224"
    assert (found["documents"], found["queries, train"]) == ("60", "60")
    assert (found["learning rate"], found["epochs"], found["seed"]) == ("0.01", "3", "0")
    chosen = result.report.chosen
    assert chosen is not None
    assert found["epoch and dial that were kept"] == f"epoch {chosen.choice.epoch}, dial {chosen.choice.dial:g}"
    assert found["candidate that was kept"] == chosen.choice.candidate
    assert f"{chosen.unseen.mean:+.4f} ± {chosen.unseen.error:.4f}" in card.text
    assert "cc-by-4.0`, that of the encoder by its own card" in card.text
    assert "Not evaluated on test queries yet." in card.text
    assert "(held_out_queries.png)" in card.text
    assert (tmp_path / "model" / "held_out_queries.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in str(card)


def test_the_code_of_the_card_runs(tmp_path: Path, fitted: Callable[..., FitResult]) -> None:
    fitted()
    write_card(tmp_path / "model", model_id="user/words")
    text = card_of(tmp_path / "model").text
    code = text.partition("```python\n")[2].partition("```")[0]
    assert 'SentenceTransformer("user/words")' in code
    names: dict[str, Any] = {}
    exec(code.replace("user/words", str(tmp_path / "model")), names)  # noqa: S102 - our own
    assert (names["queries"].shape, names["documents"].shape) == ((1, 12), (2, 12))


def test_an_encoder_in_the_cache_of_the_hub_goes_by_its_id(tmp_path: Path) -> None:
    encoder, data = rotated(40)
    folder = tmp_path / "models--someone--words" / "snapshots" / ("ab" * 20)
    encoder.save_pretrained(str(folder))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Words\n")
    options: Any = {"cache": tmp_path / "vectors", "settings": ONE, "show_progress_bar": False}
    fit(folder, data, output_dir=tmp_path / "model", **options)
    found = card_of(tmp_path / "model").data.to_dict()
    assert (found["base_model"], found["license"]) == ("someone/words", "cc-by-4.0")
    assert "ab" * 20 in (tmp_path / "model" / "README.md").read_text()


def test_where_the_encoder_is_kept_the_card_says_so(tmp_path: Path, fitted: Callable[..., FitResult]) -> None:
    result = fitted(labels="random")
    assert not result.report.kept
    text = card_of(tmp_path / "model").text
    assert result.report.first_line in text
    assert "an encoder without heads" in text
    assert "which was not kept" in text
    assert "Settings that were tried." in text
    assert "encode_document` for the other" not in text


def test_one_side_alone(tmp_path: Path, fitted: Callable[..., FitResult]) -> None:
    fitted(sides="query")
    text = card_of(tmp_path / "model").text
    assert "a small trained head for queries." in text
    assert "an index of them that exists stays valid" in text
    assert {row[0]: row[1] for row in rows(text)}["head for documents"] == "none"


def test_an_evaluation_is_put_in(
    tmp_path: Path, fitted: Callable[..., FitResult], compared: Callable[..., Comparison]
) -> None:
    fitted()
    model = tmp_path / "model"
    before = Card.load(model)
    names = ("toy | with a bar", "an other")
    comparison = compared({"words": tmp_path / "encoder", "heads": model}, names)
    write_card(model, comparison=comparison)
    card, after = card_of(model), Card.load(model)
    assert before is not None
    assert after is not None
    text = after.text.partition("## Evaluation\n\n")[2].partition("\n## Limits")[0]
    assert after.text.replace(text, "Not evaluated on test queries yet.\n") == before.text
    assert "This model is `heads`. The first row, `words`, is its encoder without heads." in text
    gain = comparison["heads"].difference
    assert gain is not None
    assert gain.low is not None
    assert gain.high is not None
    table = {row[0]: row for row in rows(text) if len(row) > 8}
    assert table["words"][1] == f"{comparison['words'].average['ndcg@10']:.4f}"
    assert table["heads"][4] == f"[{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    index = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    name, results = model_index_to_eval_results(index)
    assert name == "Query and document heads on an encoder"
    assert {(one.dataset_name, one.dataset_split, one.metric_type): one.metric_value for one in results} == {
        (data, "test", metric.replace("@", "_at_")): pytest.approx(score, abs=1e-5)
        for data, scores in comparison["heads"].scores.items()
        for metric, score in scores.items()
    }
    again = (model / "README.md").read_text()
    comparison.to_json(tmp_path / "comparison.json")
    write_card(model, comparison=tmp_path / "comparison.json")
    assert (model / "README.md").read_text() == again


def test_each_data_set_is_one_in_the_metadata_and_those_of_the_hub_are_named(
    tmp_path: Path, fitted: Callable[..., FitResult], compared: Callable[..., Comparison]
) -> None:
    fitted()
    found = compared({"words": tmp_path / "encoder", "heads": tmp_path / "model"})
    on_hub = f"SciFact mteb/scifact@{'0a' * 20} ['test'] ['default']"
    versions = {"week 1": "a digest", "week-1": "another", "SciFact (de, test)": on_hub, "SciFact (fr, test)": on_hub}
    data = {name: {**found.data["toy"], "version": version} for name, version in versions.items()}
    data["SciFact (de, test)"]["subset"], data["SciFact (fr, test)"]["subset"] = "de", "fr"
    found = replace(found, data=data, queries=dict.fromkeys(data, found.queries["toy"]))
    own = Own(found, found["heads"], 0, on_its_encoder=True)
    index = eval_results_to_model_index("model", list(own.results()))
    assert [one["dataset"]["name"] for one in index[0]["results"]] == list(versions)
    scifact = index[0]["results"][-1]["dataset"]
    assert (scifact["type"], scifact["config"], scifact["revision"]) == ("mteb/scifact", "fr", "0a" * 20)


def test_queries_that_were_trained_on_are_not_in_the_metadata(
    tmp_path: Path, fitted: Callable[..., FitResult], compared: Callable[..., Comparison]
) -> None:
    fitted()
    models = {"words": tmp_path / "encoder", "heads": tmp_path / "model"}
    comparison = compared(models, again=20)
    known = comparison.queries["toy"]
    assert len(known["trained on"]) == 20
    known["scores"]["heads"]["ndcg@10"] = [[0.5 if query in known["trained on"] else 0.25 for query in known["ids"]]]
    write_card(tmp_path / "model", comparison=comparison)
    value = next(one.metric_value for one in card_of(tmp_path / "model").data.eval_results if "ndcg" in one.metric_type)
    assert value == pytest.approx(0.25)
    write_card(tmp_path / "model", comparison=compared(models, again=30))
    assert not card_of(tmp_path / "model").data.eval_results


def test_of_several_seeds_the_metadata_are_of_this_one(
    tmp_path: Path, fitted: Callable[..., FitResult], compared: Callable[..., Comparison]
) -> None:
    fitted()
    other = asymmetric_model(SentenceTransformer(str(tmp_path / "encoder"), device="cpu"), init="random")
    comparison = compared({"words": tmp_path / "encoder", "heads": {1: other, 2: tmp_path / "model"}})
    write_card(tmp_path / "model", comparison=comparison)
    card = card_of(tmp_path / "model")
    own = comparison.queries["toy"]["scores"]["heads"]["ndcg@10"]
    value = next(one.metric_value for one in card.data.eval_results if one.metric_type == "ndcg_at_10")
    assert value == pytest.approx(sum(own[1]) / len(own[1]), abs=1e-5)
    assert value != pytest.approx(comparison["heads"].scores["toy"]["ndcg@10"], abs=1e-3)
    assert "one of the 2 of `heads`, which differ in the seed" in card.text


def test_scores_of_other_models_are_refused(
    tmp_path: Path, fitted: Callable[..., FitResult], compared: Callable[..., Comparison]
) -> None:
    fitted()
    encoder, data = rotated(60, seed=5)
    strange = compared({"strange": encoder, "its heads": asymmetric_model(encoder, init="random")})
    before = (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(ValueError, match="'strange', 'its heads', and none of them is this one"):
        write_card(tmp_path / "model", comparison=strange)
    assert (tmp_path / "model" / "README.md").read_text() == before
    mixed = compared({"strange": encoder, "heads": tmp_path / "model"})
    write_card(tmp_path / "model", comparison=mixed)
    assert "`strange`, is not its own encoder, but another model" in card_of(tmp_path / "model").text
    assert data  # the words are the same, their vectors are not


def test_a_card_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, fitted: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted()
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_card(tmp_path / "model", license="mit")
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before


def test_what_is_written_by_hand_stays(tmp_path: Path, fitted: Callable[..., FitResult]) -> None:
    fitted()
    path = tmp_path / "model" / "README.md"
    mine = "## Thanks\n\n```\n## no heading\n```\n\nTo all.\n\n## Limits\n\nNone that I know."
    path.write_text(path.read_text().partition("## Limits")[0].replace("st-asym\n", "st-asym\n- mine\n") + mine)
    write_card(
        tmp_path / "model", license="mit", base_model="user/words@abc", datasets=["user/pairs"], model_id="user/model"
    )
    card = card_of(tmp_path / "model")
    assert mine in card.text
    assert "mine" in card.data.tags
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", "user/words", ["user/pairs"])
    assert "[user/words](https://huggingface.co/user/words)" in card.text
    assert "`abc`" in card.text
    assert "# Query and document heads on user/words\n" in card.text
    assert "`mit`, as stated by who published this model." in card.text
    write_card(tmp_path / "model", new=True)
    text = card_of(tmp_path / "model").text
    assert "Thanks" not in text
    assert "Data: not recorded." in text  # what only fit knew is not guessed
    assert "| base encoder | not recorded |" in text


@pytest.mark.parametrize(
    ("metadata", "expected", "said"),
    [
        (
            "license: other\nlicense_name: mine\nlicense_link: LICENSE",
            "other",
            "`mine`, that of the encoder by its own card",
        ),
        ("license: [a, b]", None, "Unknown: none is stated"),
        ("license: <b>free</b>", None, "Unknown: none is stated"),
        ("license: [", None, "Unknown: none is stated"),
        ("tags: x", None, "Unknown: none is stated"),
    ],
)
def test_the_licence_is_that_of_the_encoder_or_unknown(
    tmp_path: Path,
    make_encoder: Callable[..., SentenceTransformer],
    metadata: str,
    expected: str | None,
    said: str,
) -> None:
    make_encoder().save_pretrained(str(tmp_path / "encoder"))
    (tmp_path / "encoder" / "README.md").write_text(f"---\n{metadata}\n---\n# Words\n")
    fit(
        tmp_path / "encoder",
        [("red head", "red"), ("text", "small")],
        output_dir=tmp_path / "model",
        cache=tmp_path / "vectors",
        settings=ONE,
        show_progress_bar=False,
    )
    card = card_of(tmp_path / "model")
    assert card.data.license == expected
    assert said in card.text


def test_the_card_of_the_stock_trainer_names_the_encoder(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    tiny_encoder.model_card_data.base_model = "user/encoder"  # as loading it from the Hub does
    tiny_encoder.model_card_data.base_model_revision = "abc"
    asymmetric_model(tiny_encoder).save_pretrained(str(tmp_path))
    assert card_of(tmp_path).data.base_model == "user/encoder"
    assert "at revision abc" in card_of(tmp_path).text


def test_a_model_that_the_stock_trainer_made(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    model.save_pretrained(str(tmp_path / "model"))
    readme = tmp_path / "model" / "README.md"
    readme.write_text(readme.read_text() + "\n## Twice\n\nOne.\n\n## Twice\n\nAnother.\n")
    before = card_of(tmp_path / "model").text
    write_card(tmp_path / "model", license="mit")
    expected = before + "\n## License\n\n`mit`, as stated by who published this model.\n"
    assert card_of(tmp_path / "model").text == expected  # its own card is completed, not replaced
    (tmp_path / "model" / "README.md").unlink()
    write_card(tmp_path / "model")
    card = card_of(tmp_path / "model")
    assert "How the model was trained is not recorded with it." in card.text
    assert card.data.license is None
    assert "Unknown: none is stated" in card.text
    assert "32 tokens" in card.text


def test_a_section_ends_at_the_next_one_and_nowhere_else() -> None:
    card = Card.parse("---\na: 1\n---\n# A\n\n## B\n\n<!--\n## C\n-->\n```\n## D\n```\n\n## E\n\nlast")
    card.put("B", "new")
    assert card.text == "# A\n\n## B\n\nnew\n\n## E\n\nlast"
    card.put("F", "end")
    card.put("B2", "between", ("B2", "E"))
    assert card.text == "# A\n\n## B\n\nnew\n\n## B2\n\nbetween\n\n## E\n\nlast\n\n## F\n\nend\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": "Apache License 2.0"}, "license must be an identifier"),
        ({"model_id": "a/b/c"}, "Repo id"),
        ({"datasets": ["not a name"]}, "Repo id"),
        ({"base_model": "/home/me/model"}, "Repo id"),
    ],
)
def test_names_that_the_hub_cannot_have_are_refused(
    tmp_path: Path, tiny_encoder: SentenceTransformer, options: dict[str, Any], message: str
) -> None:
    tiny_encoder.save_pretrained(str(tmp_path))
    before = (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match=message):
        write_card(tmp_path, **options)
    assert (tmp_path / "README.md").read_text() == before


@pytest.mark.parametrize("metadata", ["a: [", "- a\n- b", "model-index:\n- name: x"])
def test_metadata_that_cannot_be_read_are_named(
    tmp_path: Path, tiny_encoder: SentenceTransformer, metadata: str
) -> None:
    tiny_encoder.save_pretrained(str(tmp_path))
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"README\.md: its metadata cannot be read"):
        write_card(tmp_path, license="mit")
    write_card(tmp_path, license="mit", new=True)
    assert card_of(tmp_path).data.license == "mit"


@pytest.mark.parametrize("report", ["[]", "{", "{}", '{"first_line": 3, "evidence": "x"}'])
def test_a_report_that_cannot_be_read_is_named(tmp_path: Path, tiny_encoder: SentenceTransformer, report: str) -> None:
    tiny_encoder.save_pretrained(str(tmp_path))
    (tmp_path / "st_asym_report.json").write_text(report)
    with pytest.raises(ValueError, match=r"st_asym_report\.json is not a report"):
        write_card(tmp_path, new=True)


def test_a_model_that_trains_on_after_its_fit_does_not_keep_the_scores(
    tmp_path: Path, fitted: Callable[..., FitResult]
) -> None:
    result = fitted()
    result.model.save_pretrained(str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "README.md").read_text() == (tmp_path / "model" / "README.md").read_text()
    result.model.model_card_data.add_tags("generated_from_trainer")  # as the stock trainer does
    result.model.save_pretrained(str(tmp_path / "later"))
    assert "trained further since this card was written" in card_of(tmp_path / "later").text


def test_the_encoder_that_was_given_keeps_its_own_card(tmp_path: Path) -> None:
    encoder = encoder_of({"q0": [1.0] * 12, "d0": [0.5] * 12})
    before = encoder.model_card_data
    one = RetrievalData({"q0": "q0"}, {"d0": "d0", "d1": "d1"}, {"train": {"q0": {"d0": 1}}})
    result = fit(encoder, one, output_dir=tmp_path / "model", cache=tmp_path / "vectors", settings=Settings(epochs=1))
    assert result.model is encoder
    assert encoder.model_card_data is before
    assert result.report.first_line in card_of(tmp_path / "model").text


def test_on_the_command_line(
    tmp_path: Path, fitted: Callable[..., FitResult], compared: Callable[..., Comparison]
) -> None:
    fitted()
    compared({"words": tmp_path / "encoder", "heads": tmp_path / "model"}).to_json(tmp_path / "comparison.json")
    options = ["--evaluation", str(tmp_path / "comparison.json"), "--license", "mit", "--dataset", "a/b"]
    result = CliRunner().invoke(app, ["card", str(tmp_path / "model"), *options, "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"Wrote {tmp_path / 'model' / 'README.md'}."
    card = card_of(tmp_path / "model")
    assert (card.data.license, card.data.datasets, len(card.data.eval_results)) == ("mit", ["a/b"], 4)
    result = CliRunner().invoke(app, ["card", str(tmp_path / "encoder" / "0_StaticEmbedding")])
    assert result.exit_code == 2
    assert "holds no saved model" in result.stderr
    (tmp_path / "other.json").write_text(json.dumps({"format": 1}))
    result = CliRunner().invoke(app, ["card", str(tmp_path / "model"), "--evaluation", str(tmp_path / "other.json")])
    assert result.exit_code == 2
