"""What heads are worth with few labelled queries: by start and loss, and as ``fit`` decides.

    python examples/benchmarks/few_labels.py                      # stopped, it goes on where it was
    python examples/benchmarks/few_labels.py --collections scifact --queries 50
    python examples/benchmarks/few_labels.py --dev 0.2 --queries 125 500

So many training queries of a collection are drawn and labelled. The others, at most 1,500, are the test: test splits
are not looked at. Each way is trained to its end without a gate; the last row is ``fit`` with its defaults. With
``--dev``, a share of the labelled queries is a dev split, and ``fit`` is the only row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from journal import Journal
from nine_collections import PACKAGES, SOURCES, Bench, begun, parser_of, share, with_dev_in_train, write_figures

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
    parser = parser_of(__doc__, "few_labels", seeds=[0])
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 300, 1_000], help="(default: 50 300 1000)")
    parser.add_argument("--dev", type=share, default=0.0, help="the share of them that is a dev split (default: 0)")
    options = parser.parse_args()
    ways = {} if options.dev else WAYS
    encoder, cache = begun(options)
    journal = Journal(options.output.with_suffix(".jsonl"))
    for count in options.queries:
        for name in options.collections:
            whole = SOURCES[name](options.data)
            for seed in options.seeds:
                data = labelled(whole, count, seed, options.dev)
                if data is None:
                    continue
                bench = Bench(named(name, count, options.dev), data, encoder, cache)
                for row, settings in ways.items():
                    make = partial(bench.candidate, candidates(settings, count)[-1])
                    bench.measure("few labels", row, make, [seed], journal)
                bench.measure("few labels", "fit", bench.fitted, [seed], journal)
    print_gains(options, journal, [*ways, "fit"])
    write_figures(options, {"entries": [*journal.entries.values()]}, PACKAGES)


def named(name: str, count: int, dev: float) -> str:
    """What the collection is called with so many labelled queries, a share of them as dev."""
    return f"{name}, {count}" + (f", {dev:g} of them dev" if dev else "")


def labelled(whole: RetrievalData, count: int, seed: int, dev: float) -> RetrievalData | None:
    """So many queries to train on, a share of them as dev, and others to judge by; None without twice as many."""
    qrels = with_dev_in_train(whole).qrels["train"]
    drawn = np.random.default_rng(seed).permutation(sorted(qrels)).tolist()
    if len(drawn) < 2 * count:
        return None
    few = round((1 - dev) * count)
    splits = {"train": drawn[:few], "dev": drawn[few:count], "test": drawn[count : count + TEST]}
    return replace(whole, qrels={split: {key: qrels[key] for key in keys} for split, keys in splits.items() if keys})


def print_gains(options: argparse.Namespace, journal: Journal, rows: Sequence[str]) -> None:
    """Over the untouched encoder, the mean over seeds."""
    print(f"| labelled queries | {' | '.join(rows)} |\n{'|---' * (len(rows) + 1)}|")
    for count in options.queries:
        gains: list[list[float]] = []
        for name in options.collections:
            found = [journal.of("few labels", row, named(name, count, options.dev)) for row in rows]
            if all(found):
                gains.append([float(np.mean([entry["all, to untouched"] for entry in own])) for own in found])
                print(f"| {count} of {name} | {' | '.join(f'{one:+.4f}' for one in gains[-1])} |")
        if gains:
            print(f"| {count}, mean | {' | '.join(f'{one:+.4f}' for one in np.mean(gains, axis=0))} |", flush=True)


if __name__ == "__main__":
    main()
