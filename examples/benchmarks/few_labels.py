"""What heads are worth with few labelled queries: by start and loss, and as ``fit`` decides.

    python examples/benchmarks/few_labels.py                      # stopped, it goes on where it was
    python examples/benchmarks/few_labels.py --collections scifact --queries 50

So many training queries of a collection are drawn and labelled. The others, at most 1,500, are the test: test splits
are not looked at. Each way is trained to its end without a gate; the last row is ``fit`` with its defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import transformers
from journal import Journal
from nine_collections import SOURCES, Bench, Made, begun
from retrieval import SHARED, with_dev_in_train

from st_asym import Settings
from st_asym.data import RetrievalData
from st_asym.fitting.candidates import candidates

TEST = 1_500
WAYS = {
    "in-batch, identity": Settings(sides="both", init="identity", contrastive="in-batch"),
    "in-batch, whitening 10": Settings(sides="both", init="pairs", whitening=10.0, contrastive="in-batch"),
    "both, whitening 1": Settings(sides="both", init="pairs", whitening=1.0),
    "both, whitening 10": Settings(sides="both", init="pairs", whitening=10.0),
}


def main() -> None:
    options = parse_options()
    encoder, cache, journal = begun(options)
    for count in options.queries:
        for name in options.collections:
            whole = SOURCES[name](options.data)
            for seed in options.seeds:
                data = labelled(whole, count, seed)
                if data is None:
                    continue
                bench = Bench(f"{name}, {count}", data, encoder, cache)
                for row, make in ways(bench, count).items():
                    if ("few labels", row, bench.name, seed) not in journal:
                        entry = bench.measured(row, make, seed)
                        journal.add(
                            {**entry, "block": "few labels", "row": row, "collection": bench.name, "seed": seed}
                        )
    write(options, journal)


def ways(bench: Bench, count: int) -> dict[str, Callable[[int], Made]]:
    """Name of each row, and how it is made."""
    found = {name: partial(bench.candidate, candidates(settings, count)[-1]) for name, settings in WAYS.items()}
    return {**found, "fit": bench.fitted}


def labelled(whole: RetrievalData, count: int, seed: int) -> RetrievalData | None:
    """So many queries to train on, and others to judge by; None where there are not twice as many."""
    qrels = with_dev_in_train(whole).qrels["train"]
    drawn = np.random.default_rng(seed).permutation(sorted(qrels)).tolist()
    if len(drawn) < 2 * count:
        return None
    splits = {"train": drawn[:count], "test": drawn[count : count + TEST]}
    return replace(whole, qrels={split: {key: qrels[key] for key in keys} for split, keys in splits.items()})


def write(options: argparse.Namespace, journal: Journal) -> None:
    """Print the gains over the untouched encoder, and write all figures with the versions that made them."""
    rows = [*WAYS, "fit"]
    print(f"| labelled queries | {' | '.join(rows)} |\n{'|---' * (len(rows) + 1)}|")
    for count in options.queries:
        lines: list[list[float]] = []
        for name in options.collections:
            gains = [gain(journal.of("few labels", row, f"{name}, {count}")) for row in rows]
            if None not in gains:
                lines.append([one for one in gains if one is not None])
                print(f"| {count} of {name} | {' | '.join(f'{one:+.4f}' for one in lines[-1])} |")
        if lines:
            print(f"| {count}, mean | {' | '.join(f'{one:+.4f}' for one in np.mean(lines, axis=0))} |", flush=True)
    packages = ("st_asym", "sentence-transformers", "torch", "numpy")
    facts = {"encoder": "all-MiniLM-L6-v2", "threads": options.threads, "versions": {p: version(p) for p in packages}}
    entries = [*journal.entries.values()]
    options.output.write_text(json.dumps({**facts, "entries": entries}, indent=1) + "\n", encoding="utf-8")


def gain(entries: Sequence[dict[str, Any]]) -> float | None:
    """The mean over seeds."""
    return float(np.mean([entry["all, to untouched"] for entry in entries])) if entries else None


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of the zips and of pairs/")
    parser.add_argument("--collections", nargs="+", choices=list(SOURCES), default=list(SOURCES), metavar="NAME")
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 300, 1_000], help="(default: 50 300 1000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/few_labels.json"), help="(default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    main()
