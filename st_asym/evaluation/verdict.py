"""From scores to the rows of a comparison, whether a system works and what to try next, and which of two stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_asym.data.collection import counted
from st_asym.evaluation.comparison import FULL, MAIN, METRICS, Comparison, Group, Measurement, Row, Scores, mean
from st_asym.evaluation.models import BM25, fused_name
from st_asym.evaluation.seen import FEW
from st_asym.retrieval.significance import Difference, Floats, corrected, difference

if TYPE_CHECKING:
    from st_asym.evaluation.models import System

Verdict = Literal["works", "marginal", "fails"]
# Data set to the name of a group of its queries to their ids.
Parts = Mapping[str, Mapping[str, Sequence[str]]]
# Data set to rows of queries.
Rows = Mapping[str, list[int]]
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
    measured: Sequence[Measurement],
    parts: Parts,
    bar: Bar,
    seed: int,
    trained: Trained | None = None,
) -> tuple[Row, ...]:
    """Compare all systems with the first, on all data sets, on each, and on groups of queries (``parts``).

    Queries that a system or the first one was trained on (``trained``) are no evidence for its verdict.
    """
    first, *others = (system.name for system in systems)
    table = _Table(measured, first, seed, {system.name for system in systems if not system.models})
    everything = {data: list(range(len(ids))) for data, ids in table.ids.items()}
    groups = {(data, name): table.rows(data, ids) for data, part in parts.items() for name, ids in part.items() if ids}
    # Four families of comparisons, each corrected by itself: a reader looks at averages, at data sets or at groups.
    total = table.differences({(other,): everything for other in others})
    single = table.differences({(other, d): {d: rows} for other in others for d, rows in everything.items()})
    in_groups = table.differences({(other, *key): {key[0]: rows} for other in others for key, rows in groups.items()})
    left = {(other,): table.not_trained_on((first, other), trained or {}) for other in others}
    evidence = table.differences({key: rows for key, rows in left.items() if rows})
    base, *rows = (table.row(system, groups, in_groups) for system in systems)
    compared = [
        replace(row, difference=total[row.name,], differences={data: single[row.name, data] for data in table.ids})
        for row in rows
    ]
    return (
        base,
        *(
            replace(row, baseline=True, next_steps=_on_top(row.name, first, left[row.name,], table))
            if row.name in table.baselines
            else _judged(row, evidence.get((row.name,)), bar, base, table)
            for row in compared
        ),
    )


def _on_top(name: str, first: str, rows: Rows, table: _Table) -> tuple[str, ...]:
    """What a system with BM25 added gains over the first one with BM25 added, on queries that it was not trained on."""
    both = fused_name(first)
    if name in (BM25, both) or both not in table.baselines or not rows:
        return ()
    gain = table.difference(both, name, rows)
    queries = counted(gain.queries, "query", "queries")
    return (f"{gain}, to {both!r} on {queries} that neither was trained on.",)


def _judged(row: Row, gain: Difference | None, bar: Bar, base: Row, table: _Table) -> Row:
    """A row with its verdict, and what the evidence suggests."""
    if gain is None:
        return row
    verdict = judge(gain, bar)
    if set(row.digests) <= set(base.digests):  # as where fit has kept the encoder: a note says so
        return replace(row, verdict=verdict)
    moved = any((table.by_query[row.name, data] != table.by_query[base.name, data]).any() for data in table.ids)
    steps = next_steps(verdict, gain, bar, moved=moved, differences=row.differences, groups=row.groups)
    return replace(row, verdict=verdict, next_steps=steps)


def scores_by_query(measured: Sequence[Measurement], parts: Parts) -> dict[str, dict[str, Any]]:
    """Every score of every query, as :class:`st_asym.Comparison` keeps it."""
    found: dict[str, dict[str, Any]] = {}
    for system, _, form, scores in measured:
        if form != FULL:
            continue
        part = parts.get(scores.data, {})
        own = found.setdefault(
            scores.data,
            {
                "ids": list(scores.queries),
                "seen": list(part["seen"]) if "seen" in part else None,
                "trained on": list(part.get("trained on", ())),
                "scores": {},
            },
        )
        by_metric = own["scores"].setdefault(system, {metric: [] for metric in METRICS})
        for metric in METRICS:
            by_metric[metric].append(list(scores.by_query[metric]))
    return found


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


class _Table:
    """Measurements, found by system, data set and form."""

    def __init__(self, measured: Sequence[Measurement], first: str, seed: int, baselines: Collection[str]) -> None:
        self._first, self._seed, self.baselines = first, seed, baselines
        # By the queries that it is on: a single data set is also the average, and mostly the evidence.
        self._known: dict[Any, Difference] = {}
        self._runs: dict[tuple[str, str, str], list[Scores]] = {}
        for system, _, form, scores in measured:
            self._runs.setdefault((system, scores.data, form), []).append(scores)
        self._forms = list(dict.fromkeys(form for *_, form in self._runs if form != FULL))
        # Data set to the ids of its queries.
        self.ids = {data: runs[0].queries for (_, data, _), runs in self._runs.items()}
        # Mean nDCG@10 of each query over the models of a system, shape (n,).
        self.by_query: dict[tuple[str, str], Floats] = {
            (system, data): np.asarray(np.mean([one.by_query[MAIN] for one in runs], axis=0))
            for (system, data, form), runs in self._runs.items()
            if form == FULL
        }

    def rows(self, data: str, queries: Sequence[str]) -> list[int]:
        """The rows of some queries."""
        places = {query: row for row, query in enumerate(self.ids[data])}
        return [places[query] for query in queries]

    def not_trained_on(self, systems: Sequence[str], trained: Trained) -> dict[str, list[int]]:
        """Data set to the rows of queries that none of the systems was trained on, where there are any."""
        found = {}
        for data, ids in self.ids.items():
            again = {query for system in systems for query in trained.get(data, {}).get(system, ())}
            if rows := [row for row, query in enumerate(ids) if query not in again]:
                found[data] = rows
        return found

    def differences(self, wanted: Mapping[tuple[str, ...], Rows]) -> dict[tuple[str, ...], Difference]:
        """A family of differences to the first system, corrected for their number; baselines are one of their own.

        Each is wanted under a key that begins with the other system, on these queries of data sets.
        """
        found = {}
        for key, rows in wanted.items():
            queries = (key[0], tuple((data, tuple(own)) for data, own in rows.items()))
            if queries not in self._known:
                self._known[queries] = self.difference(self._first, key[0], rows)
            found[key] = self._known[queries]
        for family in (True, False):
            keys = [key for key in found if (key[0] in self.baselines) == family]
            for key, p in zip(keys, corrected([found[key].p for key in keys]), strict=True):
                found[key] = replace(found[key], p_corrected=p)
        return found

    def difference(self, before: str, after: str, rows: Rows) -> Difference:
        """Between two systems, on these queries of data sets."""
        old, new = ([self.by_query[system, data][own] for data, own in rows.items()] for system in (before, after))
        return difference(old, new, self._seed)

    def mains(self, system: str, form: str = FULL) -> dict[str, list[float]]:
        """Data set to the nDCG@10 of each of the system's models."""
        return {data: [run.means[MAIN] for run in self._runs[system, data, form]] for data in self.ids}

    def row(
        self,
        system: System,
        groups: Mapping[tuple[str, str], list[int]],
        gains: Mapping[tuple[str, ...], Difference],
    ) -> Row:
        """A row without its differences, other than those in groups."""
        own_groups: dict[str, dict[str, Group]] = {}
        for (data, group), rows in groups.items():
            score = float(self.by_query[system.name, data][rows].mean())
            own_groups.setdefault(data, {})[group] = Group(len(rows), score, gains.get((system.name, data, group)))
        scores = {
            data: {m: mean([run.means[m] for run in self._runs[system.name, data, FULL]]) for m in METRICS}
            for data in self.ids
        }
        spread = {}
        if len(system.digests) > 1:
            by_model = self.mains(system.name)
            by_model["average"] = [mean(own) for own in zip(*by_model.values(), strict=True)]
            spread = {data: float(np.std(own, ddof=1)) for data, own in by_model.items()}
        compressed = {}
        for form in self._forms if system.models else ():
            found = {data: mean(own) for data, own in self.mains(system.name, form).items()}
            compressed[form] = {**found, "average": mean(list(found.values()))}
        return Row(
            name=system.name,
            digests=system.digests,
            seeds=system.seeds,
            scores=scores,
            average={metric: mean([scores[data][metric] for data in self.ids]) for metric in METRICS},
            spread=spread,
            groups=own_groups,
            compressed=compressed,
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
    before: list[Floats] = []
    after: list[Floats] = []
    for known in comparison.queries.values():
        trained = set(known["trained on"])
        places = {key: row for row, key in enumerate(known["ids"]) if key not in trained}
        if half is not None:
            seen = set(known["seen"]) if known["seen"] is not None else None
            places = {key: row for key, row in places.items() if seen is not None and (key in seen) == (half == "seen")}
        if places:
            scores = [np.mean(known["scores"][name][MAIN], axis=0)[list(places.values())] for name in (old, new)]
            before.append(scores[0])
            after.append(scores[1])
    return difference(before, after, seed) if before else None
