"""Other ways to adapt a frozen encoder, as their packages do it, beside ``fit``: same vectors, same splits.

    pip install nudge-ft llama-index-finetuning "mistralai<2"      # with mistralai 2, llama-index-finetuning fails
    python examples/benchmarks/peers.py                            # stopped, it goes on where it was

NUDGE (Zeighami et al. 2024, https://arxiv.org/abs/2409.02343) moves the vectors of documents; how far is decided on the
dev queries, or on a fifth of the training queries where a collection has none. LlamaIndex's
``EmbeddingAdapterFinetuneEngine`` trains a linear head for queries on the first relevant document of each. Prints a
Markdown table and writes JSON. The test splits are looked at to fill the table alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import nudge as nudge_ft
import numpy as np
import torch
import transformers
from fitted_rows import Bench, Train, benchmarks, difference, fitted, mean_and_deviation, summary
from journal import Journal
from packaged_encoder import packaged_encoder
from retrieval import SHARED, Collection, Vectors, unit
from sentence_transformers import SentenceTransformer

from st_asym import EmbeddingCache
from st_asym.data import Qrels, RetrievalData

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.finetuning import EmbeddingAdapterFinetuneEngine, EmbeddingQAFinetuneDataset

OURS: dict[str, Train] = {"fit, defaults": fitted, "fit, query side only": partial(fitted, sides="query")}
# What a peer gives: the vectors of the test queries and of the documents, to be compared by dot product.
Peer = Callable[[Bench, Collection, int], tuple[Vectors, Vectors]]


def main() -> None:
    options = parse_options()
    encoder = SentenceTransformer(options.encoder or packaged_encoder()).requires_grad_(False).eval()
    bench = Bench(encoder, EmbeddingCache(options.cache), options.quick)
    journal = Journal(options.output.with_suffix(".jsonl"))
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for name, collection in benchmarks(options).items():
            for row in rows(options, name, seed):
                if ("peers", row, name, seed) not in journal:
                    print(f"{time.strftime('%H:%M:%S')} {row}, {name}, seed {seed}", flush=True)
                    found = run(bench, row, collection(), seed)
                    journal.add({**found, "block": "peers", "row": row, "collection": name, "seed": seed})
    text, figures = table(journal)
    print("\n" + text)
    packages = ("sentence-transformers", "torch", "numpy", "nudge-ft", "llama-index-core", "llama-index-finetuning")
    facts = {
        "encoder": options.encoder or "all-MiniLM-L6-v2",
        "quick": options.quick,
        "rows": figures,
        "versions": {name: version(name) for name in packages},
    }
    options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of scifact.zip and nfcorpus.zip")
    parser.add_argument("--encoder", help="a Hub id or path; the packaged all-MiniLM-L6-v2 if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 1 2 3 4)")
    parser.add_argument("--rows", nargs="+", help="only rows whose name begins with one of these")
    parser.add_argument("--quick", action="store_true", help="small cuts and two epochs, to see that it runs")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/peers.json"), help="(default: %(default)s)")
    return parser.parse_args()


def rows(options: argparse.Namespace, collection: str, seed: int) -> list[str]:
    """The rows for a seed: what draws nothing has one run."""
    drawn = [row for row in PEERS if row.startswith("NUDGE") and collection == "scifact"]
    first = seed == options.seeds[0]
    found = [*(row for row in PEERS if first or row in drawn), *OURS]
    return [row for row in found if row.startswith(tuple(options.rows) if options.rows else ("",))]


def run(bench: Bench, row: str, collection: Collection, seed: int) -> dict[str, Any]:
    """Train, time and score one row."""
    untouched = bench.untouched_scores(collection)
    started = time.perf_counter()
    facts: dict[str, Any] = {}
    if row in OURS:
        trained = OURS[row](bench, collection, seed)
        seconds = time.perf_counter() - started
        scores, facts = bench.scores(trained.model, collection), trained.facts
    else:
        with contextlib.redirect_stdout(sys.stderr):
            queries, documents = PEERS[row](bench, collection, seed)
        seconds = time.perf_counter() - started
        scores = [round(float(value), 4) for value in collection.ndcg(queries @ documents.T)]
    return {
        "seconds": round(seconds, 2),
        "scores": {collection.name: scores},
        "untouched": {collection.name: untouched},
        "unseen": {collection.name: collection.unseen.astype(int).tolist()},
        **facts,
    }


# ---- The peers ----


def untouched(bench: Bench, collection: Collection, _seed: int) -> tuple[Vectors, Vectors]:
    return collection.vectors(bench.encoder, bench.cache)


def nudge(bench: Bench, collection: Collection, seed: int, *, method: str) -> tuple[Vectors, Vectors]:
    """The documents moved by NUDGE-M or NUDGE-N with the package's own settings."""
    queries, documents = collection.vectors(bench.encoder, bench.cache)
    data = with_random_dev(collection.data, seed)
    position = {document_id: place for place, document_id in enumerate(data.corpus)}

    def answers(split: str) -> dict[str, Any]:
        relevant = data.relevant(split)
        cached = bench.cached(bench.encoder, collection)
        return {
            "q_embs": unit(
                cached.encode_query([data.queries[q] for q in relevant], batch_size=1024, show_progress_bar=False)
            ),
            "q_ans_indx": [[position[d] for d in sorted(found)] for found in relevant.values()],
        }

    moved = getattr(nudge_ft, method)(torch.device("cpu")).finetune_embeddings(
        documents, answers("train"), answers("dev")
    )
    return queries, np.asarray(moved, dtype=np.float32)


