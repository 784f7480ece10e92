"""Search among quantised or truncated vectors, as an index of MTEB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import quantize_embeddings
from torch import Tensor

from st_asym.retrieval import nearest

# How many documents are rescored after a search by bits, and read back at a time.
_RESCORED = 400
_CHUNK = 65_536
# MTEB looks up the id of each result by itself, which takes longer than the search; nothing below rank 100 is shown.
KEPT = 101
Form = str | int


def check_forms(forms: tuple[Form, ...], dimension: int | None) -> None:
    """Refuse what is neither a precision nor a number of dimensions to keep."""
    for form in forms:
        if form in ("int8", "binary"):
            continue
        if not isinstance(form, int) or isinstance(form, bool) or form < 1:
            raise ValueError(f"compressed must hold 'int8', 'binary' or numbers of dimensions, got {form!r}.")
        if dimension is not None and form >= dimension:
            raise ValueError(f"The vectors have {dimension} dimensions: they cannot be truncated to {form}.")


def unit_vectors(embeddings: Any, dimensions: int | None = None) -> Tensor:
    """What MTEB hands over, or its first dimensions, at length one, in float32."""
    return torch.nn.functional.normalize(torch.as_tensor(embeddings).detach().cpu().float()[:, :dimensions])


class CompressedIndex:
    """The corpus in a compressed form, searched with the full query vectors; by cosine.

    - ``"int8"``: one byte per dimension, in 256 steps between the smallest and the largest value of the corpus;
      documents are compared as read back from their bytes.
    - ``"binary"``: one bit per dimension. The 400 documents with the fewest bits other than the query's are rescored
      with the query's full vector (Yamada et al. 2021, "Efficient Passage Retrieval with Hashing").
    - a number: the first dimensions of query and document.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self._kept = form if isinstance(form, int) else None
        self._documents: NDArray[Any]
        self._ranges: NDArray[np.float32]

    def add_documents(self, embeddings: Any, idxs: list[str]) -> None:  # noqa: ARG002 - MTEB's signature
        """Compress the vectors of the corpus, shape ``(n, d)``."""
        vectors = unit_vectors(embeddings, self._kept).numpy()
        self._ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
        if self.form == "int8":
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
        queries = unit_vectors(embeddings, self._kept)
        top_k = min(top_k, KEPT)
        if self.form != "binary":
            values, positions = nearest(queries, self._stretches(), top_k)
            return values.tolist(), positions.tolist()
        # Products of signs order documents by the number of differing bits.
        _, candidates = nearest(torch.where(queries > 0, 1.0, -1.0), self._stretches(), _RESCORED)
        found = self._read(candidates.flatten().numpy()).view(*candidates.shape, -1)
        values, order = torch.einsum("qd,qkd->qk", queries, found).topk(min(top_k, candidates.shape[1]), dim=1)
        return values.tolist(), candidates.gather(1, order).tolist()

    def clear(self) -> None:
        """Let go of the corpus."""
        self._documents = np.empty((0, 0))

    def _stretches(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self._documents), _CHUNK):
            yield start, self._read(slice(start, start + _CHUNK))

    def _read(self, rows: Any) -> Tensor:
        """Documents as the index holds them, in float32: read back from bytes, or signs instead of bits."""
        documents = self._documents[rows]
        low, high = self._ranges
        if self.form == "int8":
            documents = (documents.astype(np.float32) + 128) * ((high - low) / 255) + low
        elif self.form == "binary":
            documents = np.unpackbits(documents, axis=-1, count=len(low)).astype(np.float32) * 2 - 1
        return torch.from_numpy(np.asarray(documents, dtype=np.float32))
