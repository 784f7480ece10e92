"""The stock trainer on a model with heads: nothing of it is replaced, so all of it has to work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from st_asym import IsotropyLoss, asymmetric_model, router_mapping

QUERIES = [
    "frozen encoder",
    "red head",
    "small text",
    "query vector",
    "big document",
    "learns",
    "answers",
    "vector head",
]
DOCUMENTS = [f"{query} the document" for query in QUERIES[1:] + QUERIES[:1]]
PAIRS = Dataset.from_dict({"query": QUERIES, "positive": DOCUMENTS})


def arguments(folder: Path, **options: Any) -> SentenceTransformerTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "report_to": "none",
        "use_cpu": True,
        "seed": 1,
        "router_mapping": router_mapping(PAIRS),
    }
    return SentenceTransformerTrainingArguments(**(settings | options))


def trainer_for(model: SentenceTransformer, folder: Path, **options: Any) -> SentenceTransformerTrainer:
    return SentenceTransformerTrainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=PAIRS,
        loss=IsotropyLoss(model, kind="sigreg"),
        evaluator=evaluator() if "eval_strategy" in options else None,
    )


def evaluator() -> InformationRetrievalEvaluator:
    queries = {f"q{i}": query for i, query in enumerate(QUERIES)}
    corpus = {f"d{i}": document for i, document in enumerate(DOCUMENTS)}
    return InformationRetrievalEvaluator(
        queries,
        corpus,
        {f"q{i}": {f"d{i}"} for i in range(len(QUERIES))},
        name="dev",
        accuracy_at_k=[1],
        precision_recall_at_k=[1],
        mrr_at_k=[8],
        ndcg_at_k=[8],
        map_at_k=[8],
    )


def heads(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_training_moves_both_heads_and_leaves_the_encoder_alone(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    model = asymmetric_model(tiny_encoder)
    encoder = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = heads(model)
    trainer = trainer_for(model, tmp_path)
    trainer.train()
    assert all(torch.equal(p, encoder[name]) for name, p in model.named_parameters() if name in encoder)
    moved = {name for name, p in heads(model).items() if not torch.equal(p, before[name])}
    assert {"query" in name for name in moved} == {True, False}
    losses = [entry["contrastive"] for entry in trainer.state.log_history if "contrastive" in entry]
    assert losses[-1] < losses[0]
    assert all("isotropy" in entry for entry in trainer.state.log_history if "contrastive" in entry)


def test_every_checkpoint_loads_without_st_asym(
    tiny_encoder: SentenceTransformer, tmp_path: Path, run_without_st_asym: Callable[..., str]
) -> None:
    model = asymmetric_model(tiny_encoder)
    trainer_for(model, tmp_path).train()
    checkpoints = sorted(str(folder) for folder in tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == 3
    vectors = run_without_st_asym(
        "import json, sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "models = [SentenceTransformer(path, device='cpu') for path in sys.argv[1:]]\n"
        "print(json.dumps([model.encode_query('red head').tolist() for model in models]))",
        *checkpoints,
    )
    np.testing.assert_allclose(json.loads(vectors)[-1], model.encode_query("red head"), atol=1e-6)
    assert json.loads(vectors)[0] != json.loads(vectors)[-1]


def test_a_resumed_run_equals_the_uninterrupted_one(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    whole = asymmetric_model(make_encoder())
    trainer_for(whole, tmp_path / "whole").train()
    resumed = asymmetric_model(make_encoder())
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    trainer_for(resumed, tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))
    for name, parameter in heads(resumed).items():
        assert torch.equal(parameter, heads(whole)[name]), name


def test_the_best_epoch_by_a_retrieval_evaluator_is_loaded_at_the_end(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    model = asymmetric_model(tiny_encoder)
    trainer = trainer_for(
        model,
        tmp_path,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_cosine_ndcg@8",
        learning_rate=0.3,
    )
    trainer.train()
    scores = [
        entry["eval_dev_cosine_ndcg@8"] for entry in trainer.state.log_history if "eval_dev_cosine_ndcg@8" in entry
    ]
    assert len(scores) == 3
    assert evaluator()(model)["dev_cosine_ndcg@8"] == pytest.approx(max(scores), abs=1e-6)


def test_a_column_without_a_route_stops_the_run_before_the_first_step(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    model = asymmetric_model(tiny_encoder)
    before = heads(model)
    trainer = trainer_for(model, tmp_path, router_mapping={"qeury": "query", "positive": "document"})
    with pytest.raises(ValueError, match="a column reached the heads without a task"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in heads(model).items())


def test_heads_learn_from_real_text(real_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """What no encoder can know is learned: which code means what."""
    queries = ["error E17", "error E18", "error E19", "error E71"]
    answers = ["replace the filter", "restart the pump", "close the valve", "call the hotline"]
    pairs = Dataset.from_dict({"query": queries, "answer": answers})
    model = asymmetric_model(real_encoder)

    def right() -> int:
        similarity = model.similarity(model.encode_query(queries), model.encode_document(answers))
        return int((similarity.argmax(dim=1) == torch.arange(len(queries))).sum())

    before = right()
    options = {"router_mapping": router_mapping(pairs), "save_strategy": "no", "num_train_epochs": 10}
    SentenceTransformerTrainer(
        model=model,
        args=arguments(tmp_path, learning_rate=1e-3, **options),
        train_dataset=pairs,
        loss=IsotropyLoss(model, weight=0.1),
    ).train()
    assert before < len(queries) == right()
