"""A corpus as a loss sees it, by position: which documents answer which query, and the vectors of documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from torch import Tensor

from st_asym.cache.cached_model import CachedSentenceTransformer
from st_asym.cache.encoding import Precision, encoding, has_bfloat16
from st_asym.data.collection import first_few
from st_asym.heads.anatomy import encoder_modules, side_prompt, taken_apart
from st_asym.losses.isotropy import unit

Relevant = Mapping[str, Mapping[str, float] | Iterable[str]]
Texts = Mapping[str, str]
Vectors = tuple[Sequence[str], Any]

# The logarithm of what does not count: finite, so that a query without negatives has a gradient, of zero.
NOTHING = -1e30
# Documents that go through a head at once where nothing is kept for a gradient.
_AT_ONCE = 16_384


class Negatives(NamedTuple):
    """Documents that all queries of a batch are compared with."""

    positions: Tensor | None  # in the corpus, ascending, shape (n,), on the CPU; None for all of it
    weights: Tensor  # logarithms of how many documents each counts for, shape (n,) or (kinds, n), float64


class KnownPairs(NamedTuple):
    """Queries of a batch and documents that count for them otherwise than for other queries; shape ``(pairs,)``."""

    rows: Tensor  # of the query
    columns: Tensor  # of the document: its position in the corpus, or its place among the negatives
    shares: Tensor  # of the query's loss, as a positive: grade over sum of grades, float64
    weights: Tensor  # as a negative, the logarithm, float64: NOTHING where it is relevant or ignored
    hard: Tensor  # whether it is a hard negative that was found before


def together(kinds: Sequence[Negatives], pairs: KnownPairs) -> tuple[Negatives, KnownPairs]:
    """One list of documents, those of all kinds and of the pairs, and the pairs by their places in it, ascending.

    A document that a kind does not have gets the weight ``NOTHING`` in it; one that a pair adds is a negative of that
    query alone. Documents that are only ignored are not added.
    """
    needed = (pairs.shares > 0) | (pairs.weights > NOTHING)
    found = [kind.positions for kind in kinds if kind.positions is not None]
    positions = torch.unique(torch.cat([*found, pairs.columns[needed]])) if len(found) == len(kinds) else None
    pairs = pairs._replace(columns=find(pairs.columns, positions))
    size = max(len(kind.weights) for kind in kinds) if positions is None else len(positions)
    weights = torch.full((len(kinds), size), NOTHING, dtype=torch.float64)
    for of_kind, (own, logarithms) in zip(weights, kinds, strict=True):
        of_kind[slice(None) if own is None else find(own, positions)] = logarithms
    order = pairs.columns.argsort()
    order = order[pairs.columns[order] >= 0]
    return Negatives(positions, weights), KnownPairs(*(part[order] for part in pairs))


def find(wanted: Tensor, ascending: Tensor | None) -> Tensor:
    """Index of each wanted position in ``ascending``, which is not empty, or -1; None means every position."""
    if ascending is None:
        return wanted
    places = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return torch.where(ascending[places] == wanted, places, -1)


class Relevance:
    """What is known of each query: relevant documents with their grades, those judged not relevant, those to ignore.

    ``labelled`` says of each document of the corpus ``ids`` whether it is relevant to a query. A document that is to be
    ignored is so whatever a grade of zero says; one that is not in the corpus matters only if it is relevant.
    """

    def __init__(self, relevant: Relevant, ids: Sequence[str], ignored: Mapping[str, Iterable[str]] | None) -> None:
        self.queries = list(relevant)
        grades = [_grades(query, documents) for query, documents in relevant.items()]
        if not any(grade > 0 for own in grades for grade in own.values()):
            raise ValueError(f"None of the {len(grades)} queries in `relevant` has a document with a grade above 0.")
        left_out = [dict.fromkeys((ignored or {}).get(query, ())) for query in self.queries]
        positions = _positions(set().union(*grades, *left_out), ids)
        missing = [
            f"{document!r} of query {query!r}"
            for query, own in zip(self.queries, grades, strict=True)
            for document, grade in own.items()
            if grade > 0 and document not in positions
        ]
        if missing:
            raise ValueError(
                f"{len(missing)} relevant documents are not in the corpus of {len(ids)}; the first are "
                f"{first_few(missing, 3)}."
            )
        columns, shares, weights, counts = [], [], [], [0]
        for own, apart in zip(grades, left_out, strict=True):
            total = math.fsum(grade for grade in own.values() if grade > 0)
            both = {**own, **{document: own.get(document, 0.0) for document in apart}}
            known = {document: grade for document, grade in both.items() if total and document in positions}
            columns += [positions[document] for document in known]
            shares += [max(grade, 0.0) / total for grade in known.values()]
            weights += [NOTHING if grade > 0 or d in apart else 0.0 for d, grade in known.items()]
            counts.append(len(known))
        self._starts = torch.tensor(counts).cumsum(0)
        self._columns = torch.tensor(columns)
        self._shares, self._weights = (torch.tensor(part, dtype=torch.float64) for part in (shares, weights))
        self.labelled = torch.zeros(len(ids), dtype=torch.bool)
        self.labelled[self._columns[self._shares > 0]] = True

    def __len__(self) -> int:
        """The number of queries, those without a relevant document included."""
        return len(self.queries)

    def weights(self, positions: Tensor | slice, unlabelled: float) -> Tensor:
        """The logarithm of what documents count as negatives; of labelled ones alone where ``unlabelled`` is 0."""
        return (~self.labelled[positions]).double() * math.log(unlabelled or 1.0)

    def of(self, labels: Tensor) -> KnownPairs:
        """What is known of queries at some positions; each must have a relevant document."""
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
        hard = torch.zeros(len(rows), dtype=torch.bool)
        return KnownPairs(rows, self._columns[entries], self._shares[entries], self._weights[entries], hard)


class Documents:
    """Documents by position: vectors before the heads, and unit vectors through the document head as it is now.

    At most ``keep`` vectors are kept in memory. Of a larger corpus, an array stays where it is, which may be a
    ``numpy.memmap`` on disk, and texts are looked up in the cache each time. A tensor that is what the heads take is
    never copied as a whole. ``"bf16"`` runs heads of float32 in bfloat16 where the processor has it.
    """

    def __init__(
        self, model: SentenceTransformer, documents: Texts | Vectors, *, keep: int, precision: Precision
    ) -> None:
        self._encoder_parameters = [p for module in encoder_modules(model).values() for p in module.parameters()]
        self._heads = taken_apart(model)[1]
        routes = [
            head.sub_modules["document"] if isinstance(head, Router) and "document" in head.sub_modules else head
            for head in self._heads
        ]
        # What shapes the vectors of documents.
        self._side: list[Tensor] = [tensor for route in routes for tensor in (*route.parameters(), *route.buffers())]
        self._device, self._precision, self._keep = model.device, precision, keep
        self._outputs: tuple[list[Tensor], Tensor] | None = None
        self.check_frozen()
        self.ids, self._read = _ids_and_reader(model, documents, keep)
        if not len(self.ids):
            raise ValueError("The corpus is empty.")
        # Vectors in memory are looked at once, those on disk whenever they are read.
        self._kept: Tensor | None = None
        given = documents[1] if isinstance(documents, tuple) else None
        if isinstance(given, Tensor) or len(self) <= keep:
            self._kept = given.detach() if isinstance(given, Tensor) else self._read(None)
            self._check_finite(self._kept, range(len(self)))
        try:
            with torch.no_grad():
                self.project(self.take(torch.tensor([0])))
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

    @property
    def activations(self) -> int:
        """About how many numbers the graph keeps of a document on its way through the head."""
        return 2 * sum(len(tensor) for tensor in self._side if tensor.dim() == 2)

    def check_frozen(self) -> None:
        """Refuse an encoder that trains: vectors that were computed before would not follow it."""
        if any(parameter.requires_grad for parameter in self._encoder_parameters):
            raise ValueError(
                "The encoder is trainable, so the vectors of the corpus would not stay as they are: freeze it with "
                "st_asym.freeze_encoder(model), or train with in-batch negatives."
            )

    def take(self, rows: Tensor | None) -> Tensor:
        """Vectors before the heads, finite, shape ``(n, d)``, where the heads are and in their dtype; None for all."""
        device = self.device
        dtype = next((tensor.dtype for tensor in self._side if tensor.is_floating_point()), torch.float32)
        if self._kept is None:
            vectors = self._read(rows)
            self._check_finite(vectors, range(len(self)) if rows is None else rows.tolist())
            return vectors.to(device, dtype)
        if len(self) <= self._keep:
            self._kept = self._kept.to(device, dtype)
        found = self._kept if rows is None else self._kept.index_select(0, rows.to(self._kept.device))
        return found.to(device, dtype)

    def autocast(self, vectors: Tensor) -> torch.autocast:
        """The context for matrix products with such vectors: in bfloat16 where that was asked for, or in their dtype.

        Weights are not kept in it: those that were cast without a gradient would be taken where one is needed.
        """
        reduced = self._precision == "bf16" and vectors.dtype == torch.float32 and has_bfloat16(vectors.device)
        return torch.autocast(vectors.device.type, torch.bfloat16, enabled=reduced, cache_enabled=False)

    def project(self, vectors: Tensor) -> Tensor:
        """Unit vectors of the document head, float32 or float64, from vectors before it."""
        features: dict[str, Any] = {"sentence_embedding": vectors, "task": "document"}
        with self.autocast(vectors):
            for module in self._heads:
                features = module(features)
        output: Tensor = features["sentence_embedding"]
        if self._heads and isinstance(self._heads[-1], Normalize):
            return output if output.dtype == torch.float64 else output.float()
        return unit(output)

    def outputs(self) -> Tensor:
        """All documents through the head, without gradient; computed again only when the head has other values.

        Torch's own count of in-place changes leaves out those of fused optimizers and those made through ``.data``.
        """
        if self._outputs is None or not all(map(_same, self._side, self._outputs[0])):
            with torch.no_grad():
                parts = [self.project(part) for part in torch.split(self.take(None), _AT_ONCE)]
            self._outputs = [tensor.detach().clone() for tensor in self._side], torch.cat(parts)
        return self._outputs[1]

    def _check_finite(self, vectors: Tensor, positions: Sequence[int]) -> None:
        finite = torch.cat([torch.isfinite(part).all(dim=1) for part in torch.split(vectors, _AT_ONCE)])
        bad = (~finite).nonzero().flatten().tolist()
        if bad:
            first = self.ids[positions[bad[0]]]
            raise ValueError(f"{len(bad)} vectors of the corpus are not finite: document {first!r} is the first.")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are alike in dtype, device, shape and values."""
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


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
        twice = [repr(key) for key, count in Counter(ids).items() for _ in range(count - 1)]
        raise ValueError(f"{len(twice)} ids occur more than once in the corpus: {first_few(twice, 3)}.")
    return {key: position for position, key in enumerate(ids) if key in wanted}


