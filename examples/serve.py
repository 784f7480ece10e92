"""Better queries for an index in Qdrant that stays as it is, alone and fused with BM25 by Qdrant itself.

    pip install -c constraints.txt ".[demo,eval,serve]" && python examples/serve.py

The index has the untouched encoder's vectors, and sparse ones whose inner product with a query's words is BM25. Heads
for queries alone are fitted, and the same index is searched by vectors, by BM25, and by both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import bm25s
import numpy as np
from numpy.typing import NDArray
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from qdrant_client import QdrantClient, models
from scipy.sparse import csc_array
from scoring import ndcg_of_run
from sentence_transformers import SentenceTransformer

from st_asym import EmbeddingCache, Settings, fit
from st_asym.data import load_data

Vectors = NDArray[np.float32]


def main() -> None:
    options = parse_options()
    data = load_data(options.data) if options.data else python_docs(options.pairs)
    ids, texts, judged = list(data.corpus), list(data.corpus.values()), data.qrels["test"]
    encoder, cache = SentenceTransformer(packaged_encoder()), EmbeddingCache(options.cache)
    bm25 = bm25s.BM25()
    bm25.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    index = build_index(cache.embed(encoder, texts, prompt=encoder.prompts.get("document")), bm25)

    fitted = fit(encoder, data, output_dir=options.output, settings=Settings(sides="query"), cache=cache)
    print(f"{fitted.report.first_line}\n\n| nDCG@10 on test queries | vectors | BM25 | both |\n|---|---|---|---|")
    queries = [data.queries[query] for query in judged]
    words = [bm25.get_tokens_ids(own) for own in bm25s.tokenize(queries, return_ids=False, show_progress=False)]
    for name, model in {"untouched encoder": encoder, "fitted": fitted.model}.items():
        found = [search(index, *asked) for asked in zip(model.encode_query(queries), words, strict=True)]
        runs = [
            {q: {ids[int(p.id)]: p.score for p in ways[n]} for q, ways in zip(judged, found, strict=True)}
            for n in range(3)
        ]
        means = [np.mean([*ndcg_of_run(judged, run).values()]) for run in runs]
        print(f"| {name} |", " | ".join(f"{mean:.3f}" for mean in means), "|")


def build_index(vectors: Vectors, bm25: bm25s.BM25) -> QdrantClient:
    """Index documents by the encoder's vectors, and by the weights that BM25 gives their words."""
    of_words = tuple(bm25.scores[part] for part in ("data", "indices", "indptr"))
    weights = csc_array(of_words, shape=(len(vectors), len(of_words[2]) - 1)).tocsr()
    index = QdrantClient(":memory:")  # or the URL of a server
    size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
    index.create_collection("documents", {"dense": size}, sparse_vectors_config={"bm25": models.SparseVectorParams()})
    for place, vector in enumerate(vectors):
        own = slice(*weights.indptr[place : place + 2])
        sparse = models.SparseVector(indices=weights.indices[own].tolist(), values=weights.data[own].tolist())
        index.upsert("documents", [models.PointStruct(id=place, vector={"dense": vector.tolist(), "bm25": sparse})])
    return index


def search(index: QdrantClient, vector: Vectors, words: list[int]) -> list[list[models.ScoredPoint]]:
    """The ten best by vectors, by BM25, and by both: Qdrant adds the reciprocals of their ranks."""
    known, counts = np.unique(words, return_counts=True)
    sparse = models.SparseVector(indices=known.astype(int).tolist(), values=counts.tolist())
    ways = [models.Prefetch(query=vector.tolist(), using="dense", limit=100)]
    ways.append(models.Prefetch(query=sparse, using="bm25", limit=100))
    fusion = models.FusionQuery(fusion=models.Fusion.RRF)
    return [index.query_points("documents", prefetch=p, query=fusion).points for p in (ways[:1], ways[1:], ways)]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="whatever st_asym.data.load_data reads")
    parser.add_argument("--pairs", type=int, default=2_000, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/serve"), help="(default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
