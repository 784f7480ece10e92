"""nDCG@10 of each held-out query, with the heads as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytrec_eval
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_asym.cache.filling import has_bfloat16
from st_asym.data import Qrels
from st_asym.losses.corpus import Corpus

Scores = NDArray[np.float64]

_TOP = 10
_MEASURE = f"ndcg_cut_{_TOP}"
# Documents that are compared with all queries at once.
_CHUNK = 65_536


class Judge:
    """nDCG@10 of each query over a corpus, as ``trec_eval`` computes it from grades.

    Args:
        model: The model whose heads are judged; its encoder is answered from the cache.
        corpus: The documents that are searched.
        queries: Query id to text.
        qrels: The queries to judge, each with its graded documents.
    """

    def __init__(self, model: SentenceTransformer, corpus: Corpus, queries: dict[str, str], qrels: Qrels) -> None:
        self.queries: tuple[str, ...] = tuple(qrels)
        self._model, self._corpus = model, corpus
        texts = [queries[query_id] for query_id in self.queries]
        prompt = model.prompts.get("query") or None
        self._vectors = model.preprocess(texts, prompt=prompt, task="query")["sentence_embedding"]
        # trec_eval leaves negative grades out, where the field counts them as not relevant.
        graded = {q: {d: max(int(grade), 0) for d, grade in qrels[q].items()} for q in self.queries}
        self._evaluator = pytrec_eval.RelevanceEvaluator(graded, {f"ndcg_cut.{_TOP}"})

    @torch.no_grad()
    def __call__(self) -> Scores:
        """The scores in the order of :attr:`queries`, shape ``(n,)``."""
        was_training = self._model.training
        self._model.eval()
        features: dict[str, Any] = {"sentence_embedding": self._vectors.to(self._corpus.device), "task": "query"}
        queries = torch.nn.functional.normalize(self._model(features)["sentence_embedding"].float())
        similarities, positions = self._best(queries)
        self._model.train(was_training)
        run = {
            query_id: {self._corpus.ids[position]: similarity for position, similarity in zip(*best, strict=True)}
            for query_id, *best in zip(self.queries, positions.tolist(), similarities.tolist(), strict=True)
        }
        found = self._evaluator.evaluate(run)
        return np.array([found[query_id][_MEASURE] for query_id in self.queries])

    def _projected(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The corpus, in bfloat16 on its way through the head where the processor has it: a third of the time."""
        device = self._corpus.device
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            yield from self._corpus.projected(_CHUNK)

    def _best(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Similarities and positions of the nearest documents, each of shape ``(n, 10)``."""
        similarities = queries.new_empty(len(queries), 0)
        positions = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start, documents in self._projected():
            chunk = queries @ documents.to(queries.dtype).T
            values, places = chunk.topk(min(_TOP, chunk.shape[1]), dim=1)
            similarities, positions = torch.cat([similarities, values], 1), torch.cat([positions, places + start], 1)
            similarities, order = similarities.topk(min(_TOP, similarities.shape[1]), dim=1)
            positions = positions.gather(1, order)
        return similarities, positions
