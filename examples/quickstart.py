"""Fit heads to the documentation of the Python packages that are installed here, and compare with the bare encoder.

    python examples/quickstart.py                                   # about three minutes on two cores, no network
    python examples/quickstart.py --data scifact.zip                # a BEIR folder or zip
    python examples/quickstart.py --data pairs.jsonl --encoder BAAI/bge-small-en-v1.5

Each text is encoded once. The folder given by ``--output`` receives the model, its report, and ``results.json``;
``search.py`` then loads the model in a process of its own that cannot import st_asym.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from packaged_encoder import packaged_encoder
from python_docs import python_docs

from st_asym import EmbeddingCache, evaluate, fit
from st_asym.data import load_data


def main() -> None:
    options = parse_options()
    data = (load_data(options.data) if options.data else python_docs(options.pairs)).with_dev_split()
    if not all(data.qrels.get(split) and data.relevant(split) for split in ("train", "dev", "test")):
        sys.exit("The data lack train, dev or test queries with a relevant document: give at least about 30 pairs.")
    encoder = options.encoder or packaged_encoder()
    cache = EmbeddingCache(options.cache)

    result = fit(encoder, data, output_dir=options.output / "model", cache=cache, seed=options.seed)
    print(f"\n{result.report}\n")

    models = {"untouched encoder": encoder, "fit": str(options.output / "model")}
    name = options.data.stem if options.data else "docstrings"
    comparison = evaluate(models, {name: data}, cache=cache, train=data, results=None)
    comparison.to_json(options.output / "results.json")
    print(comparison)

    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("search.py")), str(options.output / "model")], check=True
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a BEIR folder or zip, or a .jsonl, .csv or .tsv of query and document"
    )
    parser.add_argument("--encoder", help="a Hub id or path; the packaged all-MiniLM-L6-v2 if not given")
    parser.add_argument("--pairs", type=int, default=3_000, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
