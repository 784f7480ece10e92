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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from retrieval import SHARED, Collection, beir, cut, with_dev_in_train
from sentence_transformers import SentenceTransformer
from system_rows import PAIRS, Bench, Train, fitted, fitted_on_documents, original, rows
from systems_tables import tables

from st_asym import EmbeddingCache, Settings
from st_asym.data import RetrievalData, load_data

LITTLE = (20, 50, 100, 300)
SMALL = 1_000


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
    encoder = SentenceTransformer(options.encoder or packaged_encoder())
    bench = Bench(encoder, EmbeddingCache(options.cache), options.quick)
    journal = Journal(options.output.with_suffix(".jsonl"))
    for job in jobs(options):
        if (job.block, job.row, job.name, job.seed) not in journal:
            print(f"{time.strftime('%H:%M:%S')} {job.block}: {job.row}, {job.name}, seed {job.seed}", flush=True)
            journal.add(run(bench, job))
    text, figures = tables(journal)
    print("\n" + text)
    options.output.write_text(json.dumps({**facts(options), **figures}, indent=1) + "\n", encoding="utf-8")


def run(bench: Bench, job: Job) -> dict[str, Any]:
    """Train and score; what is timed is the training, from cached vectors."""
    collection = job.collection()
    tested = job.tested() if job.tested else [collection]
    untouched = {other.name: bench.untouched_scores(other) for other in tested}
    torch.manual_seed(job.seed)
    started = time.perf_counter()
    trained = job.train(bench, collection, job.seed)
    seconds = time.perf_counter() - started - trained.facts.get("encoding", 0.0)
    entry = {
        **{"block": job.block, "row": job.row, "collection": job.name, "seed": job.seed},
        "seconds": round(seconds, 2),
        "scores": {other.name: bench.scores(trained.model, other) for other in tested},
        "untouched": untouched,
        "unseen": {other.name: other.unseen.astype(int).tolist() for other in tested},
        **trained.facts,
    }
    if job.compress:
        entry["compressed"] = {other.name: compressed(other, trained.model, bench.cache) for other in tested}
    return entry


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
        yield from (judged_elsewhere(medquad, name, own, seed, wave + 2) for name, own in tested.items())
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


def judged_elsewhere(
    source: Callable[[], Collection], name: str, target: Callable[[], Collection], seed: int, wave: int
) -> Job:
    """Trained on one collection, with the dev queries of another, or else its train queries, to judge on."""
    row = f"MedQuAD, fit, judged on dev queries of {name}"
    collection = partial(with_dev_of, source, target)
    return Job("transfer", row, "medquad", seed, fitted, collection, lambda: [target()], wave=wave)


def with_dev_of(source: Callable[[], Collection], target: Callable[[], Collection]) -> Collection:
    """The training pairs of one collection, and as dev the queries of another to judge on."""
    trained, judged = source(), target().data
    ours = {key: f"{trained.name} {key}" for key in [*trained.data.queries, *trained.data.corpus]}
    relevant = trained.data.qrels["train"].items()
    pairs = {ours[q]: {ours[d]: grade for d, grade in found.items()} for q, found in relevant}
    dev = judged.qrels.get("dev") or judged.qrels["train"]
    return replace(
        trained,
        data=RetrievalData(
            {**{ours[q]: text for q, text in trained.data.queries.items()}, **{q: judged.queries[q] for q in dev}},
            {**{ours[d]: text for d, text in trained.data.corpus.items()}, **judged.corpus},
            {"train": pairs, "dev": dev},
        ),
    )


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
