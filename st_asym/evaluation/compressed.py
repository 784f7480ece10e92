"""Search among quantised or truncated vectors, as an index of MTEB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import quantize_embeddings

Form = str | int

# How many documents are rescored after a search by bits, and compared at a time.
_RESCORED = 400
# MTEB looks up the id of each result by itself, which takes longer than the search; nothing below rank 100 is shown.
_KEPT = 101
_CHUNK = 65_536


def check_forms(forms: tuple[Form, ...], dimension: int | None) -> None:
    """Refuse what is neither a precision nor a number of dimensions to keep.

    Raises:
        ValueError: It names the first.
    """
    for form in forms:
        if form in ("int8", "binary"):
            continue
        if not isinstance(form, int) or isinstance(form, bool) or form < 1:
            raise ValueError(f"compressed must hold 'int8', 'binary' or numbers of dimensions, got {form!r}.")
        if dimension is not None and form >= dimension:
            raise ValueError(f"The vectors have {dimension} dimensions: they cannot be truncated to {form}.")


class CompressedIndex:
    """The corpus in a compressed form, searched with the full query vectors; by cosine.

    - ``"int8"``: one byte per dimension, in 256 steps between the smallest and the largest value of the corpus;
      documents are compared as read back from their bytes.
    - ``"binary"``: one bit per dimension. The 400 documents with the fewest bits other than the query's are rescored
      with the query's full vector (Yamada et al. 2021, "Efficient Passage Retrieval with Hashing").
    - a number: the first dimensions of query and document.

    Args:
        form: One of these.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self._documents: NDArray[Any] = np.empty((0, 0))
        self._ranges: NDArray[np.float32] = np.empty((2, 0), dtype=np.float32)
        self._dimension = 0

    def add_documents(self, embeddings: Any, idxs: list[str]) -> None:  # noqa: ARG002 - MTEB's signature
        """Compress the vectors of the corpus, shape ``(n, d)``."""
        vectors = self._prepared(embeddings)
        self._dimension = vectors.shape[1]
        if self.form == "int8":
            self._ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
            vectors = np.asarray(quantize_embeddings(vectors, "int8", ranges=self._ranges))
        elif self.form == "binary":
            vectors = np.asarray(quantize_embeddings(vectors, "ubinary"))
        self._documents = vectors

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[..., Any],  # noqa: ARG002 - MTEB's signature
        top_ranked: Any = None,
        query_idx_to_id: dict[int, str] | None = None,  # noqa: ARG002
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Similarities and positions of the nearest documents of each query."""
        if top_ranked is not None:
            raise ValueError("Compressed vectors are measured by searching a corpus, not by reranking.")
        queries = torch.from_numpy(self._prepared(embeddings))
        top_k = min(top_k, _KEPT)
        if self.form != "binary":
            values, positions = self._nearest(queries, self._restored, top_k)
            return values.tolist(), positions.tolist()
        signs = torch.where(queries > 0, 1.0, -1.0)
        _, candidates = self._nearest(signs, self._bits, _RESCORED)
        found = torch.from_numpy(self._bits(candidates.flatten().numpy())).view(*candidates.shape, -1)
        rescored = torch.einsum("qd,qkd->qk", queries, found)
        values, order = rescored.topk(min(top_k, rescored.shape[1]), dim=1)
        return values.tolist(), candidates.gather(1, order).tolist()

    def clear(self) -> None:
        """Let go of the corpus."""
        self._documents = np.empty((0, 0))

    def _prepared(self, embeddings: Any) -> NDArray[np.float32]:
        vectors = torch.as_tensor(embeddings).detach().cpu().float()
        if isinstance(self.form, int):
            vectors = vectors[:, : self.form]
        return np.asarray(torch.nn.functional.normalize(vectors).numpy())

    def _nearest(
        self, queries: torch.Tensor, rows: Callable[[NDArray[Any]], NDArray[np.float32]], top_k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = queries.new_empty(len(queries), 0)
        positions = torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self._documents), _CHUNK):
            chosen = np.arange(start, min(start + _CHUNK, len(self._documents)))
            here = queries @ torch.from_numpy(rows(chosen)).T
            values = torch.cat([values, here], dim=1)
            positions = torch.cat([positions, torch.from_numpy(chosen).expand(len(queries), -1)], dim=1)
            values, order = values.topk(min(top_k, values.shape[1]), dim=1)
            positions = positions.gather(1, order)
        return values, positions

    def _restored(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Documents as the index holds them, in float32."""
        documents = self._documents[rows]
        if self.form != "int8":
            return np.asarray(documents, dtype=np.float32)
        low, high = self._ranges
        return np.asarray((documents.astype(np.float32) + 128) * ((high - low) / 255) + low, dtype=np.float32)

    def _bits(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Documents as signs: their products with signs order them by the number of differing bits."""
        bits = np.unpackbits(self._documents[rows], axis=-1, count=self._dimension)
        return bits.astype(np.float32) * 2 - 1
