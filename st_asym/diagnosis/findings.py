"""What the figures mean, in plain words: what is out of range, by how much, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from st_asym.data.collection import counted
from st_asym.diagnosis.geometry import Head, Spread
from st_asym.diagnosis.relevance import Judged, Ranking
from st_asym.heads.anatomy import Side
from st_asym.trainer.monitor import HIGHEST_STD, LOWEST_STD

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


@dataclass(frozen=True)
class Finding:
    """Something that a person should know: the figure, what it means, and what to do."""

    # "queries that were trained on", "identity", "idle side", "collapse", "length explosion", "length collapse",
    # "hubs", "unchanged ranking", "worse", "margin", "better" or "no head".
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
    trained: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Say what is out of range, then what is worth knowing; ``trained`` are ids of queries that were trained on."""
    found = [] if judged is None else [*_trained(judged, trained)]
    found += _movement(sides)
    for side, own in sides.items():
        found += [*_collapse(side, own), *_lengths(side, own, normalised=normalised), *_hubs(side, own)]
    if not any(finding.kind == "identity" for finding in found):
        if ranking.changed < 0.01:
            text = (
                f"The heads moved, but search did not: {ranking.changed:.1%} of queries have another document among "
                "their ten nearest. Raise the learning rate or the number of epochs."
            )
            found.append(Finding("unchanged ranking", None, True, text))
        found += [] if judged is None else _relevance(judged)
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
    if max(turns.values(), default=0.0) < _IDENTITY:
        text = (
            f"The heads are still the identity: no vector turned by more than 1 - cos = "
            f"{max(turns.values(), default=0.0):.1e}, so the model is the untouched encoder. If it was trained, check "
            "that the optimizer has the heads' parameters and that router_mapping names the columns, then raise the "
            "learning rate or the number of epochs."
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
    elif after.effective_rank < _RANK * before.effective_rank:
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


def _relevance(judged: Judged) -> Iterator[Finding]:
    """Whether search is better or worse, and whether relevant documents stand out less."""
    mean = sum(judged.ndcg_before) / len(judged.ndcg_before)
    error = "" if judged.error is None else f" ± {judged.error:.3f}"
    figures = (
        f"nDCG@10 {mean:.3f} -> {mean + judged.difference:.3f} ({judged.difference:+.3f}{error}, "
        f"{counted(len(judged.query_ids), 'query', 'queries')})"
    )
    noise = math.inf if judged.error is None else _ERRORS * judged.error
    if judged.difference < -noise:
        text = (
            f"Search is worse with the heads: {figures}. Lower the learning rate or the number of epochs, raise the "
            "isotropy weight, or train the query side alone (document=False); st_asym.fit keeps the encoder as it is "
            "where heads do not help."
        )
        yield Finding("worse", None, True, text)
    elif judged.difference > noise:
        text = f"Search is better with the heads: {figures}. It counts if these queries were not trained on."
        yield Finding("better", None, False, text)
    if judged.after.margin < judged.before.margin / 2 and judged.before.margin > 0:
        text = (
            f"Relevant documents stand out less: their mean cosine less that of others went from "
            f"{judged.before.margin:.3f} to {judged.after.margin:.3f}. Raise the isotropy weight, or lower the "
            "temperature of the loss."
        )
        yield Finding("margin", None, True, text)
