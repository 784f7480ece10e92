"""Better queries for a vector index that stays as it is, behind a small HTTP service.

    pip install -c constraints.txt ".[demo,onnx,serve]" && python examples/serve.py --port 8000
    curl -d '{"query": "Sort an array along an axis.", "top": 3}' http://127.0.0.1:8000/search

An index of documents (Qdrant, in a folder of its own) is built with the untouched encoder, once. A head for queries
alone is fitted to training queries and exported as a plain model; the index is opened again and not written to. nDCG@10
of the test queries, as the index answers them, is printed before and after. The default collection is docstrings of
installed packages (python_docs.py). Nothing is downloaded; without ``--port`` nothing is served.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
import torch
import uvicorn
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from st_asym import EmbeddingCache, Settings, export_side, fit
from st_asym.data import RetrievalData, load_data

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[Sequence[str]], Vectors]
COLLECTION = "documents"
LONGEST_QUERY, MOST_HITS = 10_000, 100


def main() -> None:
    options = parse_options()
    data = load_data(options.data) if options.data else python_docs(options.pairs)
    encoder = SentenceTransformer(packaged_encoder())
    build_index(options.output / "index", encoder, data, EmbeddingCache(options.cache))
    linear = Settings(sides="query", hidden_features=None, bias=False)
    settings = linear if options.linear else Settings(sides="query")
    result = fit(
        encoder, data, output_dir=options.output / "model", settings=settings, cache=options.cache, seed=options.seed
    )
    print(result.report.first_line)
    shutil.rmtree(options.output / "query", ignore_errors=True)
    print(export_side(result.model, "query", options.output / "query", format=options.format))

    index = QdrantClient(path=str(options.output / "index"))
    encode = query_encoder(options.output / "query")
    print("\n| queries | nDCG@10 |\n|---|---|")
    print(f"| untouched encoder | {ndcg(index, encoder.encode_query, data):.3f} |")
    print(f"| with the head, same index | {ndcg(index, encode, data):.3f} |")
    if options.port is not None:
        uvicorn.run(search_app(index, encode), host="127.0.0.1", port=options.port, log_level="warning")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a BEIR folder or zip, or a .jsonl, .csv or .tsv of query and document"
    )
    parser.add_argument("--pairs", type=int, default=2_000, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--linear", action="store_true", help="one matrix, which other servers run, see export_side")
    parser.add_argument(
        "--format", choices=["sentence-transformers", "onnx"], default="onnx", help="of the queries' model"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/serve"), help="(default: %(default)s)")
    parser.add_argument("--port", type=int, help="serve on 127.0.0.1 until stopped")
    return parser.parse_args()


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
    import onnxruntime
    from tokenizers import Tokenizer

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(read("sentence_bert_config.json")["max_seq_length"])
    tokenizer.enable_padding()
    settings = read("config_sentence_transformers.json")
    prompt = settings["prompts"].get(settings["default_prompt_name"], "")
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), threads, providers=["CPUExecutionProvider"])

    def encode(texts: Sequence[str]) -> Vectors:
        rows = tokenizer.encode_batch([prompt + text for text in texts])
        inputs = {
            "input_ids": [row.ids for row in rows],
            "attention_mask": [row.attention_mask for row in rows],
            "token_type_ids": [row.type_ids for row in rows],
        }
        wanted = {entry.name for entry in session.get_inputs()}
        vectors: Vectors = session.run(None, {name: np.array(inputs[name]) for name in inputs if name in wanted})[0]
        return vectors

    return encode


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
    graded = {query_id: {d: max(int(grade), 0) for d, grade in grades.items()} for query_id, grades in judged.items()}
    scores = pytrec_eval.RelevanceEvaluator(graded, {"ndcg_cut.10"}).evaluate(run)
    return float(np.mean([score["ndcg_cut_10"] for score in scores.values()]))


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


if __name__ == "__main__":
    main()
