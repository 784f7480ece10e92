"""Bad requests to ``st-asym serve``, and its requests per second and p99 beside ``search_service.py``.

    python examples/benchmarks/endpoint.py --output examples/benchmarks/endpoint.json

``st-asym serve`` runs in a process of its own and gets ``--bad`` requests that are broken in some way: each must be
answered with a status of 400 to 499 in OpenAI's form, and a right request afterwards with the model's vectors. Then
four clients, which wait for their answers, send queries to both services in turns. The older service has an index of
ten documents, so that it, too, does little but encode. All of it shares one machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

BadRequest = tuple[str, str, bytes]
PACKAGES = ("st_asym", "sentence-transformers", "torch", "starlette", "uvicorn", "orjson")
EMBEDDINGS = "/v1/embeddings"
JUNK: tuple[Any, ...] = (
    10**9, -1, 0.5, True, [], {}, [[]], [{}], [1, 2], [[1], [2]], ["a", 1], ["a", None], ["a", ""], "", {"a": 1},
    10**30, "\u0000", "\u202e", "\U0001f9ff" * 300, 1e308,
)  # fmt: skip


def main() -> None:
    from packaged_encoder import packaged_encoder
    from python_docs import python_docs
    from search_service import served

    from st_asym import asymmetric_model, export_side

    options = parse_options()
    data = python_docs(300)
    queries = list(data.queries.values())
    model = asymmetric_model(packaged_encoder())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/clicks")
        export_side(model, "query", f"{folder}/query")
        with new_service(Path(folder) / "clicks") as port:
            statuses = send_bad_requests(port, options.bad, options.seed)
            answer = ask(port, EMBEDDINGS, {"model": "clicks-query", "input": queries[:50]})
            found = np.array([row["embedding"] for row in answer["data"]])
            difference = float(np.abs(found - model.encode_query(queries[:50])).max())
            print(json.dumps({"bad requests": statuses, "largest difference afterwards": difference}), flush=True)
            with served(older_app, Path(folder) / "query", list(data.corpus.values())[:10]) as older:
                rows = load_test(port, older, queries, options)
    result = {
        "bad requests": statuses,
        "largest difference afterwards": difference,
        "clients": options.clients,
        "rows": rows,
        "cores": os.cpu_count(),
        "load average": os.getloadavg()[1],
        "versions": {name: version(name) for name in PACKAGES},
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bad", type=int, default=1000, help="how many bad requests (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of a service in a round (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    return parser.parse_args()


def bad_requests(rng: random.Random, name: str) -> Iterator[BadRequest]:
    """Requests without end, as method, path and body, none of which may be answered with vectors."""

    def body(**changed: Any) -> bytes:
        return json.dumps({"model": f"{name}-query", "input": "red", **changed}).encode()

    def with_junk() -> bytes:
        field = rng.choice(["model", "input", "encoding_format", "dimensions", "input_type", "texts", "task"])
        texts = [value for value in JUNK if isinstance(value, str)]
        allowed = [value for value in JUNK if not (field == "input" and value in texts and value)]
        return body(**{field: rng.choice(allowed)})

    kinds: list[Callable[[], BadRequest]] = [
        lambda: ("POST", EMBEDDINGS, body()[: rng.randrange(len(body()))]),
        lambda: ("POST", EMBEDDINGS, rng.randbytes(rng.randrange(300))),
        lambda: ("POST", EMBEDDINGS, with_junk()),
        lambda: ("POST", EMBEDDINGS, body(dimensions=rng.choice([float("nan"), float("inf"), -(10**400), 10**7]))),
        lambda: ("POST", EMBEDDINGS, body(input=["a"] * rng.randrange(2049, 30_000))),
        lambda: ("POST", EMBEDDINGS, body(input=list(range(rng.randrange(1, 5000))))),
        lambda: ("POST", EMBEDDINGS, body(input="red \ud800" + rng.choice(["", "\udbff", "a", "\ud800" * 99]))),
        lambda: ("POST", EMBEDDINGS, body().decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))),
        lambda: ("POST", EMBEDDINGS, body().replace(b"red", rng.choice([b"\xff\xfe", b"\xc0\x80", b"\x00", b'"']))),
        lambda: ("POST", EMBEDDINGS, rng.choice([b"[", b'{"input":']) * rng.choice([10, 2000, 100_000])),
        lambda: ("POST", EMBEDDINGS, body(model=rng.choice([name, f"{name}-querY", f"{name}-", "../" * 9]))),
        lambda: ("POST", EMBEDDINGS, body(input="a" * rng.randrange(9 << 20, 10 << 20)) if rng.random() < 0.1 else b""),
        lambda: (rng.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "ODD"]), EMBEDDINGS, body()),
        lambda: ("POST", rng.choice(["/", "/health", "/v1/models", "/v1/embedding", "/%00", "/v1/%ff", "//"]), body()),
    ]
    while True:
        yield rng.choice(kinds)()


def send_bad_requests(port: int, count: int, seed: int) -> dict[str, int]:
    """How many were answered with which status; an error if one was not refused in OpenAI's form."""
    statuses: dict[str, int] = {}
    requests = bad_requests(random.Random(seed), "clicks")  # noqa: S311 - the same each time
    for number, (method, path, body) in zip(range(count), requests, strict=False):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read()
        refused = 400 <= answer.status < 500 and (method == "HEAD" or set(json.loads(text)) == {"error"})
        if not refused:
            raise RuntimeError(f"Bad request {number}, {method} {path} {body[:99]!r}: {answer.status} {text[:300]!r}")
        statuses[str(answer.status)] = statuses.get(str(answer.status), 0) + 1
    return statuses


