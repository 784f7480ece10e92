"""What changes a vector changes its place in the cache, whoever wrote the module that it comes from."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import tiny_bert
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Normalize
from sentence_transformers.sentence_transformer.modules import BoW, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Replace
from torch import nn
from transformers import PhobertTokenizer

from st_asym import CachedSentenceTransformer, EmbeddingCache, asymmetric_model, encoder_fingerprint, record_keys
from st_asym.cache.encoding import listens_to_task
from st_asym.cache.fingerprint import without_configuration
from st_asym.cache.stock import has_few_added_tokens, quick_tokenizer, tokenizer_settings
from st_asym.heads.anatomy import encoder_modules, without_heads

WORDS = ["a", "bad", "cab", "deaf"]
TEXTS = ["a bad cab", "deaf", "a"]
Change = Callable[[Any], Any]


class Foreign(Module):
    """A module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0
        self.settings = {"shift": 0.0, "names": ["a"]}
        self.function = lambda vectors: vectors
        self.tensor = torch.ones(4)
        self.array = np.ones(4, np.float32)
        self.held = [nn.Linear(4, 4)]
        self.inner = nn.LayerNorm(4)
        self.register_buffer("buffer", torch.ones(4), persistent=False)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        vectors = features["sentence_embedding"] * self.factor + self.settings["shift"]
        vectors = self.function(vectors) * self.tensor * torch.from_numpy(self.array) * self.buffer
        features["sentence_embedding"] = self.inner(self.held[0](vectors + 0.1 * vectors.roll(1, -1)))
        return features

    def save(self, path: str, **_: Any) -> None:
        pass


def foreign() -> SentenceTransformer:
    torch.manual_seed(0)
    return SentenceTransformer(modules=[BoW(WORDS), Foreign()], device="cpu").requires_grad_(False).eval()


def same(a: Any, b: Any) -> bool:
    return bool(np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-6)


def check(encoder: SentenceTransformer, directory: Path, change: Change) -> None:
    """After a change the vectors are those of the changed encoder, and before it is undone they are found again."""
    cache = EmbeddingCache(directory)
    assert cache.fill(encoder, TEXTS) == 3
    assert cache.fill(encoder, TEXTS) == 0
    before = encoder_fingerprint(encoder)
    plain = encoder.encode(TEXTS)
    change(encoder)
    assert not same(encoder.encode(TEXTS), plain)
    assert encoder_fingerprint(encoder) != before
    assert cache.fill(encoder, TEXTS) == 3
    assert same(cache.get(encoder, TEXTS), encoder.encode(TEXTS))
    assert same(CachedSentenceTransformer(encoder, cache).encode(TEXTS), encoder.encode(TEXTS))


OF_FOREIGN: dict[str, Change] = {
    "number": lambda m: setattr(m[1], "factor", 2.0),
    "in a mapping": lambda m: m[1].settings.update(shift=1.0),
    "function": lambda m: setattr(m[1], "function", lambda vectors: vectors.flip(-1)),
    "tensor": lambda m: setattr(m[1], "tensor", torch.tensor([1.0, 2, 3, 4])),
    "in a tensor": lambda m: m[1].tensor.mul_(torch.tensor([1.0, 2, 3, 4])),
    "in an array": lambda m: m[1].array.__setitem__(0, 5.0),
    "buffer": lambda m: m[1].buffer.mul_(torch.tensor([1.0, 2, 3, 4])),
    "weight of a held layer": lambda m: m[1].held[0].weight.data.mul_(2),
    "another held layer": lambda m: m[1].held.__setitem__(0, nn.Linear(4, 4)),
    "setting of a layer of torch": lambda m: setattr(m[1].inner, "eps", 1.0),
    "forward": lambda m: setattr(m[1], "forward", lambda features: features),
    "bound forward": lambda m: setattr(m[1], "forward", types.MethodType(lambda self, features: features, m[1])),  # noqa: ARG005
}


@pytest.mark.parametrize("change", OF_FOREIGN.values(), ids=OF_FOREIGN)
def test_attributes_of_other_modules(tmp_path: Path, change: Change) -> None:
    check(foreign(), tmp_path, change)


def test_a_change_there_and_back_finds_what_is_kept(tmp_path: Path) -> None:
    encoder = foreign()
    cache = EmbeddingCache(tmp_path)
    cache.fill(encoder, TEXTS)
    encoder[1].factor = 2.0
    cache.fill(encoder, TEXTS)
    encoder[1].factor = 1.0
    assert cache.fill(encoder, TEXTS) == 0


