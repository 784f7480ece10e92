"""Scores of a model on BEIR, beside its untouched encoder: MTEB's own, with intervals and p-values.

    python examples/evaluate_beir.py --model my-model                          # five sets, read from the Hub
    python examples/evaluate_beir.py --model my-model scifact.zip nfcorpus     # BEIR zips or folders on disk

A model with heads is compared with its encoder without them; without ``--model``, the encoder alone is evaluated. The
folder given by ``--output`` receives ``beir.md``, ``beir.json`` and the scores of every query: run it again, and what
was evaluated is read from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from packaged_encoder import packaged_encoder

from st_asym import evaluate

FIVE = ["SciFact", "NFCorpus", "ArguAna", "FiQA2018", "SCIDOCS"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"BEIR folders or zips, or tasks of MTEB (default: {' '.join(FIVE)})")
    parser.add_argument("--model", help="path or Hub id (default: the packaged all-MiniLM-L6-v2)")
    parser.add_argument("--train", help="what the model was trained on, to tell queries on known documents from others")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/evaluate_beir"), help="(default: %(default)s)")
    options = parser.parse_args()

    model = options.model or packaged_encoder()
    comparison = evaluate(
        {Path(model).name: model},
        options.data or FIVE,
        cache=options.cache,
        results=options.output / "scores",
        train=options.train,
    )
    print(comparison)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "beir.md").write_text(comparison.to_markdown(), encoding="utf-8")
    comparison.to_json(options.output / "beir.json")


if __name__ == "__main__":
    main()
