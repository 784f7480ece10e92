"""What ``fit`` costs where vectors are cached: seconds on three collections, and memory for 88 thousand pairs.

    pip install bm25s nudge-ft
    python examples/benchmarks/fit_cost.py

Beside the seconds of the last training stands its limit: what the matrix products of its steps through the heads would
take at the speed that this machine multiplies matrices of their shape. Memory is that of ``fit_vectors`` on vectors in
files, over the process before and over the vectors themselves; what they say does not matter to it, so they are random.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from memory import resident
from nine_collections import PACKAGES, SHARED, SOURCES, begun
from sentence_transformers import SentenceTransformer

from st_asym import EmbeddingCache, fit
from st_asym.data import RetrievalData
from st_asym.fitting.fit_vectors import fit_vectors

DIMENSION = 384
# Vectors that go through a head in a step: the queries, their documents, the documents that are drawn.
VECTORS_PER_STEP = 256 + 256 + 1_024
# Products of a vector with a layer's weights: two forward, two for the gradient of weights, one for that of the input.
PRODUCTS = 5
# Three collections of one kind, together about 10 thousand queries over 10 thousand documents.
JOINED = ("docstrings", "medquad", "scitldr")


def main() -> None:
    options = parse_options()
    if options.folder:
        print(json.dumps(memory(options.folder)))
        return
    encoder, cache = begun(options)
    collections = {name: SOURCES[name](options.data) for name in ("scifact", "feedbackqa")}
    collections[" + ".join(JOINED)] = joined({name: SOURCES[name](options.data) for name in JOINED})
    fastest = speed()
    found: dict[str, Any] = {"threads": options.threads, "GFLOP per second": round(fastest)}
    print("| collection | queries, documents | seconds | of which rehearsing, training (limit) |\n|---|---|---|---|")
    for name, data in collections.items():
        cost = found[name] = seconds(encoder, data, cache, fastest)
        print(
            f"| {name} | {cost['queries']:,}, {cost['documents']:,} | {cost['seconds']:.1f} | "
            f"{cost['stages'].get('rehearse', 0):.1f}, {cost['stages'].get('train', 0):.1f} ({cost['limit']:.1f}) |",
            flush=True,
        )
    found["memory"] = in_a_process_of_its_own(options.pairs)
    print(f"\n{options.pairs:,} pairs: {found['memory']['megabytes']:.0f} MB over the vectors themselves")
    found["versions"] = {name: version(name) for name in PACKAGES}
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of the zips and of pairs/")
    parser.add_argument("--pairs", type=int, default=88_000, help="for the memory (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/fit_cost.json"), help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def joined(parts: dict[str, RetrievalData]) -> RetrievalData:
    """Collections as one, all their queries to train on."""
    queries, corpus, train = dict[str, str](), dict[str, str](), dict[str, dict[str, int]]()
    for name, data in parts.items():
        queries |= {f"{name} {key}": text for key, text in data.queries.items()}
        corpus |= {f"{name} {key}": text for key, text in data.corpus.items()}
        judged = [item for split in data.qrels.values() for item in split.items()]
        train |= {f"{name} {query}": {f"{name} {key}": grade for key, grade in own.items()} for query, own in judged}
    return RetrievalData(queries, corpus, {"train": train})


def seconds(encoder: SentenceTransformer, data: RetrievalData, cache: EmbeddingCache, fastest: float) -> dict[str, Any]:
    """Of a ``fit`` whose vectors are in the cache, and the limit of its last training, with heads on both sides."""
    for texts, task in ((data.queries, "query"), (data.corpus, "document")):
        cache.fill(encoder, list(texts.values()), prompt=encoder.prompts.get(task), task=task)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = fit(encoder, data, output_dir=Path(folder, "model"), cache=cache, show_progress_bar=False)
    count = len(data.qrels["train"])
    steps = (result.report.chosen.choice.epoch if result.report.chosen else 0) * -(-count // 256)
    products = steps * VECTORS_PER_STEP * PRODUCTS
    return {
        "queries": count,
        "documents": len(data.corpus),
        "seconds": round(time.perf_counter() - started, 1),
        "stages": {stage: round(value, 1) for stage, value in result.report.seconds.items()},
        "limit": round(products * 2 * DIMENSION * 2 * DIMENSION / fastest / 1e9, 1),
        "first line": result.report.first_line,
    }


def speed() -> float:
    """GFLOP per second of products as a step has them: 1,024 vectors through the first layer of a head."""
    vectors, weights = torch.randn(1024, DIMENSION), torch.randn(DIMENSION, 2 * DIMENSION)
    for _ in range(20):
        vectors @ weights
    started, count = time.perf_counter(), 200
    for _ in range(count):
        vectors @ weights
    return count * 2 * vectors.numel() * 2 * DIMENSION / (time.perf_counter() - started) / 1e9


def in_a_process_of_its_own(pairs: int) -> dict[str, Any]:
    """The memory that vectors of so many pairs are fitted in."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("queries", "documents"):
            np.save(Path(folder, f"{name}.npy"), random.standard_normal((pairs, DIMENSION), dtype=np.float32))
        command = [sys.executable, __file__, "--folder", folder]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def memory(folder: Path) -> dict[str, Any]:
    """The most that was resident, over what was before and over the vectors."""
    queries, documents = folder / "queries.npy", folder / "documents.npy"
    pairs = len(np.load(queries, mmap_mode="r"))
    fit_vectors(np.eye(64), np.eye(64), {row: [row] for row in range(64)}, show_progress_bar=False)  # what it imports
    # That of ``resource.getrusage`` begins with what the process that started this one had.
    before = resident("VmHWM")["VmHWM"]
    started = time.perf_counter()
    fit_vectors(queries, documents, {row: [row] for row in range(pairs)}, show_progress_bar=False)
    peak = resident("VmHWM")["VmHWM"]
    vectors = 2 * pairs * DIMENSION * 4
    return {
        "pairs": pairs,
        "megabytes": round((peak - before - vectors) / 1e6),
        "megabytes of vectors": round(vectors / 1e6),
        "seconds": round(time.perf_counter() - started),
    }


if __name__ == "__main__":
    main()
