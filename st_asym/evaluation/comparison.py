"""A comparison of models: scores by query, rows of their means, differences and verdicts; as a table and a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from st_asym.data.collection import counted
from st_asym.data.files import read_json, write_json
from st_asym.retrieval.significance import Difference, Floats, corrected, difference

if TYPE_CHECKING:
    from st_asym.evaluation.models import System

METRICS = ("ndcg@10", "map@100", "mrr@10", "recall@100")
MAIN = METRICS[0]
# The form of vectors that are not compressed.
FULL = "full"
BM25 = "BM25"
# Fewer queries say little.
FEW = 20
FORMAT = 1


Verdict = Literal["works", "marginal", "fails"]
# Data set to the name of a group of its queries to their ids.
Parts = Mapping[str, Mapping[str, Sequence[str]]]
# Data set to rows of queries.
Rows = Mapping[str, Sequence[int]]
# Data set to system to the ids of judged queries that it was trained on.
Trained = Mapping[str, Mapping[str, Collection[str]]]


def short_digest(content: Any) -> str:
    """A short digest of what JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def fused_name(name: str) -> str:
    """The row of a system with BM25 added."""
    return f"{name} + {BM25}"


@dataclass(frozen=True)
class Group:
    """One group of a data set's queries: seen or unseen, or those that were trained on or not.

    Attributes:
        queries: How many.
        score: Their mean nDCG@10.
        difference: To the first system, None for that itself.
    """

    queries: int
    score: float
    difference: Difference | None = None


@dataclass(frozen=True)
class Row:
    """One system; with several seeds, their mean.

    Attributes:
        name: As given.
        digests: Of each of its models.
        seeds: Of each, where they were given.
        scores: Data set to metric to mean score.
        average: Metric to the mean over data sets.
        spread: Data set, and ``"average"``, to the standard deviation of nDCG@10 over seeds; empty for one.
        difference: In average nDCG@10 to the first system, None for that itself.
        differences: The same for each data set.
        groups: Data set to ``"seen"`` and ``"unseen"``, where training data were given, and to ``"trained on"`` and
            ``"not trained on"``, where a model was trained on judged queries.
        compressed: Form to data set, and ``"average"``, to nDCG@10 with compressed vectors.
        verdict: ``"works"``, ``"marginal"`` or ``"fails"``, by the queries that it was not trained on; None for the
            first system, for baselines, and where no such queries are left.
        evidence: What the verdict is by: ``difference``, but for queries that a model was trained on.
        next_steps: What the evidence suggests, a sentence each.
        baseline: Whether it is BM25, or a system with BM25 added; these have no verdict.
    """

    name: str
    digests: tuple[str, ...]
    seeds: tuple[int, ...] | None
    scores: dict[str, dict[str, float]]
    average: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
    difference: Difference | None = None
    differences: dict[str, Difference] = field(default_factory=dict)
    groups: dict[str, dict[str, Group]] = field(default_factory=dict)
    compressed: dict[str, dict[str, float]] = field(default_factory=dict)
    verdict: str | None = None
    evidence: Difference | None = None
    next_steps: tuple[str, ...] = ()
    baseline: bool = False


