"""A new result in the place of an earlier one takes the place of what that wrote, and of nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_asym import asymmetric_model, save_heads, save_provenance, verify, write_card
from st_asym.data.files import REPORT_FILE, new_folder
from st_asym.report.card import Card
from st_asym.trust.provenance import keep_what_is_not_ours


def save(encoder: SentenceTransformer, output: Path, first_line: str = "It works.") -> None:
    """As ``fit`` does."""
    with new_folder(output, lambda _: None, keep_what_is_not_ours) as new:
        model = asymmetric_model(encoder)
        model.save_pretrained(str(new), create_model_card=False)
        (new / REPORT_FILE).write_text(json.dumps({"first_line": first_line}))
        text = f"# Heads\n\n{first_line}\n\n## Use\n\nEncode.\n\n## Limits\n\nMany.\n\n## License\n\nUnknown.\n"
        (new / "README.md").write_text(f"---\ntags:\n- st-asym\n---\n\n{text}")
        (new / "held_out_queries.png").write_bytes(first_line.encode())
        save_provenance(new, model)


@pytest.fixture
def output(tmp_path: Path, tiny_encoder: SentenceTransformer) -> Path:
    save(tiny_encoder, tmp_path / "model")
    return tmp_path / "model"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_result_that_nobody_touched_is_replaced(
    output: Path, tiny_encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    before = names(output)
    save(tiny_encoder, output, "It works better.")
    assert names(output) == before
    assert "It works better." in (output / "README.md").read_text()
    assert (output / "held_out_queries.png").read_text() == "It works better."
    assert caplog.text == ""
    verify(output)


def test_what_somebody_put_there_is_kept_and_named(
    output: Path, tiny_encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("NOTES.txt", "evaluation/results/scores.json", ".git/config", "3_Router/why.md", "figures/a.png"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
    (output / "held_out_queries.png").write_bytes(b"drawn by hand")
    with caplog.at_level(logging.WARNING, "st_asym"):
        save(tiny_encoder, output, "It works better.")
    for name in ("NOTES.txt", "evaluation/results/scores.json", ".git/config", "3_Router/why.md", "figures/a.png"):
        assert (output / name).read_text() == "mine"
        assert name.partition("/")[0] in caplog.text
    assert (output / "held_out_queries.earlier.png").read_bytes() == b"drawn by hand"
    assert list(output.parent.iterdir()) == [output]
    verify(output)
    save(tiny_encoder, output)
    assert (output / "NOTES.txt").read_text() == "mine"


def test_a_card_that_somebody_completed_is_kept(output: Path, tiny_encoder: SentenceTransformer) -> None:
    write_card(output, license="apache-2.0", datasets=["someone/errors"])
    card = (output / "README.md").read_text()
    completed = card.replace("## Limits", "## Who made it\n\nWe did.\n\n## Limits").replace("Encode.", "Call us first.")
    (output / "README.md").write_text(completed)
    save(tiny_encoder, output, "It works better.")
    found = Card.load(output)
    assert found is not None
    assert "It works better." in found.text
    assert "## Who made it\n\nWe did." in found.text
    assert (found.data.license, found.data.datasets) == ("apache-2.0", ["someone/errors"])
    assert "apache-2.0" in found.sections()["License"]
    assert "Encode." in found.text
    assert (output / "README.earlier.md").read_text() == completed
    verify(output)
    save(tiny_encoder, output)
    found = Card.load(output)
    assert found is not None
    assert "We did." in found.text
    assert {"README.earlier.md"} == {name for name in names(output) if "earlier" in name}


def test_what_is_no_file_beside_it_hides_nothing(output: Path, tiny_encoder: SentenceTransformer) -> None:
    before = names(output)
    (output / "latest").symlink_to("nowhere")
    with (output / "README.md").open("a") as card:
        card.write("\n## Who made it\n\nWe did.\n")
    (output / "old_settings.json").write_text("{}")
    made = json.loads((output / "st_asym.json").read_text())
    made["files"]["old_settings.json"] = "0" * 64
    (output / "st_asym.json").write_text(json.dumps(made))
    for _ in range(2):
        save(tiny_encoder, output)
        assert names(output) == before | {"latest", "README.earlier.md"}


def test_the_scores_of_an_earlier_model_are_not_taken_over(output: Path, tiny_encoder: SentenceTransformer) -> None:
    text = (output / "README.md").read_text()
    scores = "model-index:\n- name: Heads\n  results: []\nmetrics:\n- ndcg\nlanguage: de\n---\n\n# Heads"
    (output / "README.md").write_text(text.replace("---\n\n# Heads", scores))
    save(tiny_encoder, output)
    found = Card.load(output)
    assert found is not None
    assert (found.data.language, found.data.metrics, found.data.eval_results) == ("de", None, None)


def test_a_card_that_cannot_be_read_is_kept_beside(
    output: Path, tiny_encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    (output / "README.md").write_text("---\n: [\n---\nmine")
    save(tiny_encoder, output, "It works better.")
    assert "mine" in (output / "README.earlier.md").read_text()
    assert "It works better." in (output / "README.md").read_text()
    assert "cannot be read" in caplog.text


def test_a_result_of_a_version_that_noted_less_loses_nothing(output: Path, tiny_encoder: SentenceTransformer) -> None:
    made = json.loads((output / "st_asym.json").read_text())
    del made["documents"]
    (output / "st_asym.json").write_text(json.dumps(made))
    (output / "NOTES.txt").write_text("mine")
    verify(output)
    save(tiny_encoder, output, "It works better.")
    assert (output / "NOTES.txt").read_text() == "mine"
    assert "It works." in (output / "README.earlier.md").read_text()
    assert {name for name in names(output) if "earlier" in name} == {"README.earlier.md"}
    (output / "st_asym.json").unlink()
    save(tiny_encoder, output)
    assert (output / "NOTES.txt").read_text() == "mine"
    verify(output)


def test_a_model_file_that_was_changed_is_named(
    output: Path, tiny_encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = json.loads((output / "config_sentence_transformers.json").read_text())
    (output / "config_sentence_transformers.json").write_text(json.dumps({**settings, "prompts": {"query": "q: "}}))
    save(tiny_encoder, output)
    assert "Changed since it was saved, and replaced by the new result: config_sentence_tr" in caplog.text
    verify(output)


def test_a_model_with_weights_that_are_cut_off_is_replaced(
    output: Path, tiny_encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    weights = output / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    save(tiny_encoder, output)
    assert "Changed since it was saved, and replaced by the new result: model.safetensors." in caplog.text
    verify(output)


def test_heads_alone_leave_what_is_beside_them(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    save_heads(model, tmp_path / "heads")
    (tmp_path / "heads" / "README.md").write_text("mine")
    save_heads(model, tmp_path / "heads")
    assert (tmp_path / "heads" / "README.md").read_text() == "mine"
    verify(tmp_path / "heads")


def test_weights_are_readable_for_others(output: Path) -> None:
    (output.parent / "probe").touch()
    usual = (output.parent / "probe").stat().st_mode & 0o777
    files = [path for path in output.rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {usual}
