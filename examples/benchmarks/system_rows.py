"""What the rows of systems.py are: each a way to make a model of an encoder and a collection."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from experiment.systems import Init, get_system
from retrieval import Collection, titles_and_texts
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    GlobalOrthogonalRegularizationLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from training import stock_training

from st_asym import (
    CachedSentenceTransformer,
    CorpusContrastiveLoss,
    EmbeddingCache,
    Settings,
    asymmetric_model,
    fit,
    freeze_encoder,
    mine_negatives,
    unfreeze_last_layers,
)

# The experiment that the four systems come from trained on so many pairs.
PAIRS = 10_000


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


def frozen(bench: Bench, _collection: Collection, _seed: int) -> Trained:
    return Trained(bench.encoder)


def original(bench: Bench, collection: Collection, seed: int, *, system: str, init: Init) -> Trained:
    """A system with its own loss and settings, on at most as many pairs as the experiment had."""
    kind = get_system(system)
    torch.manual_seed(seed)
    model = bench.cached(kind.build(bench.encoder, init=init), collection)
    pairs = collection.data.pairs("train")
    pairs = pairs.shuffle(seed=seed).select(range(min(PAIRS, len(pairs))))
    stock_training(model, kind.loss(model), pairs, seed=seed, in_batch=True, **kind.arguments(init))
    return Trained(kind.finish(model.stock_model()))


def ungated(bench: Bench, collection: Collection, seed: int, *, loss: str) -> Trained:
    """Heads from the identity with the settings of ``fit``, but trained to the end and kept as they are."""
    model = bench.cached(asymmetric_model(bench.encoder), collection)
    settings, data = bench.settings, collection.data
    arguments: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs or 20,
    }
    if loss == "in-batch":
        return in_batch(bench, model, drawn(data.pairs("train"), settings.epochs or 20, seed), seed)
    contrastive = CorpusContrastiveLoss(
        model, data.corpus, data.qrels["train"], temperature=settings.temperature, precision="bf16"
    )
    whole = WithOrthogonality(contrastive) if loss == "orthogonality" else contrastive
    stock_training(model, whole, data.labelled_queries("train"), seed=seed, **arguments)
    return Trained(model.stock_model())


def hard_negatives(bench: Bench, collection: Collection, seed: int, *, count: int) -> Trained:
    """As ``ungated`` with the in-batch loss, each pair with the documents that the encoder takes for relevant."""
    model = bench.cached(asymmetric_model(bench.encoder), collection)
    mined = mine_negatives(model, collection.data, num_negatives=count)
    return in_batch(bench, model, drawn(mined, bench.settings.epochs or 20, seed), seed)


def unfrozen(bench: Bench, collection: Collection, seed: int, *, layers: int) -> Trained:
    """Heads and the last layers of a copy of the encoder, in-batch, for three passes: every step runs the encoder."""
    model = unfreeze_last_layers(asymmetric_model(copy.deepcopy(bench.encoder)), layers)
    pairs = drawn(collection.data.pairs("train"), 1 if bench.quick else 3, seed)
    loss = MultipleNegativesRankingLoss(model, scale=1 / bench.settings.temperature)
    arguments: dict[str, Any] = {
        "learning_rate": 1e-4,
        "learning_rate_mapping": {r"^model\.0\.": 2e-5},
        "per_device_train_batch_size": 64,
        "num_train_epochs": 1,
        "warmup_steps": 0.1,
        "bf16": True,
    }
    stock_training(model, loss, pairs, seed=seed, in_batch=True, **arguments)
    return Trained(freeze_encoder(model).eval())


def in_batch(bench: Bench, model: CachedSentenceTransformer, rows: Dataset, seed: int) -> Trained:
    """Heads trained with the library's loss on rows that hold all passes."""
    settings = bench.settings
    arguments: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": 1,
    }
    loss = MultipleNegativesRankingLoss(model, scale=1 / settings.temperature)
    stock_training(model, loss, rows, seed=seed, in_batch=True, **arguments)
    return Trained(model.stock_model())


def drawn(pairs: Dataset, rounds: int, seed: int) -> Dataset:
    """For each query so many of its rows, drawn at random, so that all queries count the same."""
    random = np.random.default_rng(seed)
    places: dict[str, list[int]] = {}
    for place, query in enumerate(pairs["query"]):
        places.setdefault(query, []).append(place)
    return pairs.select([random.choice(own) for _ in range(rounds) for own in places.values()])


class WithOrthogonality(nn.Module):
    """The library's regulariser beside the contrastive loss, on queries and on as many documents of the corpus."""

    def __init__(self, contrastive: CorpusContrastiveLoss) -> None:
        super().__init__()
        self.contrastive, self.model = contrastive, contrastive.model
        self.regulariser = GlobalOrthogonalRegularizationLoss(contrastive.model)

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The parts of both."""
        queries = self.model(columns[0])["sentence_embedding"]
        documents = self.contrastive.sample_documents(len(queries))
        parts = self.contrastive.compute_loss_from_embeddings([queries], labels)
        regularised: dict[str, Tensor] = self.regulariser.compute_loss_from_embeddings([queries, documents])
        return {**parts, **regularised}


def fitted(
    bench: Bench, collection: Collection, seed: int, *, train: Any = None, trials: int = 0, **settings: Any
) -> Trained:
    """What ``fit`` gives for the training split, or for ``train``."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            bench.encoder,
            collection.data if train is None else train,
            output_dir=Path(folder, "model"),
            settings=replace(bench.settings, **settings),
            trials=trials,
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
            **({"settings": report.settings.as_dict()} if trials else {}),
        },
    )


def fitted_on_documents(bench: Bench, collection: Collection, seed: int, *, path: Path) -> Trained:
    """What ``fit`` gives for the documents alone."""
    documents = titles_and_texts(path)
    kept = {key: documents[key] for key in collection.data.corpus}
    return fitted(bench, replace(collection, precision="bf16"), seed, train=kept)


def rows(trials: int) -> dict[str, tuple[Train, int]]:
    """The rows of the first block, and how many waves it takes for another seed of each: fewest for the main ones."""
    kinds = ("covariance", "sigreg", "uniformity")
    originals = {
        f"{system}, {init} start": (partial(original, system=system, init=init), 2)
        for init in ("random", "identity")
        for system in ("asymmetric", "iso_pred", "respred")
    }
    regularised = "no gate, CorpusContrastiveLoss and GlobalOrthogonalRegularizationLoss"
    return {
        "frozen": (frozen, 1),
        **originals,
        "no gate, in-batch loss": (partial(ungated, loss="in-batch"), 2),
        "no gate, in-batch loss, 4 hard negatives": (partial(hard_negatives, count=4), 3),
        **{f"no gate, in-batch loss, last {n} layer(s) unfrozen": (partial(unfrozen, layers=n), 6) for n in (1, 2)},
        "no gate, CorpusContrastiveLoss": (partial(ungated, loss="corpus"), 1),
        regularised: (partial(ungated, loss="orthogonality"), 2),
        "fit, defaults": (fitted, 1),
        **{f"fit, isotropy {k}": (partial(fitted, isotropy_weight=0.3, isotropy_kind=k), 3) for k in kinds},
        "fit, linear heads": (partial(fitted, hidden_features=None), 3),
        "fit, query side only": (partial(fitted, sides="query"), 1),
        "fit, one shared head": (partial(fitted, sides="shared"), 3),
        f"fit, tuned, {trials} trials": (partial(fitted, trials=trials), 4),
    }
