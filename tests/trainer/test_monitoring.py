from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from processes import in_two_processes
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CachedMultipleNegativesRankingLoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import dot_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerState

from st_asym import CorpusContrastiveLoss, IsotropyLoss, asymmetric_model, column_prompts, watch
from st_asym.trainer import monitor as monitoring

FIGURES = {"in_batch_accuracy", "positive_similarity", "negative_similarity", "query_std", "document_std"}
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
PAIRS = Dataset.from_dict({"query": QUERIES, "positive": [f"{query} text" for query in QUERIES]})
TRIPLETS = PAIRS.add_column("negative", [f"the {query}" for query in QUERIES[::-1]])


def trainer_for(
    model: SentenceTransformer, folder: Path, loss: Any = None, data: Any = PAIRS, **options: Any
) -> SentenceTransformerTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "router_mapping": {"query": "query", "positive": "document", "negative": "document"},
    }
    evaluator = options.pop("evaluator", None)
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**(settings | options)),
        train_dataset=data,
        eval_dataset=data if "eval_strategy" in options else None,
        loss=IsotropyLoss(model) if loss is None else loss,
        evaluator=evaluator,
    )


def expected(model: SentenceTransformer, triplets: bool = False) -> dict[str, float]:
    """The figures of all data as one batch, by the definitions."""
    queries = model.encode_query(QUERIES, convert_to_tensor=True).clone()
    documents = model.encode_document(PAIRS["positive"][:], convert_to_tensor=True).clone()
    if triplets:
        documents = torch.cat(
            [documents, model.encode_document(TRIPLETS["negative"][:], convert_to_tensor=True).clone()]
        )
    cosines = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(documents).T
    others = ~torch.eye(len(queries), len(documents), dtype=torch.bool)
    scale = math.sqrt(queries.shape[1])
    return {
        "in_batch_accuracy": sum(int(row.argmax()) == i for i, row in enumerate(cosines)) / len(queries),
        "positive_similarity": cosines.diagonal().mean().item(),
        "negative_similarity": cosines[others].mean().item(),
        "query_std": (queries.std(dim=0).mean() * scale).item(),
        "document_std": (documents.std(dim=0).mean() * scale).item(),
    }


def first_training_log(trainer: SentenceTransformerTrainer) -> dict[str, float]:
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("triplets", [False, True])
def test_the_figures_are_those_of_the_batch(tiny_encoder: SentenceTransformer, tmp_path: Path, triplets: bool) -> None:
    model = asymmetric_model(tiny_encoder)
    before = expected(model, triplets)
    data = TRIPLETS if triplets else PAIRS
    trainer = trainer_for(model, tmp_path, data=data, eval_strategy="epoch", per_device_train_batch_size=8)
    watch(trainer)
    trainer.train()
    assert {name: first_training_log(trainer)[name] for name in FIGURES} == pytest.approx(before, abs=1e-4)
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert {name: evaluated[f"eval_{name}"] for name in FIGURES} == pytest.approx(expected(model, triplets), abs=1e-4)


def test_they_reach_tensorboard_by_themselves(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    trainer = trainer_for(asymmetric_model(tiny_encoder), tmp_path, eval_strategy="steps", report_to="tensorboard")
    watch(trainer)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in FIGURES} <= tags
    assert {f"eval/{name}" for name in FIGURES} <= tags
    assert len(events.Scalars("train/query_std")) == 2


def test_the_loss_is_not_changed(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    losses = []
    for watched in (False, True):
        trainer = trainer_for(asymmetric_model(tiny_encoder), tmp_path, num_train_epochs=2, seed=5)
        if watched:
            watch(trainer)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["cached", "matryoshka", "adaptive", "matryoshka2d"])
def test_losses_that_run_the_model_several_times_give_the_same_figures(
    tiny_encoder: SentenceTransformer, tmp_path: Path, kind: str
) -> None:
    model = asymmetric_model(tiny_encoder)
    before = expected(model, triplets=True)
    if kind == "cached":
        loss: Any = CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    elif kind == "adaptive":
        loss = AdaptiveLayerLoss(model, MultipleNegativesRankingLoss(model))
    else:
        wrapper = Matryoshka2dLoss if kind == "matryoshka2d" else MatryoshkaLoss
        loss = wrapper(model, MultipleNegativesRankingLoss(model), [16, 8], n_dims_per_step=-1)
    trainer = trainer_for(model, tmp_path, loss, TRIPLETS, per_device_train_batch_size=8)
    watch(trainer)
    trainer.train()
    logged = first_training_log(trainer)
    assert {name: logged[name] for name in FIGURES} == pytest.approx(before, abs=1e-4)


