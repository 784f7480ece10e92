from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiment.systems import get_system
from export_helpers import TEXTS, trained
from fitting_helpers import DIMENSION, encoder_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import BoW, Pooling
from server_readers import Refused, tei, vllm
from torch import nn

import st_asym
from st_asym import asymmetric_model, export_side
from st_asym.heads.anatomy import side_modules

SIDES = ["query", "document"]


def vectors(model: SentenceTransformer, side: str) -> np.ndarray:
    return model.encode_query(TEXTS) if side == "query" else model.encode_document(TEXTS)


def pooled(folder: Path) -> np.ndarray:
    """What encoder and pooling of an export give: where the servers' own code goes on."""
    model = SentenceTransformer(str(folder), device="cpu")
    return SentenceTransformer(modules=list(model)[:2], device="cpu").encode(TEXTS)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("ending", ["pooling", "normalize", "dense"])
@pytest.mark.parametrize(
    "options",
    [{}, {"hidden_features": None}, {"hidden_features": None, "bias": False}, {"document": False}, {"shared": True}],
    ids=str,
)
def test_an_export_gives_the_vectors_of_its_side(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path, side: str, ending: str, options: dict[str, Any]
) -> None:
    model = trained(asymmetric_model(make_encoder(ending), **options))
    found = export_side(model, side, tmp_path / "side", texts=TEXTS)
    exported = SentenceTransformer(str(tmp_path / "side"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), vectors(model, side), atol=1e-5)
    assert found.agreement.difference < 1e-5
    assert "Router" not in (tmp_path / "side" / "modules.json").read_text()
    assert exported.similarity_fn_name == "cosine"
    assert exported.max_seq_length == model.max_seq_length
    assert st_asym.verify(tmp_path / "side").kind == "encoder"
    assert [path.name for path in tmp_path.iterdir()] == ["side"]


@pytest.mark.parametrize("ending", ["pooling", "normalize", "dense"])
@pytest.mark.parametrize(
    "options", [{}, {"hidden_features": None}, {"hidden_features": None, "bias": False}, {"bias": False}], ids=str
)
def test_a_server_gives_the_same_vectors_or_is_named_as_one_that_cannot(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path, ending: str, options: dict[str, Any]
) -> None:
    model = trained(asymmetric_model(make_encoder(ending), **options))
    found = export_side(model, "query", tmp_path / "side", texts=TEXTS)
    tokens, expected = pooled(tmp_path / "side"), vectors(model, "query")
    if "vLLM" not in found.not_served:
        served = vllm(tmp_path / "side")
        np.testing.assert_allclose(served(tokens), expected, atol=1e-5)
        assert (served.pooling, served.max_length) == ("mean", 32)
    else:
        assert not vllm(tmp_path / "side").layers  # with an error in the log: not the head on what it was not made for
    if "Text Embeddings Inference" in found.not_served:
        with pytest.raises(Refused):
            tei(tmp_path / "side")
    else:
        served = tei(tmp_path / "side")
        np.testing.assert_allclose(served(tokens), expected, atol=1e-5)
        assert (served.pooling, served.max_length) == ("mean", 32)


@pytest.mark.parametrize(
    ("ending", "options", "servers"),
    [
        ("pooling", {"hidden_features": None}, []),
        ("dense", {"hidden_features": None}, []),
        ("normalize", {"hidden_features": None, "bias": False}, []),
        ("normalize", {"document": True, "query": False}, []),
        ("normalize", {"hidden_features": None}, ["Text Embeddings Inference", "vLLM"]),
        ("normalize", {}, ["Text Embeddings Inference", "vLLM"]),
        ("normalize", {"bias": False}, ["Text Embeddings Inference"]),
        ("pooling", {}, ["Text Embeddings Inference"]),
    ],
)
def test_who_can_serve_it(
    make_encoder: Callable[..., SentenceTransformer],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    ending: str,
    options: dict[str, Any],
    servers: list[str],
) -> None:
    model = trained(asymmetric_model(make_encoder(ending), **options))
    with caplog.at_level(logging.WARNING, "st_asym"):
        assert list(export_side(model, "query", tmp_path / "side", texts=TEXTS).not_served) == servers
    for dense in (tmp_path / "side").glob("*_Dense/config.json"):  # version 3, as in Infinity, takes no others
        assert set(json.loads(dense.read_text())) == {"in_features", "out_features", "bias", "activation_function"}
    said = caplog.text
    assert all(server in said for server in servers)
    assert ("refit with Settings(hidden_features=None, bias=False)" in said) == bool(servers)