def load_test(port: int, older: int, queries: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Requests per second (median of rounds), p50 and p99 (of all answers, in milliseconds) by service."""
    services: dict[str, Callable[[str], Any]] = {
        "search_service.py": lambda query: ask(older, "/search", {"query": query, "top": 10}),
        "st-asym serve": lambda query: ask(port, EMBEDDINGS, {"model": "clicks-query", "input": query}),
    }
    rates: dict[str, list[float]] = {name: [] for name in services}
    taken: dict[str, list[float]] = {name: [] for name in services}
    for round_ in range(-1, options.rounds):  # the first is a warm-up
        for name, service in services.items():
            started = time.monotonic()
            found = together(service, queries, options.clients, started + options.seconds)
            if round_ >= 0:
                rates[name].append(len(found) / (time.monotonic() - started))
                taken[name] += found
    return {
        name: {
            "requests per second": round(float(np.median(rates[name])), 1),
            "p50 ms": round(float(np.percentile(taken[name], 50)) * 1e3, 1),
            "p99 ms": round(float(np.percentile(taken[name], 99)) * 1e3, 1),
            "answered": len(taken[name]),
        }
        for name in services
    }


def together(service: Callable[[str], Any], queries: list[str], clients: int, deadline: float) -> list[float]:
    """Seconds of each answer, until the deadline."""

    def client(number: int) -> list[float]:
        taken: list[float] = []
        while (started := time.monotonic()) < deadline:
            service(queries[(number + clients * len(taken)) % len(queries)])
            taken.append(time.monotonic() - started)
        return taken

    with ThreadPoolExecutor(clients) as pool:
        return [seconds for part in pool.map(client, range(clients)) for seconds in part]


def ask(port: int, path: str, body: dict[str, Any]) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        found = json.loads(answer.read())
    if answer.status != 200:
        raise RuntimeError(f"The service answered {answer.status}: {found}")
    return found


@contextmanager
def new_service(model: Path) -> Iterator[int]:
    """``st-asym serve`` in a process of its own: its port."""
    command = [sys.executable, "-m", "st_asym", "serve", str(model), "--port", "0", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        yield int(line.partition("127.0.0.1:")[2].partition("/")[0])
        if process.poll() is not None:
            raise RuntimeError("The service has ended.")
    finally:
        process.terminate()
        process.wait()


def older_app(model: Path, documents: list[str]) -> Any:
    """The app of ``search_service.py`` on an index of a few documents in memory."""
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams
    from search_service import COLLECTION, query_encoder, search_app

    encode = query_encoder(model)
    vectors = encode(documents)
    index = QdrantClient(":memory:")
    index.create_collection(COLLECTION, VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
    index.upsert(COLLECTION, [PointStruct(id=i, vector=vector.tolist()) for i, vector in enumerate(vectors)])
    return search_app(index, encode)


if __name__ == "__main__":
    main()
