"""A model as BEIR's own evaluation takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from st_asym.data.document import Document
from st_asym.evaluation.models import check_finite


class BeirModel:
    """Queries to the query head and documents to the document head, for ``DenseRetrievalExactSearch`` of BEIR.

    BEIR's own ``SentenceBERT`` encodes both sides alike, which takes queries through the wrong head. A document is its
    title, one space and its text, as in MTEB, whose scores come out.

    Args:
        model: A ``SentenceTransformer``, with or without heads, or a :class:`st_asym.CachedSentenceTransformer`.

    Raises:
        TypeError: Not a model.
        ValueError: On encoding, vectors that are not finite: BEIR would rank by them.

    Example:
        >>> from beir.retrieval.evaluation import EvaluateRetrieval  # doctest: +SKIP
        >>> from beir.retrieval.search.dense import DenseRetrievalExactSearch  # doctest: +SKIP
        >>> search = DenseRetrievalExactSearch(BeirModel(model), batch_size=64)  # doctest: +SKIP
        >>> retriever = EvaluateRetrieval(search, score_function="cos_sim")  # doctest: +SKIP
    """

    def __init__(self, model: SentenceTransformer) -> None:
        if not isinstance(model, SentenceTransformer):
            raise TypeError(f"The model must be a SentenceTransformer, not a {type(model).__name__}.")
        self.model = model

    def encode_queries(self, queries: Sequence[str], batch_size: int = 32, **kwargs: Any) -> Any:
        """Vectors of queries, shape ``(n, d)``; ``kwargs`` go to ``encode_query``."""
        vectors = self.model.encode_query(list(queries), batch_size=batch_size, **kwargs)
        check_finite(vectors, "The model", "query")
        return vectors

    def encode_corpus(self, corpus: Sequence[dict[str, str]], batch_size: int = 32, **kwargs: Any) -> Any:
        """Vectors of documents with ``title`` and ``text``, shape ``(n, d)``; ``kwargs`` go to ``encode_document``."""
        texts = [Document(document.get("title") or "", document["text"]).joined for document in corpus]
        vectors = self.model.encode_document(texts, batch_size=batch_size, **kwargs)
        check_finite(vectors, "The model", "document")
        return vectors
