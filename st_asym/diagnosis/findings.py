"""What queries find before and after the heads, what the relevant documents say of that, and what it all means."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import counted, own_documents
from st_asym.data.document import copies
from st_asym.diagnosis.geometry import Head, Spread, skewness
from st_asym.fitting.gate import Gain
from st_asym.heads.anatomy import Side
from st_asym.retrieval import Judgments
from st_asym.retrieval.metrics import TOP
from st_asym.retrieval.search import Cells, nearest
from st_asym.trainer.monitor import HIGHEST_STD, LOWEST_STD

BINS = 100
# Similarities that are in memory at a time.
_AT_ONCE = 2**24
# Cosines that differ by less are equal.
_TIE = 1e-5
# Queries that are shown on either end, and letters of a text.
_SHOWN = 10
_LONGEST = 300
# 1 - cos of an angle of a quarter of a degree, far above rounding and below what training for one epoch does.
_IDENTITY = 1e-5
# A side whose head turns vectors this much less than the other's does little.
_IDLE = 1 / 20
# Normalised vectors have their lengths taken off, so only lengths that cost precision matter there.
_LENGTH_IF_NORMALISED = 10.0
_RANK = 1 / 4
_STRONG_HUBS = 1.4
_ERRORS = 2.0
# Fewer queries say little.
_FEW = 20
# What to do where search is worse, with heads on both sides, on one, and before they are trained.
_LESS = "Lower the learning rate or the number of epochs, raise the isotropy weight"
_FIT = "; st_asym.fit keeps the encoder as it is where heads do not help."
_ADVICE = f"{_LESS}, or train the query side alone (document=False){_FIT}"
_UNTRAINED = "That is what the cut costs: train the heads, or keep more dimensions."


@dataclass(frozen=True)
class Ranking:
    """What queries find, without regard to what is relevant."""

    changed: float  # share of queries with another document among their ten nearest
    replaced: float  # share of the ten nearest that are others, over all queries
    first_changed: float  # share of queries with another nearest document
    hubness_before: float  # skewness of the number of queries that have a document among their ten nearest
    hubness_after: float


@dataclass(frozen=True)
class RelevanceFigures:
    """How near queries are to their relevant documents."""

    # Mean squared distance of a query and a relevant document on the unit sphere, 0 where they coincide (Wang and Isola
    # 2020, https://arxiv.org/abs/2005.10242).
    alignment: float
    positive: float  # mean cosine of a query and a relevant document
    negative: float  # mean cosine of a query and any other document
    margin: float  # positive less negative
    # For each query the mean cosine with its relevant documents less that with the nearest other document, averaged.
    hard_margin: float


@dataclass(frozen=True)
class Example:
    """A query whose nDCG@10 changed, with texts cut to 300 characters."""

    query_id: str
    query: str
    before: float
    after: float
    relevant: str  # its most relevant document
    first_before: str  # the document that it found first
    first_after: str


@dataclass(frozen=True)
class Judged:
    """What the relevant documents say: nDCG@10 of each judged query, and the ten that gained and lost most."""

    before: RelevanceFigures
    after: RelevanceFigures
    query_ids: tuple[str, ...]
    ndcg_before: tuple[float, ...]
    ndcg_after: tuple[float, ...]
    difference: float  # mean of the differences
    error: float | None  # its standard error; None for a single query
    gains: tuple[Example, ...]  # the largest first
    losses: tuple[Example, ...]


@dataclass(frozen=True)
class Histograms:
    """How many pairs of a query and a document have which cosine: relevant ones, zeros without qrels, and others."""

    edges: tuple[float, ...]  # of the bins, one more than there are bins
    positive_before: tuple[int, ...]
    positive_after: tuple[int, ...]
    negative_before: tuple[int, ...]
    negative_after: tuple[int, ...]


@dataclass(frozen=True)
class Positions:
    """Which pairs of a query and a document are special, by their rows."""

    qrels: Qrels  # grades, zero or more, of the queries that have a relevant document
    positives: Cells  # by query
    # No results: a query that is that document itself, and documents that have the text of a relevant one.
    left_out: Cells

    @classmethod
    def of(cls, data: RetrievalData, qrels: Qrels) -> Positions:
        """Those of a collection."""
        graded = {q: {d: max(grade, 0) for d, grade in judged.items()} for q, judged in qrels.items()}
        graded = {q: graded[q] for q in data.queries if any(graded.get(q, {}).values())}
        queries, documents = ({key: row for row, key in enumerate(texts)} for texts in (data.queries, data.corpus))

        def rows(ids: Iterable[tuple[str, str]]) -> Cells:
            found = [(queries[q], documents[d]) for q, d in dict.fromkeys(ids)]
            return torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T

        positives = rows((q, d) for q, judged in graded.items() for d, grade in judged.items() if grade > 0)
        itself = [(key, key) for key in own_documents(data.corpus, graded)]
        copied = [(q, d) for q, others in copies(graded, data.corpus).items() for d in others]
        return cls(graded, positives, rows([*itself, *copied]))


@dataclass(frozen=True)
class Similarities:
    """Cosines of n queries with m documents."""

    top: Tensor  # positions of the ten nearest documents, nearest first, shape (n, 10), or all where there are fewer
    top_values: Tensor  # their cosines
    positives: NDArray[np.float64]  # of the positive pairs, in the order they were given
    best_negative: NDArray[np.float64]  # of each query with another document, shape (n,); -inf where there is none
    mean_negative: float
    positive_counts: tuple[int, ...]  # how many are in each of 100 equal bins over [-1, 1]
    negative_counts: tuple[int, ...]


def compare(queries: Tensor, documents: Tensor, positives: Cells, left_out: Cells) -> Similarities:
    """Compare all queries with all documents, both unit vectors; pairs as of :class:`Positions`."""
    n, m = len(queries), len(documents)

    def histogram(values: Tensor) -> Tensor:
        return torch.histc(values, bins=BINS, min=-1.0, max=1.0).long()  # without what is infinite

    top_values, top = nearest(queries, documents, TOP, excluded=left_out)
    size = max(1, _AT_ONCE // m)
    found, best = [], []
    counts = torch.zeros(BINS, dtype=torch.int64)
    total = 0.0
    for start in range(0, n, size):
        block = (queries[start : start + size] @ documents.T).clamp_(-1.0, 1.0)
        mine, none = (_of_block(block, pairs, start) for pairs in (positives, left_out))
        found.append(block[mine])
        block[mine] = block[none] = -torch.inf
        counts += histogram(block)
        total += float(block.nan_to_num(neginf=0.0).sum(dtype=torch.float64))
        best.append(block.amax(dim=1))
    of_positives = torch.cat(found)
    return Similarities(
        top=top,
        top_values=top_values,
        positives=of_positives.double().numpy(),
        best_negative=torch.cat(best).double().numpy(),
        mean_negative=total / max(1, n * m - len(positives[0]) - len(left_out[0])),
        positive_counts=tuple(histogram(of_positives).tolist()),
        negative_counts=tuple(counts.tolist()),
    )


def _of_block(block: Tensor, pairs: Cells, start: int) -> Cells:
    """The pairs whose query is in a block of rows, counted from its start."""
    here = (pairs[0] >= start) & (pairs[0] < start + len(block))
    return pairs[0][here] - start, pairs[1][here]


def ranking(before: Similarities, after: Similarities, queries: Tensor, documents: Tensor) -> Ranking:
    """How far two searches differ, given the unit vectors before; ties in another order are no change."""
    # Of the documents found now, the cosines before: those that were further away than the tenth are new among the ten.
    blocks = zip(torch.split(queries, 4096), torch.split(after.top, 4096), strict=True)
    then = torch.cat([torch.einsum("nd,nkd->nk", block, documents[top]) for block, top in blocks])
    replaced = (then < before.top_values[:, -1:] - _TIE).sum(dim=1).double()
    hubs = [skewness(found.top, len(documents)) for found in (before, after)]
    return Ranking(
        changed=float((replaced > 0).double().mean()),
        replaced=float(replaced.mean() / before.top.shape[1]),
        first_changed=float((then[:, 0] < before.top_values[:, 0] - _TIE).double().mean()),
        hubness_before=hubs[0],
        hubness_after=hubs[1],
    )


def judge(data: RetrievalData, positions: Positions, before: Similarities, after: Similarities) -> Judged | None:
    """Compare two searches by what is relevant; None where nothing is judged."""
    if not positions.qrels:
        return None
    ids, documents = list(positions.qrels), list(data.corpus)
    rows = [row for row, key in enumerate(data.queries) if key in positions.qrels]
    judgments = Judgments(positions.qrels, {key: row for row, key in enumerate(documents)})
    ndcg_before, ndcg_after = (judgments.ndcg(found.top[rows]) for found in (before, after))
    gain = Gain.of(ndcg_before, ndcg_after)
    change = ndcg_after - ndcg_before
    order = np.argsort(-change, kind="stable")

    def example(place: int) -> Example:
        query_id, row = ids[place], rows[place]
        grades = positions.qrels[query_id]
        return Example(
            query_id=query_id,
            query=_short(data.queries[query_id]),
            before=float(ndcg_before[place]),
            after=float(ndcg_after[place]),
            relevant=_short(data.corpus[max(grades, key=lambda key: grades[key])]),
            first_before=_short(data.corpus[documents[int(before.top[row, 0])]]),
            first_after=_short(data.corpus[documents[int(after.top[row, 0])]]),
        )

    return Judged(
        before=_nearness(positions, before),
        after=_nearness(positions, after),
        query_ids=tuple(ids),
        ndcg_before=tuple(ndcg_before.tolist()),
        ndcg_after=tuple(ndcg_after.tolist()),
        difference=gain.mean,
        error=gain.error if gain.queries > 1 else None,
        gains=tuple(example(place) for place in order[:_SHOWN] if change[place] > 0),
        losses=tuple(example(place) for place in order[::-1][:_SHOWN] if change[place] < 0),
    )


def _nearness(positions: Positions, found: Similarities) -> RelevanceFigures:
    """Nearness of relevant documents, and how far the others are."""
    rows, places = np.unique(positions.positives[0].numpy(), return_inverse=True)
    of_query = np.bincount(places, weights=found.positives) / np.bincount(places)
    margins = (of_query - found.best_negative[rows])[np.isfinite(found.best_negative[rows])]
    positive = float(found.positives.mean())
    return RelevanceFigures(
        alignment=2.0 - 2.0 * positive,
        positive=positive,
        negative=found.mean_negative,
        margin=positive - found.mean_negative,
        hard_margin=float(margins.mean()) if margins.size else math.nan,
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


@dataclass(frozen=True)
class Finding:
    """Something that a person should know: the figure, what it means, and what to do."""

    # "queries that were trained on", "identity", "idle side", "collapse", "length explosion", "length collapse",
    # "hubs", "unchanged ranking", "worse", "margin", "better", "no head" or "not by cosine".
    kind: str
    side: Side | None  # None for both
    trouble: bool  # whether something is out of range; otherwise it is only worth knowing
    text: str


@dataclass(frozen=True)
class SideOf:
    """One side of a model: how many texts it was given, their vectors before and after the head, and the head."""

    texts: int
    before: Spread
    after: Spread
    head: Head


def findings(
    sides: Mapping[Side, SideOf],
    ranking: Ranking,
    judged: Judged | None,
    *,
    normalised: bool,
    similarity: str,
    trained: Collection[str] | None,
) -> tuple[Finding, ...]:
    """Say what is out of range, then what is worth knowing.

    ``similarity`` is what the model compares by, ``trained`` the ids of queries that were trained on, None if unknown.
    """
    found = [] if judged is None else [*_trained(judged, trained or ())]
    if similarity != "cosine":
        text = f"The model compares by {similarity}, and all figures here are by cosine."
        found.append(Finding("not by cosine", None, False, text))
    found += _movement(sides)
    for side, own in sides.items():
        found += [*_collapse(side, own), *_lengths(side, own, normalised=normalised), *_hubs(side, own)]
    still = any(finding.kind == "identity" for finding in found)
    if not still and max(ranking.changed, ranking.first_changed) < 0.01:
        text = (
            f"The heads moved, but search did not: {ranking.changed:.1%} of queries have another document among "
            "their ten nearest. Raise the learning rate or the number of epochs."
        )
        found.append(Finding("unchanged ranking", None, True, text))
    if judged is not None and not (still and not _kept_of(sides)):
        one = any(own.head.kind == "none" for own in sides.values())
        found += _relevance(judged, trained, _UNTRAINED if still else _LESS + _FIT if one else _ADVICE)
    return tuple(sorted(found, key=lambda finding: not finding.trouble))


def _trained(judged: Judged, trained: Collection[str]) -> Iterator[Finding]:
    """Judged queries that were trained on, and what the others say."""
    scores = zip(judged.query_ids, judged.ndcg_before, judged.ndcg_after, strict=True)
    others = [(before, after) for query, before, after in scores if query not in trained]
    again = len(judged.query_ids) - len(others)
    if not again:
        return
    total = counted(len(judged.query_ids), "judged query", "judged queries")
    text = f"The model was trained on {again:,} of {total}: their gains are no evidence. "
    if others:
        before, after = (sum(column) / len(others) for column in zip(*others, strict=True))
        text += f"Of the other {len(others):,}: nDCG@10 {before:.3f} -> {after:.3f} ({after - before:+.3f})."
        if len(others) < _FEW:
            text += " So few say little."
    else:
        text += "None is left to judge by: use queries that were kept out of training."
    yield Finding("queries that were trained on", None, True, text)


def _movement(sides: Mapping[Side, SideOf]) -> Iterator[Finding]:
    """Heads that did not move, both or one."""
    turns = {side: own.head.largest_turn for side, own in sides.items() if own.head.kind != "none"}
    for side in sides:
        if side not in turns:
            yield Finding("no head", side, False, f"The {side} side has no head: its vectors are the encoder's own.")
    if (largest := max(turns.values(), default=0.0)) < _IDENTITY:
        text = (
            f"The heads are still the identity: no vector turned by more than 1 - cos = {largest:.1e}, so the model is "
            f"the untouched encoder{_kept_of(sides)}. If it was trained, check that the optimizer has the heads' "
            "parameters and that router_mapping names the columns, then raise the learning rate or the number of "
            "epochs."
        )
        yield Finding("identity", None, True, text)
    elif len(turns) == 2:
        idle, busy = sorted(sides, key=lambda side: sides[side].head.turn)
        turn, other = sides[idle].head.turn, sides[busy].head.turn
        if turn < _IDLE * other:
            text = (
                f"The {idle} head {'is still the identity' if turns[idle] < _IDENTITY else 'hardly moved'}: it turns "
                f"its vectors by 1 - cos = {turn:.1e} on average, the {busy} head by {other:.1e}. If that is not what "
                f"you want, check that router_mapping sends a column to {idle!r} (a misspelt name trains the document "
                f"head alone); if it is, build the model with {idle}=False, which saves the parameters."
            )
            yield Finding("idle side", idle, True, text)


def _kept_of(sides: Mapping[Side, SideOf]) -> str:
    """Of a model whose vectors are shorter than its encoder's, which of their dimensions the heads begin with."""
    kept = min(own.after.dimension for own in sides.values())
    return f", cut to {kept} dimensions" if kept < max(own.before.dimension for own in sides.values()) else ""


