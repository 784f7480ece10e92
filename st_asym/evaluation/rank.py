"""From the scores of every model to the rows of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from st_asym.evaluation.comparison import Bar, Group, Row, judge, mean, next_steps
from st_asym.evaluation.scores import MAIN, METRICS, Floats, Scores
from st_asym.retrieval.significance import Difference, corrected, difference

# Data set to what one model scored on it.
Run = dict[str, Scores]
# Data set to system to the ids of judged queries that it was trained on.
Trained = Mapping[str, Mapping[str, Collection[str]]]


@dataclass(frozen=True)
class System:
    """What was measured of one system.

    Attributes:
        name: As given.
        digests: Of each of its models.
        seeds: Of each, where they were given.
        runs: The scores of each.
        compressed: Form to the scores of each.
    """

    name: str
    digests: tuple[str, ...]
    seeds: tuple[int, ...] | None
    runs: list[Run]
    compressed: dict[str, list[Run]]

    def by_query(self, data: str) -> Floats:
        """Mean nDCG@10 of each query over the models, shape ``(n,)``."""
        return np.asarray(np.mean([run[data].array(MAIN) for run in self.runs], axis=0))


def rows_of(
    systems: Sequence[System],
    parts: Mapping[str, Mapping[str, Sequence[str]]],
    bar: Bar,
    seed: int,
    trained: Trained | None = None,
) -> tuple[Row, ...]:
    """Compare all systems with the first.

    Args:
        systems: What was measured, on the same data sets.
        parts: Data set to ``"seen"`` and ``"unseen"`` query ids, where training data were given, and to other groups.
        bar: What a system must reach.
        seed: Of what is drawn at random.
        trained: What it and the first system were trained on is no evidence for a verdict.
    """
    first, *others = systems
    names = list(first.runs[0])
    total = {one.name: difference(*_arrays(first, one, names), seed) for one in others}
    single = {(one.name, data): difference(*_arrays(first, one, [data]), seed) for one in others for data in names}
    # Averages and data sets are two families of comparisons: a reader looks at the one or at the other.
    evidence = _corrected(_evidence(first, others, total, trained or {}, seed))
    total, single = _corrected(total), _corrected(single)
    groups = _groups(first, others, parts, seed)
    rows = [_measured(first, groups)]
    for one in others:
        row = replace(
            _measured(one, groups),
            difference=total[one.name],
            differences={data: single[one.name, data] for data in names},
        )
        gain = evidence.get(one.name)
        rows.append(row if gain is None else _judged(row, gain, first, one, bar))
    return tuple(rows)


def _judged(row: Row, gain: Difference, first: System, one: System, bar: Bar) -> Row:
    """A row with its verdict, and what the evidence suggests."""
    verdict = judge(gain, bar)
    moved = any((one.by_query(data) != first.by_query(data)).any() for data in first.runs[0])
    if set(one.digests) <= set(first.digests):  # as where fit has kept the encoder: a note says so
        return replace(row, verdict=verdict)
    steps = next_steps(verdict, gain, bar, moved=moved, differences=row.differences, groups=row.groups)
    return replace(row, verdict=verdict, next_steps=steps)


def _evidence(
    first: System, others: Sequence[System], total: Mapping[str, Difference], trained: Trained, seed: int
) -> dict[str, Difference]:
    """The difference of each system on the queries that neither it nor the first was trained on, where some are left.

    Args:
        first: What is compared with.
        others: The others.
        total: Their differences on all queries.
        trained: What they were trained on.
        seed: Of what is drawn at random.
    """
    found: dict[str, Difference] = {}
    for one in others:
        left = {data: _left(first, one, data, trained.get(data, {})) for data in first.runs[0]}
        if sum(map(len, left.values())) == total[one.name].queries:
            found[one.name] = total[one.name]
        elif any(left.values()):
            parts = [(first.by_query(data)[rows], one.by_query(data)[rows]) for data, rows in left.items() if rows]
            found[one.name] = difference([part[0] for part in parts], [part[1] for part in parts], seed)
    return found


def _left(first: System, one: System, data: str, trained: Mapping[str, Collection[str]]) -> list[int]:
    """The rows of queries that neither was trained on."""
    again = {*trained.get(first.name, ()), *trained.get(one.name, ())}
    return [row for row, query_id in enumerate(first.runs[0][data].queries) if query_id not in again]


def scores_by_query(
    systems: Sequence[System], parts: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, dict[str, Any]]:
    """Every score of every query, as :class:`st_asym.Comparison` keeps it."""
    return {
        data: {
            "ids": list(scores.queries),
            "seen": list(parts[data]["seen"]) if "seen" in parts.get(data, {}) else None,
            "trained on": list(parts.get(data, {}).get("trained on", ())),
            "scores": {
                system.name: {metric: [list(run[data].by_query[metric]) for run in system.runs] for metric in METRICS}
                for system in systems
            },
        }
        for data, scores in systems[0].runs[0].items()
    }


def _arrays(first: System, other: System, names: Sequence[str]) -> tuple[list[Floats], list[Floats]]:
    return [first.by_query(data) for data in names], [other.by_query(data) for data in names]


def _corrected(found: dict[Any, Difference]) -> dict[Any, Difference]:
    p_values = corrected([one.p for one in found.values()])
    return {key: replace(one, p_corrected=p) for (key, one), p in zip(found.items(), p_values, strict=True)}


def _measured(system: System, groups: Mapping[str, dict[str, dict[str, Group]]]) -> Row:
    names = list(system.runs[0])
    scores = {data: {m: mean([run[data].means[m] for run in system.runs]) for m in METRICS} for data in names}
    spread = {}
    if len(system.runs) > 1:
        by_run = {data: [run[data].means[MAIN] for run in system.runs] for data in names}
        by_run["average"] = [mean([run[data].means[MAIN] for data in names]) for run in system.runs]
        spread = {data: float(np.std(values, ddof=1)) for data, values in by_run.items()}
    compressed = {}
    for form, runs in system.compressed.items():
        found = {data: mean([run[data].means[MAIN] for run in runs]) for data in names}
        compressed[form] = {**found, "average": mean(list(found.values()))}
    return Row(
        name=system.name,
        digests=system.digests,
        seeds=system.seeds,
        scores=scores,
        average={metric: mean([scores[data][metric] for data in names]) for metric in METRICS},
        spread=spread,
        groups=groups[system.name],
        compressed=compressed,
    )


def _groups(
    first: System, others: Sequence[System], parts: Mapping[str, Mapping[str, Sequence[str]]], seed: int
) -> dict[str, dict[str, dict[str, Group]]]:
    """System to data set to seen and unseen queries."""
    found: dict[str, dict[str, dict[str, Group]]] = {system.name: {} for system in (first, *others)}
    gains: dict[Any, Difference] = {}
    for data, part in parts.items():
        position = {query_id: row for row, query_id in enumerate(first.runs[0][data].queries)}
        for group, ids in part.items():
            if not ids:
                continue
            rows = [position[query_id] for query_id in ids]
            before = first.by_query(data)[rows]
            for system in (first, *others):
                own = system.by_query(data)[rows]
                found[system.name].setdefault(data, {})[group] = Group(len(rows), mean(own.tolist()))
                if system is not first:
                    gains[system.name, data, group] = difference([before], [own], seed)
    for (name, data, group), gain in _corrected(gains).items():
        found[name][data][group] = replace(found[name][data][group], difference=gain)
    return found
