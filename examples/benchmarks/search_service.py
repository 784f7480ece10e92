"""The service that the load tests ask: ``POST /search`` on an index of Qdrant, by the exported side of the queries.

``serving.py`` and ``endpoint.py`` use it. The index of documents is in a folder of its own, built with the untouched
encoder.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
from scoring import ndcg_of_run
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from st_asym import EmbeddingCache
from st_asym.data import RetrievalData
from st_asym.export.onnx import graph_encoder

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[Sequence[str]], Vectors]
COLLECTION = "documents"
LONGEST_QUERY, MOST_HITS = 10_000, 100


def build_index(folder: Path, encoder: SentenceTransformer, data: RetrievalData, cache: EmbeddingCache) -> None:
    """Put the documents of a collection into a new index, by the encoder as it is."""
    texts, prompt = list(data.corpus.values()), encoder.prompts.get("document")
    cache.fill(encoder, texts, prompt=prompt, show_progress_bar=True)
    vectors = cache.get(encoder, texts, prompt=prompt)
    shutil.rmtree(folder, ignore_errors=True)
    index = QdrantClient(path=str(folder))
    index.create_collection(COLLECTION, VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
    entries = zip(data.corpus.items(), vectors, strict=True)
    index.upsert(
        COLLECTION,
        [
            PointStruct(id=number, vector=vector.tolist(), payload={"id": document_id, "text": text})
            for number, ((document_id, text), vector) in enumerate(entries)
        ],
    )
    index.close()


def query_encoder(folder: Path) -> Encode:
    """The vectors of queries, by an exported model of either format."""
    if not (folder / "model.onnx").exists():
        return SentenceTransformer(str(folder), local_files_only=True).encode
    settings = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    prompt = settings["prompts"].get(settings["default_prompt_name"], "")
    encode = graph_encoder(folder)
    return lambda texts: encode([prompt + text for text in texts])


def nearest(index: QdrantClient, vector: Iterable[float], top: int) -> list[dict[str, Any]]:
    """The documents nearest to a vector: ``id``, ``text`` and ``score``."""
    points = index.query_points(COLLECTION, query=list(map(float, vector)), limit=top).points
    return [{**(point.payload or {}), "score": point.score} for point in points]


def ndcg(index: QdrantClient, encode: Callable[..., Vectors], data: RetrievalData) -> float:
    """Mean nDCG@10 of the test queries, as the index answers them."""
    judged = data.qrels["test"]
    vectors = encode([data.queries[query_id] for query_id in judged])
    run = {
        query_id: {hit["id"]: hit["score"] for hit in nearest(index, vector, 10)}
        for query_id, vector in zip(judged, vectors, strict=True)
    }
    return float(np.mean([*ndcg_of_run(judged, run).values()]))


def search_app(index: QdrantClient, encode: Encode) -> Starlette:
    """``POST /search`` with ``{"query": ..., "top": 10}`` gives ``{"hits": [{"id", "text", "score"}, ...]}``."""
    # Neither a tokenizer nor the index in a folder may be used by two threads at a time.
    turn = threading.Lock()

    def answer(query: str, top: int) -> list[dict[str, Any]]:
        with turn:
            return nearest(index, encode([query])[0], top)

    async def search(request: Request) -> JSONResponse:
        try:
            asked = await request.json()
            query, top = asked["query"], asked.get("top", 10)
        except (AttributeError, KeyError, TypeError, ValueError):
            return JSONResponse({"error": 'send {"query": "a text", "top": 10}'}, status_code=400)
        if not isinstance(query, str) or not 0 < len(query) <= LONGEST_QUERY:
            return JSONResponse({"error": f"query must be a text of 1 to {LONGEST_QUERY} characters"}, status_code=400)
        if type(top) is not int or not 0 < top <= MOST_HITS:
            return JSONResponse({"error": f"top must be a whole number from 1 to {MOST_HITS}"}, status_code=400)
        return JSONResponse({"hits": await run_in_threadpool(answer, query, top)})

    return Starlette(routes=[Route("/search", search, methods=["POST"])])


@contextmanager
def served(app: Callable[..., Starlette], *arguments: Any) -> Iterator[int]:
    """``app(*arguments)`` in a process of its own, once it listens: its port."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_serve, args=(theirs, app, *arguments))
    process.start()
    theirs.close()  # so that reading ends with the process
    try:
        try:
            port = int(ours.recv())
        except EOFError:
            raise RuntimeError("The service ended before it answered.") from None
        yield port
    finally:
        process.terminate()
        process.join()


def _serve(port: Any, app: Callable[..., Starlette], *arguments: Any) -> None:
    server = uvicorn.Server(uvicorn.Config(app(*arguments), log_level="warning"))
    listening = socket.create_server(("127.0.0.1", 0))
    port.send(listening.getsockname()[1])
    server.run(sockets=[listening])