@dataclass(frozen=True)
class Comparison:
    """What :func:`st_asym.evaluate` gives: ``print(comparison)`` is the table.

    Attributes:
        rows: One per system, the first being what the others are compared with.
        data: Data set to its split, its subset of a task that has several, version, and numbers of documents and
            queries.
        queries: Data set to ``"ids"``, ``"seen"`` (ids, None where training data were not given), ``"trained on"`` (ids
            that a model was trained on) and ``"scores"``: system to metric to one list of scores per model, in the
            order of the ids.
        settings: Of the comparison.
        versions: Of the packages.
        notes: What was left out of the data, or is odd about the models.
        created: When, in UTC.
        cautions: Those of the notes that stand above the table: what makes its numbers no evidence.

    Example:
        >>> comparison = Comparison.load("comparison.json")  # doctest: +SKIP
        >>> print(comparison.to_markdown())  # doctest: +SKIP
    """

    rows: tuple[Row, ...]
    data: dict[str, dict[str, Any]]
    queries: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    created: str = ""
    cautions: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Row:
        """The row of a system.

        Raises:
            KeyError: There is none of this name. The message names those that are.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"There is no system {name!r}: this comparison has {[row.name for row in self.rows]}.")

    def __str__(self) -> str:
        """The table for a terminal."""
        from st_asym.report.tables import terminal_tables

        return terminal_tables(self)

    def to_markdown(self, *, wide: bool = True) -> str:
        """The table ``Model | Avg NDCG@10 | vs Baseline``, and under it the wider one with what it rests on.

        Args:
            wide: False for the first table alone.
        """
        from st_asym.report.tables import long_tables, notes, short_table, table

        parts = [*self.cautions, table(*short_table(self))]
        if wide:
            parts += [*(table(*one) for one in long_tables(self)), *notes(self)]
        return "\n\n".join(parts) + "\n"

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything, per-query scores included."""
        write_json(path, {"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what :meth:`to_json` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no comparison, or of another format.
        """
        try:
            content = read_json(path)
            found = content.pop("format")
            if found == FORMAT:
                comparison: Comparison = of_json(cls, content)
                return comparison
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no file {path}.") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = "it is no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
            raise ValueError(
                f"{path} is not a comparison that Comparison.to_json wrote, or st-asym evaluate --json: {why}."
            ) from error
        raise ValueError(
            f"{path} is of format {found}, this version of st_asym reads {FORMAT}: evaluate again, or read it with "
            f"the version that wrote it ({content.get('versions', {}).get('st_asym', 'unknown')})."
        )


def mean(values: Any) -> float:
    """As Python's own float, which JSON knows."""
    return float(np.mean(values))


def of_json(kind: Any, value: Any) -> Any:
    """A value of this type, out of what JSON made of its ``asdict``, perhaps of an earlier version that had more."""
    if is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{name: of_json(types[name], part) for name, part in value.items() if name in types})  # type: ignore[operator]
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(of_json(inner[0], part) for part in value)
    if get_origin(kind) is dict:
        return {key: of_json(inner[1], part) for key, part in value.items()}
    return of_json(inner[0], value) if type(None) in inner and value is not None else value


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
        (data, name): sorted(places[data][query] for query in ids)
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
    found, both = _differences(queries, first, wanted, baselines, seed), fused_name(first)
    rows: list[Row] = []
    for system in systems:
        row = _averages(system, queries, (compressed or {}).get(system.name, {}))
        for (data, group), own in groups.items():
            score = mean(by_query(queries[data], row.name)[own])
            row.groups.setdefault(data, {})[group] = Group(len(own), score, found.get(("group", row.name, data, group)))
        row.differences.update({data: found["data", row.name, data] for data in places if row.name != first})
        row = replace(row, difference=found.get(("average", row.name)), baseline=row.name in baselines)
        if (gain := found.get(("evidence", row.name))) is not None and not row.baseline:
            row = _judged(row, rows[0], gain, bar, queries)
        elif gain is not None and both in baselines and row.name not in (BM25, both):
            added = difference_on(queries, both, row.name, wanted["evidence", row.name], seed)
            on = counted(added.queries, "query", "queries")
            row = replace(row, next_steps=(f"{added}, to {both!r} on {on} that neither was trained on.",))
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
            known[on] = difference_on(queries, first, key[1], rows, seed)
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
    verdict = verdict_of(gain, bar)
    if set(row.digests) <= set(base.digests):  # as where fit has kept the encoder: a note says so
        return replace(row, verdict=verdict, evidence=gain)
    moved = any((by_query(own, row.name) != by_query(own, base.name)).any() for own in queries.values())
    steps = next_steps(verdict, gain, bar, moved=moved, differences=row.differences, groups=row.groups)
    return replace(row, verdict=verdict, evidence=gain, next_steps=steps)


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


def by_query(known: Mapping[str, Any], name: str) -> Floats:
    """nDCG@10 of each query of a data set, the mean over the models of a system, shape ``(n,)``."""
    return np.asarray(np.mean(known["scores"][name][MAIN], axis=0))


def difference_on(queries: Mapping[str, Any], before: str, after: str, rows: Rows, seed: int) -> Difference:
    """Between two systems, on these queries of data sets."""
    old, new = ([by_query(queries[data], name)[[*own]] for data, own in rows.items()] for name in (before, after))
    return difference(old, new, seed)


def verdict_of(gain: Difference, bar: Bar) -> Verdict:
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
        return (
            "No query scores otherwise than before. If the heads did not move, raise the learning rate; if they did, "
            "evaluate on more or harder queries."
        )
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