def _collapse(side: Side, own: SideOf) -> Iterator[Finding]:
    """Vectors that crowd together, or on few axes."""
    before, after = own.before, own.after
    if after.std < LOWEST_STD and (before.std >= LOWEST_STD or after.std < before.std / 2):
        text = (
            f"The {side} vectors have collapsed: their standard deviation went from {before.std:.2f} to "
            f"{after.std:.2f} (about 1 is even, below {LOWEST_STD} is crowded), the mean cosine of two of them from "
            f"{before.mean_cosine:.2f} to {after.mean_cosine:.2f}. Raise the isotropy weight, lower the learning rate, "
            "and check that the loss has negatives."
        )
        yield Finding("collapse", side, True, text)
    elif after.effective_rank < _RANK * min(before.effective_rank, after.dimension):
        text = (
            f"The {side} vectors have collapsed onto few axes: their effective rank went from "
            f"{before.effective_rank:.0f} to {after.effective_rank:.0f} of {after.dimension} dimensions. Raise the "
            "isotropy weight, or lower the learning rate."
        )
        yield Finding("collapse", side, True, text)


def _lengths(side: Side, own: SideOf, *, normalised: bool) -> Iterator[Finding]:
    """Vectors that grew or shrank."""
    before, after = own.before.length, own.after.length
    limit = _LENGTH_IF_NORMALISED if normalised else HIGHEST_STD
    if before == 0 or 1 / limit <= after / before <= limit:
        return
    grew = after > before
    cost = (
        "The last Normalize takes the length off, but gradients shrink with it and half precision may overflow."
        if normalised and grew
        else "The last Normalize takes the length off, but so short a vector is mostly rounding."
        if normalised
        else "The model does not end in Normalize, so a dot product ranks by length."
    )
    remedy = "Lower the learning rate, or add weight decay." if normalised else "End the model in Normalize."
    text = (
        f"The {side} vectors {'grew' if grew else 'shrank'}: their mean length went from {before:.3g} to {after:.3g} "
        f"({after / before:.3g} times). {cost} {remedy}"
    )
    yield Finding("length explosion" if grew else "length collapse", side, True, text)


