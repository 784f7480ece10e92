from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import BoW, Pooling
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoTokenizer,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

from st_asym import (
    CachedSentenceTransformer,
    EmbeddingCache,
    IsotropyLoss,
    asymmetric_model,
    freeze_encoder,
    router_mapping,
    unfreeze_last_layers,
)

TEXTS = ["frozen encoder", "the head learns", "big red document", "a", "query query query vector answers text"]
PAIRS = Dataset.from_dict({"query": ["red head", "big text"], "document": ["small red head", "big frozen text"]})
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0}


def trainable(model: SentenceTransformer) -> set[str]:
    """Names of the trainable parameters of the transformer, up to the number of their layer."""
    names = [name for name, parameter in model[0].named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[1 : next(i for i, part in enumerate(name.split(".")) if part.isdigit()) + 1])
            for name in names}  # fmt: skip


def other_encoder(config: PretrainedConfig, tiny_bert: Path, folder: Path) -> SentenceTransformer:
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=32)
    return SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MPNetConfig(num_hidden_layers=3, **SIZES), {"encoder.layer.1", "encoder.layer.2"}),
        (RobertaConfig(num_hidden_layers=3, **SIZES), {"encoder.layer.1", "encoder.layer.2"}),
        (ModernBertConfig(num_hidden_layers=3, **SIZES), {"layers.1", "layers.2"}),
        (
            DistilBertConfig(vocab_size=64, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
            {"transformer.layer.1", "transformer.layer.2"},
        ),
        # Its layers are lists themselves, as long as the stack.
        (T5Config(vocab_size=64, d_model=16, num_layers=2, num_heads=2, d_ff=32, d_kv=8), {"block.0", "block.1"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PretrainedConfig) else "",
)
def test_the_last_layers_are_found_whatever_their_name(
    config: PretrainedConfig, expected: set[str], tiny_bert: Path, tmp_path: Path
) -> None:
    model = unfreeze_last_layers(asymmetric_model(other_encoder(config, tiny_bert, tmp_path)), 2)
    assert {name.removeprefix("encoder.") if "block" in name else name for name in trainable(model)} == expected
    assert all(parameter.requires_grad for parameter in model[2].parameters())


def outputs(model: SentenceTransformer) -> list[torch.Tensor]:
    """What each of the two layers gives for the same texts."""
    found: list[torch.Tensor] = []
    layers = [m for name, m in model[0].named_modules() if name.rpartition(".")[0].endswith("encoder.layer")]
    assert len(layers) == 2
    take = lambda *args: found.append(args[2][0] if isinstance(args[2], tuple) else args[2])  # noqa: E731
    handles = [layer.register_forward_hook(take) for layer in layers]
    model({**model.preprocess(TEXTS), "task": "query"})
    for handle in handles:
        handle.remove()
    return found


def test_dropout_works_in_the_layers_that_train_and_nowhere_before_them(tiny_encoder: SentenceTransformer) -> None:
    model = asymmetric_model(tiny_encoder)
    still = outputs(model.eval())
    unfreeze_last_layers(model, 1).train()
    first, second = outputs(model), outputs(model)
    torch.testing.assert_close(first[0], still[0])
    assert not first[0].requires_grad  # nothing is kept for a way back that is not gone
    assert first[1].requires_grad
    assert not torch.allclose(first[1], second[1], atol=1e-3)

    freeze_encoder(model).train()
    assert trainable(model) == set()
    for before, after in zip(still, outputs(model), strict=True):
        torch.testing.assert_close(after, before)


def test_the_stock_trainer_moves_them_at_a_rate_of_their_own(
    tiny_encoder: SentenceTransformer, tmp_path: Path, run_without_st_asym: Callable[..., str]
) -> None:
    model = unfreeze_last_layers(asymmetric_model(tiny_encoder), 1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), learning_rate=1e-3, learning_rate_mapping={r"^model\.0\.": 2e-5}, num_train_epochs=1,
        router_mapping=router_mapping(PAIRS), lr_scheduler_type="constant", report_to="none", save_strategy="no",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    loss = IsotropyLoss(model, MultipleNegativesRankingLoss(model))
    SentenceTransformerTrainer(model, arguments, train_dataset=PAIRS, loss=loss).train()
    # Adam's first step moves a weight by the learning rate, whatever its gradient is.
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()}
    layer = {name for name in moved if ".encoder.layer.1." in name}
    heads = {name for name in moved if name.startswith("3.")}
    assert {name for name, by in moved.items() if by} <= layer | heads
    assert max(moved[name] for name in layer) == pytest.approx(2e-5, rel=0.05)
    assert max(moved[name] for name in heads) == pytest.approx(1e-3, rel=0.05)

    model.save_pretrained(str(tmp_path / "model"))
    code = (
        "import json, sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "print(json.dumps(model.encode_query(json.loads(sys.argv[2])).tolist()))"
    )
    vectors = run_without_st_asym(code, str(tmp_path / "model"), json.dumps(TEXTS))
    np.testing.assert_allclose(json.loads(vectors), model.encode_query(TEXTS), atol=1e-6)


def test_a_cache_answers_for_it_only_when_it_is_frozen_again(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    cache = EmbeddingCache(tmp_path)
    early = CachedSentenceTransformer(model, cache)
    old = early.encode_query(TEXTS)
    unfreeze_last_layers(model, 1)
    with pytest.raises(ValueError, match=r"trainable \(0\..*layer\.1\..*freeze_encoder"):
        CachedSentenceTransformer(model, cache)
    with pytest.raises(ValueError, match="trainable"):
        early.train().preprocess(TEXTS)
    with torch.no_grad():
        for parameter in (p for p in model[0].parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter))
    freeze_encoder(model).eval()
    with pytest.raises(ValueError, match="has changed"):
        early.encode_query(TEXTS)
    new = CachedSentenceTransformer(model, cache).encode_query(TEXTS)
    np.testing.assert_allclose(new, model.encode_query(TEXTS), atol=1e-6)
    assert not np.allclose(new, old, atol=1e-3)


def test_a_second_call_says_how_many_train_in_all(tiny_encoder: SentenceTransformer) -> None:
    model = unfreeze_last_layers(unfreeze_last_layers(asymmetric_model(tiny_encoder), 2), 1)
    assert trainable(model) == {"encoder.layer.1"}


def test_what_cannot_be_unfrozen_is_refused(tiny_bert: Path, tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    for n in (0, 3):
        with pytest.raises(ValueError, match=rf"from 1 to 2, .*got {n}\."):
            unfreeze_last_layers(model, n)
    with pytest.raises(ValueError, match="heads behind an encoder"):
        unfreeze_last_layers(tiny_encoder, 1)
    bag = SentenceTransformer(modules=[BoW(["a", "b"])], device="cpu")
    with pytest.raises(ValueError, match=r"\[BoW, Router, Normalize\], it finds none"):
        unfreeze_last_layers(asymmetric_model(bag), 1)
    # All its layers are one.
    shared = other_encoder(AlbertConfig(num_hidden_layers=3, embedding_size=8, **SIZES), tiny_bert, tmp_path)
    with pytest.raises(ValueError, match="finds none"):
        unfreeze_last_layers(asymmetric_model(shared), 1)
