"""nDCG@10 of each held-out query, with the heads as they are, and how their vectors spread."""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_asym.data import Qrels
from st_asym.losses.corpus import Corpus
from st_asym.monitoring import scaled_std
from st_asym.ndcg import TOP, Ndcg, Scores

# Documents that are compared with all queries at once.
_CHUNK = 65_536
# Documents of which the spread is measured: more cost time and change no digit that is drawn.
_SPREAD = 1000


class Judge:
    """nDCG@10 of each query over a corpus, as ``trec_eval`` computes it from grades.

    Args:
        model: The model whose heads are judged; its encoder is answered from the cache.
        corpus: The documents that are searched.
        queries: Query id to text.
        qrels: The queries to judge, each with its graded documents.

    Attributes:
        queries: Their ids, in the order of the scores.
        figures: Of the last call: ``accuracy``, the share of queries whose nearest document is relevant, and
            ``query_std`` and ``document_std``, of at most 1,000 documents, see
            :func:`st_asym.monitoring.scaled_std`.
    """

    def __init__(self, model: SentenceTransformer, corpus: Corpus, queries: dict[str, str], qrels: Qrels) -> None:
        self._ndcg = Ndcg(qrels)
        self.queries = self._ndcg.queries
        self.figures: dict[str, float] = {}
        self._qrels = qrels
        self._model, self._corpus = model, corpus
        texts = [queries[query_id] for query_id in self.queries]
        prompt = model.prompts.get("query") or None
        self._vectors = model.preprocess(texts, prompt=prompt, task="query")["sentence_embedding"]

    @torch.no_grad()
    def __call__(self) -> Scores:
        """The scores in the order of :attr:`queries`, shape ``(n,)``."""
        was_training = self._model.training
        self._model.eval()
        features: dict[str, Any] = {"sentence_embedding": self._vectors.to(self._corpus.device), "task": "query"}
        queries = torch.nn.functional.normalize(self._model(features)["sentence_embedding"].float())
        similarities, positions = self._best(queries)
        self._model.train(was_training)
        if not torch.isfinite(similarities).all():
            raise ValueError("The heads give vectors that are not finite: they have diverged. Lower the learning rate.")
        ids = [self._corpus.ids[place] for place in positions[:, 0].tolist()]
        right = [self._qrels[query_id].get(found, 0) > 0 for query_id, found in zip(self.queries, ids, strict=True)]
        self.figures |= {"accuracy": sum(right) / len(right), "query_std": scaled_std(queries).item()}
        return self._ndcg(self._corpus.ids, positions.tolist(), similarities.tolist())

    def _best(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Similarities and positions of the nearest documents, each of shape ``(n, 10)``."""
        similarities = queries.new_empty(len(queries), 0)
        positions = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start, documents in self._corpus.projected(_CHUNK):
            if start == 0:
                some = documents[:: math.ceil(len(documents) / _SPREAD)]
                self.figures["document_std"] = scaled_std(some).item()
            chunk = queries @ documents.to(queries.dtype).T
            values, places = chunk.topk(min(TOP, chunk.shape[1]), dim=1)
            similarities, positions = torch.cat([similarities, values], 1), torch.cat([positions, places + start], 1)
            similarities, order = similarities.topk(min(TOP, similarities.shape[1]), dim=1)
            positions = positions.gather(1, order)
        return similarities, positions
