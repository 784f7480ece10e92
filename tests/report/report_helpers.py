"""One of each thing that a report is made of, with names and texts that a page must not stumble over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import TrainerState

from st_asym import Comparison, Diagnosis, EmbeddingCache, FitReport, Settings, asymmetric_model, diagnose
from st_asym.evaluation.comparison import METRICS, Bar, rows_of
from st_asym.evaluation.models import System
from st_asym.evaluation.mteb import Measurement, TaskScores, compressed_scores, scores_by_query
from st_asym.fitting.gate import Choice, Evidence, Gain
from st_asym.fitting.report import Tried

HOSTILE = '<script>alert("1")</script> & "quotes" </style> $\\frac{1}$'
LONG = "a_path/" * 20
QUERIES = {"q0": f"red {HOSTILE}", "q1": "small text", "q2": "big head"}
DOCUMENTS = {"d0": f"red vector {HOSTILE}", "d1": "small answers", "d2": "the big document", "d3": LONG}
QRELS = {"q0": {"d3": 1}, "q1": {"d0": 1}, "q2": {"d3": 2}}


def a_diagnosis(encoder: SentenceTransformer, folder: Path) -> Diagnosis:
    model = asymmetric_model(encoder, hidden_features=None)
    for name, parameter in model.named_parameters():
        if "sub_modules.query" in name and name.endswith("weight"):
            parameter.data *= -1
    return diagnose(model, QUERIES, DOCUMENTS, QRELS, cache=EmbeddingCache(folder / "vectors"))


def a_fit_report() -> FitReport:
    """Heads were trained and turned back; those in closed form were behind after one cut of four."""
    kept, behind = "both sides, identity start, in-batch", "query side, whitening 1"
    unseen = Gain(20, 0.7, -0.01, 0.03)
    trained = [
        Evidence(
            Choice(kept, epoch, dial), Gain(80, 0.67, gain, 0.02), unseen, 0.8 * gain - 0.002, 0.017, 0.8 * gain - 0.006
        )
        for epoch, dial, gain in ((1, 1.0, 0.05), (2, 0.5, 0.1), (2, 1.0, 0.08))
    ]
    closed = Evidence(Choice(behind), Gain(25, 0.6, 0.04, 0.03), Gain(0, 0.0, 0.0, 0.0), 0.04, 0.03, 0.04)
    figures = {"accuracy": 0.5, "query_std": 0.9, "document_std": 0.8}
    losses = {"loss": 2.5, "contrastive": 2.0, "isotropy": 0.5}
    tried = Settings(sides="both", init="identity", contrastive="in-batch", epochs=2, learning_rate=3e-4)
    return FitReport(
        tried,
        counts={"documents": 5183},
        expected_unseen=0.2,
        held_out=["A cut."],
        candidates=[Tried(kept, trained[1], 4, 6.25), Tried(behind, closed, 1, 0.04)],
        chosen=trained[1],
        chance=0.0012,
        evidence=[*trained, closed],
        log=[{"epoch": 0, **figures}, *({"epoch": epoch, **figures, **losses} for epoch in (1, 2))],
        refitted=True,
        training=[{"epoch": 1, "loss": 2.25}, {"epoch": 2, "loss": 1.75}],
        notes=[HOSTILE],
        trials=[
            {"settings": Settings(learning_rate=1e-3).as_dict(), "gain": 0.1, "stopped early": False},
            {"settings": Settings(learning_rate=3e-4).as_dict(), "gain": 0.0, "stopped early": True, "error": HOSTILE},
        ],
        seconds={"train": 1.25},
    )


def a_comparison(
    names: Sequence[str] = ("untouched", HOSTILE, f"_{LONG}"), data: Sequence[str] = ("one", "zwölf 十二")
) -> Comparison:
    """The second system gains on every query, the third has two seeds and loses on every query."""
    random = np.random.default_rng(0)
    base = {name: random.uniform(0.3, 0.6, 12 if place else 30) for place, name in enumerate(data)}

    def run(system: str, form: str, step: float) -> list[Measurement]:
        return [
            Measurement(system, form, _scores(name, (scores + step * np.linspace(0.5, 1, len(scores))).tolist()))
            for name, scores in base.items()
        ]

    first, second, third = names
    model = SentenceTransformer(modules=[nn.Identity()], device="cpu")  # with none, they would be baselines
    systems = [
        System(first, (model,), None, ("a" * 64,)),
        System(second, (model,), None, ("b" * 64,)),
        System(third, (model, model), (7, 8), ("c" * 64, "d" * 64)),
    ]
    measured = [
        *run(first, "full", 0.0),
        *run(first, "int8", -0.01),
        *run(second, "full", 0.2),
        *run(second, "int8", 0.19),
        *run(third, "full", -0.1),
        *run(third, "int8", -0.2),
        *run(third, "full", -0.2),
        *run(third, "int8", -0.3),
    ]
    parts = {data[0]: {"seen": [f"q{i}" for i in range(10)], "unseen": [f"q{i}" for i in range(10, 30)]}}
    bar, queries = Bar(), scores_by_query(measured, parts)
    return Comparison(
        rows=rows_of(systems, queries, parts, bar, 0, compressed=compressed_scores(measured)),
        data={name: {"split": "test", "queries": len(base[name]), "documents": 99, "version": "v"} for name in data},
        queries=queries,
        settings={"at_least": bar.at_least, "significance": bar.significance, "seed": 0},
        versions={"mteb": "2.26"},
        notes=("2 queries were left out.",),
        created="2026-01-01T00:00:00+00:00",
    )


def _scores(name: str, scores: Sequence[float]) -> TaskScores:
    by_query = dict.fromkeys(METRICS, tuple(scores))
    queries = tuple(f"q{i}" for i in range(len(scores)))
    return TaskScores(name, name, "test", 99, queries, by_query, {})


def a_trainer_state() -> TrainerState:
    """As the stock trainer with ``watch``, a loss of two parts, and an evaluator leave it."""
    figures = {
        "in_batch_accuracy": 0.5,
        "positive_similarity": 0.6,
        "negative_similarity": 0.1,
        "query_std": 0.9,
        "document_std": 0.8,
    }
    history: list[dict[str, float]] = []
    for epoch in (1.0, 2.0):
        losses = {"loss": 3.0 / epoch, "contrastive": 2.0 / epoch, "isotropy": 1.0 / epoch}
        history.append(
            {**losses, "grad_norm": 1.0, "learning_rate": 1e-3 / epoch, **figures, "epoch": epoch, "step": 4}
        )
        evaluated = {
            "eval_loss": 2.0 / epoch,
            "eval_contrastive": 1.5,
            "eval_dev_cosine_ndcg@10": 0.3 * epoch,
            "eval_runtime": 9.0,
        }
        history.append(
            {**evaluated, **{f"eval_{name}": value for name, value in figures.items()}, "epoch": epoch, "step": 4}
        )
    history.append({"train_runtime": 2.0, "train_loss": 2.0, "epoch": 2.0, "step": 8})
    return TrainerState(epoch=2.0, global_step=8, max_steps=8, best_metric=0.6, best_global_step=8, log_history=history)
