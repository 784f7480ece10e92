"""The whole run of the original experiment: 80 thousand pairs, three epochs, heads against the untouched encoder.

    python examples/benchmarks/full_run.py                       # hours on two cores, nearly all of them for encoding
    python examples/benchmarks/full_run.py --limit 2000          # minutes

Killed at any moment, the same command goes on where it was: vectors from the cache, training from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from packaged_encoder import packaged_encoder
from scoring import Scores, score, summarise
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from st_asym import (
    CachedSentenceTransformer,
    EmbeddingCache,
    IsotropyLoss,
    asymmetric_model,
    freeze_encoder,
    router_mapping,
    watch,
)
from st_asym.data import RetrievalData, from_pairs, load_data
from st_asym.evaluation.checkpoints import last_checkpoint

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
UNTOUCHED, TRAINED = "untouched encoder", "trained heads"
PAIRS = "pairs, held out"


def main() -> None:
    options = parse_options()
    options.output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    with timed("read", seconds):
        collections = {PAIRS: read_pairs(options.pairs, options.limit, options.test_queries)}
        collections |= {path.stem: load_data(path) for path in options.collections if path.exists()}
    encoder = SentenceTransformer(options.encoder or packaged_encoder())
    model = asymmetric_model(encoder)
    cache = EmbeddingCache(options.output / "cache")
    with timed("encode", seconds):
        encoded = {name: fill(cache, model, data, options.precision) for name, data in collections.items()}

    cached = CachedSentenceTransformer(model, cache, precision=options.precision)
    with timed("evaluate the untouched encoder", seconds):
        before = {name: score(cached, data) for name, data in collections.items()}
    with timed("train", seconds):
        steps, resumed = train(cached, collections[PAIRS], options)
    cached.save_pretrained(str(options.output / "model"))
    loaded = freeze_encoder(SentenceTransformer(str(options.output / "model"), device=str(encoder.device)))
    with timed("evaluate", seconds):
        saved = CachedSentenceTransformer(loaded, cache, precision=options.precision)
        after = {name: score(saved, data) for name, data in collections.items()}

    results = {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "pairs": sum(len(judged) for judged in collections[PAIRS].qrels["train"].values()),
        "test queries": {name: len(runs.ndcg_at_10) for name, runs in before.items()},
        "texts encoded in this run": encoded,
        "steps": steps,
        "resumed from": resumed,
        "seconds": seconds,
        "scores": {name: rows(before[name], after[name]) for name in collections},
        "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "torch", "numpy")},
    }
    report(results)
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + os.linesep, encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=SHARED / "pairs", help="a folder of JSONL, query and positive")
    parser.add_argument("--limit", type=int, help="pairs to read from each file; all if not given")
    parser.add_argument(
        "--collections",
        type=Path,
        nargs="*",
        default=[SHARED / "scifact.zip", SHARED / "nfcorpus.zip"],
        help="BEIR folders or zips to evaluate on as well",
    )
    parser.add_argument("--encoder", help="a Hub id or path; the packaged all-MiniLM-L6-v2 if not given")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="(default: %(default)s)")
    parser.add_argument("--isotropy-weight", type=float, default=0.3, help="(default: %(default)s)")
    parser.add_argument("--test-queries", type=int, default=2_000, help="held-out queries (default: %(default)s)")
    parser.add_argument("--save-steps", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/full_run"), help="(default: %(default)s)")
    return parser.parse_args()


def read_pairs(folder: Path, limit: int | None, test_queries: int) -> RetrievalData:
    """All pairs of a folder as one collection, without its dev split, and with some of its test queries."""
    files = sorted(file for file in folder.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise FileNotFoundError(f"{folder} has no .jsonl or .jsonl.gz: name a folder of pairs with --pairs.")
    pairs: list[tuple[str, str]] = []
    for file in files:
        data = load_data(file)
        judged = {query: documents for split in data.qrels.values() for query, documents in split.items()}
        found = ((text, data.corpus[d]) for query, text in data.queries.items() for d in judged[query])
        pairs += list(islice(found, limit))
    data = from_pairs(pairs)
    test = dict(islice(data.qrels["test"].items(), test_queries))
    return RetrievalData(data.queries, data.corpus, {"train": data.qrels["train"], "test": test})


def fill(cache: EmbeddingCache, model: SentenceTransformer, data: RetrievalData, precision: Any) -> int:
    """Encode what training and evaluation will look up, and say how many texts were missing."""
    queries = [data.queries[query] for split in ("train", "test") for query in data.qrels.get(split, {})]
    count = 0
    for texts, name in ((queries, "query"), (list(data.corpus.values()), "document")):
        prompt = model.prompts.get(name)
        count += cache.fill(model, texts, prompt=prompt, task=name, precision=precision, show_progress_bar=True)
    return count


def train(model: CachedSentenceTransformer, data: RetrievalData, options: argparse.Namespace) -> tuple[int, str | None]:
    """Train with the stock trainer from the last checkpoint, if there is one; the steps, and where it began."""
    pairs = data.pairs("train")
    checkpoint = last_checkpoint(options.output / "checkpoints")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.output / "checkpoints"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        batch_sampler="no_duplicates",
        router_mapping=router_mapping(pairs),
        prompts={column: model.prompts.get(column) or "" for column in pairs.column_names},
        optim="adamw_torch_fused",
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=100,
        report_to="none",
        seed=options.seed,
        ddp_find_unused_parameters=False,
    )
    loss = IsotropyLoss(model, weight=options.isotropy_weight)
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss)
    watch(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.state.global_step, checkpoint


def rows(before: Scores, after: Scores) -> list[dict[str, Any]]:
    return summarise({UNTOUCHED: [before], TRAINED: [after]})


def report(results: dict[str, Any]) -> None:
    print(f"\n{results['pairs']:,} training pairs, {results['steps']:,} steps, seed {results['settings']['seed']}\n")
    print("| collection, test queries | system | nDCG@10 | recall@100 | difference in nDCG@10, 95 % interval |")
    print("|---|---|---|---|---|")
    for name, scores in results["scores"].items():
        for row in scores:
            low, high = row.get("95 %", (0.0, 0.0))
            change = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]" if "difference" in row else ""
            queries = f"{name}, {results['test queries'][name]:,}"
            print(f"| {queries} | {row['system']} | {row['ndcg@10']:.3f} | {row['recall@100']:.3f} | {change} |")
    print("\n" + ", ".join(f"{name}: {value:,.1f} s" for name, value in results["seconds"].items()))
    print("texts encoded: " + ", ".join(f"{n:,} of {name}" for name, n in results["texts encoded in this run"].items()))


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


if __name__ == "__main__":
    main()
