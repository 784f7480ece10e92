r"""Heads for the vectors of an embeddings API: embed, fit, apply, search.

    pip install -c constraints.txt ".[demo]" && python examples/embeddings_api.py
    OPENAI_API_KEY=... python examples/embeddings_api.py --base-url https://api.openai.com/v1 \
        --model text-embedding-3-small

Without ``--base-url`` a stand-in on 127.0.0.1 answers, and nothing is downloaded. Queries and documents are sent alike:
the heads make the difference. What is stored are the API's own vectors; a query costs one request and one product.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from sentence_transformers import SentenceTransformer

from st_asym import Heads, fit_vectors

Vectors = np.ndarray[Any, np.dtype[np.float32]]
AT_ONCE = 64
QUERY = "Sort an array along an axis."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="of an API with /embeddings as OpenAI's; a stand-in if left out")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/embeddings_api"), help="(default: %(default)s)")
    options = parser.parse_args()
    if options.base_url:
        run(options.base_url, options.model, options.output)
        return
    with stand_in(SentenceTransformer(packaged_encoder()).encode) as url:
        run(url, options.model, options.output)


def run(url: str, model: str, output: Path, pairs: int = 200) -> None:
    data = python_docs(pairs)
    output.mkdir(parents=True, exist_ok=True)
    rows, columns = list(data.qrels["train"]), list(data.corpus)
    queries = embed(url, model, [data.queries[key] for key in rows])
    stored = output / "documents.npy"
    np.save(stored, embed(url, model, list(data.corpus.values())))
    result = fit_vectors(queries, stored, data.qrels["train"], query_ids=rows, document_ids=columns)
    print(result.report.first_line)
    if result.report.kept:
        result.save(output / "heads")
        heads = Heads.load(output / "heads")
        index = heads.document(np.load(stored))
        best = search(url, model, QUERY, heads, index)[0]
        print(f"{QUERY} -> {data.corpus[columns[best]][:80]}")


def embed(url: str, model: str, texts: Sequence[str]) -> Vectors:
    """The vectors of an API, in the order of the texts."""
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        body = json.dumps({"model": model, "input": list(texts[start : start + AT_ONCE])}).encode()
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}",
        }
        request = urllib.request.Request(f"{url}/embeddings", body, headers)  # noqa: S310 - the user's own address
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            entries = json.load(answer)["data"]
        parts += [entry["embedding"] for entry in sorted(entries, key=lambda entry: entry["index"])]
    return np.array(parts, dtype=np.float32)


def search(url: str, model: str, query: str, heads: Heads, index: Vectors, top: int = 10) -> list[int]:
    """Rows of the documents nearest to a query: one request, the query's head, one product."""
    found = index @ heads.query(embed(url, model, [query])[0])
    best: list[int] = np.argsort(-found)[:top].tolist()
    return best


@contextmanager
def stand_in(encode: Callable[[list[str]], Any]) -> Iterator[str]:
    """An API on 127.0.0.1 that gives the vectors of ``encode``; its base address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            vectors = np.asarray(encode(asked["input"])).tolist()
            entries = [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(vectors)]
            body = json.dumps({"object": "list", "model": asked["model"], "data": entries}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
