"""Requests per second and p99 of the service of ``serve.py``: the bare encoder, and the head in each format of export.

    python examples/benchmarks/serving.py --output examples/benchmarks/serving.json

The same index and the same service, on 127.0.0.1, for each model of queries: a warm-up, then ``--requests`` test
queries from ``--clients`` threads, each of which waits for its answer. Clients, service and index share the machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import sys
import threading
import time
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import uvicorn
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from qdrant_client import QdrantClient
from sentence_transformers import SentenceTransformer
from serve import build_index, ndcg, query_encoder, search_app

from st_asym import EmbeddingCache, Settings, export_side, fit
from st_asym.data import load_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st_asym.data import RetrievalData

PACKAGES = ("st_asym", "sentence-transformers", "torch", "onnxruntime", "qdrant-client", "starlette", "uvicorn")
WARM_UP = 20
FORMATS: dict[str, dict[str, Any]] = {
    "sentence-transformers": {},
    "onnx": {"format": "onnx"},
    "onnx, int8": {"format": "onnx", "int8": True},
}


def main() -> None:
    options = parse_options()
    data = load_data(options.data) if options.data else python_docs(options.pairs)
    encoder = SentenceTransformer(packaged_encoder())
    folder: Path = options.folder
    build_index(folder / "index", encoder, data, EmbeddingCache(options.cache))
    kinds = {"head": Settings(sides="query"), "linear head": Settings(sides="query", hidden_features=None, bias=False)}
    models = {"bare encoder": encoder}
    for name, settings in kinds.items():
        output = folder / name.replace(" ", "-")
        models[name] = fit(encoder, data, output_dir=output, settings=settings, cache=options.cache).model

    rows = []
    for name, model in models.items():
        for format_, arguments in FORMATS.items():
            shutil.rmtree(folder / "query", ignore_errors=True)
            export = export_side(model, "query", folder / "query", **arguments)
            row = {
                "queries": name,
                "format": format_,
                "megabytes": export.size / 1e6,
                "largest difference": export.agreement.difference,
                "lowest cosine": export.agreement.cosine,
                "not served": export.not_served,
                "ndcg@10": judged(folder, data),
                **load(folder, data, options),
                "load average": os.getloadavg()[0],
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    print_table(rows)
    if options.output:
        result = {
            "data": options.data.stem if options.data else "python_docs",
            "documents": len(data.corpus),
            "test queries": len(data.qrels["test"]),
            "requests": options.requests,
            "clients": options.clients,
            "cores": os.cpu_count(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "versions": {name: version(name) for name in PACKAGES},
            "rows": rows,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a BEIR folder or zip, or a JSONL of query and positive")
    parser.add_argument("--pairs", type=int, default=2_000, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=500, help="for each model (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="stop a load test then (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/serving"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    return parser.parse_args()


def judged(folder: Path, data: RetrievalData) -> float:
    with closing(QdrantClient(path=str(folder / "index"))) as index:
        return ndcg(index, query_encoder(folder / "query"), data)


def load(folder: Path, data: RetrievalData, options: argparse.Namespace) -> dict[str, float]:
    """Requests per second, and milliseconds from a request to its answer."""
    queries = [data.queries[query_id] for query_id in data.qrels["test"]]
    with service(folder) as port:
        ask(port, queries[:WARM_UP])
        parts = [
            [queries[i % len(queries)] for i in range(client, options.requests, options.clients)]
            for client in range(options.clients)
        ]
        deadline = time.monotonic() + options.seconds
        taken: list[float] = []
        threads = [threading.Thread(target=lambda part=part: taken.extend(ask(port, part, deadline))) for part in parts]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.monotonic() - started
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return {"answered": len(taken), "requests per second": len(taken) / elapsed, "p50 ms": p50, "p99 ms": p99}


def ask(port: int, queries: list[str], deadline: float = float("inf")) -> list[float]:
    """Send queries one after the other; seconds of each answer."""
    taken = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for query in queries:
            if time.monotonic() > deadline:
                break
            started = time.perf_counter()
            connection.request("POST", "/search", json.dumps({"query": query, "top": 10}))
            answer = connection.getresponse()
            hits = json.loads(answer.read())
            taken.append(time.perf_counter() - started)
            if answer.status != 200 or len(hits["hits"]) != 10:
                raise RuntimeError(f"The service answered {answer.status}: {hits}")
    return taken


@contextmanager
def service(folder: Path) -> Iterator[int]:
    """The service in a process of its own, once it answers: its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, port))
    process.start()
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if not process.is_alive():
                raise RuntimeError("The service ended before it answered.")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.join()


def serve(folder: Path, port: int) -> None:
    app = search_app(QdrantClient(path=str(folder / "index")), query_encoder(folder / "query"))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def print_table(rows: list[dict[str, Any]]) -> None:
    print("\n| queries | format | MB | lowest cosine | nDCG@10 | requests per second | p50, p99 ms |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        speed = f"{row['requests per second']:.0f} | {row['p50 ms']:.0f}, {row['p99 ms']:.0f}"
        quality = f"{row['lowest cosine']:.4f} | {row['ndcg@10']:.3f}"
        print(f"| {row['queries']} | {row['format']} | {row['megabytes']:.0f} | {quality} | {speed} |")


if __name__ == "__main__":
    main()
