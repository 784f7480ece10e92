"""Several systems in one table, several seeds of a system as one row with their spread.

    python examples/compare_systems.py                                         # fits two systems on docstrings first
    python examples/compare_systems.py scifact.zip nfcorpus --system heads=model-0,model-1 --system other=model-2

The models of a system are given by path or Hub id. Without ``--system``, heads on both sides and on the query side
alone are fitted with the seeds of ``--seeds``, to the training queries of the first collection.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from packaged_encoder import packaged_encoder
from python_docs import python_docs

from st_asym import Settings, evaluate, fit
from st_asym.data import RetrievalData, load_data

SYSTEMS: dict[str, Literal["both", "query"]] = {"both sides": "both", "query side": "query"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path, help="BEIR folders or zips, or files of pairs")
    parser.add_argument("--system", action="append", metavar="NAME=MODEL,...", help="once for each system")
    parser.add_argument("--pairs", type=int, default=4_000, help="of docstrings (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/compare_systems"), help="(default: %(default)s)")
    options = parser.parse_args()

    data = {path.stem: load_data(path) for path in options.data} or {"docstrings": python_docs(options.pairs)}
    first, *_ = data.values()
    systems: dict[str, Any] = {"untouched encoder": packaged_encoder()}
    systems |= given(options.system) if options.system else fitted(first, options)
    comparison = evaluate(
        systems,
        data,
        cache=options.cache,
        results=options.output / "scores",
        train=None if options.system else first,  # of models that are given, nobody said what they were trained on
        compressed=("int8", "binary"),
    )
    print(comparison)
    comparison.to_json(options.output / "comparison.json")


def given(entries: list[str]) -> dict[str, list[str]]:
    return {name: models.split(",") for name, _, models in (entry.partition("=") for entry in entries)}


def fitted(data: RetrievalData, options: argparse.Namespace) -> dict[str, dict[int, Path]]:
    """Name to seed to model. The test queries of the data are not trained on."""
    found: dict[str, dict[int, Path]] = {name: {} for name in SYSTEMS}
    for name, sides in SYSTEMS.items():
        for seed in options.seeds:
            found[name][seed] = options.output / f"{sides}-{seed}"
            result = fit(
                packaged_encoder(),
                data,
                output_dir=found[name][seed],
                settings=Settings(sides=sides),
                cache=options.cache,
                seed=seed,
                show_progress_bar=False,
            )
            print(f"{name}, seed {seed}: {result.report.first_line}")
    return found


if __name__ == "__main__":
    main()
