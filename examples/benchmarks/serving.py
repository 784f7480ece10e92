"""Requests per second and p99 of ``search_service.py``: the bare encoder, and the head in each format of export.

    python examples/benchmarks/serving.py --output examples/benchmarks/serving.json

One service on 127.0.0.1 with one index answers for every model of queries, under a path of its own. In each round each
model gets ``--requests`` test queries from ``--clients`` threads, which wait for their answers, so that all models meet
the same load of the machine, which clients, service and index share. Medians over rounds; p99 over all answers. CPU
time is that of the service's process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from qdrant_client import QdrantClient
from search_service import build_index, ndcg, query_encoder, search_app, served
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from st_asym import EmbeddingCache, Settings, export_side, fit
from st_asym.data import RetrievalData, load_data

PACKAGES = ("st_asym", "sentence-transformers", "torch", "onnxruntime", "qdrant-client", "starlette", "uvicorn")
WARM_UP = 20
EXPORTS: dict[tuple[str, str], dict[str, Any]] = {
    ("bare encoder", "sentence-transformers"): {},
    ("bare encoder", "onnx"): {"format": "onnx"},
    ("linear head", "sentence-transformers"): {},
    ("head", "sentence-transformers"): {},
    ("head", "onnx"): {"format": "onnx"},
    ("head", "onnx, int8"): {"format": "onnx", "int8": True},
}
Measured = dict[str, list[float]]


def main() -> None:
    options = parse_options()
    data = load_data(options.data) if options.data else python_docs(options.pairs)
    folder: Path = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    rows = exported(folder, data, options)
    queries = [data.queries[query_id] for query_id in data.qrels["test"]]
    with served(every_model, folder, len(rows)) as port:
        for path, measured in measure(port, queries, len(rows), options).items():
            rows[path] |= summary(measured)
    print_table(rows)
    if options.output:
        result = {
            "data": options.data.stem if options.data else "python_docs",
            "documents": len(data.corpus),
            "test queries": len(queries),
            **{name: getattr(options, name) for name in ("rounds", "requests", "clients")},
            "cores": os.cpu_count(),
            "load average": os.getloadavg()[1],
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "versions": {name: version(name) for name in PACKAGES},
            "rows": rows,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a BEIR folder or zip, or a JSONL of query and positive")
    parser.add_argument("--pairs", type=int, default=2_000, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="in a round, by model (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="cut a model's round short then (default: %(default)s)"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/serving"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    return parser.parse_args()


def exported(folder: Path, data: RetrievalData, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit, write the index and every export; a row for each, with size, agreement and score."""
    encoder = SentenceTransformer(packaged_encoder())
    build_index(folder / "index", encoder, data, EmbeddingCache(options.cache))
    models = {"bare encoder": encoder}
    settings = {"head": Settings(sides="query"), "linear head": Settings("query", hidden_features=None, bias=False)}
    for name, chosen in settings.items():
        models[name] = fit(encoder, data, output_dir=folder / name, settings=chosen, cache=options.cache).model
    rows: list[dict[str, Any]] = []
    with closing(QdrantClient(path=str(folder / "index"))) as index:
        for number, ((name, format_), arguments) in enumerate(EXPORTS.items()):
            export = export_side(models[name], "query", folder / str(number), **arguments)
            row = {
                "queries": name,
                "format": format_,
                "megabytes": export.size / 1e6,
                "largest difference": export.agreement.difference,
                "lowest cosine": export.agreement.cosine,
                "not served": export.not_served,
                "ndcg@10": ndcg(index, query_encoder(folder / str(number)), data),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def measure(port: int, queries: list[str], models: int, options: argparse.Namespace) -> dict[int, Measured]:
    """Ask all models, round by round."""
    found: dict[int, Measured] = {model: {"seconds": [], "rate": [], "cpu": []} for model in range(models)}
    for round_ in range(-1, options.rounds):  # the first is a warm-up
        for model, measured in found.items():
            count = WARM_UP if round_ < 0 else options.requests
            asked = [queries[(round_ * count + i) % len(queries)] for i in range(count)]
            cpu, started = cpu_seconds(port), time.monotonic()
            taken = together(port, model, asked, options.clients, started + options.seconds)
            if round_ >= 0:
                measured["rate"].append(len(taken) / (time.monotonic() - started))
                measured["cpu"].append((cpu_seconds(port) - cpu) / len(taken))
                measured["seconds"] += taken
    return found


def summary(measured: Measured) -> dict[str, float]:
    p50, p99 = np.percentile(measured["seconds"], [50, 99]) * 1e3
    return {
        "answered": len(measured["seconds"]),
        "requests per second": float(np.median(measured["rate"])),
        "p50 ms": float(p50),
        "p99 ms": float(p99),
        "cpu ms per request": float(np.median(measured["cpu"]) * 1e3),
    }


def together(port: int, model: int, queries: list[str], clients: int, deadline: float) -> list[float]:
    """Send queries from several clients at a time; seconds of each answer."""
    with ThreadPoolExecutor(clients) as pool:
        parts = pool.map(lambda client: ask(port, model, queries[client::clients], deadline), range(clients))
        return [seconds for part in parts for seconds in part]


def ask(port: int, model: int, queries: list[str], deadline: float) -> list[float]:
    """Send queries one after the other; seconds of each answer."""
    taken = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for query in queries:
            if time.monotonic() > deadline:
                break
            started = time.perf_counter()
            connection.request("POST", f"/{model}/search", json.dumps({"query": query, "top": 10}))
            answer = connection.getresponse()
            hits = json.loads(answer.read())
            taken.append(time.perf_counter() - started)
            if answer.status != 200 or len(hits["hits"]) != 10:
                raise RuntimeError(f"The service answered {answer.status}: {hits}")
    return taken


def cpu_seconds(port: int) -> float:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/cpu")
        return float(connection.getresponse().read())


def every_model(folder: Path, models: int) -> Starlette:
    """A search by each exported model, under its number, and ``/cpu``: the seconds of the process."""
    index = QdrantClient(path=str(folder / "index"))

    async def cpu(_: Request) -> JSONResponse:
        return JSONResponse(time.process_time())

    apps = [Mount(f"/{n}", search_app(index, query_encoder(folder / str(n)))) for n in range(models)]
    return Starlette(routes=[Route("/cpu", cpu), *apps])


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        "\n| queries | format | MB | lowest cosine | nDCG@10 | CPU ms per request | requests per second | p50, p99 ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        quality = f"{row['lowest cosine']:.4f} | {row['ndcg@10']:.3f}"
        speed = f"{row['cpu ms per request']:.0f} | {row['requests per second']:.0f}"
        waiting = f"{row['p50 ms']:.0f}, {row['p99 ms']:.0f}"
        print(f"| {row['queries']} | {row['format']} | {row['megabytes']:.0f} | {quality} | {speed} | {waiting} |")


if __name__ == "__main__":
    main()
