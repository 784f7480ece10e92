"""How often ``fit`` keeps heads where there is nothing to learn: queries with their labels dealt out at random.

    python examples/benchmarks/random_labels.py
    python examples/benchmarks/random_labels.py --draws 2 --queries 50

Every query gets the documents of another. Whatever heads gain on held-out queries is luck then; the limit is none kept.
The queries are those of SciFact, and of FeedbackQA where SciFact has too few.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import transformers
from fitted_rows import Bench, fitted
from packaged_encoder import packaged_encoder
from retrieval import SHARED, Collection, beir
from sentence_transformers import SentenceTransformer

from st_asym import EmbeddingCache


def main() -> None:
    options = parse_options()
    bench = Bench(SentenceTransformer(packaged_encoder()), EmbeddingCache(options.cache))
    collections = [beir(options.data / name) for name in ("scifact.zip", "feedbackqa.zip")]
    figures: dict[str, Any] = {"settings": bench.settings.as_dict()}
    print("| labelled queries | heads kept | test nDCG@10 of those, difference to untouched |\n|---|---|---|")
    for count in options.queries:
        whole = next(one for one in collections if len(one.data.qrels["train"]) >= count)
        untouched = float(np.mean(bench.untouched_scores(whole)))
        kept = []
        for seed in range(options.draws):
            trained = fitted(bench, shuffled(whole, count, seed), seed)
            if trained.facts["chosen"] is not None:
                kept.append(round(float(np.mean(bench.scores(trained.model, whole))) - untouched, 4))
        found = {"draws": options.draws, "kept": len(kept), "untouched": round(untouched, 4), "differences": kept}
        figures[f"{count} queries of {whole.name}"] = found
        print(
            f"| {count} of {whole.name} | {len(kept)} of {options.draws} | {', '.join(f'{d:+.3f}' for d in kept)} |",
            flush=True,
        )
    versions = {name: version(name) for name in ("st_asym", "sentence-transformers", "torch", "numpy")}
    options.output.write_text(json.dumps({**figures, "versions": versions}, indent=1) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of both zips")
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 100, 300, 2_000])
    parser.add_argument("--draws", type=int, default=20, help="for each (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/random_labels.json"), help="(default: %(default)s)")
    return parser.parse_args()


def shuffled(whole: Collection, count: int, seed: int) -> Collection:
    """So many training queries, each with the relevant documents of another."""
    random = np.random.default_rng(seed)
    train = whole.data.qrels["train"]
    drawn = random.permutation(list(train))[:count].tolist()
    dealt = np.roll(drawn, 1).tolist()
    qrels = {"train": {query: train[other] for query, other in zip(drawn, dealt, strict=True)}}
    return replace(whole, data=replace(whole.data, qrels={**qrels, "test": whole.data.qrels["test"]}))


if __name__ == "__main__":
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    main()
