"""Heads leave their encoder, and come back to it and to no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from st_asym import VerificationError, asymmetric_model, attach_heads, save_heads, save_provenance, verify
from st_asym.data import as_retrieval_data
from st_asym.data.files import new_folder
from st_asym.heads.saved import rescued_heads

TEXTS = ["red head", "the small text", "vector"]
Make = Callable[..., SentenceTransformer]


def trained(encoder: SentenceTransformer, **options: Any) -> SentenceTransformer:
    model = asymmetric_model(encoder, **options)
    for parameter in model[-2].parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize(
    "options", [{}, {"document": False}, {"shared": True}, {"hidden_features": None, "out_features": 8}], ids=str
)
def test_attached_again_they_give_the_same_bits(tmp_path: Path, make_encoder: Make, options: Any) -> None:
    model = trained(make_encoder(prompts={"query": "query: "}), **options)
    model.prompts["document"] = "document: "
    model.default_prompt_name = "query"
    folder = save_heads(model, tmp_path / "heads")
    again = attach_heads(make_encoder(), folder)
    assert again.prompts == model.prompts
    for encode in ("encode", "encode_query", "encode_document"):
        assert np.array_equal(getattr(again, encode)(TEXTS), getattr(model, encode)(TEXTS))
    assert not any(parameter.requires_grad for parameter in again[0].parameters())
    assert not again.training
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30_000


def test_behind_an_encoder_that_is_truncated_they_are_truncated(
    tmp_path: Path, tiny_encoder: SentenceTransformer
) -> None:
    save_heads(asymmetric_model(tiny_encoder), tmp_path / "heads")
    whole = attach_heads(tiny_encoder, tmp_path / "heads").encode_query("red head")
    tiny_encoder.truncate_dim = 8
    assert np.array_equal(attach_heads(tiny_encoder, tmp_path / "heads").encode_query("red head"), whole[:8])


def test_a_saved_model_hands_on_what_made_it(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    model = trained(tiny_encoder)
    model.save_pretrained(str(tmp_path / "model"))
    data = as_retrieval_data([("red head", "big red head"), ("small text", "the small text")])
    made = save_provenance(tmp_path / "model", model, data=data, settings={"epochs": 3}, seed=5)
    found = verify(save_heads(tmp_path / "model", tmp_path / "heads"))
    assert (found.kind, found.heads) == ("heads", {"query": (16, 16), "document": (16, 16)})
    assert found.provenance is not None
    assert (found.provenance.seed, found.provenance.settings) == (5, {"epochs": 3})
    assert found.provenance.data == made.data != {}
    assert found.provenance.encoder == made.encoder
    assert found.provenance.heads == made.heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: next(e[0].parameters()).data.add_(1.0), "its weights have the digest"),
        (lambda e: setattr(e, "max_seq_length", 8), "not the same max_seq_length"),
        (lambda e: setattr(e[1], "pooling_mode", "cls"), "not the same tokenizer, pooling or another setting"),
        (lambda e: e.half(), "its weights have the digest"),
    ],
)
def test_no_other_encoder_is_taken(
    tmp_path: Path, make_encoder: Make, change: Callable[[SentenceTransformer], object], message: str
) -> None:
    folder = save_heads(trained(make_encoder()), tmp_path / "heads")
    other = make_encoder()
    change(other)
    with pytest.raises(ValueError, match=rf"belong to .* another encoder: .*{message}"):
        attach_heads(other, folder)
    with pytest.raises(ValueError, match="12 dimensions, not 16"):
        attach_heads(make_encoder("dense"), folder)
    with pytest.raises(ValueError, match="has heads already"):
        attach_heads(trained(make_encoder()), folder)


def test_under_other_versions_the_encoder_is_known_by_its_weights(
    tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(make_encoder())
    folder = save_heads(model, tmp_path / "heads")
    monkeypatch.setattr("st_asym.cache.fingerprint.encoder_fingerprint", lambda _: "0" * 64)
    monkeypatch.setattr("st_asym.heads.saved.installed", lambda: {"transformers": "99"})
    again = attach_heads(make_encoder(), folder)
    assert "was described under another" in caplog.text
    assert np.array_equal(again.encode_query(TEXTS), model.encode_query(TEXTS))
    other = make_encoder()
    next(other[0].parameters()).data.add_(1.0)
    with pytest.raises(ValueError, match="its weights have the digest"):
        attach_heads(other, folder)


def test_damaged_heads_and_whole_models_are_refused(tmp_path: Path, make_encoder: Make) -> None:
    model = trained(make_encoder())
    folder = save_heads(model, tmp_path / "heads")
    path = folder / "query_1_Dense" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="another query head"):
        attach_heads(make_encoder(), folder)
    (folder / "st_asym.json").unlink()
    with pytest.raises(ValueError, match="does not hold heads alone with their"):
        attach_heads(make_encoder(), folder)
    model.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="does not hold heads alone"):
        attach_heads(make_encoder(), tmp_path / "model")


@pytest.mark.parametrize("wrong", [{"prompts": {"query": 1}}, {"prompts": {}, "default_prompt_name": "query"}], ids=str)
def test_prompts_that_are_none_are_refused(tmp_path: Path, make_encoder: Make, wrong: Any) -> None:
    path = save_heads(trained(make_encoder()), tmp_path / "heads") / "st_asym.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": wrong}))
    with pytest.raises(VerificationError, match=r"is damaged \(model\)"):
        attach_heads(make_encoder(), tmp_path / "heads")


def test_only_earlier_heads_are_replaced(tmp_path: Path, make_encoder: Make) -> None:
    model = trained(make_encoder())
    save_heads(model, tmp_path / "heads")
    other = trained(make_encoder())
    save_heads(other, tmp_path / "heads")
    again = attach_heads(make_encoder(), tmp_path / "heads")
    assert np.array_equal(again.encode_query(TEXTS), other.encode_query(TEXTS))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="name another folder"):
        save_heads(model, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads", "mine"]


def test_a_model_without_heads_has_none_to_save(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match=r"needs a model \[encoder\.\.\., Router, Normalize\]"):
        save_heads(tiny_encoder, tmp_path / "heads")
    from experiment.systems import get_system

    with pytest.raises(
        ValueError, match=r"\(ResidualPredictor\): leave them out, or put their stock form in their place"
    ):
        save_heads(get_system("respred").build(tiny_encoder), tmp_path / "heads")


@pytest.fixture
def full_disk() -> Any:
    def fail(kind: str) -> None:
        if kind == "safetensors":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    return fail


@pytest.mark.parametrize("kind", ["safetensors", "python"])
def test_heads_are_kept_where_saving_fails(
    tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[[str], None], kind: str
) -> None:
    for name in ("spare", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    model, output = trained(make_encoder()), tmp_path / "out" / "model"
    message = r"No space left.*was not saved, but the trained heads are kept in"
    with (
        pytest.raises(OSError, match=message) as error,
        rescued_heads(model, output),
        new_folder(output, lambda _: None) as new,
    ):
        new.mkdir()
        full_disk(kind)
    assert error.value.errno == 28
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
    heads = next((tmp_path / "spare").glob("st_asym-*/heads"))
    assert str(heads) in str(error.value)
    again = attach_heads(make_encoder(), heads)
    assert np.array_equal(again.encode_query(TEXTS), model.encode_query(TEXTS))


def test_an_error_keeps_its_kind_and_a_model_without_heads_has_none_to_keep(
    tmp_path: Path, tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, output = trained(tiny_encoder), tmp_path / "model"
    with pytest.raises(FileExistsError, match=r"taken\. \S+model was not saved, but"), rescued_heads(model, output):
        raise FileExistsError("taken.")
    with pytest.raises(FileExistsError, match=r"^taken\.$"), rescued_heads(tiny_encoder, output):
        raise FileExistsError("taken.")
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="could be kept nowhere else"), rescued_heads(model, output):
        raise OSError("full")


def test_heads_are_kept_where_a_module_of_the_encoder_cannot_be_written(
    tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, output = trained(make_encoder()), tmp_path / "model"
    with pytest.raises(OSError, match=r"not contiguous\. \S+model was not saved, but"), rescued_heads(model, output):
        raise ValueError("not contiguous.")