def _ids_and_reader(
    model: SentenceTransformer, documents: Texts | Vectors, keep: int
) -> tuple[Sequence[str], Callable[[Tensor | None], Tensor]]:
    """The ids of a corpus, and what reads its vectors at some positions, or all of them for None."""
    if isinstance(documents, Mapping):
        if len(documents) > keep and not isinstance(model, CachedSentenceTransformer):
            raise ValueError(
                f"The corpus has {len(documents)} texts, more than max_documents={keep}, so that each step looks up "
                "those it needs: make the loss and the trainer with a CachedSentenceTransformer, or give the loss a "
                "pair of ids and vectors, such as a numpy.memmap."
            )
        ids = list(documents)
        return ids, partial(_encoded, model, documents, ids)
    if not isinstance(documents, tuple) or len(documents) != 2:
        raise TypeError(
            "The corpus must be a mapping of document id to text, or a pair (ids, vectors) with the encoder's vectors "
            f"in an array of shape (n, d), not a {type(documents).__name__}."
        )
    names, array = documents
    if getattr(array, "ndim", None) != 2 or len(names) != len(array):
        raise ValueError(
            f"The corpus has {len(names)} ids and vectors of shape {tuple(getattr(array, 'shape', ()))}: it must be "
            f"({len(names)}, dimension)."
        )
    # A copy: what a file holds is read once, and a map of it that is read-only cannot become a tensor.
    return names, lambda rows: torch.from_numpy(np.array(array[:] if rows is None else array[rows.numpy()]))


def _encoded(model: SentenceTransformer, texts: Texts, ids: Sequence[str], rows: Tensor | None) -> Tensor:
    """The encoder's vectors of documents, with the model's prompt for them."""
    wanted = [texts[key] for key in (ids if rows is None else [ids[row] for row in rows.tolist()])]
    prompt = side_prompt(model, "document")
    if isinstance(model, CachedSentenceTransformer):
        vectors: Tensor = model.preprocess(wanted, prompt=prompt, task="document")["sentence_embedding"]
        return vectors
    with encoding(model, precision="fp32", devices=None, prompt=prompt, task="document") as encode:
        return torch.from_numpy(encode(wanted, 32))
