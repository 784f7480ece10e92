"""BM25 as a row of its own, and added to what each model finds, by MTEB's own evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from mteb.models import ModelMeta, SearchEncoderWrapper
from torch import Tensor

from st_asym.data.collection import Qrels, own_documents
from st_asym.data.document import Document, text_key
from st_asym.evaluation.comparison import BM25, FULL, fused_name, short_digest
from st_asym.evaluation.compressed import KEPT, unit_vectors
from st_asym.evaluation.models import BASELINES, UNTOUCHED, Baseline, Models, System, vectors_of
from st_asym.evaluation.mteb import FrozenEncoder, Measurement, kept_or_measured, measured_by
from st_asym.evaluation.tasks import Benchmark, trained_queries
from st_asym.retrieval import Judgments
from st_asym.retrieval.metrics import TOP
from st_asym.retrieval.search import MOST_DOCUMENTS, Bm25Index, bm25_is_installed, standardised

# How much one standard deviation of BM25 counts beside the cosine: what dev queries choose from, and without any.
WEIGHTS = (0.0, 0.005, 0.01, 0.02, 0.04, 0.06)
USUAL_WEIGHT = 0.02
# Fewer dev queries choose nothing; more tell little more.
_FEWEST, _MOST = 20, 1_000
# How many numbers a block of similarities may have: 64 MiB in float32.
_BLOCK = 1 << 24

Indexed = Callable[[tuple[str, ...]], Bm25Index]
# Judged queries that are not those of the evaluation, to choose a weight by: their texts, and their qrels.
DevQueries = tuple[dict[str, str], Qrels]


class Bm25Search:
    """The documents that share a word with the query, by BM25: MTEB's protocol of a model that searches by itself.

    ``indexed`` makes the index of a corpus, or has it from the row before.
    """

    above = 0.0  # what a document must score to be found

    def __init__(self, indexed: Indexed) -> None:
        self._indexed = indexed
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": f"st_asym/{BM25}", "revision": version("bm25s")}
        )
        self.weight: float | None = None
        self._ids: list[str] = []
        self._index: Bm25Index

    def index(self, corpus: Any, **_: Any) -> None:
        """Take the corpus, a data set with ``id``, ``text`` and perhaps ``title``."""
        self._ids = list(corpus["id"])
        self._index = self._indexed(tuple(Document(row.get("title") or "", row["text"]).joined for row in corpus))

    def search(self, queries: Any, *, top_ranked: Any = None, **options: Any) -> dict[str, dict[str, float]]:
        """The best documents of each query, with their scores; of ``top_ranked`` alone, where a task gives those."""
        found = {}
        for names, similarities in self._similarities(queries, options):
            for query, row in zip(names, similarities, strict=True) if top_ranked is not None else ():
                allowed = set(top_ranked.get(query, ()))
                row[[key not in allowed for key in self._ids]] = -torch.inf
            tops = similarities.topk(min(KEPT, len(self._ids)), dim=1)
            for query, values, places in zip(names, tops.values.tolist(), tops.indices.tolist(), strict=True):
                best = zip(values, places, strict=True)
                found[query] = {self._ids[place]: value for value, place in best if value > self.above}
        return found

    def _similarities(self, queries: Any, _options: Mapping[str, Any]) -> Iterator[tuple[list[str], Tensor]]:
        """The ids of some queries at a time, and their similarities, shape ``(n, m)``."""
        names, texts = list(queries["id"]), read_queries(queries)
        size = max(1, _BLOCK // max(1, len(self._ids)))
        for start in range(0, len(names), size):
            part = slice(start, start + size)
            yield names[part], torch.from_numpy(self._index.similarities(texts[part]))


class FusedSearch(Bm25Search):
    """The cosine of a model's vectors, plus a weight times BM25 standardised over the corpus.

    Standardised scores make one weight fit queries of any length. It is one of :data:`WEIGHTS`, by nDCG@10 of the dev
    queries, or the usual one.
    """

    above = -np.inf

    def __init__(self, indexed: Indexed, encoder: FrozenEncoder, dev: DevQueries | None) -> None:
        super().__init__(indexed)
        self.mteb_model_meta = encoder.mteb_model_meta
        self._dev = dev
        backend: Any = _Vectors()
        self._wrapper: Any = SearchEncoderWrapper(encoder, index_backend=backend)

    def index(self, corpus: Any, **options: Any) -> None:
        """Take the corpus, and encode it."""
        super().index(corpus)
        self._wrapper.index(corpus, **options)

    def _similarities(self, queries: Any, options: Mapping[str, Any]) -> Iterator[tuple[list[str], Tensor]]:
        if self.weight is None:
            self.weight = USUAL_WEIGHT if self._dev is None else self._chosen(*self._dev, options)
        weight = self.weight
        return ((names, cosines + weight * bm25) for names, cosines, bm25 in self._both(queries, options))

    def _both(self, queries: Any, options: Mapping[str, Any]) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Ids, cosines of vectors as MTEB encodes them, and standardised BM25, both of shape ``(n, m)``."""
        backend, corpus = self._wrapper.index_backend, self._wrapper.task_corpus
        self._wrapper.search(queries, **options)
        self._wrapper.task_corpus = corpus  # which a search lets go of
        vectors = backend.queries
        for names, bm25 in super()._similarities(queries, options):
            own, vectors = vectors[: len(names)], vectors[len(names) :]
            yield names, own @ backend.documents.T, torch.from_numpy(standardised(bm25.numpy()))

    def _chosen(self, texts: Mapping[str, str], qrels: Qrels, options: Mapping[str, Any]) -> float:
        """The weight with the best nDCG@10 of the dev queries, the smallest of equal ones."""
        places = {key: place for place, key in enumerate(self._ids)}
        own = set(own_documents(places, qrels))
        queries = datasets.Dataset.from_dict({"id": list(qrels), "text": [texts[query] for query in qrels]})
        found: dict[float, list[Tensor]] = {weight: [] for weight in WEIGHTS}
        for names, cosines, bm25 in self._both(queries, options):
            for query in own.intersection(names):
                cosines[names.index(query), places[query]] = -torch.inf
            for weight, tops in found.items():
                tops.append((cosines + weight * bm25).topk(min(TOP, len(self._ids)), dim=1).indices)
        judged = Judgments(qrels, places)
        return max(WEIGHTS, key=lambda weight: float(judged.ndcg(torch.cat(found[weight])).mean()))


