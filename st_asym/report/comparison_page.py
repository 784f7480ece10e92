"""A comparison as a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from st_asym.evaluation.comparison import Comparison, Row
from st_asym.evaluation.scores import MAIN
from st_asym.report.page import Note, Page, Picture, Section, Table
from st_asym.report.plots import by_query, forest
from st_asym.report.tables import long_tables, p_value, short_table
from st_asym.retrieval.significance import Difference

# More pictures of queries than this are drawn for all data sets together.
_MANY = 12
# Queries that are listed on either end.
_LISTED = 10
_TESTED = (
    "Differences are in nDCG@10 to {first}, paired by query: 95 % bootstrap interval, and p-value of a randomisation "
    "test, corrected for several comparisons (Benjamini and Hochberg). Works: at least {at_least:+.1%} and p below "
    "{significance:g}; fails: significantly below."
)
_SEEN = (
    "Seen: a relevant document of the query was a training positive. Unseen: none was. Trained on: so was the query "
    "itself."
)
_LOOK = "The texts are in the data set; st-asym diagnose shows them beside what was found."


def comparison_page(comparison: Comparison) -> Page:
    """Verdicts, tables, differences with their intervals, queries, and what it all rests on."""
    first, *others = comparison.rows
    sections = [
        Section("Verdicts", notes=[*(Note(one, True) for one in comparison.cautions), *map(_verdict, others)]),
        Section("Scores", _tested(comparison), tables=_scores(comparison), pictures=_differences(comparison)),
        Section(
            "Seen and unseen documents", _SEEN, tables=_groups(comparison), pictures=_group_differences(comparison)
        ),
        Section("Query by query", pictures=_scatters(comparison)),
        Section("Largest gains and losses", _LOOK, tables=_changes(comparison)),
        Section("What was compared", notes=_notes(comparison), tables=_basis(comparison)),
    ]
    shown = [section for section in sections if section.notes or section.tables or section.pictures]
    lead = (
        "; ".join(f"{row.name}: {row.verdict or 'no verdict'}" for row in others if not row.baseline)
        or f"{first.name}: {_score(first.average[MAIN])}"
    )
    return Page("Comparison", f"{lead}.", shown, dict(comparison.versions))


def _score(value: float) -> str:
    return f"{value:.4f}"


def _notes(comparison: Comparison) -> list[Note]:
    return [Note(note) for note in comparison.notes if note not in comparison.cautions]


def _verdict(row: Row) -> Note:
    words = [f"{row.name}:"]
    if row.difference is not None:
        words.append(f"{_points(row.difference)} points of nDCG@10 on {row.difference.queries:,} queries.")
    label = f"{(row.verdict or ('baseline' if row.baseline else 'no verdict')).capitalize()}."
    return Note(" ".join([*words, *row.next_steps]), row.verdict == "fails", label)


def _points(difference: Difference) -> str:
    """``+17.96 [+14.21, +21.80]``."""
    text = f"{100 * difference.points:+.2f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def _tested(comparison: Comparison) -> str:
    if len(comparison.rows) < 2:
        return ""
    settings = comparison.settings
    return _TESTED.format(
        first=comparison.rows[0].name, at_least=settings["at_least"], significance=settings["significance"]
    )


def _scores(comparison: Comparison) -> list[Table]:
    return [Table(header, rows) for header, rows in (short_table(comparison), *long_tables(comparison))]


def _differences(comparison: Comparison) -> list[Picture]:
    first, *others = comparison.rows
    found: dict[str, dict[str, Difference]] = {}
    if len(comparison.data) > 1:
        found["average"] = {row.name: row.difference for row in others if row.difference is not None}
    for data in comparison.data:
        found[data] = {row.name: row.differences[data] for row in others if data in row.differences}
    return [forest("Difference in nDCG@10", found, first.name)] if others else []


def _groups(comparison: Comparison) -> list[Table]:
    rows = [
        [f"{row.name}: {data}, {kind}", f"{group.queries:,}", _score(group.score)]
        + (["", ""] if group.difference is None else [_points(group.difference), p_value(group.difference.p_corrected)])
        for row in comparison.rows
        for data, groups in row.groups.items()
        for kind, group in groups.items()
    ]
    return [Table(["", "queries", "nDCG@10", "points, 95 %", "p"], rows)] if rows else []


def _group_differences(comparison: Comparison) -> list[Picture]:
    first, *others = comparison.rows
    found: dict[str, dict[str, Difference]] = {}
    for row in others:
        for data, groups in row.groups.items():
            for kind, group in groups.items():
                if group.difference is not None:
                    found.setdefault(f"{data}, {kind}", {})[row.name] = group.difference
    return [forest("Difference on seen and unseen documents", found, first.name)] if found else []


def _by_query(comparison: Comparison, row: Row, data: str) -> list[float]:
    """nDCG@10 of each query, the mean over the models of the row."""
    scores = comparison.queries[data]["scores"][row.name][MAIN]
    return [float(value) for value in np.mean(scores, axis=0)]


def _scatters(comparison: Comparison) -> list[Picture]:
    others, names = comparison.rows[1:], list(comparison.data)
    together = len(others) * len(names) > _MANY
    return [
        _scatter(comparison, row, part, several=len(names) > 1)
        for row in others
        for part in ([names] if together else [[data] for data in names])
    ]


def _scatter(comparison: Comparison, row: Row, names: Sequence[str], *, several: bool) -> Picture:
    first = comparison.rows[0]
    before = [score for data in names for score in _by_query(comparison, first, data)]
    after = [score for data in names for score in _by_query(comparison, row, data)]
    known = [comparison.queries[data] for data in names]
    seen = None
    if all(one["seen"] is not None for one in known):
        seen = [query_id in ids for one in known for ids in [set(one["seen"])] for query_id in one["ids"]]
    title = "nDCG@10 by query"
    if several:
        title += f", {names[0] if len(names) == 1 else 'all data sets'}"
    return by_query(title, before, after, (first.name, row.name), seen)


def _changes(comparison: Comparison) -> list[Table]:
    """The queries that gained and lost most, of each system on each data set."""
    first, *others = comparison.rows
    tables = []
    for row in others:
        for data in comparison.data:
            ids, seen = comparison.queries[data]["ids"], comparison.queries[data]["seen"]
            before, after = _by_query(comparison, first, data), _by_query(comparison, row, data)
            order = sorted(range(len(ids)), key=lambda place: before[place] - after[place])
            ends = [place for place in order[:_LISTED] if after[place] > before[place]]
            ends += [place for place in order[-_LISTED:] if after[place] < before[place]]
            known = set(seen or ())
            rows = [
                [ids[place], f"{before[place]:.3f}", f"{after[place]:.3f}", f"{after[place] - before[place]:+.3f}"]
                + ([] if seen is None else ["seen" if ids[place] in known else "unseen"])
                for place in ends
            ]
            header = ["query", first.name, row.name, "difference", *([] if seen is None else ["documents"])]
            if rows:
                tables.append(Table(header, rows, f"{data}: {row.name}", folded=True))
    return tables


def _basis(comparison: Comparison) -> list[Table]:
    """Models by their digests, data by their versions, and the settings."""
    models = [
        [row.name, "" if seed is None else str(seed), digest]
        for row in comparison.rows
        for digest, seed in zip(row.digests, row.seeds or [None] * len(row.digests), strict=True)
    ]
    data = [
        [name, str(facts["split"]), f"{facts['queries']:,}", f"{facts['documents']:,}", str(facts["version"])]
        for name, facts in comparison.data.items()
    ]
    settings = [[name.replace("_", " "), str(value)] for name, value in comparison.settings.items()]
    settings.append(["created", comparison.created])
    return [
        Table(["model", "seed", "digest of weights and settings"], models),
        Table(["data set", "split", "queries", "documents", "version"], data),
        Table(["setting", "value"], settings),
    ]