def test_where_something_is_from_and_the_order_of_a_mapping_are_no_settings() -> None:
    digests = set()
    for folder in ("here", "there"):
        encoder = foreign()
        held = {"path": Path("/", folder, "vocab.txt"), "model_name_or_path": folder, "kinds": {"a", "b"}, "c": b"1"}
        encoder[1].settings.update(held if folder == "here" else dict(reversed(held.items())))
        encoder[1].device, encoder[1].lock, encoder[1].name_or_path = torch.device("cpu"), threading.Lock(), folder
        digests.add(encoder_fingerprint(encoder))
    encoder[1].settings["c"] = "1"
    assert len(digests) == 1
    assert encoder_fingerprint(encoder) not in digests


def test_a_buffer_that_moves_while_the_encoder_runs_remains_a_setting(tmp_path: Path) -> None:
    encoder, cache = foreign(), EmbeddingCache(tmp_path)
    moved = encoder[1].register_forward_hook(lambda module, *_: module._buffers.update(buffer=module.buffer.clone()))
    assert cache.fill(encoder, TEXTS) == 3
    moved.remove()
    assert cache.fill(encoder, TEXTS) == 0
    assert cache.fill(foreign(), TEXTS) == 0
    encoder[1].buffer = torch.full((4,), 2.0)
    assert cache.fill(encoder, TEXTS) == 3


def test_a_class_of_the_same_name_with_other_code_is_another(tmp_path: Path) -> None:
    def scaled(code: str) -> SentenceTransformer:
        names: dict[str, Any] = {"nn": nn, "__name__": "users"}
        exec(code, names)  # noqa: S102 - the code is above
        return SentenceTransformer(modules=[BoW(WORDS), names["Scale"]()], device="cpu").requires_grad_(False)

    code = """
class Scale(nn.Module):
    factor = 2.0
    def forward(self, features):
        features["sentence_embedding"] = features["sentence_embedding"] * self.factor
        return features
"""
    first, second = scaled(code), scaled(code.replace("* self", "/ self"))
    assert encoder_fingerprint(first) == encoder_fingerprint(scaled(code))
    assert encoder_fingerprint(first) != encoder_fingerprint(second)
    assert encoder_fingerprint(first) != encoder_fingerprint(scaled(code.replace("2.0", "3.0")))
    check(first, tmp_path, lambda m: setattr(type(m[1]), "factor", 5.0))


