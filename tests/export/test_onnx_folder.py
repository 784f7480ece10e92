from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_helpers import TEXTS, trained
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW
from server_readers import read_json

from st_asym import asymmetric_model, export_side

onnxruntime = pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")


def encode(folder: Path, texts: list[str]) -> np.ndarray:
    """As docs/serving.md says."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(read_json(folder / "sentence_bert_config.json")["max_seq_length"])
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
        "token_type_ids": np.array([row.type_ids for row in rows]),
    }
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["sentence_embedding"], inputs)[0]


@pytest.fixture
def model(make_encoder: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    """Heads with a hidden layer behind an encoder that normalises: what servers run only as a graph."""
    return trained(asymmetric_model(make_encoder(prompts={"query": "query "})))


@pytest.mark.slow
def test_one_graph_gives_the_vectors_of_any_batch_and_length(model: SentenceTransformer, tmp_path: Path) -> None:
    found = export_side(model, "query", tmp_path / "side", format="onnx", texts=TEXTS)
    assert found.agreement.difference < 1e-4
    assert not found.not_served
    for texts in (TEXTS, ["red"], ["big red text"] * 7):
        vectors = encode(tmp_path / "side", ["query " + text for text in texts])
        np.testing.assert_allclose(vectors, model.encode_query(texts), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    files = {path.name for path in (tmp_path / "side").iterdir()}
    assert {"model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "1_Pooling"} <= files
    assert not {"modules.json", "model.safetensors"} & files
    assert [path.name for path in tmp_path.iterdir()] == ["side"]


@pytest.mark.slow
def test_the_graph_is_what_text_embeddings_inference_reads(model: SentenceTransformer, tmp_path: Path) -> None:
    # backends/ort/src/lib.rs: the output "sentence_embedding" is taken as it is; these settings are needed.
    export_side(model, "query", tmp_path / "side", format="onnx", texts=TEXTS)
    config = read_json(tmp_path / "side" / "config.json")
    assert isinstance(config["hidden_size"], int)
    assert isinstance(config["num_hidden_layers"], int)
    assert isinstance(config["max_position_embeddings"], int)
    assert config["architectures"] == ["BertModel"]
    assert read_json(tmp_path / "side" / "1_Pooling" / "config.json")["pooling_mode_mean_tokens"] is True
    assert read_json(tmp_path / "side" / "config_sentence_transformers.json")["prompts"]["query"] == "query "
    session = onnxruntime.InferenceSession(str(tmp_path / "side" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["sentence_embedding"]
    assert [(entry.name, entry.type) for entry in session.get_inputs()] == [
        (name, "tensor(int64)") for name in ("input_ids", "attention_mask", "token_type_ids")
    ]


@pytest.mark.slow
def test_eight_bits_are_smaller_and_close(model: SentenceTransformer, tmp_path: Path) -> None:
    whole = export_side(model, "query", tmp_path / "whole", format="onnx", texts=TEXTS)
    small = export_side(model, "query", tmp_path / "small", format="onnx", int8=True, texts=TEXTS)
    assert small.agreement.cosine > 0.95
    assert small.agreement.difference > whole.agreement.difference
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


@pytest.mark.parametrize("value", [-0.25, np.nan])
@pytest.mark.parametrize("int8", [False, True])
def test_nothing_is_left_of_a_graph_that_gives_other_vectors(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8: bool, value: float
) -> None:
    def other(_: SentenceTransformer, folder: Path, **__: Any) -> np.ndarray:
        folder.mkdir()
        return np.full((len(TEXTS), 16), value, dtype=np.float32)

    monkeypatch.setattr(sys.modules["st_asym.export.export_side"], "write_onnx", other)
    with pytest.raises(ValueError, match="nothing was written" if int8 else "Nothing was written"):
        export_side(model, "query", tmp_path / "side", format="onnx", int8=int8, texts=TEXTS)
    assert not list(tmp_path.iterdir())


def test_what_is_no_graph_of_tokens_is_refused(model: SentenceTransformer, tmp_path: Path) -> None:
    words = SentenceTransformer(modules=[BoW(["a", "b"])], device="cpu")
    with pytest.raises(ValueError, match="begins with a Transformer and its fast tokenizer, not with a BoW"):
        export_side(words, "query", tmp_path / "side", format="onnx", texts=["a"])
    model[1].include_prompt = False
    with pytest.raises(ValueError, match="leaves the prompt's tokens out"):
        export_side(model, "query", tmp_path / "side", format="onnx", texts=TEXTS)
    with pytest.raises(ValueError, match="needs a model in float32"):
        export_side(model.bfloat16(), "document", tmp_path / "side", format="onnx", texts=TEXTS)
    assert not list(tmp_path.iterdir())


def test_an_exporter_that_fails_without_a_word_is_one_line(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(ValueError, match="cannot export this encoder: AssertionError"):
        export_side(model, "query", tmp_path / "side", format="onnx", texts=TEXTS)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.export.onnx.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'st_asym\[onnx\]'"):
        export_side(model, "query", tmp_path / "side", format="onnx")


@pytest.mark.slow
def test_the_real_encoder(real_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(real_encoder)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01
    found = export_side(model, "query", tmp_path / "side", format="onnx")
    assert found.agreement.difference < 1e-5
    texts = ["Replace the air filter.", "How long does a pump last, and why?"]
    np.testing.assert_allclose(encode(tmp_path / "side", texts), model.encode_query(texts), atol=1e-5)
