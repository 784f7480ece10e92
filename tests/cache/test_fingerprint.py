import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import tiny_bert
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.modules import BoW, StaticEmbedding
from transformers import PreTrainedTokenizerFast

from st_asym import asymmetric_model, encoder_fingerprint
from st_asym.cache import fingerprint as fingerprint_module
from st_asym.cache.encoding import listens_to_task


def test_is_the_same_for_the_same_encoder(bert: Path, tmp_path: Path) -> None:
    encoder = tiny_bert(bert)
    expected = encoder_fingerprint(encoder)
    assert len(expected) == 64
    encoder.encode(["a text", "another, which is longer"])
    encoder.train()
    assert encoder_fingerprint(encoder) == expected
    assert encoder_fingerprint(tiny_bert(bert)) == expected
    encoder.save_pretrained(str(tmp_path / "a"))
    again = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    assert encoder_fingerprint(again) == expected
    again.save_pretrained(str(tmp_path / "b"))
    assert encoder_fingerprint(SentenceTransformer(str(tmp_path / "b"), device="cpu")) == expected


def test_does_not_depend_on_the_heads_or_the_prompts(bert: Path) -> None:
    encoder = tiny_bert(bert)
    expected = encoder_fingerprint(encoder)
    model = asymmetric_model(encoder)
    assert encoder_fingerprint(model) == expected
    torch.nn.init.normal_(next(p for p in model.parameters() if p.requires_grad))
    model.prompts["query"] = "query: "
    assert encoder_fingerprint(model) == expected


CHANGES: dict[str, Callable[[SentenceTransformer], Any]] = {
    "a step": lambda model: next(model.parameters()).requires_grad_(False).add_(1e-3),
    "a value": lambda model: next(model.parameters()).requires_grad_(False)[3, 5].add_(1e-6),
    "behind torch's back": lambda model: next(model.parameters()).data.mul_(1.001),
    "loaded weights": lambda model: model.load_state_dict(
        {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    ),
    "max_seq_length": lambda model: setattr(model, "max_seq_length", 16),
    "pooling": lambda model: setattr(model[1], "pooling_mode", "cls"),
    "prompt pooling": lambda model: model.set_pooling_include_prompt(False),
    "dtype": lambda model: model.to(torch.bfloat16),
    "one module less": lambda model: model.pop(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_notices_a_change(bert: Path, change: Callable[[SentenceTransformer], Any]) -> None:
    encoder = tiny_bert(bert)
    before = encoder_fingerprint(encoder)
    change(encoder)
    assert encoder_fingerprint(encoder) != before


def test_another_tokenizer_or_configuration_is_another_encoder(bert: Path) -> None:
    prints = {encoder_fingerprint(tiny_bert(bert))}
    encoder = tiny_bert(bert)
    encoder.tokenizer.add_tokens(["xyz"])
    prints.add(encoder_fingerprint(encoder))
    encoder = tiny_bert(bert)
    encoder[0].model.config.layer_norm_eps = 1e-3
    prints.add(encoder_fingerprint(encoder))
    encoder = tiny_bert(bert)
    encoder.tokenizer.padding_side = "left"
    prints.add(encoder_fingerprint(encoder))
    prints.add(encoder_fingerprint(SentenceTransformer(modules=[*encoder, Dense(32, 32, activation_function=None)])))
    prints.add(encoder_fingerprint(SentenceTransformer(modules=[BoW(["a", "b"])])))
    prints.add(encoder_fingerprint(SentenceTransformer(modules=[BoW(["b", "a"])])))
    assert len(prints) == 7


def test_going_there_and_back_is_no_change(bert: Path) -> None:
    encoder = tiny_bert(bert)
    before = encoder_fingerprint(encoder)
    weight = next(encoder.parameters()).requires_grad_(False)
    weight.mul_(2)
    assert encoder_fingerprint(encoder) != before
    weight.div_(2)
    assert encoder_fingerprint(encoder) == before
    encoder.share_memory()
    assert encoder_fingerprint(encoder) == before


def test_a_single_value_changed_behind_torchs_back_is_noticed_when_all_is_read_again(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_bert(bert)
    before = encoder_fingerprint(encoder)
    next(encoder.parameters()).data[7, 11] += 1
    monkeypatch.setattr(fingerprint_module, "_SHARE", 1e9)
    assert encoder_fingerprint(encoder) != before


def test_is_remembered(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, reads = tiny_bert(bert), []
    digest = fingerprint_module._digest
    monkeypatch.setattr(fingerprint_module, "_digest", lambda *args: reads.append(1) or digest(*args))
    monkeypatch.setattr(fingerprint_module, "_SHARE", 0.0)
    for _ in range(5):
        encoder_fingerprint(encoder)
    assert len(reads) == 1


@pytest.mark.parametrize("kind", [torch.nn.EmbeddingBag, torch.nn.Embedding])
def test_draws_nothing_from_the_callers_generators(bert: Path, kind: type[torch.nn.Module]) -> None:
    """It is read again whenever time has passed: what a training draws would depend on how fast it runs."""
    static = StaticEmbedding(PreTrainedTokenizerFast.from_pretrained(bert), embedding_dim=4)
    static.embedding = kind(20, 4)
    for encoder in (SentenceTransformer(modules=[static], device="cpu"), tiny_bert(bert)):
        states = []
        for _ in range(2):
            states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))  # noqa: NPY002
            encoder_fingerprint(encoder)
        assert states[0] == states[1]


def test_works_on_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        encoder = SentenceTransformer(modules=[BoW(["a", "b"]), Dense(2, 2)])
        before = encoder_fingerprint(encoder)
        encoder[1].linear.weight.mul_(2)
        assert encoder_fingerprint(encoder) != before


def test_refuses_what_it_cannot_tell_apart(bert: Path) -> None:
    encoder = tiny_bert(bert)
    encoder.backend = "onnx"
    with pytest.raises(ValueError, match="runs in onnx, which does not show its weights"):
        encoder_fingerprint(encoder)
    encoder = tiny_bert(bert).to("meta")
    with pytest.raises(ValueError, match="is not in memory"):
        encoder_fingerprint(encoder)
    router = Router.for_query_document([BoW(["a"])], [BoW(["a"])])
    with pytest.raises(ValueError, match="begins with a Router"):
        encoder_fingerprint(SentenceTransformer(modules=[router]))


def test_few_encoders_listen_to_the_task(bert: Path) -> None:
    encoder = tiny_bert(bert)
    assert not listens_to_task(encoder)
    encoder[0].query_length = 8
    assert listens_to_task(encoder)
