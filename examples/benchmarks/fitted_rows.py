"""Rows of the benchmarks of ``fit``: a model of an encoder and a collection, and its summary over seeds."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from retrieval import Collection, beir, cut, p_value, spread
from sentence_transformers import SentenceTransformer

from st_asym import CachedSentenceTransformer, EmbeddingCache, Settings, fit


@dataclass
class Bench:
    """What all runs share."""

    encoder: SentenceTransformer
    cache: EmbeddingCache
    quick: bool = False
    untouched: dict[str, list[float]] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The defaults of ``fit``."""
        return replace(Settings(), epochs=2) if self.quick else Settings()

    def cached(self, model: SentenceTransformer, collection: Collection) -> CachedSentenceTransformer:
        """The model, its encoder answered from the cache."""
        return CachedSentenceTransformer(model, self.cache, precision=collection.precision)

    def scores(self, model: SentenceTransformer, collection: Collection) -> list[float]:
        """nDCG@10 of each test query."""
        queries, documents = collection.vectors(model, self.cache)
        return [round(float(value), 4) for value in collection.ndcg(queries @ documents.T)]

    def untouched_scores(self, collection: Collection) -> list[float]:
        """The same with the encoder as it is."""
        if collection.name not in self.untouched:
            model = self.encoder.requires_grad_(False).eval()
            self.untouched[collection.name] = self.scores(model, collection)
        return self.untouched[collection.name]


@dataclass
class Trained:
    """A model, and what is worth telling of how it came about."""

    model: SentenceTransformer
    facts: dict[str, Any] = field(default_factory=dict)


Train = Callable[[Bench, Collection, int], Trained]


def fitted(bench: Bench, collection: Collection, seed: int, **settings: Any) -> Trained:
    """What ``fit`` gives for the training split."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            bench.encoder,
            collection.data,
            output_dir=Path(folder, "model"),
            settings=replace(bench.settings, **settings),
            cache=bench.cache,
            precision=collection.precision,
            seed=seed,
            show_progress_bar=False,
        )
    report = result.report
    chosen = report.chosen
    return Trained(
        result.model,
        {
            "chosen": None if chosen is None else asdict(chosen.choice),
            "held out": None if chosen is None else {"gain": round(chosen.gain, 4), "error": round(chosen.error, 4)},
            "queries": report.counts.get("train"),
            "encoding": round(report.seconds.get("encode", 0.0), 2),
        },
    )


def benchmarks(options: argparse.Namespace) -> dict[str, Callable[[], Collection]]:
    """SciFact and NFCorpus, each read once."""
    read: dict[str, Collection] = {}

    def collection(name: str) -> Collection:
        if name not in read:
            whole = beir(options.data / f"{name}.zip")
            read[name] = replace(whole, data=cut(whole.data, 1_500)) if options.quick else whole
        return read[name]

    return {name: partial(collection, name) for name in ("scifact", "nfcorpus")}


def summary(
    entries: list[dict[str, Any]], collection: str, *, documents: Literal["all", "seen", "unseen"] = "all"
) -> dict[str, Any]:
    """Mean, standard deviation and difference to the untouched encoder, of one row and test collection.

    ``documents`` takes only the queries on documents that training saw, or only the others.
    """
    entries = [entry for entry in entries if collection in entry["scores"]]
    if not entries:
        return {}
    unseen = np.array(entries[0]["unseen"][collection], dtype=bool)
    which = {"all": unseen | ~unseen, "seen": ~unseen, "unseen": unseen}[documents]
    runs = [np.array(entry["scores"][collection])[which] for entry in entries]
    before = [np.array(entry["untouched"][collection])[which] for entry in entries]
    by_seed = [float(run.mean()) for run in runs]
    differences = np.mean([run - base for run, base in zip(runs, before, strict=True)], axis=0)
    return {
        "mean": round(float(np.mean(by_seed)), 4),
        "deviation": round(spread(by_seed), 4),
        "difference": round(float(differences.mean()), 4),
        "p": round(p_value(differences), 4),
        "queries": len(differences),
        "seeds": [entry["seed"] for entry in entries],
        "by seed": [round(value, 4) for value in by_seed],
        "seconds": round(float(np.mean([entry["seconds"] for entry in entries])), 1),
        "chosen": [entry["chosen"] for entry in entries if "chosen" in entry],
        "settings": [entry["settings"] for entry in entries if "settings" in entry],
    }


def mean_and_deviation(found: dict[str, Any]) -> str:
    """``0.6451 ± 0.0012``, without a deviation for one seed."""
    if not found:
        return ""
    deviation = f" ± {found['deviation']:.4f}" if len(found["seeds"]) > 1 else ""
    return f"{found['mean']:.4f}{deviation}"


def difference(found: dict[str, Any]) -> str:
    """``+0.1576 (p < .001)``."""
    if not found or not found["difference"]:
        return "0" if found else ""
    p = "p < .001" if found["p"] < 0.001 else f"p = {found['p']:.3f}".replace("0.", ".", 1)
    return f"{found['difference']:+.4f} ({p})"