def _hubs(side: Side, own: SideOf) -> Iterator[Finding]:
    before, after = own.before.hubness, own.after.hubness
    if after > _STRONG_HUBS and after > 1.5 * max(before, 0.0):
        text = (
            f"Some {side} vectors have become neighbours of very many others: the skewness of 10-occurrences went from "
            f"{before:.2f} to {after:.2f} (above {_STRONG_HUBS} hubs are strong). Raise the isotropy weight, or train "
            "with more negatives."
        )
        yield Finding("hubs", side, True, text)


def _relevance(judged: Judged, trained: Collection[str] | None, advice: str = _ADVICE) -> Iterator[Finding]:
    """Whether search is better, or worse with ``advice``, and whether relevant documents stand out less."""
    mean = sum(judged.ndcg_before) / len(judged.ndcg_before)
    error = "" if judged.error is None else f" ± {judged.error:.3f}"
    figures = (
        f"nDCG@10 {mean:.3f} -> {mean + judged.difference:.3f} ({judged.difference:+.3f}{error}, "
        f"{counted(len(judged.query_ids), 'query', 'queries')})"
    )
    noise = math.inf if judged.error is None else _ERRORS * judged.error
    if judged.difference < -noise:
        yield Finding("worse", None, True, f"Search is worse with the heads: {figures}. {advice}")
    elif judged.difference > noise:
        text = f"Search is better with the heads: {figures}."
        if trained is None:
            text += " It counts if these queries were not trained on."
        elif not trained:
            text += " None of these queries was trained on."
        yield Finding("better", None, False, text)
    if judged.after.margin < judged.before.margin / 2 and judged.before.margin > 0:
        text = (
            f"Relevant documents stand out less: their mean cosine less that of others went from "
            f"{judged.before.margin:.3f} to {judged.after.margin:.3f}. Raise the isotropy weight, or lower the "
            "temperature of the loss."
        )
        yield Finding("margin", None, True, text)
