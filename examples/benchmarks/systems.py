"""Every system of the comparison on SciFact and NFCorpus, beside the untouched encoder.

    python examples/benchmarks/systems.py                # hours on two cores; stopped, it goes on where it was
    python examples/benchmarks/systems.py --seeds 0 --rows frozen "fit, defaults"
    python examples/benchmarks/systems.py --quick        # minutes: small cuts, to see that it runs

Prints Markdown tables and writes JSON. Four blocks: systems trained on each collection's own queries, with compressed
vectors beside; training out of domain and without labels; few labels; small collections. The test splits are looked at
to fill the tables alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import torch
import transformers
from compressed import compressed
from journal import Journal
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from retrieval import SHARED, Collection, beir, cut, titles_and_texts, with_dev_in_train
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    GlobalOrthogonalRegularizationLoss,
    MultipleNegativesRankingLoss,
)
from systems_tables import tables
from torch import Tensor, nn
from training import stock_training

from st_asym import (
    CachedSentenceTransformer,
    CorpusContrastiveLoss,
    EmbeddingCache,
    Settings,
    asymmetric_model,
    fit,
)
from st_asym.data import RetrievalData, load_data
from st_asym.systems import Init, get_system

# The experiment that the four systems come from trained on so many pairs.
PAIRS = 10_000
LITTLE = (20, 50, 100, 300)
SMALL = 1_000


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


@dataclass(frozen=True)
class Job:
    """A row for one seed: what to train on, and what to score.

    Attributes:
        collection: Makes what is trained on; its name is the one that follows.
        tested: Makes what is scored; none for the same.
        wave: Jobs of a lower wave go first, whatever their block.
    """

    block: str
    row: str
    name: str
    seed: int
    train: Train
    collection: Callable[[], Collection]
    tested: Callable[[], list[Collection]] | None = None
    compress: bool = False
    wave: int = 0


def main() -> None:
    options = parse_options()
    bench = Bench(SentenceTransformer(options.encoder or packaged_encoder()), EmbeddingCache(options.cache))
    bench.quick = options.quick
    journal = Journal(options.output.with_suffix(".jsonl"))
    for job in jobs(options):
        if (job.block, job.row, job.name, job.seed) in journal:
            continue
        started = time.perf_counter()
        collection = job.collection()
        bench.untouched_scores(collection) if collection.data.qrels.get("test") else None
        print(f"{time.strftime('%H:%M:%S')} {job.block}: {job.row}, {job.name}, seed {job.seed}", flush=True)
        started = time.perf_counter()
        torch.manual_seed(job.seed)
        trained = job.train(bench, collection, job.seed)
        seconds = time.perf_counter() - started
        tested = job.tested() if job.tested else [collection]
        entry = {
            **{"block": job.block, "row": job.row, "collection": job.name, "seed": job.seed},
            "seconds": round(seconds, 2),
            "scores": {other.name: bench.scores(trained.model, other) for other in tested},
            "untouched": {other.name: bench.untouched_scores(other) for other in tested},
            "unseen": {other.name: other.unseen.astype(int).tolist() for other in tested},
            **trained.facts,
        }
        if job.compress:
            entry["compressed"] = {other.name: compressed(other, trained.model, bench.cache) for other in tested}
        journal.add(entry)
    text, figures = tables(journal)
    print("\n" + text)
    options.output.write_text(json.dumps({**facts(options), **figures}, indent=1) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of scifact.zip, nfcorpus.zip and pairs")
    parser.add_argument("--encoder", help="a Hub id or path; the packaged all-MiniLM-L6-v2 if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 1 2 3 4)")
    parser.add_argument("--rows", nargs="+", help="only rows whose name begins with one of these")
    parser.add_argument("--blocks", nargs="+", help="only these of systems, transfer, few labels, small")
    parser.add_argument("--trials", type=int, default=10, help="of the tuned fit (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small cuts and two epochs, to see that it runs")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/systems.json"), help="(default: %(default)s)")
    return parser.parse_args()


def facts(options: argparse.Namespace) -> dict[str, Any]:
    packages = ("st_asym", "sentence-transformers", "transformers", "torch", "numpy", "pytrec-eval-terrier")
    return {
        "encoder": options.encoder or "all-MiniLM-L6-v2",
        "fit": Settings().as_dict(),
        "trials": options.trials,
        "quick": options.quick,
        "versions": {name: version(name) for name in packages},
    }


# ---- What is trained, row by row ----


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
        "num_train_epochs": settings.epochs,
    }
    if loss == "in-batch":
        pairs = data.pairs("train")
        # With many relevant documents to a query, an epoch over pairs is many over queries.
        arguments["num_train_epochs"] = max(3, round(settings.epochs * len(data.qrels["train"]) / len(pairs)))
        in_batch = MultipleNegativesRankingLoss(model, scale=1 / settings.temperature)
        stock_training(model, in_batch, pairs, seed=seed, in_batch=True, **arguments)
        return Trained(model.stock_model())
    contrastive = CorpusContrastiveLoss(
        model, data.corpus, data.qrels["train"], temperature=settings.temperature, precision="bf16"
    )
    whole = WithOrthogonality(contrastive) if loss == "orthogonality" else contrastive
    stock_training(model, whole, data.labelled_queries("train"), seed=seed, **arguments)
    return Trained(model.stock_model())


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
            "chosen": None if chosen is None else {"epoch": chosen.choice.epoch, "dial": chosen.choice.dial},
            "held out": None if chosen is None else {"gain": round(chosen.gain, 4), "error": round(chosen.error, 4)},
            "queries": report.counts.get("train"),
            **({"settings": report.settings.as_dict()} if trials else {}),
        },
    )


def fitted_on_documents(bench: Bench, collection: Collection, seed: int, *, path: Path) -> Trained:
    """What ``fit`` gives for the documents alone."""
    documents = titles_and_texts(path)
    kept = {key: documents[key] for key in collection.data.corpus}
    return fitted(bench, replace(collection, precision="bf16"), seed, train=kept)


# ---- Which jobs there are ----


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
        "no gate, CorpusContrastiveLoss": (partial(ungated, loss="corpus"), 1),
        regularised: (partial(ungated, loss="orthogonality"), 2),
        "fit, defaults": (fitted, 1),
        **{f"fit, isotropy {k}": (partial(fitted, isotropy_weight=0.3, isotropy_kind=k), 3) for k in kinds},
        "fit, linear heads": (partial(fitted, hidden_features=None), 3),
        "fit, query side only": (partial(fitted, sides="query"), 1),
        "fit, one shared head": (partial(fitted, sides="shared"), 3),
        f"fit, tuned, {trials} trials": (partial(fitted, trials=trials), 4),
    }


def jobs(options: argparse.Namespace) -> list[Job]:
    """All jobs that were asked for, seed by seed."""
    seeds = options.seeds[:1] if options.quick else options.seeds
    found = [*own_queries(options, seeds), *transfer(options, seeds), *few(options, seeds), *small(options, seeds)]
    found = [job for job in found if not options.blocks or job.block in options.blocks]
    wanted = tuple(options.rows) if options.rows else ("",)
    return sorted((job for job in found if job.row.startswith(wanted)), key=lambda job: job.wave)


def benchmarks(options: argparse.Namespace) -> dict[str, Callable[[], Collection]]:
    """SciFact and NFCorpus, each read once."""
    read: dict[str, Collection] = {}

    def collection(name: str) -> Collection:
        if name not in read:
            whole = beir(options.data / f"{name}.zip")
            read[name] = replace(whole, data=cut(whole.data, 1_500)) if options.quick else whole
        return read[name]

    return {name: partial(collection, name) for name in ("scifact", "nfcorpus")}


def own_queries(options: argparse.Namespace, seeds: list[int]) -> Iterator[Job]:
    trials = 2 if options.quick else options.trials
    for name, collection in benchmarks(options).items():
        for row, (train, step) in rows(trials).items():
            compress = row == "frozen" or row.startswith(("fit, defaults", "fit, isotropy"))
            for place, seed in enumerate(seeds[:1] if row == "frozen" else seeds):
                wave = step * (place + 1) if "tuned" in row else step * place
                yield Job("systems", row, name, seed, train, collection, compress=compress, wave=wave)


def transfer(options: argparse.Namespace, seeds: list[int]) -> Iterator[Job]:
    """Trained on other data than it is tested on, and on documents alone."""
    tested = benchmarks(options)

    def both() -> list[Collection]:
        return [collection() for collection in tested.values()]

    def medquad() -> Collection:
        return Collection("medquad", first_pairs(load_data(options.data / "pairs" / "medquad.jsonl.gz"), count), "bf16")

    count = 200 if options.quick else PAIRS
    for init in ("random", "identity"):
        train = partial(original, system="asymmetric", init=init)
        for wave, seed in enumerate(seeds[:3]):
            yield Job("transfer", f"MedQuAD, {init} start", "medquad", seed, train, medquad, both, wave=3 * wave)
    for wave, seed in enumerate(seeds[:1]):
        yield Job("transfer", "MedQuAD, fit", "medquad", seed, fitted, medquad, both, wave=wave + 2)
    for name, collection in tested.items():
        train = partial(fitted_on_documents, path=options.data / f"{name}.zip")
        for wave, seed in enumerate(seeds[:3]):
            yield Job("transfer", "own documents, no labels, fit", name, seed, train, collection, both, wave=3 * wave)


def few(options: argparse.Namespace, seeds: list[int]) -> Iterator[Job]:
    """So many labelled queries, drawn anew for each seed."""
    for name, collection in benchmarks(options).items():
        for wave, seed in enumerate(seeds[:3]):
            for count in LITTLE[:1] if options.quick else LITTLE:
                drawn = partial(draw_queries, collection, count, seed)
                yield Job("few labels", f"{count} queries", name, seed, fitted, drawn, wave=3 * wave)


def small(options: argparse.Namespace, seeds: list[int]) -> Iterator[Job]:
    """Collections of a thousand documents, drawn anew for each seed."""
    size = 200 if options.quick else SMALL
    pairs = options.data / "pairs"
    makers: dict[str, Callable[[], RetrievalData]] = {
        "medquad": lambda: load_data(pairs / "medquad.jsonl.gz"),
        "scitldr": lambda: load_data(pairs / "scitldr.jsonl.gz"),
        "docstrings": lambda: python_docs(size),
    }
    for name, make in makers.items():
        for wave, seed in enumerate(seeds[:1] if name == "docstrings" else seeds[:3]):
            collection = partial(small_collection, name, make, size, seed)
            yield Job("small", "fit, defaults", name, seed, fitted, collection, wave=3 * wave)


def first_pairs(data: RetrievalData, count: int) -> RetrievalData:
    """So many pairs, drawn at random from all splits, with their documents alone; all for training."""
    judged = {q: documents for split in data.qrels.values() for q, documents in split.items()}
    pairs = [(q, d) for q, documents in judged.items() for d, grade in documents.items() if grade > 0]
    qrels: dict[str, dict[str, int]] = {}
    for place in np.random.default_rng(0).permutation(len(pairs))[:count]:
        query_id, document_id = pairs[place]
        qrels.setdefault(query_id, {})[document_id] = 1
    corpus = {d: data.corpus[d] for documents in qrels.values() for d in documents}
    return RetrievalData({q: data.queries[q] for q in qrels}, corpus, {"train": qrels})


def draw_queries(collection: Callable[[], Collection], count: int, seed: int) -> Collection:
    """The same collection with so many training queries, and no dev split."""
    whole = collection()
    train = whole.data.qrels["train"]
    names = list(train)
    drawn = [names[place] for place in np.random.default_rng(seed).permutation(len(names))[:count]]
    qrels = {"train": {q: train[q] for q in drawn}, "test": whole.data.qrels["test"]}
    return replace(whole, data=replace(whole.data, qrels=qrels))


def small_collection(name: str, make: Callable[[], RetrievalData], size: int, seed: int) -> Collection:
    return Collection(f"{name} {seed}", with_dev_in_train(cut(make(), size, seed)), "bf16")


if __name__ == "__main__":
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    main()
