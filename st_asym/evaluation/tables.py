"""A comparison as text: for a terminal, and in Markdown."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from st_asym.data.collection import counted
from st_asym.evaluation.scores import MAIN, METRICS
from st_asym.markdown import table as markdown

if TYPE_CHECKING:
    from st_asym.evaluation.comparison import Comparison, Row
    from st_asym.evaluation.statistics import Difference

_TITLES = {"ndcg@10": "nDCG@10", "map@100": "MAP@100", "mrr@10": "MRR@10", "recall@100": "recall@100"}


def narrow_table(comparison: Comparison) -> str:
    """``Model | Avg NDCG@10 | vs Baseline`` in Markdown."""
    return markdown(*short_table(comparison))


def short_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of :func:`narrow_table`."""
    rows = [
        [row.name, f"{row.average[MAIN]:.4f}", "" if row.difference is None else _percent(row.difference)]
        for row in comparison.rows
    ]
    return ["Model", "Avg NDCG@10", "vs Baseline"], rows


def wide_tables(comparison: Comparison) -> list[str]:
    """Everything, in Markdown: averages, and what they are made of."""
    return [markdown(header, rows) for header, rows in long_tables(comparison)]


def terminal_tables(comparison: Comparison) -> str:
    """Everything, drawn for the width of the terminal, with what it rests on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=shutil.get_terminal_size((200, 24)).columns, color_system=None, highlight=False)
    lines: list[str] = [*comparison.cautions, ""] if comparison.cautions else []
    for header, rows in long_tables(comparison):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, title in enumerate(header):
            table.add_column(title, justify="left" if number == 0 else "right", overflow="fold")
        for cells in rows:
            table.add_row(*cells)
        with console.capture() as capture:
            console.print(table)
        lines += [*(line.rstrip() for line in capture.get().splitlines() if line.strip()), ""]
    return "\n".join([*lines, *notes(comparison)])


def notes(comparison: Comparison) -> list[str]:
    """What the table rests on, a line each, without what stands above it."""
    lines = [
        "; ".join(
            f"{name}: split {facts['split']}, {counted(facts['queries'], 'query', 'queries')}, "
            f"{counted(facts['documents'], 'document')}"
            for name, facts in comparison.data.items()
        )
        + ".",
    ]
    if len(comparison.rows) > 1:
        lines.append(
            f"Differences are in nDCG@10 to {comparison.rows[0].name!r}, paired by query: 95 % bootstrap interval, and "
            "p-value of a randomisation test, corrected for several comparisons (Benjamini and Hochberg). Works: at "
            f"least {comparison.settings['at_least']:+.1%} and p below {comparison.settings['significance']:g}; fails: "
            "significantly below."
        )
    seeds = [f"{row.name} {len(row.digests)}" for row in comparison.rows if len(row.digests) > 1]
    if seeds:
        lines.append(f"Several seeds, mean ± standard deviation: {', '.join(seeds)}.")
    lines += [f"{row.name}: {step}" for row in comparison.rows for step in row.next_steps]
    lines += [note for note in comparison.notes if note not in comparison.cautions]
    lines.append(", ".join(f"{name} {version}" for name, version in comparison.versions.items()))
    return lines


def long_tables(comparison: Comparison) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows: of the averages, and, where there is more to say, of nDCG@10 in detail."""
    several = len(comparison.data) > 1
    header = ["Model", "Avg nDCG@10" if several else "nDCG@10", "points", "%", "95 %", "p", "verdict"]
    header += [_TITLES[metric] for metric in METRICS[1:]]
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
        tables.append((header, [_details(row, names, grouped, forms) for row in comparison.rows]))
    return tables


def _details(row: Row, names: list[str], grouped: list[tuple[str, str]], forms: list[str]) -> list[str]:
    cells = [row.name, *(_of_data(row, name) for name in names)]
    cells += [_of_group(row, data, group) for data, group in grouped]
    return [*cells, *(f"{row.compressed[form]['average']:.4f}" for form in forms)]


def _of_data(row: Row, name: str) -> str:
    text = _spread(row.scores[name][MAIN], row.spread.get(name))
    return f"{text} {_short(row.differences[name])}" if name in row.differences else text


def _of_group(row: Row, data: str, group: str) -> str:
    found = row.groups[data][group]
    text = f"{found.score:.4f}"
    return (
        f"{text} {_short(found.difference)}"
        if found.difference is not None
        else f"{text} ({counted(found.queries, 'query', 'queries')})"
    )


def _short(difference: Difference) -> str:
    """The difference in points, with its p-value."""
    return f"({100 * difference.points:+.2f}, p {p_value(difference.p_corrected, '= ')})"


def _difference(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["", "", "", ""]
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    return [f"{100 * difference.points:+.2f}", _percent(difference), interval, p_value(difference.p_corrected)]


def _percent(difference: Difference) -> str:
    return "" if difference.relative is None else f"{difference.relative:+.1%}"


def p_value(value: float, sign: str = "") -> str:
    """``0.012``, with ``sign`` before it, or ``< .001``."""
    return "< .001" if value < 0.001 else f"{sign}{value:.3f}"


def _spread(value: float, spread: float | None) -> str:
    return f"{value:.4f}" if spread is None else f"{value:.4f} ± {spread:.4f}"
