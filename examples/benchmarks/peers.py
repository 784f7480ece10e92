"""Other ways to adapt a frozen encoder, as their packages do it, beside ``fit``: same vectors, same splits.

    pip install nudge-ft llama-index-finetuning "mistralai<2"      # with mistralai 2, llama-index-finetuning fails
    python examples/benchmarks/peers.py                            # stopped, it goes on where it was

NUDGE (Zeighami et al. 2024, https://arxiv.org/abs/2409.02343) moves the vectors of documents; how far is decided on the
dev queries, or on a fifth of the training queries where a collection has none. LlamaIndex's
``EmbeddingAdapterFinetuneEngine`` trains a linear head for queries on the first relevant document of each. Prints a
Markdown table and writes JSON. The test splits are looked at to fill the table alone.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from journal import Journal
from nine_collections import ENCODING, PACKAGES, SOURCES, Bench, Made, Make, begun, parser_of, write

from st_asym.data import Qrels, RetrievalData

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.finetuning import EmbeddingAdapterFinetuneEngine, EmbeddingQAFinetuneDataset


def main() -> None:
    parser = parser_of(__doc__, "peers", seeds=[0, 1, 2, 3, 4])
    parser.set_defaults(collections=["scifact", "nfcorpus"])
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows whose name begins with one of these")
    options = parser.parse_args()
    encoder, cache = begun(options)
    journal = Journal(options.output.with_suffix(".jsonl"))
    for name in options.collections:
        bench = Bench(name, SOURCES[name](options.data), encoder, cache)
        # What draws nothing has one run.
        once, drawn = options.seeds[:1], options.seeds[: 1 if "dev" in bench.data.qrels else None]
        rows: dict[str, tuple[list[int], Make]] = {
            "untouched": (once, bench.untouched),
            "NUDGE-M": (drawn, partial(nudge, bench, method="NUDGEM")),
            "NUDGE-N": (drawn, partial(nudge, bench, method="NUDGEN")),
            "LlamaIndex adapter, its defaults": (once, partial(llama_index, bench)),
            "LlamaIndex adapter, 4 epochs": (once, partial(llama_index, bench, epochs=4)),
            "fit, defaults": (options.seeds, bench.fitted),
            "fit, query side only": (options.seeds, partial(bench.fitted, sides="query")),
        }
        for row, (seeds, make) in rows.items():
            if row.startswith(tuple(options.rows)):
                with contextlib.redirect_stdout(sys.stderr):  # the packages print
                    bench.measure("peers", row, make, seeds, journal)
    packages = ("nudge-ft", "llama-index-core", "llama-index-finetuning")
    write("peers", options, journal, (*PACKAGES, *packages))


def nudge(bench: Bench, seed: int, *, method: str) -> Made:
    return bench.nudge(seed, method=method, dev=with_random_dev(bench.data, seed))


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


def llama_index(bench: Bench, _seed: int, **options: Any) -> Made:
    """The linear query head of LlamaIndex's engine, on vectors from the cache."""
    data, relevant = bench.data, bench.data.relevant("train")
    documents = bench.documents(bench.encoder)
    texts = [data.queries[key] for key in relevant] + bench.texts("test")
    vectors = bench.cached(bench.encoder).encode_query(texts, **ENCODING)
    of_queries = dict(zip(texts, vectors.tolist(), strict=True))
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
        adapted = {text: model.get_query_embedding(text) for text in bench.texts("test")}

    def similarities(split: str) -> Any:
        found = np.array([adapted[text] for text in bench.texts(split)], dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True) @ documents.T

    return similarities, {}


if __name__ == "__main__":
    main()
