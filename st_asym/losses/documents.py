"""A corpus as a loss sees it, by position: which documents answer which query, and the vectors of documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from st_asym.cache.cached_model import CachedSentenceTransformer
from st_asym.cache.encoding import Precision, encoding, has_bfloat16
from st_asym.data.collection import first_few
from st_asym.heads.anatomy import encoder_modules, taken_apart
from st_asym.losses.isotropy import unit

Relevant = Mapping[str, Mapping[str, float] | Iterable[str]]
Texts = Mapping[str, str]
Vectors = tuple[Sequence[str], Any]
Rows = Tensor | slice

_READ_AT_ONCE = 16_384
# Documents that go through the head at once: a processor is fastest where they stay in its cache.
_CPU_CHUNK, _GPU_CHUNK = 1024, 16_384
# What the graph of one step may take before its chunks are computed again in the backward pass.
_GRAPH_BYTES = 1 << 30


class Negatives(NamedTuple):
    """Documents that are negatives of all queries of a batch, but for pairs that are counted apart."""

    positions: Tensor | None  # in the corpus, ascending, shape (n,), on the CPU; None for all of it
    # Logarithms of how many documents each counts for, shape (n,); None where each counts for one.
    weights: Tensor | None = None

    def places(self, columns: Tensor) -> Tensor:
        """Where some documents of the corpus are among these, -1 for those that are not."""
        return columns if self.positions is None else find(columns, self.positions)


class Logits(NamedTuple):
    """What a chunk of documents, or all of them, give for each query; the least finite number stands for none."""

    sums: Tensor  # log-sum-exp over the negatives, shape (n,)
    pairs: Tensor  # logits of the pairs that are counted apart, shape (pairs,)
    places: Tensor  # the most similar negatives of each chunk, shape (n, best)
    logits: Tensor  # their logits


def find(wanted: Tensor, ascending: Tensor) -> Tensor:
    """Places of some numbers among others, which are not none, -1 for those that are not there."""
    places = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return torch.where(ascending[places] == wanted, places, -1)


class Known(NamedTuple):
    """What is known of some queries and documents: relevant, judged not, or to be ignored; shape ``(pairs,)``."""

    rows: Tensor  # of the query, ascending
    columns: Tensor  # position of the document in the corpus
    weights: Tensor  # of the document as a positive, float64; 0 where it is not relevant
    judged: Tensor  # whether the document was judged not relevant


class Relevance:
    """The judged documents of each query: relevant ones, weighted by grade over sum of grades, and others.

    ``queries`` are all ids, ``labelled`` says of each document whether it is relevant to a query. What is judged not
    relevant or ignored, and not in the corpus ``ids``, does not matter; ignored is so whatever a grade of zero says.
    """

    def __init__(
        self, relevant: Relevant, ids: Sequence[str], ignored: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        self.queries = list(relevant)
        grades = [_grades(query, documents) for query, documents in relevant.items()]
        positive = [{document: grade for document, grade in own.items() if grade > 0} for own in grades]
        if not any(positive):
            raise ValueError(f"None of the {len(grades)} queries in `relevant` has a document with a grade above 0.")
        apart = [dict.fromkeys((ignored or {}).get(query, ()), False) for query in self.queries]
        for own, others in zip(grades, apart, strict=True):
            others.update({document: True for document in own if document not in others})
        positions = _positions(set(chain(*positive, *apart)), ids)
        missing = [(q, d) for q, own in zip(self.queries, positive, strict=True) for d in own if d not in positions]
        if missing:
            raise ValueError(
                f"{len(missing)} relevant documents are not in the corpus of {len(ids)}; the first are "
                f"{first_few([f'{document!r} of query {query!r}' for query, document in missing], 3)}."
            )
        counts, columns, weights, judged = [0], list[int](), list[float](), list[bool]()
        for own, others in zip(positive, apart, strict=True):
            total = math.fsum(own.values())
            kept = {d: is_judged for d, is_judged in others.items() if own and d in positions and d not in own}
            counts.append(len(own) + len(kept))
            columns += [positions[document] for document in (*own, *kept)]
            weights += [*(grade / total for grade in own.values()), *[0.0] * len(kept)]
            judged += [*[False] * len(own), *kept.values()]
        self._starts = torch.tensor(counts).cumsum(0)
        self._columns, self._judged = torch.tensor(columns), torch.tensor(judged)
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self.labelled = torch.zeros(len(ids), dtype=torch.bool)
        self.labelled[self._columns[self._weights > 0]] = True

    def __len__(self) -> int:
        """The number of queries, those without a relevant document included."""
        return len(self.queries)

    def of(self, labels: Tensor) -> Known:
        """The relevant, judged and ignored documents of queries at some positions; each must have a relevant one."""
        starts = self._starts[labels]
        counts = self._starts[labels + 1] - starts
        if not counts.all():
            bare = [repr(self.queries[label]) for label in labels[counts == 0].tolist()]
            raise ValueError(
                f"{len(bare)} of {len(labels)} rows are queries without a relevant document: {first_few(bare, 3)}. "
                "Leave them out of the data set, as RetrievalData.labelled_queries does."
            )
        rows = torch.arange(len(labels)).repeat_interleave(counts)
        entries = torch.arange(len(rows)) + (starts - counts.cumsum(0) + counts)[rows]
        return Known(rows, self._columns[entries], self._weights[entries], self._judged[entries])


class Documents:
    """Documents by position: vectors before the heads, and unit vectors through the document head as it is now.

    As many vectors as ``keep`` may be kept in memory. Of a larger corpus, an array stays where it is, which may be a
    ``numpy.memmap`` on disk, and texts are looked up in the cache each time. A tensor that is what the heads take is
    never copied as a whole. ``"bf16"`` runs heads of float32 in bfloat16 where the processor has it.
    """

    def __init__(
        self, model: SentenceTransformer, documents: Texts | Vectors, *, keep: int, precision: Precision = "fp32"
    ) -> None:
        self._encoder_parameters = [p for module in encoder_modules(model).values() for p in module.parameters()]
        self._heads = taken_apart(model)[1]
        # What shapes the vectors of documents.
        routes = [
            module.sub_modules["document"]
            if isinstance(module, Router) and "document" in module.sub_modules
            else module
            for module in self._heads
        ]
        self._side: list[Tensor] = [tensor for route in routes for tensor in (*route.parameters(), *route.buffers())]
        self._ends_normalised = bool(self._heads) and isinstance(self._heads[-1], Normalize)
        self._device, self._precision, self._keep = model.device, precision, keep
        self._outputs: tuple[Any, Tensor | None, Tensor] | None = None
        self.check_frozen()
        self.ids, self._read = _ids_and_reader(model, documents, keep)
        if not len(self.ids):
            raise ValueError("The corpus is empty.")
        # Vectors in memory are looked at once, those on disk whenever they are read.
        self._kept: Tensor | None = None
        if isinstance(documents, tuple) and isinstance(documents[1], Tensor):
            for part in _stretches(len(self)):
                self._checked(documents[1][part], part)
            self._kept = documents[1].detach()
        elif len(self) <= keep:
            self._kept = torch.cat([self.take(part) for part in _stretches(len(self))])
        try:
            with torch.no_grad():
                self.project(self.take(slice(0, 1)))
        except RuntimeError as error:
            raise ValueError(f"The document head does not take the vectors of the corpus: {error}") from error

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.ids)

    @property
    def trains(self) -> bool:
        """Whether a gradient would reach the document head."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._side)

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return next((tensor.device for tensor in self._side), self._device)

    def check_frozen(self) -> None:
        """Refuse an encoder that trains: vectors that were computed before would not follow it."""
        if any(parameter.requires_grad for parameter in self._encoder_parameters):
            raise ValueError(
                "The encoder is trainable, so the vectors of the corpus would not stay as they are: freeze it with "
                "st_asym.freeze_encoder(model), or train with in-batch negatives."
            )

    def take(self, rows: Rows) -> Tensor:
        """Vectors before the heads, finite, shape ``(n, d)``, where the heads are and in their dtype."""
        dtype = next((tensor.dtype for tensor in self._side if tensor.is_floating_point()), torch.float32)
        if self._kept is None:
            return self._checked(self._read(rows), rows).to(self.device, dtype)
        if len(self) <= self._keep:
            self._kept = self._kept.to(self.device, dtype)
        kept = self._kept
        return (kept[rows] if isinstance(rows, slice) else kept.index_select(0, rows.to(kept.device))).to(
            self.device, dtype
        )

    def _checked(self, vectors: Tensor, rows: Rows) -> Tensor:
        finite = torch.isfinite(vectors).all(dim=1)
        if not finite.all():
            positions = _positions_documents(rows, len(self))
            bad = [self.ids[positions[row]] for row in (~finite).nonzero().flatten().tolist()]
            raise ValueError(f"{len(bad)} vectors of the corpus are not finite: document {bad[0]!r} is the first.")
        return vectors

    def _reduced(self, vectors: Tensor) -> bool:
        """Whether matrix products with such vectors are computed in bfloat16."""
        return self._precision == "bf16" and vectors.dtype == torch.float32 and has_bfloat16(vectors.device)

    def project(self, vectors: Tensor) -> Tensor:
        """Unit vectors of the document head, float32 or float64, from vectors before it."""
        features: dict[str, Any] = {"sentence_embedding": vectors, "task": "document"}
        with torch.autocast(vectors.device.type, torch.bfloat16, enabled=self._reduced(vectors)):
            for module in self._heads:
                features = module(features)
            output: Tensor = features["sentence_embedding"]
            if self._ends_normalised:
                return output if output.dtype == torch.float64 else output.float()
            return unit(output)

    def compare(
        self,
        queries: Tensor,
        negatives: Negatives,
        rows: Tensor,
        columns: Tensor,
        *,
        chunk_size: int | None,
        best: int = 0,
        often: bool = False,
    ) -> Logits:
        """Compare queries, unit vectors over the temperature of shape ``(n, d)``, with negatives.

        Pairs of ``rows`` and ``columns``, places among the negatives, on the CPU, are counted apart. Chunks that are
        asked for, or whose graph is too large, are computed again in the backward pass. What is compared ``often`` goes
        through a head that does not train only once.
        """
        device, positions = queries.device, negatives.positions
        count = len(self) if positions is None else len(positions)
        # Documents out of a large corpus are read once, also where chunks are computed twice.
        read = None if positions is None or len(self) <= self._keep else self.take(positions)
        done = self._outputs_of(positions) if often and not self.trains else None
        size = chunk_size or (_CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK)
        columns, order = columns.sort()
        starts = range(0, count, size)
        edges = [*torch.searchsorted(columns, torch.tensor(starts)).tolist(), len(columns)]
        rows, columns, back = (part.to(device) for part in (rows[order], columns, order.argsort()))
        weights = None if negatives.weights is None else negatives.weights.to(queries)

        def compare_chunk(stretch: slice, own: slice) -> Logits:
            if done is not None:
                vectors = done[stretch]
            elif read is not None:
                vectors = self.project(read[stretch])
            else:
                vectors = self.project(self.take(stretch if positions is None else positions[stretch]))
            with torch.autocast(device.type, torch.bfloat16, enabled=self._reduced(queries)):
                similarities = queries @ vectors.to(queries.dtype).T
            with torch.autocast(device.type, enabled=False):
                logits = similarities.to(queries.dtype)
                apart = rows[own], columns[own] - stretch.start
                pairs = logits[apart]
                # Finite, so that a query without negatives has a gradient, of zero.
                logits[apart] = torch.finfo(logits.dtype).min
                top = logits.detach().topk(min(best, logits.shape[1]), dim=1)
                if weights is not None:
                    logits = logits + weights[stretch]
                return Logits(logits.logsumexp(dim=1), pairs, top.indices + stretch.start, top.values)

        run: Callable[..., Any] = compare_chunk
        # About how many numbers the graph keeps of each document on its way through the head.
        activations = 2 * sum(len(tensor) for tensor in self._side if tensor.dim() == 2)
        graph = count * (activations + 3 * len(queries)) * queries.element_size()
        if chunk_size is not None or graph > _GRAPH_BYTES:
            run = partial(checkpoint, compare_chunk, use_reentrant=False)
        stretches = (slice(start, min(start + size, count)) for start in starts)
        parts = [run(stretch, slice(*own)) for stretch, own in zip(stretches, pairwise(edges), strict=True)]
        sums, pairs, places, logits = zip(*parts, strict=True)
        return Logits(
            torch.stack(sums, dim=1).logsumexp(dim=1),
            torch.cat(pairs)[back],
            torch.cat(places, dim=1),
            torch.cat(logits, dim=1),
        )

    def _outputs_of(self, rows: Tensor | None) -> Tensor:
        """Documents through the head, without gradient; again only when the head, or the tensor of rows, is another."""
        version = [(id(tensor), tensor._version, tensor.dtype, tensor.device) for tensor in self._side]
        if self._outputs is None or self._outputs[0] != version or self._outputs[1] is not rows:
            stretches = _stretches(len(self) if rows is None else len(rows))
            with torch.no_grad():
                parts = [self.project(self.take(part if rows is None else rows[part])) for part in stretches]
            self._outputs = version, rows, torch.cat(parts)
        return self._outputs[2]


