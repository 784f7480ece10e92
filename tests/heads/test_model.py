from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import BoW, Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn

from st_asym import asymmetric_model, column_prompts, freeze_encoder
from st_asym.heads.anatomy import without_heads

MakeEncoder = Callable[..., SentenceTransformer]
TEXTS = ["frozen encoder", "the head learns", "big red document", "a", "", "query query query vector answers text"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("ending", ["pooling", "normalize", "dense"])
def test_a_fresh_model_gives_the_encoders_own_directions(make_encoder: MakeEncoder, ending: str) -> None:
    encoder = make_encoder(ending)
    expected = unit(encoder.encode(TEXTS))
    model = asymmetric_model(encoder)
    for vectors in (model.encode_query(TEXTS), model.encode_document(TEXTS), model.encode(TEXTS)):
        assert np.abs(vectors - expected).max() < 1e-6


def test_a_fresh_model_gives_the_real_encoders_vectors_and_rankings(real_encoder: SentenceTransformer) -> None:
    queries = ["how do I sort a list", "capital of France", "what boils at 100 degrees"]
    documents = [
        "Lists are sorted in place by sort().",
        "Paris is in France.",
        "Water boils at 100 °C.",
        "A dog barks.",
    ]
    before_queries, before_documents = real_encoder.encode_query(queries), real_encoder.encode_document(documents)
    model = asymmetric_model(real_encoder)
    after_queries, after_documents = model.encode_query(queries), model.encode_document(documents)
    assert np.abs(after_queries - before_queries).max() < 1e-6
    assert np.abs(after_documents - before_documents).max() < 1e-6
    before = np.argsort(-before_queries @ before_documents.T)
    assert np.array_equal(before, np.argsort(-model.similarity(after_queries, after_documents).numpy()))


def test_the_encoders_settings_are_kept(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(
        prompts={"query": "query ", "document": "document ", "code": "red "}, default_prompt_name="code"
    )
    encoder.max_seq_length = 7
    model = asymmetric_model(encoder)
    assert model.prompts == encoder.prompts
    assert model.default_prompt_name == "code"
    assert model.max_seq_length == 7
    assert model.similarity_fn_name == "cosine"
    assert model.device == encoder.device
    assert not model.trust_remote_code
    encoder.trust_remote_code, encoder.backend = True, "onnx"
    other = asymmetric_model(encoder)
    assert other.trust_remote_code
    assert other.get_backend() == "onnx"
    for encode in ("encode", "encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(model, encode)(TEXTS), getattr(encoder, encode)(TEXTS), atol=1e-6)
    assert not np.allclose(model.encode_query(TEXTS), model.encode_document(TEXTS), atol=1e-3)


def test_prompts_of_a_side_by_another_name_are_kept(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(default_prompt_name="code", prompts={"code": "red "})
    encoder.prompts = {"passage": "document ", "code": "red "}  # without the empty ones that the library adds
    model = asymmetric_model(encoder)
    for encode in ("encode", "encode_query", "encode_document"):
        expected = getattr(encoder, encode)(TEXTS)
        for other in (model, without_heads(encoder)):
            np.testing.assert_allclose(getattr(other, encode)(TEXTS), expected, atol=1e-6)
    assert column_prompts(encoder, {"a": "query", "b": "document"}) == {"a": "red ", "b": "document "}


def test_a_bfloat16_encoder_gets_bfloat16_heads_and_a_warning(
    make_encoder: MakeEncoder, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    encoder = make_encoder().bfloat16()
    expected = encoder.encode(TEXTS, convert_to_tensor=True)
    model = asymmetric_model(encoder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model.encode_query(TEXTS, convert_to_tensor=True), expected, atol=4e-3, rtol=0)
    assert "below 1/256 of a weight" in caplog.text
    model.save_pretrained(str(tmp_path))
    assert SentenceTransformer(str(tmp_path), device="cpu").dtype == torch.bfloat16


def test_a_truncated_encoder_gets_heads_that_start_as_its_truncation(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(truncate_dim=5)
    expected = unit(encoder.encode(TEXTS))
    model = asymmetric_model(encoder)
    assert model.get_embedding_dimension() == 5
    assert np.abs(model.encode_query(TEXTS) - expected).max() < 1e-6
    assert asymmetric_model(encoder, out_features=None).get_embedding_dimension() == 16


@pytest.mark.parametrize(
    "options", [{}, {"query": False}, {"document": False}, {"shared": True}, {"hidden_features": None}]
)
def test_a_saved_model_is_stock_and_gives_the_same_vectors_without_st_asym(
    tiny_encoder: SentenceTransformer, tmp_path: Path, run_without_st_asym: Callable[..., str], options: dict[str, bool]
) -> None:
    model = asymmetric_model(tiny_encoder, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(tmp_path / "model"))
    types = [entry["type"] for entry in json.loads((tmp_path / "model" / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in types)
    weights = [
        file.suffix for file in (tmp_path / "model").rglob("*") if file.suffix in {".bin", ".pt", ".pkl", ".pth"}
    ]
    assert weights == []
    vectors = run_without_st_asym(
        "import json, sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "texts = json.loads(sys.argv[2])\n"
        "print(json.dumps([model.encode_query(texts).tolist(), model.encode_document(texts).tolist()]))",
        str(tmp_path / "model"),
        json.dumps(TEXTS),
    )
    queries, documents = json.loads(vectors)
    np.testing.assert_allclose(queries, model.encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(documents, model.encode_document(TEXTS), atol=1e-6)


def test_only_the_heads_are_trainable_and_the_encoder_runs_without_dropout(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"3"}
    expected = model.encode_query(TEXTS, convert_to_tensor=True)
    model.train()
    features = {**model.preprocess(TEXTS), "task": "query"}
    result = model(features)["sentence_embedding"]
    assert result.requires_grad
    torch.testing.assert_close(result.detach(), expected.clone(), atol=1e-6, rtol=0)
    assert model[3].training


def test_dropout_would_change_the_vectors_if_the_encoder_were_not_frozen(tiny_encoder: SentenceTransformer) -> None:
    tiny_encoder.train()
    first, second = (tiny_encoder(tiny_encoder.preprocess(TEXTS))["sentence_embedding"] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_loaded_model_can_be_frozen_again(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    asymmetric_model(tiny_encoder).save_pretrained(str(tmp_path))
    model = freeze_encoder(SentenceTransformer(str(tmp_path), device="cpu"))
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"3"}
    assert freeze_encoder(model) is model
    with pytest.raises(ValueError, match="router_mapping"):
        model.train()(model.preprocess(TEXTS))
    with pytest.raises(ValueError, match=r"\[Transformer, Pooling, Normalize\]"):
        freeze_encoder(tiny_encoder)


def test_an_encoder_that_is_unfrozen_again_trains(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder).requires_grad_(True).train()
    model({**model.preprocess(TEXTS), "task": "query"})
    assert model[0].training


def test_a_local_encoder_does_not_make_the_card_ask_the_hub(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    tiny_encoder.save_pretrained(str(tmp_path))
    assert asymmetric_model(tmp_path).model_card_data.local_files_only
    offline = SentenceTransformer(str(tmp_path), local_files_only=True)
    assert asymmetric_model(offline).model_card_data.local_files_only
    assert not asymmetric_model(tiny_encoder).model_card_data.local_files_only


def test_a_copy_of_the_model_is_independent(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone[3].sub_modules["query"][0].linear.weight.mul_(-1.0)
    assert np.abs(model.encode_query(TEXTS) - tiny_encoder.encode(TEXTS)).max() < 1e-6


@pytest.mark.slow
def test_several_processes_encode_the_same(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder, init="random")
    alone = model.encode_query(TEXTS)
    together = model.encode_query(TEXTS, device=["cpu", "cpu"], chunk_size=3)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_arguments_that_modules_take_from_the_saved_configuration_are_kept(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    encoder.module_kwargs = {"1": ["task"]}
    assert asymmetric_model(encoder).module_kwargs == {"1": ["task"]}


def test_a_path_is_loaded(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    tiny_encoder.save_pretrained(str(tmp_path))
    assert isinstance(asymmetric_model(tmp_path)[3], Router)


def test_an_encoder_with_a_router_is_refused(tiny_encoder: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="already has a Router"):
        asymmetric_model(asymmetric_model(tiny_encoder))


def test_an_encoder_of_unknown_dimension_is_refused() -> None:
    class Mystery(nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features

    with pytest.raises(ValueError, match=r"how many dimensions.*Mystery"):
        asymmetric_model(SentenceTransformer(modules=[Mystery()], device="cpu"))


def test_a_module_that_cannot_be_saved_is_refused_before_training(tiny_encoder: SentenceTransformer) -> None:
    class Scale(nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features

    tiny_encoder.append(Scale())
    with pytest.raises(TypeError, match=r"Module 3 of the encoder, a Scale, has no method save"):
        asymmetric_model(tiny_encoder)
    tiny_encoder[3].save = lambda path: None  # noqa: ARG005
    assert isinstance(asymmetric_model(tiny_encoder)[4], Router)


def test_other_kinds_of_encoder_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    transformer = Transformer(str(tiny_bert), transformer_task="fill-mask")
    sparse = SparseEncoder(modules=[transformer, SpladePooling()], device="cpu")
    cross = CrossEncoder(str(tiny_bert), num_labels=1, device="cpu")
    for encoder, kind in ((sparse, "SparseEncoder"), (cross, "CrossEncoder")):
        with pytest.raises(TypeError, match=kind):
            asymmetric_model(encoder)
        encoder.save_pretrained(str(tmp_path / kind))
        with pytest.raises(TypeError, match=kind):
            asymmetric_model(tmp_path / kind)
    with pytest.raises(TypeError, match="int"):
        asymmetric_model(42)
    with pytest.raises(ValueError, match="The encoder is '': give a Hub id or a path"):  # of a shell's unset variable
        asymmetric_model("")


def test_other_kinds_are_known_where_the_library_keeps_its_models(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision, home = "0" * 40, tmp_path / "models--me--sparse"
    transformer = Transformer(str(tiny_bert), transformer_task="fill-mask")
    sparse = SparseEncoder(modules=[transformer, SpladePooling()], device="cpu")
    sparse.save_pretrained(str(home / "snapshots" / revision))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    with pytest.raises(TypeError, match="me/sparse holds a SparseEncoder"):
        asymmetric_model("me/sparse")


def test_a_cross_encoder_from_before_model_types_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    CrossEncoder(str(tiny_bert), num_labels=1, device="cpu").save_pretrained(str(tmp_path))
    for name in ("config_sentence_transformers.json", "modules.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(TypeError, match="CrossEncoder"):
        asymmetric_model(tmp_path)


def test_what_cannot_be_kept_is_said(make_encoder: MakeEncoder, caplog: pytest.LogCaptureFixture) -> None:
    class Custom(Pooling):
        pass

    with caplog.at_level(logging.WARNING, "st_asym"):
        asymmetric_model(make_encoder("pooling", similarity_fn_name="dot"))
        assert "ranks differently even before training" in caplog.text
        assert "by cosine, too" not in caplog.text
        asymmetric_model(make_encoder("pooling", similarity_fn_name="dot"), document=False)
        assert "Search an index of the encoder's vectors by cosine, too." in caplog.text
        caplog.clear()
        asymmetric_model(make_encoder("normalize", similarity_fn_name="dot"))
        assert caplog.text == ""
        first, _, last = make_encoder().children()
        asymmetric_model(SentenceTransformer(modules=[first, Custom(16, "mean"), last], device="cpu"))
        assert "not part of sentence-transformers (Custom)" in caplog.text


def test_an_encoder_without_parameters_works() -> None:
    encoder = SentenceTransformer(modules=[BoW(["frozen", "encoder"])], device="cpu")
    assert asymmetric_model(encoder).encode_query("frozen encoder").shape == (2,)