def test_a_linear_head_is_one_dense_and_loses_a_normalize_that_changes_nothing(
    tiny_encoder: SentenceTransformer,
) -> None:
    def kinds(**options: Any) -> list[str]:
        model = trained(asymmetric_model(tiny_encoder, **options))
        return [type(module).__name__ for module in side_modules(model, "query")]

    assert kinds(hidden_features=None, bias=False) == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert kinds(hidden_features=None) == ["Transformer", "Pooling", "Normalize", "Dense", "Normalize"]
    assert kinds(query=False) == ["Transformer", "Pooling", "Normalize"]
    assert kinds(bias=False) == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    # GELU is not linear in the length, whatever its bias.
    assert kinds(bias=False, activation="gelu") == kinds()
    assert kinds() == ["Transformer", "Pooling", "Normalize", "Dense", "Dense", "Normalize"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    biased=st.booleans(),
    residual=st.booleans(),
    normalised=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_folded_linear_layers_are_the_layers_one_after_the_other(
    sizes: list[int], biased: bool, residual: bool, normalised: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    words = ["a", "b", "c"]
    steps = zip([len(words), *sizes], sizes, strict=False)
    layers: list[Any] = [Dense(i, o, bias=biased, activation_function=None, use_residual=residual) for i, o in steps]
    router = st_asym.heads.projection.Router.for_query_document(layers, [])
    before = [Normalize()] if normalised else []
    model = SentenceTransformer(modules=[BoW(words), *before, router, Normalize()], device="cpu")
    texts = ["a", "a b", "b b c", "c"]
    folded = side_modules(model, "query")
    plain = SentenceTransformer(modules=folded, device="cpu")
    np.testing.assert_allclose(plain.encode(texts), model.encode_query(texts), atol=1e-4)
    assert sum(isinstance(module, Dense) for module in folded) == 1
    assert sum(isinstance(module, Normalize) for module in folded) == 1 + (normalised and biased)


def test_the_prompt_of_the_side_is_the_default(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make_encoder(prompts={"query": "query ", "document": "text ", "other": "big "})
    model = trained(asymmetric_model(encoder, hidden_features=None, bias=False))
    with caplog.at_level(logging.WARNING, "st_asym"):
        export_side(model, "query", tmp_path / "query", texts=TEXTS)
    assert "--default-prompt-name query" in caplog.text
    exported = SentenceTransformer(str(tmp_path / "query"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), model.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(exported.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-5)
    assert tei(tmp_path / "query").prompts["query"] == "query "
    export_side(model, "document", tmp_path / "document", texts=TEXTS)
    exported = SentenceTransformer(str(tmp_path / "document"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), model.encode_document(TEXTS), atol=1e-5)


def test_plain_encode_of_an_export_is_its_side_also_where_the_encoder_tells_the_sides_apart(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    tiny_encoder[0].query_length, tiny_encoder[0].document_length = 5, 20
    model = trained(asymmetric_model(tiny_encoder))
    for side, length in (("query", 5), ("document", 20)):
        export_side(model, side, tmp_path / side, texts=TEXTS)
        exported = SentenceTransformer(str(tmp_path / side), device="cpu")
        np.testing.assert_allclose(exported.encode(TEXTS), vectors(model, side), atol=1e-5)
        assert exported.max_seq_length == vllm(tmp_path / side).max_length == length
    assert (model[0].query_length, model[0].document_length, model.max_seq_length) == (5, 20, 32)
    model[0].query_length = None
    model[0].query_expansion = {"strategy": "fixed", "length": 8}
    with pytest.raises(ValueError, match=r"by itself \(query_expansion, .* use st-asym serve"):
        export_side(model, "query", tmp_path / "expanded", texts=TEXTS)
    export_side(model, "document", tmp_path / "expanded", texts=TEXTS)


def test_a_pooling_that_leaves_the_prompt_out_is_kept_and_no_server_does_it(tiny_bert: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(tiny_bert), max_seq_length=32), Pooling(16, "mean", include_prompt=False)]
    encoder = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "big red "})
    model = trained(asymmetric_model(encoder, hidden_features=None))
    found = export_side(model, "query", tmp_path / "side", texts=TEXTS)
    exported = SentenceTransformer(str(tmp_path / "side"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), model.encode_query(TEXTS), atol=1e-5)
    assert all("leaves out" in reason for reason in found.not_served.values())
    assert set(found.not_served) == {"Text Embeddings Inference", "vLLM"}
    assert not export_side(model, "document", tmp_path / "document", texts=TEXTS).not_served


def test_the_residual_of_a_dense_is_known_to_no_server(tiny_bert: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(tiny_bert), max_seq_length=32), Pooling(16, "mean"), Dense(16, 16, use_residual=True)]
    found = export_side(SentenceTransformer(modules=modules, device="cpu"), "query", tmp_path / "side", texts=TEXTS)
    assert set(found.not_served) == {"Text Embeddings Inference", "vLLM"}
    assert all("residual" in reason for reason in found.not_served.values())


def test_an_encoder_that_makes_tokens_of_its_own_is_for_no_server_and_no_graph(
    tiny_encoder: SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain = trained(asymmetric_model(tiny_encoder, bias=False)), tiny_encoder[0].modality_config

    def check(name: str, reason: str) -> None:
        model.save_pretrained(str(tmp_path / name))
        with caplog.at_level(logging.WARNING, "st_asym"):
            found = export_side(tmp_path / name, "query", tmp_path / f"{name}-query", texts=TEXTS).not_served
        assert set(found) == {"Text Embeddings Inference", "vLLM"}
        assert all(reason in why for why in found.values())
        assert "onnx" not in caplog.text
        pytest.importorskip("onnxruntime")
        with pytest.raises(ValueError, match=f"{reason}.* Serve it with st-asym serve"):
            export_side(tmp_path / name, "query", tmp_path / "graph", format="onnx", texts=TEXTS)

    model[0].processing_kwargs = {"text": {"max_length": 6}}
    check("processing", "processing_kwargs")
    model[0].processing_kwargs = {}
    model[0].tokenizer.chat_template = "{% for m in messages %}big {{ m['content'] }} red{% endfor %}"
    model[0].modality_config = {**plain, "message": {**plain["text"], "format": "flat"}}
    check("chat", "chat template")


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_documents_have_their_prompt_under_other_names_too(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path, name: str
) -> None:
    model = trained(asymmetric_model(make_encoder()))
    model.prompts = {name: "big red "}  # without the empty ones that the library adds
    export_side(model, "document", tmp_path / "side", texts=TEXTS)
    exported = SentenceTransformer(str(tmp_path / "side"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), model.encode_document(TEXTS), atol=1e-5)
    assert not np.allclose(model.encode_document(TEXTS), model.encode(TEXTS), atol=1e-3)


@pytest.mark.parametrize(
    "mode",
    ["cls", "mean", "lasttoken", "max", "weightedmean", ["cls", "mean"], ["mean", "cls"], ["cls", "mean", "max"]],
)
def test_the_pooling_is_that_of_the_model_in_every_reader(tiny_bert: Path, tmp_path: Path, mode: Any) -> None:
    transformer = Transformer(str(tiny_bert), max_seq_length=32)
    encoder = SentenceTransformer(modules=[transformer, Pooling(16, mode)], device="cpu")
    found = export_side(encoder, "document", tmp_path / "side", texts=TEXTS)
    exported = SentenceTransformer(str(tmp_path / "side"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    if mode in ("cls", "mean", "lasttoken"):
        assert tei(tmp_path / "side").pooling == vllm(tmp_path / "side").pooling == mode
    else:
        assert set(found.not_served) == {"Text Embeddings Inference", "vLLM"}


@pytest.mark.parametrize("name", ["iso_pred", "respred"])
def test_what_only_training_needs_is_left_out(tiny_encoder: SentenceTransformer, tmp_path: Path, name: str) -> None:
    model = trained(get_system(name).build(tiny_encoder))
    finished = get_system(name).finish(model)
    for side in SIDES:
        export_side(finished, side, tmp_path / side, texts=TEXTS)
        exported = SentenceTransformer(str(tmp_path / side), device="cpu")
        np.testing.assert_allclose(exported.encode(TEXTS), vectors(model, side), atol=1e-5)


def test_an_export_needs_no_st_asym(
    tiny_encoder: SentenceTransformer, tmp_path: Path, run_without_st_asym: Callable[..., str]
) -> None:
    model = trained(asymmetric_model(tiny_encoder))
    export_side(model, "query", tmp_path / "side", texts=TEXTS)
    code = (
        "import sys, json; from sentence_transformers import SentenceTransformer\n"
        "print(json.dumps(SentenceTransformer(sys.argv[1], device='cpu').encode('red head').tolist()))"
    )
    found = json.loads(run_without_st_asym(code, str(tmp_path / "side")).splitlines()[-1])
    np.testing.assert_allclose(found, model.encode_query("red head"), atol=1e-5)


def test_a_saved_model_and_a_cached_one_are_exported_too(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = trained(asymmetric_model(tiny_encoder))
    model.save_pretrained(str(tmp_path / "model"))
    cached = st_asym.CachedSentenceTransformer(model, st_asym.EmbeddingCache(tmp_path / "vectors"))
    for name, source in (("a", tmp_path / "model"), ("b", cached)):
        export_side(source, "query", tmp_path / name, texts=TEXTS)
        exported = SentenceTransformer(str(tmp_path / name), device="cpu")
        np.testing.assert_allclose(exported.encode(TEXTS), model.encode_query(TEXTS), atol=1e-5)


def test_the_model_is_as_it_was(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    export_side(model, "query", tmp_path / "side", texts=TEXTS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_precision(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = trained(asymmetric_model(tiny_encoder.bfloat16(), hidden_features=None, bias=False))
    export_side(model, "query", tmp_path / "side", texts=TEXTS)
    assert SentenceTransformer(str(tmp_path / "side"), device="cpu").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("both",), {}, "side must be 'query' or 'document', got 'both'"),
        (("query",), {"format": "gguf"}, "format must be"),
        (("query",), {"int8": True}, "int8 is for format='onnx'"),
        (("query",), {"texts": []}, "at least one text"),
        (("query",), {"texts": "text"}, "at least one text"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_encoder: SentenceTransformer, tmp_path: Path, arguments: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export_side(tiny_encoder, *arguments, tmp_path / "side", **options)
    assert not list(tmp_path.iterdir())


class Foreign(nn.Module):
    """A module of somebody's own."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features


def test_models_that_are_no_plain_side_are_refused(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not part of sentence-transformers \\(Foreign\\)"):
        foreign = SentenceTransformer(modules=[*tiny_encoder, Foreign()], device="cpu")
        export_side(foreign, "query", tmp_path / "side")
    model = asymmetric_model(tiny_encoder)
    with model.truncate_embeddings(8), pytest.raises(ValueError, match="truncate_dim=8"):
        export_side(model, "query", tmp_path / "side")
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="vectors are not finite"):
        export_side(model, "query", tmp_path / "side")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export_side(tiny_encoder, "query", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file/side cannot be written: Not a directory\. Nothing was done yet"):
        export_side("no model is loaded", "query", tmp_path / "file" / "side")


def test_nothing_is_left_of_an_export_that_gives_other_vectors(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(asymmetric_model(tiny_encoder))
    module = sys.modules["st_asym.export.export_side"]  # the name is that of the function
    monkeypatch.setattr(module, "side_modules", lambda model, _: side_modules(model, "document"))
    with pytest.raises(ValueError, match="gives other vectors than the model"):
        export_side(model, "query", tmp_path / "side", texts=TEXTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_real_encoder(real_encoder: SentenceTransformer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = asymmetric_model(real_encoder, hidden_features=None, bias=False, document=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    for side in SIDES:
        found = export_side(model, side, tmp_path / side)
        assert found.agreement.difference < 1e-5
        assert not found.not_served
        exported = SentenceTransformer(str(tmp_path / side), device="cpu")
        texts = ["Replace the air filter.", "How long does a pump last?"]
        served = tei(tmp_path / side)
        tokens = SentenceTransformer(modules=list(exported)[:2], device="cpu").encode(texts)
        expected = model.encode_query(texts) if side == "query" else model.encode_document(texts)
        np.testing.assert_allclose(served(tokens), expected, atol=1e-5)
        assert served.max_length == 256


def test_a_static_encoder_and_a_text_that_it_does_not_know(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = trained(asymmetric_model(encoder_of({"red": np.ones(DIMENSION)}), bias=False))
    with caplog.at_level(logging.WARNING, "st_asym"):
        found = export_side(model, "query", tmp_path / "side", texts=["red", "unknown"])
    assert found.agreement.cosine == pytest.approx(1)
    assert "cannot run this model" in caplog.text
    assert "onnx" not in caplog.text  # which no graph could be of, and another head would not help
    assert "refit" not in caplog.text