def _stretches(count: int) -> list[slice]:
    return [slice(start, min(start + _READ_AT_ONCE, count)) for start in range(0, count, _READ_AT_ONCE)]


def _grades(query: str, documents: Mapping[str, float] | Iterable[str]) -> dict[str, float]:
    """The judged documents of one query."""
    if isinstance(documents, str):
        raise TypeError(f"The documents of query {query!r} are the string {documents!r:.80}: give a list of ids.")
    if not isinstance(documents, Mapping):
        return dict.fromkeys(documents, 1.0)
    for document, grade in documents.items():
        try:
            finite = math.isfinite(grade)
        except TypeError:
            raise TypeError(f"The grade of document {document!r} for query {query!r} is {grade!r}.") from None
        if not finite:
            raise ValueError(f"The grade of document {document!r} for query {query!r} is {grade}.")
    return {document: float(grade) for document, grade in documents.items()}


def _positions(wanted: set[Any], ids: Sequence[Any]) -> dict[Any, int]:
    """Positions of the wanted ids alone: a dict of all ids of a large corpus would take gigabytes."""
    if isinstance(ids, range):
        return {key: ids.index(key) for key in wanted if key in ids}
    if len(set(ids)) < len(ids):
        seen: set[Any] = set()
        twice = [repr(key) for key in ids if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        raise ValueError(f"{len(twice)} ids occur more than once in the corpus: {first_few(twice, 3)}.")
    return {key: position for position, key in enumerate(ids) if key in wanted}


def _ids_and_reader(
    model: SentenceTransformer, documents: Texts | Vectors, keep: int
) -> tuple[Sequence[str], Callable[[Rows], Tensor]]:
    if isinstance(documents, Mapping):
        return _texts(model, documents, keep)
    if not isinstance(documents, tuple) or len(documents) != 2:
        raise TypeError(
            "The corpus must be a mapping of document id to text, or a pair (ids, vectors) with the encoder's vectors "
            f"in an array of shape (n, d), not a {type(documents).__name__}."
        )
    ids, array = documents
    if getattr(array, "ndim", None) != 2 or len(ids) != len(array):
        raise ValueError(
            f"The corpus has {len(ids)} ids and vectors of shape {tuple(getattr(array, 'shape', ()))}: it must be "
            f"({len(ids)}, dimension)."
        )

    def read(rows: Rows) -> Tensor:
        # A copy: what a file holds is read once, and a map of it that is read-only cannot become a tensor.
        return torch.from_numpy(np.array(array[rows.numpy() if isinstance(rows, Tensor) else rows]))

    return ids, read


def _texts(model: SentenceTransformer, texts: Texts, keep: int) -> tuple[Sequence[str], Callable[[Rows], Tensor]]:
    ids = list(texts)
    prompt = model.prompts.get("document") or None
    cached = isinstance(model, CachedSentenceTransformer)
    if len(ids) > keep and not cached:
        raise ValueError(
            f"The corpus has {len(ids)} texts, more than max_documents={keep}, so that each step looks up those it "
            "needs: make the loss and the trainer with a CachedSentenceTransformer, or give the loss a pair of ids and "
            "vectors, such as a numpy.memmap."
        )

    def read(rows: Rows) -> Tensor:
        wanted = [texts[ids[position]] for position in _positions_documents(rows, len(ids))]
        if cached:
            vectors: Tensor = model.preprocess(wanted, prompt=prompt, task="document")["sentence_embedding"]
            return vectors
        with encoding(model, precision="fp32", devices=None, prompt=prompt, task="document") as encode:
            return torch.from_numpy(encode(wanted, 32))

    return ids, read


def _positions_documents(rows: Rows, length: int) -> Sequence[int]:
    return range(*rows.indices(length)) if isinstance(rows, slice) else rows.tolist()
