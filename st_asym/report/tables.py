"""Tables in Markdown and for the terminal, whatever is in them, and what is said beside them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table

from st_asym.data.collection import counted
from st_asym.data.files import REPORT_FILE, read_json
from st_asym.evaluation.comparison import MAIN, METRICS
from st_asym.retrieval.significance import p_value

if TYPE_CHECKING:
    from st_asym.diagnosis.diagnose import Diagnosis
    from st_asym.diagnosis.findings import Example
    from st_asym.evaluation.comparison import Comparison
    from st_asym.retrieval.significance import Difference

Rows = list[list[str]]

TITLES = {"ndcg@10": "nDCG@10", "map@100": "MAP@100", "mrr@10": "MRR@10", "recall@100": "recall@100"}
# Of a diagnosis, in letters.
_WIDTH = 100
# Attribute of a Spread, its name, decimals, and what is even.
_SPREAD = (
    ("mean_norm", "norm of the mean", 3, "0"),
    ("std", "standard deviation x sqrt(d)", 3, "1"),
    ("mean_cosine", "mean cosine", 3, "0"),
    ("isoscore", "IsoScore*", 3, "1"),
    ("effective_rank", "effective rank", 1, "d"),
    ("uniformity", "uniformity", 3, "-4"),
    ("hubness", "hubness (skew of N_10)", 2, "0"),
    ("length", "length before any Normalize", 3, ""),
)
_RELEVANCE = (
    ("alignment", "alignment of positives"),
    ("positive", "mean cosine, positives"),
    ("negative", "mean cosine, negatives"),
    ("margin", "margin"),
    ("hard_margin", "margin to the best negative"),
)

# ``as_dict()`` of a :class:`st_asym.FitReport`.
Report: TypeAlias = Mapping[str, Any]
HALVES = {"seen": "seen documents", "unseen": "unseen documents"}
# So many candidates are drawn, and listed in a card; the page lists all.
MOST = 10
# All that heads in closed form are made by.
_OF_CLOSED_FORM = ("sides", "init", "whitening", "hidden_features", "bias")
_LABELS = {"init": "heads start as"}


def cell(text: str) -> str:
    """A text as one cell of a table in Markdown, on one line."""
    return " ".join(text.split()).replace("|", "\\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table in Markdown; a cell stays one cell, on one line.

    Example:
        >>> print(table(["model", "nDCG@10"], [["a|b", "0.5"]]))
        | model | nDCG@10 |
        | --- | --- |
        | a\|b | 0.5 |
    """
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in (header, ["---"] * len(header), *rows))