def test_of_queries_alone_the_spread_is_logged_and_a_collapse_named(
    tiny_encoder: SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = asymmetric_model(tiny_encoder)
    relevant = {query: [str(row)] for row, query in enumerate(QUERIES)}
    loss = CorpusContrastiveLoss(model, dict(zip(map(str, range(8)), PAIRS["positive"], strict=True)), relevant)
    data = Dataset.from_dict({"query": QUERIES, "label": list(range(8))})
    trainer = trainer_for(model, tmp_path, loss, data, per_device_train_batch_size=8, router_mapping={"query": "query"})
    monitor = watch(trainer)
    spread = expected(model)["query_std"]
    trainer.train()
    logged = first_training_log(trainer)
    assert logged.keys() & FIGURES == {"query_std"}
    assert logged["query_std"] == pytest.approx(spread, abs=1e-3)
    monitor._warn({**dict.fromkeys(FIGURES, math.nan), "query_std": 0.1})
    assert "Collapse of the query vectors" in caplog.text
    assert "accuracy" not in caplog.text


@pytest.mark.parametrize("first", ["queries", "pairs"])
def test_a_batch_without_documents_hides_neither_the_others_nor_a_collapse(
    caplog: pytest.LogCaptureFixture, first: str
) -> None:
    monitor = monitoring.TrainingMonitor()

    def batch(documents: torch.Tensor | None) -> None:
        columns = {"query": torch.eye(2), **({} if documents is None else {"document": documents})}
        for task, vectors in columns.items():
            monitor._collect(torch.nn.Linear(2, 2), ({"task": task},), {}, {"sentence_embedding": vectors})
        monitor.on_step_end()

    def log() -> dict[str, float]:
        logs = {"loss": 1.0}
        monitor.on_log(None, TrainerState(), None, logs=logs)  # type: ignore[arg-type]
        return logs

    for documents in [None, torch.eye(2)] if first == "queries" else [torch.eye(2), None]:
        batch(documents)
    assert log() == {
        "loss": 1.0,
        "in_batch_accuracy": 1.0,
        "positive_similarity": 1.0,
        "negative_similarity": 0.0,
        "query_std": 1.0,
        "document_std": 1.0,
    }
    batch(None)
    assert log().keys() & FIGURES == {"query_std"}
    batch(torch.eye(2) * 0.01)
    log()
    assert "Collapse of the document vectors" in caplog.text
    batch(torch.full((2, 2), torch.inf))
    batch(None)
    exploded = log()
    assert math.isnan(exploded["document_std"])
    assert exploded["query_std"] == 1.0


def test_accumulated_batches_are_averaged_not_joined(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    logs = []
    for steps in (1, 2):
        trainer = trainer_for(
            model, tmp_path, learning_rate=0.0, gradient_accumulation_steps=steps, logging_steps=2 // steps, seed=3
        )
        watch(trainer)
        trainer.train()
        logs.append({name: first_training_log(trainer)[name] for name in FIGURES})
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)


def test_an_evaluator_does_not_disturb_the_figures(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    relevant = {f"q{i}": {f"d{i}"} for i in range(len(QUERIES))}
    evaluator = InformationRetrievalEvaluator(
        {f"q{i}": text for i, text in enumerate(QUERIES)},
        {f"d{i}": text for i, text in enumerate(PAIRS["positive"][:])},
        relevant,
    )
    options = {"num_train_epochs": 2, "learning_rate": 0.0, "per_device_train_batch_size": 8}
    trainer = trainer_for(model, tmp_path, eval_strategy="epoch", evaluator=evaluator, **options)
    watch(trainer)
    trainer.train()
    for prefix in ("", "eval_"):
        logged = [entry for entry in trainer.state.log_history if f"{prefix}loss" in entry]
        assert len(logged) == 2
        for entry in logged:
            figures = {name: entry[f"{prefix}{name}"] for name in FIGURES}
            assert figures == pytest.approx(expected(model), abs=1e-4)


def test_several_evaluation_sets_are_told_apart(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    trainer = trainer_for(model, tmp_path)
    trainer.eval_dataset = DatasetDict({"near": PAIRS, "far": PAIRS})
    watch(trainer)
    trainer.evaluate()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_near_in_batch_accuracy", "eval_far_in_batch_accuracy"} <= names


@pytest.fixture
def log_figures(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float, float], None]:
    """Log one batch with this in-batch accuracy and this standard deviation of the queries."""
    trainer = trainer_for(asymmetric_model(tiny_encoder), tmp_path)
    monitor = watch(trainer)

    def log(accuracy: float, query_std: float) -> None:
        figures = torch.tensor([accuracy, 0.0, 0.0, query_std, 0.95])
        monkeypatch.setattr(monitoring, "_figures", lambda *_: figures)
        monitor._collect(trainer.model, ({"task": "query"},), {}, {"sentence_embedding": torch.ones(2, 2)})
        monitor._collect(trainer.model, ({"task": "document"},), {}, {"sentence_embedding": torch.ones(2, 2)})
        monitor.on_step_end()
        monitor.on_log(trainer.args, trainer.state, trainer.control, logs={"loss": 1.0})

    return log


@pytest.mark.parametrize(
    ("course", "warning"),
    [
        ([(0.2, 0.9), (0.9, 0.3), (0.95, 0.2)], "Collapse of the query vectors"),
        ([(0.2, 0.9), (0.5, 1.5), (0.9, 2.5)], "Length explosion of the query vectors"),
        ([(0.2, 0.9), (0.9, 0.6)], None),  # within bounds
        ([(0.2, 0.47), (0.9, 0.46)], None),  # narrow from the start, and hardly changed
        ([(0.2, 0.4), (0.9, 0.1)], "Collapse of the query vectors"),  # narrow from the start, and much narrower
        ([(1.0, 0.9), (1.0, 0.05)], "Collapse of the query vectors"),  # no room for the accuracy to rise
        ([(0.2, 0.9), (0.1, 0.3)], None),  # the accuracy falls too: the loss itself shows that
    ],
)
def test_a_collapse_and_an_explosion_are_named_once(
    log_figures: Callable[[float, float], None],
    caplog: pytest.LogCaptureFixture,
    course: list[tuple[float, float]],
    warning: str | None,
) -> None:
    for accuracy, query_std in course:
        log_figures(accuracy, query_std)
    assert caplog.text.count("of the query vectors") == (warning is not None)
    assert (warning or "") in caplog.text


def test_the_length_explosion_of_the_original_experiment_is_named(
    tiny_encoder: SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Random heads, dot products, and no Normalize behind them."""
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[*asymmetric_model(tiny_encoder, init="random").children()][:-1], device="cpu")
    loss = MultipleNegativesRankingLoss(model, scale=1.0, similarity_fct=dot_score)
    trainer = trainer_for(model, tmp_path, loss, num_train_epochs=60, learning_rate=0.01, per_device_train_batch_size=8)
    watch(trainer)
    trainer.train()
    assert "Length explosion of the query vectors" in caplog.text
    assert "Compare by cosine" in caplog.text


def test_mappings_are_checked_at_once(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    trainer = trainer_for(asymmetric_model(tiny_encoder), tmp_path, router_mapping={"positive": "document"})
    with pytest.raises(ValueError, match="no route for column 'query'"):
        watch(trainer)
    trainer = trainer_for(asymmetric_model(tiny_encoder), tmp_path)
    trainer.eval_dataset = PAIRS.rename_column("query", "question")
    with pytest.raises(ValueError, match="no route for column 'question'"):
        watch(trainer)


def test_mini_batches_of_queries_and_documents_that_no_mapping_tells_apart_are_refused(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    losses = {
        "one": MultipleNegativesRankingLoss(tiny_encoder),
        "two": CachedMultipleNegativesRankingLoss(tiny_encoder),
    }
    data = DatasetDict(dict.fromkeys(losses, PAIRS))
    watch(trainer_for(tiny_encoder, tmp_path, losses["one"], router_mapping={}))
    for loss, of_it in ((losses, data), (MatryoshkaLoss(tiny_encoder, losses["two"], [16, 8]), PAIRS)):
        watch(trainer_for(tiny_encoder, tmp_path, loss, of_it))
        with pytest.raises(ValueError, match=r"pass router_mapping=st_asym\.router_mapping\(dataset\)"):
            watch(trainer_for(tiny_encoder, tmp_path, loss, of_it, router_mapping={}))


def test_prompts_that_training_would_leave_out_are_pointed_out(
    make_encoder: Callable[..., SentenceTransformer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = asymmetric_model(make_encoder(prompts={"query": "query "}))
    mapping = {"query": "query", "positive": "document"}
    watch(trainer_for(model, tmp_path, router_mapping=mapping, prompts=column_prompts(model, mapping)))
    assert caplog.text == ""
    watch(trainer_for(model, tmp_path))
    assert "puts a prompt before each query when it encodes" in caplog.text


def test_arguments_that_fail_under_several_processes_are_refused(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(asymmetric_model(tiny_encoder), tmp_path)
    monkeypatch.setattr(SentenceTransformerTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="need ddp_find_unused_parameters=False"):
        watch(trainer)
    trainer.args.ddp_find_unused_parameters = False
    watch(trainer)


@pytest.mark.parametrize(
    ("kinds", "heads", "allowed"),
    [
        (["cached"], {}, [None, True]),
        (["wrapped"], {}, [None, True]),
        (["cached"], {"shared": True}, [None, True, False]),
        (["cached"], {"document": False}, [None, True, False]),
        (["cached", "plain"], {}, []),
        (["cached", "plain"], {"shared": True}, [False]),
        (["plain", "plain"], {}, [False]),
    ],
)
def test_the_search_for_unused_parameters_fits_the_losses_and_heads(
    tiny_encoder: SentenceTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kinds: list[str],
    heads: Any,
    allowed: list[bool | None],
) -> None:
    model = asymmetric_model(tiny_encoder, **heads)
    losses = {
        "cached": CachedMultipleNegativesRankingLoss(model),
        "wrapped": MatryoshkaLoss(model, CachedMultipleNegativesRankingLoss(model), [16, 8]),
        "plain": MultipleNegativesRankingLoss(model),
    }
    loss: Any = {str(row): losses[kind] for row, kind in enumerate(kinds)} if len(kinds) > 1 else losses[kinds[0]]
    data = DatasetDict(dict.fromkeys(loss, PAIRS)) if isinstance(loss, dict) else PAIRS
    trainer = trainer_for(model, tmp_path, loss, data)
    monkeypatch.setattr(SentenceTransformerTrainingArguments, "world_size", 2)
    for searched in (None, True, False):
        trainer.args.ddp_find_unused_parameters = searched
        if searched in allowed:
            watch(trainer)
        else:
            with pytest.raises(ValueError, match="ddp_find_unused_parameters"):
                watch(trainer)


def test_what_runs_between_the_steps_is_left_out(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    before = expected(model)
    trainer = trainer_for(model, tmp_path, per_device_train_batch_size=8)
    watch(trainer)
    model({**model.preprocess(["a stray text"]), "task": "query"})
    trainer.train()
    assert first_training_log(trainer)["in_batch_accuracy"] == pytest.approx(before["in_batch_accuracy"], abs=1e-4)


def _log_of_one_of_two_processes(rank: int, folder: Path) -> None:
    monitor = monitoring.TrainingMonitor()
    model = torch.nn.Linear(2, 2)
    for _ in range(rank + 1):  # one batch of right answers in the first process, two of wrong ones in the second
        documents = torch.eye(2) if rank == 0 else torch.eye(2).flip(0)
        monitor._collect(model, ({"task": "query"},), {}, {"sentence_embedding": torch.eye(2)})
        monitor._collect(model, ({"task": "document"},), {}, {"sentence_embedding": documents})
        monitor.on_step_end()
    logs = {"loss": 1.0}
    monitor.on_log(None, TrainerState(), None, logs=logs)  # type: ignore[arg-type]
    empty = {"loss": 1.0}
    monitor.on_log(None, TrainerState(), None, logs=empty)  # type: ignore[arg-type]
    (folder / f"{rank}.json").write_text(json.dumps([logs, empty]))


@pytest.mark.slow
def test_figures_are_means_over_the_batches_of_all_processes(tmp_path: Path) -> None:
    in_two_processes(_log_of_one_of_two_processes, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[1] == {"loss": 1.0}
    assert first[0]["in_batch_accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert first[0]["positive_similarity"] == pytest.approx(1 / 3, abs=1e-4)


def test_the_model_can_still_be_pickled_and_let_go(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_encoder)
    trainer = trainer_for(model, tmp_path)
    monitor = watch(trainer)
    pickle.dumps(model)
    monitor.detach()
    trainer.train()
    assert "in_batch_accuracy" in first_training_log(trainer)  # on_train_begin attaches it again