def read_queries(queries: Any) -> list[str]:
    """What a model is given of queries, as MTEB joins it: the turns of a conversation, and an instruction."""

    def joined(text: Any) -> str:
        if not isinstance(text, list):
            return str(text)
        return "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in text)

    texts = [joined(text) for text in queries["text"]]
    if "instruction" not in queries.column_names:
        return texts
    return [f"{text} {more or ''}".rstrip() for text, more in zip(texts, queries["instruction"], strict=True)]


class _Vectors:
    """An index of MTEB that keeps unit vectors, of documents and of the queries that were last searched for."""

    documents: Tensor
    queries: Tensor

    def add_documents(self, embeddings: Any, idxs: list[str]) -> None:  # noqa: ARG002 - MTEB's signature
        self.documents = unit_vectors(embeddings)

    def search(self, embeddings: Any, top_k: int, **_: Any) -> tuple[list[list[float]], list[list[int]]]:  # noqa: ARG002
        self.queries = unit_vectors(embeddings)
        return [[0.0]] * len(embeddings), [[0]] * len(embeddings)  # nobody looks at what it found

    def clear(self) -> None:
        """The documents are searched again."""


class Baselines:
    """The baselines of one comparison: measured beside its models, and put among them in the table.

    ``asked`` says which; None for all, where ``bm25s`` is installed. The training queries of the ``models`` choose no
    weight, nor do those of the ``split`` that is judged.
    """

    def __init__(self, asked: Sequence[Baseline] | None, models: Models, split: str) -> None:
        self._wanted = BASELINES if asked is None else (asked,) if isinstance(asked, str) else tuple(asked)
        self._models, self._split = models, split
        # All rows of a data set search the same index.
        self._indexed: Indexed = lru_cache(maxsize=1)(Bm25Index)
        self.notes: list[str] = []
        if unknown := [one for one in self._wanted if one not in BASELINES]:
            raise ValueError(f"baselines must hold 'bm25' or 'hybrid', got {unknown[0]!r}.")
        if self._wanted and not bm25_is_installed():
            missing = "bm25s is not installed: pip install 'st_asym[eval]'."
            if asked is not None:
                raise ImportError(f"The baselines need BM25, and {missing}")
            self._wanted = ()
            self.notes.append(f"There are no rows of BM25: {missing}")
        if self._wanted and (taken := {BM25, *map(fused_name, (UNTOUCHED, *models))} & set(models)):
            raise ValueError(f"{min(taken)!r} is a row by itself: give the model another name, or baselines=().")

    def measure(
        self, benchmark: Benchmark, systems: Sequence[System], documents: int, store: Path | None
    ) -> list[Measurement]:
        """BM25 on a data set of so many documents, and each system with it, as far as results are not stored yet."""
        if self._wanted and documents > MOST_DOCUMENTS:
            self.notes.append(f"There are no rows of BM25: {benchmark.name} has {documents:,} documents.")
            self._wanted = ()
        if not self._wanted:
            return []
        found = []
        if "bm25" in self._wanted:
            known = {"model": BM25, "form": FULL, "bm25s": version("bm25s")}
            measure = partial(measured_by, Bm25Search(self._indexed), benchmark)
            found += kept_or_measured(store, benchmark, BM25, known, measure)
        for system in systems if "hybrid" in self._wanted else ():
            found += self._fused(benchmark, system, store)
        return found

    def _fused(self, benchmark: Benchmark, system: System, store: Path | None) -> list[Measurement]:
        other = {model.similarity_fn_name for model in system.models} - {"cosine"}
        if other:
            self.notes.append(f"{system.name} compares by {min(map(str, other))}: BM25 is added to a cosine alone.")
            return []
        name, dev, found = fused_name(system.name), self._dev_queries(benchmark, system.name), []
        known = {"form": FULL, "bm25s": version("bm25s"), "dev": short_digest([WEIGHTS, dev]) if dev else ""}
        for model, digest in zip(system.models, system.digests, strict=True):
            own = {**known, "model": digest, "vectors": vectors_of(model)}
            search = FusedSearch(self._indexed, FrozenEncoder(system.name, model, digest), dev)
            found += kept_or_measured(store, benchmark, name, own, partial(measured_by, search, benchmark))
        weights = ", ".join(dict.fromkeys(f"{one.scores.bm25_weight:g}" for one in found))
        chosen = f"chosen on {len(dev[1]):,} dev queries" if dev else "without dev queries"
        self.notes.append(f"{name}: BM25 weighs {weights} on {benchmark.name}, {chosen}.")
        return found

    def _dev_queries(self, benchmark: Benchmark, system: str) -> DevQueries | None:
        """Of the split ``dev``, where it is not judged itself: those that the system was not trained on, from 20 on."""
        data = benchmark.data
        if data is None or self._split in ("dev", "all") or "dev" not in data.qrels:
            return None
        given = {name: model for name, model in self._models.items() if name == system}
        trained = trained_queries(given, [benchmark], "dev")[0].get(benchmark.name, {}).get(system, set())
        judged = {text_key(data.queries[query]) for query in data.relevant(self._split)}
        dev = (query for query in data.relevant("dev") if text_key(data.queries[query]) not in judged)
        left = [query for query in dev if query not in trained][:_MOST]
        if len(left) < _FEWEST:
            return None
        return {query: data.queries[query] for query in left}, {query: data.qrels["dev"][query] for query in left}

    def among(
        self, systems: Sequence[System], measured: Sequence[Measurement]
    ) -> tuple[list[System], list[Measurement]]:
        """The rows of the table, and their measurements, of those that were measured on all data sets.

        First the first system, then BM25, and each system is followed by what BM25 makes of it.
        """
        on = {(one.system, one.scores.data) for one in measured}
        whole = {name for name, _ in on if all((name, data) in on for _, data in on)}
        rows: list[System] = []
        for system in systems:
            rows.append(system)
            if BM25 in whole and len(rows) == 1:
                rows.append(System(BM25, (), None, (BM25,)))
            if (name := fused_name(system.name)) in whole:
                rows.append(System(name, (), system.seeds, tuple(f"{digest} + {BM25}" for digest in system.digests)))
        return rows, [one for one in measured if one.system in whole]
