"""How often ``fit`` keeps heads where there is nothing to learn: queries with their labels dealt out at random.

    python examples/benchmarks/random_labels.py
    python examples/benchmarks/random_labels.py --draws 2 --queries 50
    python examples/benchmarks/random_labels.py --dev 0.2 --queries 100 300   # of which a fifth is a dev split

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

import numpy as np
from nine_collections import PACKAGES, SHARED, Bench, begun, share

from st_asym import Settings
from st_asym.data import RetrievalData, load_data


def main() -> None:
    options = parse_options()
    encoder, cache = begun(options)
    collections = {name: load_data(options.data / f"{name}.zip") for name in ("scifact", "feedbackqa")}
    figures: dict[str, Any] = {"settings": Settings().as_dict()}
    print("| labelled queries | heads kept | test nDCG@10 of those, difference to untouched |\n|---|---|---|")
    for count in options.queries:
        name, whole = next(item for item in collections.items() if len(item[1].qrels["train"]) >= count)
        draws = [
            Bench(name, shuffled(whole, count, seed, options.dev), encoder, cache) for seed in range(options.draws)
        ]
        fitted = [bench.measured("fit", bench.fitted, seed) for seed, bench in enumerate(draws)]
        differences = [entry["all, to untouched"] for entry in fitted if "candidate" in entry]
        untouched = draws[0].measured("untouched", draws[0].untouched, 0)["all"]
        found = {"draws": options.draws, "kept": len(differences), "untouched": untouched, "differences": differences}
        figures[f"{count} queries of {name}" + (f", {options.dev:g} of them dev" if options.dev else "")] = found
        shown = ", ".join(f"{one:+.3f}" for one in differences)
        print(f"| {count} of {name} | {len(differences)} of {options.draws} | {shown} |", flush=True)
    versions = {name: version(name) for name in PACKAGES}
    options.output.write_text(json.dumps({**figures, "versions": versions}, indent=1) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of both zips")
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 100, 300, 2_000])
    parser.add_argument("--dev", type=share, default=0.0, help="the share of them that is a dev split (default: 0)")
    parser.add_argument("--draws", type=int, default=20, help="for each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/random_labels.json"), help="(default: %(default)s)")
    return parser.parse_args()


def shuffled(whole: RetrievalData, count: int, seed: int, dev: float = 0.0) -> RetrievalData:
    """So many queries, each with the relevant documents of another; a share of them is a dev split, if any."""
    train = whole.qrels["train"]
    drawn = np.random.default_rng(seed).permutation(list(train))[:count].tolist()
    dealt = {query: train[other] for query, other in zip(drawn, np.roll(drawn, 1).tolist(), strict=True)}
    few = round((1 - dev) * count)
    splits = {"train": drawn[:few], "dev": drawn[few:]}
    given = {split: {query: dealt[query] for query in queries} for split, queries in splits.items() if queries}
    return replace(whole, qrels={**given, "test": whole.qrels["test"]})


if __name__ == "__main__":
    main()