def with_random_dev(data: RetrievalData, seed: int) -> RetrievalData:
    """The collection's own dev split, or a fifth of the training queries, drawn at random."""
    if "dev" in data.qrels:
        return data
    names = list(data.qrels["train"])
    drawn = {names[place] for place in np.random.default_rng(seed).permutation(len(names))[: len(names) // 5]}
    train: Qrels = {q: judged for q, judged in data.qrels["train"].items() if q not in drawn}
    dev: Qrels = {q: judged for q, judged in data.qrels["train"].items() if q in drawn}
    return RetrievalData(data.queries, data.corpus, {**data.qrels, "train": train, "dev": dev})


class Known(BaseEmbedding):  # type: ignore[misc]  # untyped where it is not installed
    """Vectors of texts, made before."""

    of_queries: dict[str, list[float]]
    of_documents: dict[str, list[float]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.of_queries[query]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.of_documents[text]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self.of_queries[query]


def llama_index(bench: Bench, collection: Collection, _seed: int, **options: Any) -> tuple[Vectors, Vectors]:
    """The linear query head of LlamaIndex's engine, on vectors from the cache."""
    _, documents = collection.vectors(bench.encoder, bench.cache)
    data, relevant = collection.data, collection.data.relevant("train")
    cached = bench.cached(bench.encoder, collection)
    texts = [data.queries[query_id] for query_id in (*relevant, *collection.test)]
    of_queries = dict(
        zip(texts, cached.encode_query(texts, batch_size=1024, show_progress_bar=False).tolist(), strict=True)
    )
    of_documents = dict(zip(data.corpus.values(), documents.tolist(), strict=True))

    dataset = EmbeddingQAFinetuneDataset(
        queries={query_id: data.queries[query_id] for query_id in relevant},
        corpus=data.corpus,
        # The engine takes the first one: that of the highest grade.
        relevant_docs={q: sorted(found, key=lambda d: -data.qrels["train"][q][d]) for q, found in relevant.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = EmbeddingAdapterFinetuneEngine(
            dataset,
            Known(of_queries=of_queries, of_documents=of_documents),
            dim=documents.shape[1],
            device="cpu",
            model_output_path=folder,
            show_progress_bar=False,
            **options,
        )
        engine.finetune()
        model = engine.get_finetuned_model()
        adapted = [model.get_query_embedding(data.queries[query_id]) for query_id in collection.test]
    return unit(adapted), documents


PEERS: dict[str, Peer] = {
    "untouched": untouched,
    "NUDGE-M": partial(nudge, method="NUDGEM"),
    "NUDGE-N": partial(nudge, method="NUDGEN"),
    "LlamaIndex adapter, its defaults": llama_index,
    "LlamaIndex adapter, 4 epochs": partial(llama_index, epochs=4),
}


def table(journal: Journal) -> tuple[str, dict[str, Any]]:
    """One row per way, as Markdown and as figures."""
    lines = [
        "| | SciFact | to untouched (p) | seen documents | unseen documents | to untouched (p) | NFCorpus "
        "| to untouched (p) | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for row in (*PEERS, *OURS):
        scifact, nfcorpus = (journal.of("peers", row, name) for name in ("scifact", "nfcorpus"))
        found = {
            "scifact": summary(scifact, "scifact"),
            "scifact, seen documents": summary(scifact, "scifact", documents="seen"),
            "scifact, unseen documents": summary(scifact, "scifact", documents="unseen"),
            "nfcorpus": summary(nfcorpus, "nfcorpus"),
        }
        if not all(found.values()):
            continue
        figures[row] = found
        cells = [
            f"{mean_and_deviation(one)}" + (f" | {difference(one)}" if not name.endswith(", seen documents") else "")
            for name, one in found.items()
        ]
        both = [found["scifact"], found["nfcorpus"]]
        seconds = " / ".join(f"{one['seconds']:.1f}" for one in both)
        seeds = " / ".join(str(len(one["seeds"])) for one in both)
        lines.append(f"| {row} | {' | '.join(cells)} | {seconds} | {seeds} |")
    return "\n".join(lines), figures


if __name__ == "__main__":
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    main()