def code(text: str) -> str:
    r"""A name as code, on one line.

    Example:
        >>> code("a `quoted`\nname")
        "`a 'quoted' name`"
    """
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _drawn(header: Sequence[str], rows: Sequence[Sequence[str]], width: int, column: dict[str, Any], look: Any) -> str:
    """A table for the terminal, with options of rich for its columns and its look."""
    drawn = Table(**look)
    for number, title in enumerate(header):
        drawn.add_column(title, justify="right" if number else "left", **column)
    for row in rows:
        drawn.add_row(*row)
    console = Console(width=width, color_system=None, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def short_table(comparison: Comparison) -> tuple[list[str], Rows]:
    """``Model | Avg NDCG@10 | vs Baseline``: header and rows."""
    rows = [
        [row.name, f"{row.average[MAIN]:.4f}", "" if row.difference is None else _percent(row.difference)]
        for row in comparison.rows
    ]
    return ["Model", "Avg NDCG@10", "vs Baseline"], rows


def long_tables(comparison: Comparison) -> list[tuple[list[str], Rows]]:
    """Header and rows: of the averages, and, where there is more to say, of nDCG@10 in detail."""
    several = len(comparison.data) > 1
    header = ["Model", "Avg nDCG@10" if several else "nDCG@10", "points", "%", "95 %", "p", "verdict"]
    header += [TITLES[metric] for metric in METRICS[1:]]
    rows = []
    for row in comparison.rows:
        cells = [row.name, _spread(row.average[MAIN], row.spread.get("average"))]
        cells += [*_difference(row.difference), row.verdict or ""]
        rows.append([*cells, *(f"{row.average[metric]:.4f}" for metric in METRICS[1:])])
    tables = [(header, rows)]
    names = list(comparison.data) if several else []
    grouped = [(data, group) for data, own in comparison.rows[0].groups.items() for group in own]
    forms = list(comparison.rows[0].compressed)
    if names or grouped or forms:
        header = ["nDCG@10", *names, *(f"{data}, {group}" for data, group in grouped)]
        header += [f"{form} dims" if form.isdigit() else form for form in forms]
        rows = []
        for row in comparison.rows:
            cells = [row.name]
            for name in names:
                beside = f" {_short(row.differences[name])}" if name in row.differences else ""
                cells.append(_spread(row.scores[name][MAIN], row.spread.get(name)) + beside)
            for group in (row.groups[data][kind] for data, kind in grouped):
                number = f"({counted(group.queries, 'query', 'queries')})"
                cells.append(f"{group.score:.4f} {_short(group.difference) if group.difference else number}")
            cells += [f"{row.compressed[form]['average']:.4f}" if form in row.compressed else "" for form in forms]
            rows.append(cells)
        tables.append((header, rows))
    return tables


def terminal_tables(comparison: Comparison) -> str:
    """Everything, drawn for the width of the terminal, with what it rests on."""
    width = shutil.get_terminal_size((200, 24)).columns
    lines = [*comparison.cautions, ""] if comparison.cautions else []
    for header, rows in long_tables(comparison):
        look = {"box": box.SIMPLE_HEAD, "pad_edge": False}
        lines += [_drawn(header, rows, width, {"overflow": "fold"}, look), ""]
    return "\n".join([*lines, *notes(comparison)])


def notes(comparison: Comparison, *, steps: bool = True) -> list[str]:
    """What the table rests on, a line each, without what stands above it; with what to try next, or without."""
    data = (
        f"{name}: split {facts['split']}, {counted(facts['queries'], 'query', 'queries')}, "
        f"{counted(facts['documents'], 'document')}"
        for name, facts in comparison.data.items()
    )
    lines = ["; ".join(data) + "."]
    if len(comparison.rows) > 1:
        lines.append(how_compared(comparison, repr(comparison.rows[0].name)))
    seeds = [f"{row.name} {len(row.digests)}" for row in comparison.rows if len(row.digests) > 1 and not row.baseline]
    if seeds:
        lines.append(f"Several seeds, mean ± standard deviation: {', '.join(seeds)}.")
    lines += [f"{row.name}: {step}" for row in comparison.rows for step in row.next_steps if steps]
    lines += [note for note in comparison.notes if note not in comparison.cautions]
    lines.append(", ".join(f"{name} {version}" for name, version in comparison.versions.items()))
    return lines


def how_compared(comparison: Comparison, first: str) -> str:
    """What differences are to, how they are tested, and what a verdict asks for."""
    return (
        f"Differences are in nDCG@10 to {first}, paired by query: 95 % bootstrap interval, and p-value of a "
        "randomisation test, corrected for several comparisons (Benjamini and Hochberg). Works: at least "
        f"{comparison.settings['at_least']:+.1%} and p below {comparison.settings['significance']:g}; fails: "
        "significantly below."
    )


def _short(difference: Difference) -> str:
    """The difference in points, with its p-value."""
    return f"({100 * difference.points:+.2f}, p {p_value(difference.p_corrected, '= ')})"


def _difference(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["", "", "", ""]
    points, ends = f"{100 * difference.points:+.2f}", difference.interval.ends
    return [points, _percent(difference), ends, p_value(difference.p_corrected)]


def _percent(difference: Difference) -> str:
    return "" if difference.relative is None else f"{difference.relative:+.1%}"


def _spread(value: float, spread: float | None) -> str:
    return f"{value:.4f}" if spread is None else f"{value:.4f} ± {spread:.4f}"


def vectors_table(diagnosis: Diagnosis) -> Rows:
    """How the vectors of each side fill their space, before and after."""
    query, document = diagnosis.query, diagnosis.document
    spreads = (query.before, query.after, document.before, document.after)
    rows = [
        ["vectors", "queries", "with heads", "documents", "with heads", "even"],
        ["count", f"{query.texts:,}", "", f"{document.texts:,}", "", ""],
        ["dimension d", *(str(spread.dimension) for spread in spreads), ""],
    ]
    for name, shown, decimals, even in _SPREAD:
        rows.append([shown, *(f"{getattr(spread, name):.{decimals}f}" for spread in spreads), even])
    return rows


def heads_table(diagnosis: Diagnosis) -> Rows:
    """What each head is, and how far from the identity."""
    heads = [side.head for side in diagnosis.sides.values()]
    ends = [(head.singular_values[-1], head.singular_values[0]) if head.singular_values else None for head in heads]
    return [
        ["heads", "query", "document"],
        ["kind", *(head.kind + (", shared" if head.shared else "") for head in heads)],
        ["layers", *(head.layers for head in heads)],
        ["parameters", *(f"{head.parameters:,}" for head in heads)],
        ["change of the vectors", *(f"{head.change:.3g}" for head in heads)],
        ["turn, mean of 1 - cos", *(f"{head.turn:.3g}" for head in heads)],
        ["linear map, distance from I", *(_number(head.map_distance) for head in heads)],
        ["change that it explains", *(_number(head.linear_share) for head in heads)],
        ["its singular values", *("" if end is None else f"{end[0]:.3f} to {end[1]:.3f}" for end in ends)],
    ]


def search_table(diagnosis: Diagnosis) -> Rows:
    """What queries find, before and after."""
    ranking = diagnosis.ranking
    rows = [
        ["search", "encoder", "with heads"],
        ["queries whose ten nearest changed", "", f"{ranking.changed:.1%}"],
        ["of the ten nearest, replaced", "", f"{ranking.replaced:.1%}"],
        ["queries whose nearest changed", "", f"{ranking.first_changed:.1%}"],
        ["hubness of documents found", f"{ranking.hubness_before:.2f}", f"{ranking.hubness_after:.2f}"],
    ]
    if (judged := diagnosis.judged) is not None:
        pairs = list(zip(judged.ndcg_before, judged.ndcg_after, strict=True))
        means = [sum(scores) / len(pairs) for scores in zip(*pairs, strict=True)]
        won, lost = sum(after > before for before, after in pairs), sum(after < before for before, after in pairs)
        for name, shown in _RELEVANCE:
            rows.append([shown, *(_number(getattr(part, name)) for part in (judged.before, judged.after))])
        rows.append([f"nDCG@10 ({len(pairs):,} queries)", *(f"{mean:.4f}" for mean in means)])
        rows.append(["queries that gained / lost", "", f"{won:,} / {lost:,}"])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def as_text(diagnosis: Diagnosis) -> str:
    """Findings, tables and examples of a diagnosis; the tables are Markdown too."""
    lines = [diagnosis.first_line]
    for finding in diagnosis.findings:
        lines += textwrap.wrap(f"{'!' if finding.trouble else '-'} {finding.text}", _WIDTH, subsequent_indent="  ")
    for header, *rows in (vectors_table(diagnosis), heads_table(diagnosis), search_table(diagnosis)):
        lines += ["", _drawn(header, rows, _WIDTH, {"no_wrap": True}, {"box": box.MARKDOWN})]
    if diagnosis.judged is not None:
        lines += _examples("Largest gains in nDCG@10", diagnosis.judged.gains)
        lines += _examples("Largest losses in nDCG@10", diagnosis.judged.losses)
    return "\n".join(lines)


def _examples(title: str, examples: Sequence[Example]) -> list[str]:
    lines = ["", f"{title}:"] if examples else []
    for example in examples:
        change = f"  {example.before:.2f} -> {example.after:.2f}  "
        text = f"{example.query_id}: {example.query}"
        lines.append(change + textwrap.shorten(text, _WIDTH - len(change), placeholder="..."))
    return lines


# What a fit says of itself, for its page and for the card


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report in the folder of a model, as this version writes it; None where there is none."""
    path = folder / REPORT_FILE
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise TypeError(f"it is a {type(found).__name__}")
    return found if "candidates" in found else _of_0_1(found)


def _of_0_1(report: Mapping[str, Any]) -> dict[str, Any]:
    """0.1 tried one system with one start, and its choices are epochs and dials alone."""
    name = f"{report['system']}, {report['init']} start"

    def named(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, "choice": {"candidate": name, **entry["choice"]}}

    evidence = [named(entry) for entry in report["evidence"]]
    chosen = None if report["chosen"] is None else named(report["chosen"])
    best = chosen or max(evidence, key=lambda entry: entry["gain"], default=None)
    return {
        **report,
        "settings": {"system": report["system"], "init": report["init"], **report["settings"]},
        "expected_unseen": None,
        "candidates": [] if best is None else [{"name": name, "evidence": best, "cuts": None, "seconds": None}],
        "chosen": chosen,
        "chance": None,
        "evidence": evidence,
        "training": [],
    }


def best(report: Report) -> Mapping[str, Any] | None:
    """What held-out queries say about what was kept, or about the best of what was tried; None without any."""
    found: Mapping[str, Any] | None = report["chosen"]
    return found or next((one["evidence"] for one in report["candidates"]), None)


def how_far(choice: Mapping[str, Any]) -> str:
    """How far heads are trained and turned back."""
    return f"epoch {choice['epoch']}, dial {choice['dial']:g}" if choice["epoch"] else "in closed form"


def difference(mean: float, error: float | None, digits: int = 3) -> str:
    """``+0.071 ± 0.010``; 0.1 knew no standard error of a single query."""
    return f"{mean:+.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def half(found: Mapping[str, Any], digits: int = 3) -> str:
    """The gain of the queries on seen, or on unseen documents."""
    return difference(found["mean"], found["error"], digits) if found["queries"] else "no queries"


def is_kept(report: Report, candidate: str) -> bool:
    """Whether the heads that were kept are of this candidate."""
    return report["chosen"] is not None and bool(report["chosen"]["choice"]["candidate"] == candidate)


def candidate_table(report: Report, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what was tried, each at its best, on held-out queries."""
    header = ["candidate", "at its best", *HALVES.values(), "together", "cuts", "seconds", ""]
    cuts = max((one["cuts"] or 0 for one in report["candidates"]), default=0)
    rows = []
    for one in report["candidates"][:most]:
        found = one["evidence"]
        row = [one["name"], how_far(found["choice"]), *(half(found[name]) for name in HALVES)]
        row.append(difference(found["gain"], found["error"]))
        row.append("" if one["cuts"] is None else f"{one['cuts']} of {cuts}")
        row.append("" if one["seconds"] is None else f"{one['seconds']:.1f}")
        rows.append([*row, "kept" if is_kept(report, one["name"]) else ""])
    return header, rows


def settings_rows(report: Report) -> list[list[str]]:
    """Name and value: how the kept heads were made, or what was given, where none were kept."""
    chosen, settings = report["chosen"], dict(report["settings"])
    if chosen is not None and not chosen["choice"]["epoch"]:
        settings = {name: settings[name] for name in _OF_CLOSED_FORM}
    if settings["init"] not in (None, "pairs"):
        settings.pop("whitening", None)
    unset = "left to fit" if chosen is None else "not used"
    rows = [["collection", report["collection"] or "not given"]]
    if report["expected_unseen"] is not None:
        rows.append(["share of traffic on unseen documents", f"{report['expected_unseen']:.0%}"])
    rows.append(["seed", str(report["seed"])])
    for name, value in settings.items():
        empty = "none: one linear layer" if name == "hidden_features" else unset
        rows.append([_LABELS.get(name, name.replace("_", " ")), empty if value is None else shown(value)])
    return rows


def shown(value: Any) -> str:
    """A setting or a figure of it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