def test_a_module_that_holds_itself_is_looked_at_once(tmp_path: Path) -> None:
    encoder = foreign()
    encoder[1].family = [encoder[1], encoder]
    check(encoder, tmp_path, lambda m: setattr(m[1], "factor", 2.0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = 0.0

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sentence_embedding"] = features["sentence_embedding"] + self.shift
        return features


def test_a_plain_module_is_seen_like_any_other(tmp_path: Path) -> None:
    encoder = SentenceTransformer(modules=[BoW(WORDS), Plain()], device="cpu").requires_grad_(False)
    check(encoder, tmp_path, lambda m: setattr(m[1], "shift", 1.0))


def test_what_shows_nothing_of_itself_is_refused(tmp_path: Path) -> None:
    encoder = foreign()
    encoder[1].stream = (one for one in "ab")
    cache = EmbeddingCache(tmp_path)
    for call in (cache.fill, cache.get, cache.embed):
        with pytest.raises(ValueError, match=r"module 1 .* keeps a generator in .*Foreign\.stream.* cannot be seen"):
            call(encoder, TEXTS)
    encoder[1].stream_cache = vars(encoder[1]).pop("stream")
    assert cache.fill(encoder, TEXTS) == 3


class Factor:
    value = 1.0


SCALE, SCALES = 1.0, {"all": 1.0}
FACTOR, LAYER, OWN = Factor(), nn.Linear(4, 4).requires_grad_(False), types.SimpleNamespace(value=1.0)


def scaled(vectors: torch.Tensor) -> torch.Tensor:
    vectors = vectors * FACTOR.value * OWN.value * Factor.value
    return LAYER(vectors * SCALE * SCALES["all"] + torch.arange(4) * Scaled.options["shift"])


class Scaled(nn.Module):
    options: dict[str, float] = {"shift": 0.0}  # noqa: RUF012 - it is what is tested

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sentence_embedding"] = scaled(features["sentence_embedding"])
        return features


@pytest.mark.parametrize(
    "name",
    [
        "number",
        "in a mapping",
        "in a mapping of the class",
        "of an object",
        "of a namespace",
        "of a class",
        "of a layer",
    ],
)
def test_what_the_code_of_other_modules_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    encoder = SentenceTransformer(modules=[BoW(WORDS), Scaled()], device="cpu").requires_grad_(False)
    changes: dict[str, Change] = {
        "number": lambda _: monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0),
        "in a mapping": lambda _: monkeypatch.setitem(SCALES, "all", 3.0),
        "in a mapping of the class": lambda _: monkeypatch.setitem(Scaled.options, "shift", 1.0),
        "of an object": lambda _: monkeypatch.setattr(FACTOR, "value", 2.0, raising=False),
        "of a namespace": lambda _: monkeypatch.setattr(OWN, "value", 2.0),
        "of a class": lambda _: monkeypatch.setattr(Factor, "value", 2.0),
        "of a layer": lambda _: monkeypatch.setattr(LAYER.weight, "data", LAYER.weight.data * 2),
    }
    check(encoder, tmp_path, changes[name])


def test_what_the_code_names_in_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_settings.py").write_text("SCALE = 1.0\ndef scaled(vectors):\n    return vectors * SCALE\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = importlib.import_module("users_settings")
    monkeypatch.setitem(globals(), "users_settings", settings)
    monkeypatch.setitem(globals(), "users_scaled", settings.scaled)

    class Named(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            features["sentence_embedding"] = users_settings.scaled(features["sentence_embedding"])  # type: ignore[name-defined]  # noqa: F821
            return features

    class Imported(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            features["sentence_embedding"] = users_scaled(features["sentence_embedding"])  # type: ignore[name-defined]  # noqa: F821
            return features

    for factor, module in enumerate((Named(), Imported()), start=2):
        encoder = SentenceTransformer(modules=[BoW(WORDS), module], device="cpu").requires_grad_(False)
        check(encoder, tmp_path / str(factor), lambda _, factor=factor: setattr(settings, "SCALE", float(factor)))


def test_a_variable_of_the_function_around(tmp_path: Path) -> None:
    factor = 1.0

    class Around(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            features["sentence_embedding"] = features["sentence_embedding"] * factor
            return features

    def change(_: Any) -> None:
        nonlocal factor
        factor = 2.0

    encoder = SentenceTransformer(modules=[BoW(WORDS), Around()], device="cpu").requires_grad_(False)
    check(encoder, tmp_path, change)
    factor = (one for one in "ab")  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"module 1 .* keeps a generator in .*forward\.factor .* cannot be seen"):
        encoder_fingerprint(encoder)


CALLS = {"count": 0}


def test_a_count_beside_the_code_is_no_setting(tmp_path: Path) -> None:
    class Called(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            CALLS["count"] += 1
            return features

    encoder = SentenceTransformer(modules=[BoW(WORDS), Called()], device="cpu").requires_grad_(False)
    cache = EmbeddingCache(tmp_path)
    assert cache.embed(encoder, TEXTS).shape == (3, 4)
    assert cache.fill(encoder, TEXTS) == 0


@pytest.mark.parametrize("kind", ["written in C", "of a thread"])
def test_objects_that_hide_what_they_hold(tmp_path: Path, kind: str) -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor: Any = ctypes.c_float(1.0) if kind == "written in C" else threading.local()
            self.factor.value = 1.0

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            features["sentence_embedding"] = features["sentence_embedding"] * self.factor.value
            return features

    encoder = SentenceTransformer(modules=[BoW(WORDS), Hiding()], device="cpu").requires_grad_(False)
    check(encoder, tmp_path, lambda m: setattr(m[1].factor, "value", 2.0))


class Louder(SentenceTransformer):
    def forward(self, features: Any, **options: Any) -> Any:
        found = super().forward(features, **options)
        found["sentence_embedding"] = found["sentence_embedding"] * 2
        return found


def test_a_model_with_a_way_of_its_own_to_run_is_refused(tmp_path: Path) -> None:
    cache, louder, replaced = EmbeddingCache(tmp_path), Louder(modules=[BoW(WORDS)], device="cpu"), foreign()
    replaced.encode = lambda *_, **__: np.zeros((1, 4))  # type: ignore[method-assign]
    for model, name in ((louder, "forward"), (replaced, "encode")):
        with pytest.raises(
            ValueError, match=f"has a method {name} of its own.* Put what the method does into a module"
        ):
            cache.fill(model, TEXTS)
    assert len(cache) == 0


class Prefixing(SentenceTransformer):
    def encode_query(self, sentences: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().encode_query([f"cab {text}" for text in sentences], **options)


def test_a_class_that_encodes_queries_in_a_way_of_its_own_is_not_replaced(tmp_path: Path) -> None:
    exchanged = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    exchanged.encode_query = exchanged.encode  # type: ignore[method-assign]
    for model in (Prefixing(modules=[BoW(WORDS)], device="cpu"), exchanged):
        with pytest.raises(ValueError, match="has a method encode_query of its own"):
            CachedSentenceTransformer(model, EmbeddingCache(tmp_path))


class Counting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, []

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        self.seen.append(len(features["sentence_embedding"]))
        return super().forward(features)


def counting() -> SentenceTransformer:
    return SentenceTransformer(modules=[BoW(WORDS), Counting()], device="cpu").requires_grad_(False)


def test_what_changes_by_running_is_no_setting(tmp_path: Path) -> None:
    encoder, cache = counting(), EmbeddingCache(tmp_path)
    assert cache.fill(encoder, TEXTS) == 3
    assert cache.fill(encoder, TEXTS) == 0
    assert cache.embed(encoder, TEXTS).shape == cache.get(encoder, TEXTS).shape == (3, 4)
    assert encoder[1].calls == 1
    check(encoder, tmp_path / "other", lambda m: setattr(m[1], "shift", 1.0))
    # Another process has to run it once to know.
    again = counting()
    again.encode(TEXTS)
    assert EmbeddingCache(tmp_path).fill(again, [*TEXTS, "bad"]) <= 4
    assert EmbeddingCache(tmp_path).fill(again, [*TEXTS, "bad"]) == 0


def test_a_cached_model_may_count(tmp_path: Path) -> None:
    encoder = counting()
    cached = CachedSentenceTransformer(encoder, EmbeddingCache(tmp_path))
    expected = SentenceTransformer(modules=[BoW(WORDS)], device="cpu").encode(TEXTS)
    for _ in range(3):
        assert same(cached.encode(TEXTS), expected)
    assert encoder[1].calls == 1
    assert same(cached.encode(["bad"]), cached.encode(["bad"]))
    encoder[1].shift = 1.0
    with pytest.raises(ValueError, match="encoder has changed since"):
        cached.encode(TEXTS)


# Adapters: stand-ins with the attributes of PEFT's layers.


class Lora(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({name: nn.Linear(base.in_features, 2, bias=False) for name in "ab"})
        self.lora_B = nn.ModuleDict({name: nn.Linear(2, base.out_features, bias=False) for name in "ab"})
        self.scaling = {"a": 1.0, "b": 1.0}
        self.merged_adapters: list[str] = []
        self._active_adapter = ["a"]
        self._disable_adapters = False
        self._caches: dict[str, Any] = {}

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result = self.base_layer(values)
        self._caches["last"] = values
        if self._disable_adapters:
            return result
        for name in self._active_adapter:
            result = result + self.lora_B[name](self.lora_A[name](values)) * self.scaling[name]
        return result


def adapted(bert: Path) -> SentenceTransformer:
    encoder = tiny_bert(bert)
    torch.manual_seed(0)
    for layer in encoder[0].model.encoder.layer:
        layer.attention.self.query = Lora(layer.attention.self.query)
    return encoder.requires_grad_(False).eval()


def layers(encoder: Any) -> list[Lora]:
    return [module for module in encoder.modules() if isinstance(module, Lora)]


OF_ADAPTERS: dict[str, Change] = {
    "disable_adapters": lambda m: [setattr(layer, "_disable_adapters", True) for layer in layers(m)],
    "set_adapter": lambda m: [setattr(layer, "_active_adapter", ["b"]) for layer in layers(m)],
    "in place": lambda m: [layer._active_adapter.append("b") for layer in layers(m)],
    "lora_alpha": lambda m: [layer.scaling.update(a=9.0) for layer in layers(m)],
    "weights": lambda m: [layer.lora_B["a"].weight.add_(0.5) for layer in layers(m)],
}


@pytest.mark.parametrize("change", OF_ADAPTERS.values(), ids=OF_ADAPTERS)
def test_adapters(bert: Path, tmp_path: Path, change: Change) -> None:
    check(adapted(bert), tmp_path, change)


def test_an_adapter_that_comes_later(bert: Path, tmp_path: Path) -> None:
    def add(encoder: Any) -> None:
        torch.manual_seed(0)
        attention = encoder[0].model.encoder.layer[1].attention.self
        attention.query = Lora(attention.query).requires_grad_(False)

    check(tiny_bert(bert).requires_grad_(False).eval(), tmp_path, add)


# The library's own modules, changed by hand.


def reversed_vocabulary(backend: Tokenizer) -> None:
    ids = backend.get_vocab(with_added_tokens=False)
    backend.model = WordPiece({word: len(ids) - 1 - number for word, number in ids.items()}, unk_token="[UNK]")  # noqa: S106


OF_STOCK: dict[str, Change] = {
    "layer norm": lambda m: setattr(m[0].model.encoder.layer[0].output.LayerNorm, "eps", 1.0),
    "attention": lambda m: setattr(m[0].model.encoder.layer[0].attention.self, "scaling", 9.0),
    "pooling": lambda m: setattr(m[1], "pooling_mode", "cls"),
    "forward": lambda m: setattr(m[2], "forward", lambda features: features),
    "tokens": lambda m: m.tokenizer.add_tokens(["bad"]) and m[0].model.resize_token_embeddings(len(m.tokenizer)),
    "words of the vocabulary": lambda m: m.tokenizer.add_tokens(["a"]),
    "special words of the vocabulary": lambda m: m.tokenizer.add_tokens(["a"], special_tokens=True),
    "another vocabulary": lambda m: reversed_vocabulary(m.tokenizer.backend_tokenizer),
    "longest word": lambda m: setattr(m.tokenizer.backend_tokenizer.model, "max_input_chars_per_word", 2),
    "normalizer": lambda m: setattr(
        m.tokenizer.backend_tokenizer, "normalizer", __import__("tokenizers").normalizers.Replace("a", "b")
    ),
    "truncation": lambda m: setattr(m.tokenizer, "model_max_length", 3),
    "a module more": lambda m: m.append(Dense(32, 32)),
    "another weight": lambda m: setattr(
        m[0].model.embeddings.word_embeddings, "weight", nn.Parameter(m[0].model.embeddings.word_embeddings.weight * 2)
    ),
    "weights put in place of others": lambda m: m.load_state_dict(
        {name: value + value.roll(1) for name, value in m.state_dict().items()}, assign=True
    ),
    "preprocess": lambda m: setattr(
        m[0],
        "preprocess",
        lambda texts, *given, **options: type(m[0]).preprocess(m[0], [f"{one} a" for one in texts], *given, **options),
    ),
    "activation": lambda m: setattr(m[0].model.encoder.layer[0].intermediate, "intermediate_act_fn", nn.Tanh()),
}


@pytest.mark.parametrize("change", OF_STOCK.values(), ids=OF_STOCK)
def test_the_librarys_modules(bert: Path, tmp_path: Path, change: Change) -> None:
    check(tiny_bert(bert).requires_grad_(False).eval(), tmp_path, lambda m: (change(m), m.requires_grad_(False)))


def test_a_method_that_is_replaced_for_all_of_a_class(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flipped(self: Any, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        features["sentence_embedding"] = forward(self, features)["sentence_embedding"].flip(-1)
        return features

    forward = Normalize.forward
    encoder = tiny_bert(bert).requires_grad_(False).eval()
    check(encoder, tmp_path, lambda _: monkeypatch.setattr(Normalize, "forward", flipped))


OF_BARE: dict[str, Change] = {
    "words of the vocabulary": lambda bare: bare.add_tokens(["a"]),
    "another vocabulary": reversed_vocabulary,
    "padding": lambda bare: bare.enable_padding(pad_id=7, length=20),
    "special tokens as text": lambda bare: setattr(bare, "encode_special_tokens", True),
}


@pytest.mark.parametrize("change", OF_BARE.values(), ids=OF_BARE)
def test_a_bare_tokenizer(bert: Path, tmp_path: Path, change: Change) -> None:
    bare = Tokenizer.from_file(str(bert / "tokenizer.json"))
    bare.add_special_tokens(["bad"])
    static = SentenceTransformer(modules=[StaticEmbedding(bare, embedding_dim=8)], device="cpu").requires_grad_(False)
    static[0].embedding = nn.EmbeddingBag(100, 8).requires_grad_(False)
    check(static, tmp_path, lambda m: change(m[0].tokenizer))


def test_words_added_to_a_tokenizer_in_python(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a@@ 1\nb 1\nb@@ 1\nd 1\n")
    (tmp_path / "bpe.codes").write_text("a b 1\n")
    tokenizer = PhobertTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    before, cut = tokenizer_settings(tokenizer), tokenizer.tokenize("abd")
    tokenizer.add_tokens(["b"])
    assert tokenizer.tokenize("abd") != cut
    assert tokenizer_settings(tokenizer) != before
    files = str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes")
    special = PhobertTokenizer(*files, additional_special_tokens=["<x>", "<y>"])
    assert "added" not in tokenizer_settings(special)[0]  # they are among its options


def test_hundreds_of_added_words_are_left_out_of_the_look_in_each_step(bert: Path) -> None:
    tokenizer = tiny_bert(bert).tokenizer
    assert has_few_added_tokens(tokenizer)
    tokenizer.add_tokens([f"word{number}" for number in range(300)])
    assert not has_few_added_tokens(tokenizer)
    assert quick_tokenizer(tokenizer, few_added=False) == quick_tokenizer(tokenizer, few_added=False)
    assert quick_tokenizer(tokenizer) != quick_tokenizer(tokenizer, few_added=False)


def test_weights_that_change_as_they_run_are_named(bert: Path, tmp_path: Path) -> None:
    for way in ("embed", "fill"):
        encoder = tiny_bert(bert)
        encoder[0].model.embeddings.word_embeddings.max_norm = 0.01
        with pytest.raises(ValueError, match="weights or settings changed while it ran, as those of an"):
            getattr(EmbeddingCache(tmp_path / way), way)(encoder, TEXTS)


def test_tokenizers_that_are_not_of_transformers(bert: Path, tmp_path: Path) -> None:
    bare = Tokenizer.from_file(str(bert / "tokenizer.json"))
    static = SentenceTransformer(modules=[StaticEmbedding(bare, embedding_dim=8)], device="cpu").requires_grad_(False)
    check(static, tmp_path / "bare", lambda m: setattr(m[0].tokenizer, "normalizer", Replace("a", "b")))
    words = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    check(words, tmp_path / "words", lambda m: m[0].tokenizer.stop_words.add("bad"))


def test_special_tokens_that_are_read_as_text(bert: Path, tmp_path: Path) -> None:
    encoder, cache, texts = tiny_bert(bert), EmbeddingCache(tmp_path), ["a [SEP] b"]
    cache.fill(encoder, texts)
    encoder.tokenizer.split_special_tokens = True
    assert cache.fill(encoder, texts) == 1
    assert same(cache.get(encoder, texts), encoder.encode(texts))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*quantize.*:UserWarning")
def test_the_scale_of_quantised_weights(bert: Path) -> None:
    def quantised(factor: float) -> SentenceTransformer:
        encoder = tiny_bert(bert)
        with torch.no_grad():
            encoder[0].model.pooler.dense.weight.mul_(factor)
        encoder[0].model = torch.ao.quantization.quantize_dynamic(encoder[0].model, {nn.Linear})
        return encoder

    assert encoder_fingerprint(quantised(1.0)) == encoder_fingerprint(quantised(1.0))
    assert encoder_fingerprint(quantised(1.0)) != encoder_fingerprint(quantised(4.0))


def test_mixed_precision_around_it_is_not_that_of_the_vectors(bert: Path, tmp_path: Path) -> None:
    encoder, cache = tiny_bert(bert), EmbeddingCache(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        cache.fill(encoder, TEXTS)
    assert np.array_equal(cache.get(encoder, TEXTS), encoder.encode(TEXTS))


def test_an_activation_with_a_setting_of_its_own(bert: Path, tmp_path: Path) -> None:
    encoder = tiny_bert(bert)
    encoder.append(Dense(32, 8, activation_function=nn.LeakyReLU(0.5)))
    check(
        encoder.requires_grad_(False), tmp_path / "c", lambda m: setattr(m[3].activation_function, "negative_slope", 0)
    )
    plain = tiny_bert(bert)
    plain.append(Dense(32, 8, activation_function=nn.LeakyReLU()))
    assert without_configuration(list(encoder_modules(plain).values())) == []
    # Saved and loaded, the setting is lost, and so it is another encoder.
    encoder.save_pretrained(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert encoder_fingerprint(loaded) != encoder_fingerprint(encoder)


def test_the_librarys_modules_are_known_by_what_they_were_known_by_before(bert: Path) -> None:
    """Whatever is added here, caches that were filled before are found."""
    encoder = tiny_bert(bert)
    assert without_configuration(list(encoder_modules(encoder).values())) == []
    encoder.encode(TEXTS, prompt="a: ")
    assert without_configuration(list(encoder_modules(encoder).values())) == []
    words = SentenceTransformer(modules=[BoW(["a", "b"]), Dense(2, 2, activation_function=nn.ReLU()), Normalize()])
    with torch.no_grad():
        words[1].linear.weight.fill_(0.5)
        words[1].linear.bias.fill_(0)
    assert encoder_fingerprint(words) == EARLIER


# With st_asym 0.1.0.
EARLIER = "6ce181a053cfbc0e2436021d151c8d6a69e5c27a290da65f48c63e433db07693"


# The task, for modules that take it.


class Tasked(Plain):
    def forward(self, features: dict[str, Any], task: str | None = None) -> dict[str, Any]:
        features["sentence_embedding"] = features["sentence_embedding"] + float(task == "query")
        return features

    def save(self, path: str, **_: Any) -> None:
        pass


def tasked() -> SentenceTransformer:
    encoder = SentenceTransformer(modules=[BoW(WORDS), Tasked()], device="cpu").requires_grad_(False)
    encoder.module_kwargs = {"1": ["task"]}  # as of "kwargs" in modules.json
    return encoder


def test_the_task_that_a_module_takes_by_modules_json(tmp_path: Path) -> None:
    encoder, cache = tasked(), EmbeddingCache(tmp_path)
    assert listens_to_task(encoder)
    for task in ("query", "document"):
        assert cache.fill(encoder, TEXTS, task=task) == 3
        assert same(cache.get(encoder, TEXTS, task=task), encoder.encode(TEXTS, task=task))
    cached = CachedSentenceTransformer(encoder, cache)
    assert same(cached.encode_query(TEXTS), encoder.encode_query(TEXTS))
    assert same(cached.encode_document(TEXTS), encoder.encode_document(TEXTS))
    assert not same(cached.encode_query(TEXTS), cached.encode_document(TEXTS))


def test_the_task_reaches_the_encoder_of_a_model_with_heads(tmp_path: Path) -> None:
    encoder = tasked()
    model = asymmetric_model(encoder)
    cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path))
    for name in ("encode_query", "encode_document"):
        assert same(getattr(cached, name)(TEXTS), getattr(model, name)(TEXTS))
        assert same(getattr(without_heads(model), name)(TEXTS), getattr(encoder, name)(TEXTS))


def test_a_first_module_of_the_users_own_is_told_the_task(tmp_path: Path) -> None:
    class Words(BoW):
        def preprocess(self, inputs: Any, prompt: str | None = None, task: str | None = None, **_: Any) -> Any:  # noqa: ARG002
            return super().preprocess([f"{text} cab" if task == "query" else text for text in inputs])

    encoder, cache = SentenceTransformer(modules=[Words(WORDS)], device="cpu"), EmbeddingCache(tmp_path)
    for task in ("query", "document"):
        assert same(cache.embed(encoder, TEXTS, task=task), encoder.encode(TEXTS, task=task))


def test_options_that_print_alike_are_kept_apart() -> None:
    fingerprint = "0" * 64
    arrays = [np.zeros(5000) for _ in range(2)]
    arrays[1][2500] = 1
    assert repr(arrays[0]) == repr(arrays[1])
    keys = {record_keys(fingerprint, ["a"], weights=array)[0] for array in arrays}
    assert len(keys) == 2


# What is passed.


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("hello", r"one str, 'hello', .*pass \[text\]"),
        (b"hello", r"one bytes"),
        ({"d1": "hello"}, r"is a dict, .*list\(texts.values\(\)\)"),
        (Dataset.from_dict({"text": ["hello"]}), r"is a Dataset with columns"),
        (5, "must be a list of strings, not a int"),
    ],
)
def test_one_text_is_no_list_of_letters(tmp_path: Path, texts: Any, message: str) -> None:
    encoder, cache = SentenceTransformer(modules=[BoW(WORDS)], device="cpu"), EmbeddingCache(tmp_path)
    for call in (cache.fill, cache.get, cache.embed):
        with pytest.raises(TypeError, match=message):
            call(encoder, texts)
    with pytest.raises(TypeError, match=message):
        record_keys("0" * 64, texts)
    assert len(cache) == 0


def test_tables_are_no_lists(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    encoder, cache = SentenceTransformer(modules=[BoW(WORDS)], device="cpu"), EmbeddingCache(tmp_path)
    table = pandas.DataFrame({"text": TEXTS})
    with pytest.raises(TypeError, match="is a DataFrame with columns"):
        cache.fill(encoder, table)
    assert cache.fill(encoder, table["text"]) == 3
    assert cache.get(encoder, table["text"]).shape == (3, 4)


@pytest.mark.parametrize("option", ["batch_size", "device", "prompt_name", "normalize_embeddings", "nonsense"])
def test_an_option_that_there_is_not_is_named_with_those_that_there_are(tmp_path: Path, option: str) -> None:
    encoder, cache = SentenceTransformer(modules=[BoW(WORDS)], device="cpu"), EmbeddingCache(tmp_path)
    for call in (cache.fill, cache.get, cache.embed):
        with pytest.raises(TypeError, match=rf"no option '{option}': .*prompt, task and precision.*batch_tokens"):
            call(encoder, TEXTS, **{option: 8})
    with pytest.raises(TypeError, match="must be a SentenceTransformer, not a list"):
        cache.fill(TEXTS, encoder)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_encoder_has_the_same_fingerprint_in_another_process(bert: Path, tmp_path: Path) -> None:
    script = tmp_path / "own_module.py"
    script.write_text(
        """
import pathlib, torch
from cache_helpers import tiny_bert
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW
from st_asym import encoder_fingerprint

class Own(torch.nn.Module):
    names = {"a", "b", "c"}
    def __init__(self):
        super().__init__()
        self.function, self.kinds, self.calls_cache = torch.relu, {"x", "y", "z"}, []
        self.other = lambda value: value in {"p", "q", "r"}
    def forward(self, features):
        return features

ENCODERS = [SentenceTransformer(modules=[BoW(["a", "b"]), Own()], device="cpu"), tiny_bert(pathlib.Path("BERT"))]
DIGESTS = [encoder_fingerprint(encoder) for encoder in ENCODERS]
print(*DIGESTS)
""".replace("BERT", str(bert))
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    ran = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    specification = importlib.util.spec_from_file_location("__main__", script)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert ran.stdout.split()[-2:] == module.DIGESTS


def test_the_max_length_of_the_trainer_is_an_option_like_others(bert: Path, tmp_path: Path) -> None:
    encoder = tiny_bert(bert).requires_grad_(False)
    cached = CachedSentenceTransformer(encoder, EmbeddingCache(tmp_path))
    expected = encoder.forward(encoder.preprocess(TEXTS, max_length=3, task="query"))["sentence_embedding"]
    assert same(cached.preprocess(TEXTS, max_length=3, task="query")["sentence_embedding"], expected)
    assert not same(cached.preprocess(TEXTS)["sentence_embedding"], expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch_tokens": "4"}, ValueError, "batch_tokens must be a whole number of at least 1, or None, got '4'"),
        ({"batch_tokens": -1}, ValueError, "batch_tokens must be"),
        ({"devices": "cpu"}, TypeError, r"devices must be a list, .* got 'cpu'"),
        ({"devices": ["cpux"]}, ValueError, "devices has 'cpux', and torch knows no such device"),
        ({"prompt": ["a"]}, TypeError, r"prompt must be a text or None, got \['a'\]"),
        ({"task": 5}, TypeError, "task must be a text or None, got 5"),
    ],
)
def test_arguments_of_another_kind_are_named(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    encoder, cache = SentenceTransformer(modules=[BoW(WORDS)], device="cpu"), EmbeddingCache(tmp_path)
    with pytest.raises(kind, match=message):
        cache.fill(encoder, TEXTS, **options)
    assert len(cache) == 0


def test_what_is_no_cache_no_encoder_and_no_fingerprint_is_refused(tmp_path: Path) -> None:
    encoder, cache = SentenceTransformer(modules=[BoW(WORDS)], device="cpu"), EmbeddingCache(tmp_path)
    with pytest.raises(TypeError, match="must be an EmbeddingCache, not a str"):
        CachedSentenceTransformer(encoder, str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'bf16', got 'fp16'"):
        CachedSentenceTransformer(encoder, cache, precision="fp16")  # type: ignore[arg-type]
    for call in (cache.remove, encoder_fingerprint):
        with pytest.raises(TypeError, match="must be a SentenceTransformer, not a str"):
            call("encoder")  # type: ignore[arg-type]
    for wrong in ("xyz", "ab", encoder):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            record_keys(wrong, TEXTS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"max_bytes must be a number of bytes, .* got '1GB'"):
        EmbeddingCache(tmp_path / "other", max_bytes="1GB")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="directory is empty"):
        EmbeddingCache("")
