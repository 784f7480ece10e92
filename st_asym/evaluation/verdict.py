"""From scores to the rows of a comparison, whether a system works and what to try next, and which of two stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_asym.data.collection import counted
from st_asym.evaluation.comparison import BM25, FEW, MAIN, METRICS, Comparison, Group, Row, fused_name, mean
from st_asym.retrieval.significance import Difference, Floats, corrected, difference

if TYPE_CHECKING:
    from st_asym.evaluation.evaluate import System

Verdict = Literal["works", "marginal", "fails"]
# Data set to the name of a group of its queries to their ids.
Parts = Mapping[str, Mapping[str, Sequence[str]]]
# Data set to rows of queries.
Rows = Mapping[str, Sequence[int]]
# Data set to system to the ids of judged queries that it was trained on.
Trained = Mapping[str, Mapping[str, Collection[str]]]


@dataclass(frozen=True)
class Bar:
    """What a system must reach to work: the share of the first one's nDCG@10 to gain, and a p-value to be below."""

    at_least: float = 0.035
    significance: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what cannot be reached."""
        if not 0 <= self.at_least < float("inf"):
            raise ValueError(f"at_least must be a share of at least 0, such as 0.035, got {self.at_least}.")
        if not 0 < self.significance < 1:
            raise ValueError(f"significance must be between 0 and 1, such as 0.05, got {self.significance}.")


def rows_of(
    systems: Sequence[System],
    queries: Mapping[str, Any],
    parts: Parts,
    bar: Bar,
    seed: int,
    trained: Trained | None = None,
    compressed: Mapping[str, dict[str, dict[str, float]]] | None = None,
) -> tuple[Row, ...]:
    """Compare all systems with the first, on all data sets, on each, and on groups of queries (``parts``).

    ``queries`` are those of a :class:`Comparison`. Those that a system or the first one was trained on (``trained``)
    are no evidence for its verdict. Baselines, the systems without models, have none.
    """
    first, *others = (system.name for system in systems)
    baselines = {system.name for system in systems if not system.models}
    places = {data: {query: row for row, query in enumerate(own["ids"])} for data, own in queries.items()}
    groups = {
        (data, name): [places[data][query] for query in ids]
        for data, part in parts.items()
        for name, ids in part.items()
        if ids
    }
    # Four families of differences, each corrected by itself: a reader looks at averages, at data sets or at groups.
    wanted: dict[tuple[str, ...], Rows] = {}
    for name in others:
        wanted["average", name] = {data: [*own.values()] for data, own in places.items()}
        wanted |= {("data", name, data): {data: [*own.values()]} for data, own in places.items()}
        wanted |= {("group", name, *key): {key[0]: rows} for key, rows in groups.items()}
        if left := _not_trained_on(places, trained or {}, (first, name)):
            wanted["evidence", name] = left
    found = _differences(queries, first, wanted, baselines, seed)
    rows: list[Row] = []
    for system in systems:
        row = _averages(system, queries, (compressed or {}).get(system.name, {}))
        for (data, group), own in groups.items():
            score = mean(_by_query(queries[data], row.name)[own])
            row.groups.setdefault(data, {})[group] = Group(len(own), score, found.get(("group", row.name, data, group)))
        row.differences.update({data: found["data", row.name, data] for data in places if row.name != first})
        row = replace(row, difference=found.get(("average", row.name)), baseline=row.name in baselines)
        gain, both = found.get(("evidence", row.name)), fused_name(first)
        if gain is not None and not row.baseline:
            row = _judged(row, rows[0], gain, bar, queries)
        elif (
            gain is not None and row.name not in (BM25, both) and both in baselines
        ):  # what BM25 and the heads gain over BM25 alone
            gain = _difference(queries, both, row.name, wanted["evidence", row.name], seed)
            on = counted(gain.queries, "query", "queries")
            row = replace(row, next_steps=(f"{gain}, to {both!r} on {on} that neither was trained on.",))
        rows.append(row)
    return tuple(rows)


def _not_trained_on(places: Mapping[str, Mapping[str, int]], trained: Trained, systems: Sequence[str]) -> Rows:
    """Data set to the rows of queries that none of the systems was trained on, where there are any."""
    found = {}
    for data, own in places.items():
        again = {query for name in systems for query in trained.get(data, {}).get(name, ())}
        if rows := [row for query, row in own.items() if query not in again]:
            found[data] = rows
    return found


def _differences(
    queries: Mapping[str, Any],
    first: str,
    wanted: Mapping[tuple[str, ...], Rows],
    baselines: Collection[str],
    seed: int,
) -> dict[tuple[str, ...], Difference]:
    """Differences to the first system under keys that begin with their family and the other system.

    They are corrected for their number in a family, in which baselines are one of their own.
    """
    found: dict[tuple[str, ...], Difference] = {}
    known: dict[Any, Difference] = {}  # a single data set is also the average, and mostly the evidence
    for key, rows in wanted.items():
        on = (key[1], *((data, *own) for data, own in rows.items()))
        if on not in known:
            known[on] = _difference(queries, first, key[1], rows, seed)
        found[key] = known[on]
    families: dict[tuple[str, bool], list[tuple[str, ...]]] = {}
    for key in wanted:
        families.setdefault((key[0], key[1] in baselines), []).append(key)
    for keys in families.values():
        for key, p in zip(keys, corrected([found[key].p for key in keys]), strict=True):
            found[key] = replace(found[key], p_corrected=p)
    return found


def _judged(row: Row, base: Row, gain: Difference, bar: Bar, queries: Mapping[str, Any]) -> Row:
    """A row with its verdict, and what the evidence suggests."""
    verdict = judge(gain, bar)
    if set(row.digests) <= set(base.digests):  # as where fit has kept the encoder: a note says so
        return replace(row, verdict=verdict)
    moved = any((_by_query(own, row.name) != _by_query(own, base.name)).any() for own in queries.values())
    steps = next_steps(verdict, gain, bar, moved=moved, differences=row.differences, groups=row.groups)
    return replace(row, verdict=verdict, next_steps=steps)


def _averages(system: System, queries: Mapping[str, Any], compressed: dict[str, dict[str, float]]) -> Row:
    """A row without differences."""
    own = {data: known["scores"][system.name] for data, known in queries.items()}
    scores = {data: {metric: mean(found[metric]) for metric in METRICS} for data, found in own.items()}
    average = {metric: mean([one[metric] for one in scores.values()]) for metric in METRICS}
    spread = {}
    if len(system.digests) > 1:
        by_model = {data: np.mean(found[MAIN], axis=1) for data, found in own.items()}
        by_model["average"] = np.mean([*by_model.values()], axis=0)
        spread = {data: float(np.std(one, ddof=1)) for data, one in by_model.items()}
    return Row(system.name, system.digests, system.seeds, scores, average, spread, compressed=compressed)


def _by_query(known: Mapping[str, Any], name: str) -> Floats:
    """nDCG@10 of each query of a data set, the mean over the models of a system, shape ``(n,)``."""
    return np.asarray(np.mean(known["scores"][name][MAIN], axis=0))


def _difference(queries: Mapping[str, Any], before: str, after: str, rows: Rows, seed: int) -> Difference:
    """Between two systems, on these queries of data sets."""
    old, new = ([_by_query(queries[data], name)[[*own]] for data, own in rows.items()] for name in (before, after))
    return difference(old, new, seed)


def judge(gain: Difference, bar: Bar) -> Verdict:
    """``"works"`` for a significant gain that is large, ``"fails"`` for a significant loss, else ``"marginal"``."""
    significant = gain.p_corrected < bar.significance
    if significant and gain.points < 0:
        return "fails"
    relative = gain.relative if gain.relative is not None else float("inf")
    return "works" if significant and relative >= bar.at_least else "marginal"


def next_steps(
    verdict: Verdict,
    gain: Difference,
    bar: Bar,
    *,
    moved: bool,
    differences: Mapping[str, Difference],
    groups: Mapping[str, Mapping[str, Group]],
) -> tuple[str, ...]:
    """What the evidence suggests, a sentence each.

    ``gain`` is what the verdict is by, ``differences`` and ``groups`` are the row's; ``moved`` says whether
    the score of any query differs from the first system's.
    """
    steps = [_overall(verdict, gain, bar, moved=moved)]
    if verdict != "fails":
        steps += [
            f"{data}: worse than the first system ({100 * own.points:+.2f}), whatever the average says. Use the first "
            "system there, or train on pairs of it too."
            for data, own in differences.items()
            if own.points < 0 and own.p_corrected < bar.significance
        ]
    unseen = {data: group["unseen"].difference for data, group in groups.items() if "unseen" in group}
    steps += [
        f"{data}: worse where no relevant document was in training. Use more isotropy, fewer epochs, or the query side "
        "only."
        for data, own in unseen.items()
        if own is not None and own.high is not None and own.high < 0
    ]
    return tuple(filter(None, steps))


def _overall(verdict: Verdict, gain: Difference, bar: Bar, *, moved: bool) -> str:
    if not moved:
        return "No query scores otherwise than before: the heads did not move. Raise the learning rate."
    if verdict == "works":
        return ""
    if verdict == "fails":
        return "It is worse than the first system: lower the learning rate or stop earlier, and look at the data."
    if gain.p_corrected < bar.significance:
        return f"It gains, but less than {bar.at_least:.1%}: train longer, on more pairs, or with both heads."
    return (
        f"The difference is not distinguishable from chance on {gain.queries:,} queries: evaluate on more of "
        "them, or train on more pairs."
    )


@dataclass(frozen=True)
class Replacement:
    """Whether ``new`` replaces ``old``: ``print(replacement)`` is a sentence.

    Attributes:
        old: The name of the model in service.
        new: The name of the one that may replace it.
        replaces: The answer.
        reason: For it, in words.
        gain: In mean nDCG@10 from the old to the new one, None where no queries are left.
        halves: The same for ``"seen"`` and ``"unseen"`` queries, where the comparison knows them.
    """

    old: str
    new: str
    replaces: bool
    reason: str
    gain: Difference | None = None
    halves: dict[str, Difference] | None = None

    def __str__(self) -> str:
        """``Replace last by next: nDCG@10 +1.20 points [+0.31, +2.10], p = 0.009, on 412 queries ...``."""
        return f"{f'Replace {self.old} by {self.new}' if self.replaces else f'Keep {self.old}'}: {self.reason}"


def replacement(
    comparison: Comparison,
    old: str,
    new: str,
    *,
    unknown: Sequence[str] = (),
    significance: float = 0.05,
    seed: int = 0,
) -> Replacement:
    """Decide between two models of a comparison.

    The new one replaces the old one if its mean nDCG@10 is higher, on the queries that no model of the comparison was
    trained on, and if it is not significantly lower on those of them whose documents were trained on, or on the others
    (where the comparison was given ``train``). The difference need not be significant: both models passed their own
    tests against the encoder, the new one has seen more, and a week has few queries. Without a new query, or a
    difference, the old one stays; so it does where it is not known what was trained on.

    Args:
        comparison: Of :func:`st_asym.evaluate`; data sets count the same.
        old: The name of the model in service.
        new: The name of the one that may replace it.
        unknown: Models that were trained on queries of which there are no digests.
        significance: What a p-value must be below for a loss to count on a half.
        seed: Of the tests' random draws.

    Raises:
        KeyError: The comparison has no model of such a name.

    Example:
        >>> comparison = evaluate({"last": "current", "next": "next"}, "week.csv", split="all")  # doctest: +SKIP
        >>> replacement(comparison, "last", "next").replaces  # doctest: +SKIP
        True
    """
    old, new = (comparison[name].name for name in (old, new))  # or an error says which there are
    if unknown:
        reason = f"it is not known which queries {' and '.join(unknown)} learnt from."
        return Replacement(old, new, replaces=False, reason=reason)
    gain = _gain(comparison, old, new, None, seed)
    if gain is None:
        return Replacement(old, new, replaces=False, reason=f"it or {new} was trained on every query.")
    both = {half: _gain(comparison, old, new, half, seed) for half in ("seen", "unseen")}
    halves = {half: own for half, own in both.items() if own is not None}
    lost = [half for half, own in halves.items() if own.points < 0 and own.p < significance]
    reason = f"nDCG@10 {gain}, on {counted(gain.queries, 'query', 'queries')} that neither was trained on"
    reason += "".join(f"; {halves[half]}, on {half} documents, which is beyond noise" for half in lost)
    reason += f". Fewer than {FEW} say little." if gain.queries < FEW else "."
    return Replacement(old, new, gain.points > 0 and not lost, reason, gain, halves)


def _gain(comparison: Comparison, old: str, new: str, half: str | None, seed: int) -> Difference | None:
    """The difference on queries that were not trained on, all or those of a half; None where there are none."""
    rows: dict[str, list[int]] = {}
    for data, known in comparison.queries.items():
        trained, seen = set(known["trained on"]), set(known["seen"] or ())
        left = [row for row, key in enumerate(known["ids"]) if key not in trained]
        if half is not None:
            left = [row for row in left if (known["ids"][row] in seen) == (half == "seen")]
        if left and (half is None or known["seen"] is not None):
            rows[data] = left
    return _difference(comparison.queries, old, new, rows, seed) if rows else None
