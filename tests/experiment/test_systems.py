"""The systems that train, each from an encoder to a saved model by the stock trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from experiment.predictors import target_and_head
from experiment.systems import SYSTEMS, get_system
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from st_asym import CachedSentenceTransformer, EmbeddingCache, router_mapping, watch

MakeEncoder = Callable[..., SentenceTransformer]
TRAINED = list(SYSTEMS)
PARTS = {
    "asymmetric": {"contrastive", "isotropy"},
    "iso_pred": {"isotropy", "predictive"},
    "respred": {"contrastive", "isotropy", "predictive", "residual"},
}
QUERIES = ["frozen encoder", "red head", "small text", "query vector", "big document", "learns", "answers", "vector"]
DOCUMENTS = [f"{query} the document" for query in QUERIES[1:] + QUERIES[:1]]
PAIRS = Dataset.from_dict({"query": QUERIES, "positive": DOCUMENTS})


def train(
    name: str, model: SentenceTransformer, folder: Path, resume: Path | None = None, **options: Any
) -> SentenceTransformerTrainer:
    settings: dict[str, Any] = {
        **get_system(name).arguments(),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "router_mapping": router_mapping(PAIRS),
    }
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(str(folder), **(settings | options)),
        train_dataset=PAIRS,
        eval_dataset=PAIRS if "eval_strategy" in options else None,
        loss=get_system(name).loss(model),
    )
    watch(trainer)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def both_sides(model: SentenceTransformer) -> tuple[np.ndarray, np.ndarray]:
    return model.encode_query(QUERIES), model.encode_document(DOCUMENTS)


def difference(one: SentenceTransformer, other: SentenceTransformer) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(both_sides(one), both_sides(other), strict=True))


def alpha_of(model: SentenceTransformer) -> torch.Tensor:
    return next(parameter for name, parameter in model.named_parameters() if name.endswith("alpha"))


@pytest.mark.parametrize("name", TRAINED)
def test_the_identity_start_gives_the_encoders_vectors(make_encoder: MakeEncoder, name: str) -> None:
    model = get_system(name).build(make_encoder(), init="identity")
    assert difference(model, make_encoder()) < 1e-6


@pytest.mark.parametrize("name", TRAINED)
def test_the_original_start_is_random(make_encoder: MakeEncoder, name: str) -> None:
    assert difference(get_system(name).build(make_encoder()), make_encoder()) > 0.1


def test_sizes_are_those_of_the_original() -> None:
    from sentence_transformers.sentence_transformer.modules import BoW

    encoder = SentenceTransformer(modules=[BoW([f"w{i}" for i in range(768)])], device="cpu")
    head = 2_361_600
    trainable = {"asymmetric": 2 * head, "iso_pred": 2 * head, "respred": 2 * head + 1}
    for name, expected in trainable.items():
        model = get_system(name).build(encoder)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected, name


@pytest.mark.parametrize("kind", ["text", "cached"])
@pytest.mark.parametrize("name", TRAINED)
def test_each_trains_in_the_stock_trainer(
    tiny_encoder: SentenceTransformer, tmp_path: Path, name: str, kind: str
) -> None:
    model = get_system(name).build(tiny_encoder)
    frozen = {key: p.detach().clone() for key, p in tiny_encoder.named_parameters()}
    before = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    used = model if kind == "text" else CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "vectors"))
    trainer = train(name, used, tmp_path, eval_strategy="epoch", num_train_epochs=4)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in log:
        assert PARTS[name] <= set(entry)
        assert entry["loss"] == pytest.approx(sum(entry[part] for part in PARTS[name]), abs=1e-3)
        assert "in_batch_accuracy" in entry
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated[-1] < evaluated[0]
    assert any(f"eval_{part}" in entry for entry in trainer.state.log_history for part in PARTS[name])
    assert all(torch.equal(p, frozen[key]) for key, p in tiny_encoder.named_parameters())
    assert not any(torch.equal(p, before[key]) for key, p in model.named_parameters() if key in before)


def test_alpha_is_learned_from_either_start(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    for init, start in (("random", 0.1), ("identity", 0.0)):
        model = get_system("respred").build(make_encoder(), init=init)
        before = alpha_of(model).item()
        assert before == pytest.approx(start)
        train("respred", model, tmp_path / init)
        assert alpha_of(model).item() != before


def test_the_target_follows_once_per_optimizer_step(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    """Two accumulated batches of half the size move it as one batch does: what differs is the order of adding up."""
    moved = []
    for batch, accumulated in ((8, 1), (4, 2), (4, 1)):
        torch.manual_seed(0)
        model = get_system("iso_pred").build(make_encoder())
        before = [target.detach().clone() for target, _ in target_and_head(model.modules())]
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        train("iso_pred", model, tmp_path, **options, learning_rate=1e-3, lr_scheduler_type="constant", max_steps=4)
        pairs = target_and_head(model.modules())
        moved.append(max(float((target - old).abs().max()) for (target, _), old in zip(pairs, before, strict=True)))
    # Steps of Adam are about the learning rate: 0.004 of 1, 2 and 3 of them.
    assert moved == pytest.approx([0.004 * 6e-3] * 3, rel=0.25)


@pytest.mark.parametrize("kind", ["text", "cached"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_equals_the_uninterrupted_one(
    make_encoder: MakeEncoder, tmp_path: Path, name: str, kind: str
) -> None:
    weights = []
    for run, checkpoint in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoint-4")):
        torch.manual_seed(len(weights))
        model = get_system(name).build(make_encoder())
        if not weights:
            start = {key: value.clone() for key, value in model.state_dict().items()}
        used = model if kind == "text" else CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "vectors"))
        train(name, used, tmp_path / run, resume=checkpoint, save_strategy="epoch", num_train_epochs=3)
        weights.append(model.state_dict())
    assert not all(torch.equal(value, start[key]) for key, value in weights[0].items())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_what_is_saved_is_stock_and_gives_the_same_vectors_without_st_asym(
    make_encoder: MakeEncoder, tmp_path: Path, run_without_st_asym: Callable[..., str]
) -> None:
    expected = {}
    for name in TRAINED:
        model = get_system(name).build(make_encoder())
        cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "vectors"))
        train(name, cached, tmp_path / name, save_strategy="epoch")
        for kind, saved in {"model": model, "cached": cached}.items():
            saved.save_pretrained(str(tmp_path / name / kind))
            get_system(name).finish(saved).save_pretrained(str(tmp_path / name / f"finished_{kind}"))
        for folder in ("model", "cached", "finished_model", "finished_cached", "checkpoint-6"):
            expected[str(tmp_path / name / folder)] = both_sides(model)
    vectors = run_without_st_asym(
        "import json, sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "queries, documents, *folders = map(json.loads, sys.argv[1:])\n"
        "for folder in folders:\n"
        "    model = SentenceTransformer(folder, device='cpu')\n"
        "    vectors = [model.encode_query(queries).tolist(), model.encode_document(documents).tolist()]\n"
        "    print(json.dumps(vectors))",
        *map(json.dumps, (QUERIES, DOCUMENTS, *expected)),
    )
    for (folder, sides), line in zip(expected.items(), vectors.splitlines(), strict=True):
        for one, other in zip(json.loads(line), sides, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=folder)
        types = {entry["type"] for entry in json.loads((Path(folder) / "modules.json").read_text())}
        types |= set(json.loads((Path(folder) / "3_Router" / "router_config.json").read_text())["types"].values())
        assert all(name.startswith("sentence_transformers.") for name in types), folder


@pytest.mark.parametrize("name", TRAINED)
def test_finishing_keeps_the_vectors_and_drops_what_only_training_needs(
    tiny_encoder: SentenceTransformer, name: str
) -> None:
    model = get_system(name).build(tiny_encoder)
    finished = get_system(name).finish(model)
    assert difference(model, finished) < 1e-6
    head = 16 * 32 + 32 + 32 * 16 + 16
    sizes = {"asymmetric": 2 * head, "iso_pred": head}
    if name in sizes:
        assert sum(p.numel() for p in finished[3].parameters()) == sizes[name]
    # The trained model is as it was, and still trains.
    parts = get_system(name).loss(model.train())(
        [{**model.preprocess(texts), "task": task} for texts, task in ((QUERIES, "query"), (DOCUMENTS, "document"))]
    )
    assert set(parts) == PARTS[name]


def test_the_best_epoch_of_a_residual_model_is_loaded_at_the_end(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    model = get_system("respred").build(tiny_encoder)
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = train("respred", model, tmp_path, **options, learning_rate=0.3)
    best = SentenceTransformer(trainer.state.best_model_checkpoint, device="cpu")
    assert difference(model, best) < 1e-6


def test_weights_are_those_of_the_original(tiny_encoder: SentenceTransformer) -> None:
    system = get_system("iso_pred")
    loss = system.loss(system.build(tiny_encoder))
    assert (loss.weight, loss.loss.weight) == (1.2, 1.5)
    arguments = {"learning_rate": 1e-3, "per_device_train_batch_size": 64, "num_train_epochs": 3}
    assert system.arguments() == arguments


def test_a_system_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no system 'isopred': choose one of 'asymmetric', 'iso_pred'"):
        get_system("isopred")


def test_added_layers_have_the_encoders_dtype(make_encoder: MakeEncoder) -> None:
    for name in TRAINED:
        model = get_system(name).build(make_encoder().bfloat16())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert difference(model, get_system(name).finish(model)) < 1e-2
