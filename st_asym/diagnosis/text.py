"""A diagnosis as text for the terminal."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from st_asym.diagnosis.result import Diagnosis, Example, Judged, Spread

_WIDTH = 100
# Attribute of a Spread, its name, decimals, and what is even.
_ROWS = (
    ("mean_norm", "norm of the mean", 3, "0"),
    ("std", "standard deviation x sqrt(d)", 3, "1"),
    ("mean_cosine", "mean cosine", 3, "0"),
    ("isoscore", "IsoScore*", 3, "1"),
    ("effective_rank", "effective rank", 1, "d"),
    ("uniformity", "uniformity", 3, "-4"),
    ("hubness", "hubness (skew of N_10)", 2, "0"),
    ("length", "length before Normalize", 3, ""),
)


def as_text(diagnosis: Diagnosis) -> str:
    """Findings, tables and examples."""
    lines = [diagnosis.first_line]
    for finding in diagnosis.findings:
        lines += textwrap.wrap(f"{'!' if finding.trouble else '-'} {finding.text}", _WIDTH, subsequent_indent="  ")
    tables = [_vectors(diagnosis), _heads(diagnosis), _search(diagnosis)]
    lines += ["", _rendered(tables)]
    if diagnosis.judged is not None:
        lines += _examples("Largest gains in nDCG@10", diagnosis.judged.gains)
        lines += _examples("Largest losses in nDCG@10", diagnosis.judged.losses)
    return "\n".join(lines).rstrip()


def _rendered(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, highlight=False, markup=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines() if line.strip())


def _table(*columns: str) -> Table:
    table = Table(box=box.MARKDOWN, pad_edge=True)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    return table


def _vectors(diagnosis: Diagnosis) -> Table:
    table = _table("vectors", "queries", "with heads", "documents", "with heads", "even")
    query, document = diagnosis.query, diagnosis.document
    table.add_row("count", f"{query.texts:,}", "", f"{document.texts:,}", "", "")
    spreads: tuple[Spread, ...] = (query.before, query.after, document.before, document.after)
    table.add_row("dimension d", *(str(spread.dimension) for spread in spreads), "")
    for name, shown, decimals, even in _ROWS:
        table.add_row(shown, *(f"{getattr(spread, name):.{decimals}f}" for spread in spreads), even)
    return table


def _heads(diagnosis: Diagnosis) -> Table:
    table = _table("heads", "query", "document")
    heads = [side.head for side in diagnosis.sides.values()]
    table.add_row("kind", *(head.kind + (", shared" if head.shared else "") for head in heads))
    table.add_row("layers", *(head.layers for head in heads))
    table.add_row("parameters", *(f"{head.parameters:,}" for head in heads))
    table.add_row("change of the vectors", *(f"{head.change:.3g}" for head in heads))
    table.add_row("turn, mean of 1 - cos", *(f"{head.turn:.3g}" for head in heads))
    table.add_row("linear map, distance from I", *(_number(head.map_distance) for head in heads))
    table.add_row("change that it explains", *(_number(head.linear_share) for head in heads))
    ends = [(head.singular_values[0], head.singular_values[-1]) if head.singular_values else None for head in heads]
    table.add_row("its singular values", *("" if end is None else f"{end[1]:.3f} to {end[0]:.3f}" for end in ends))
    return table


def _search(diagnosis: Diagnosis) -> Table:
    table = _table("search", "encoder", "with heads")
    ranking = diagnosis.ranking
    table.add_row("queries whose ten nearest changed", "", f"{ranking.changed:.1%}")
    table.add_row("of the ten nearest, replaced", "", f"{ranking.replaced:.1%}")
    table.add_row("queries whose nearest changed", "", f"{ranking.first_changed:.1%}")
    table.add_row("hubness of documents found", f"{ranking.hubness_before:.2f}", f"{ranking.hubness_after:.2f}")
    if diagnosis.judged is not None:
        _add_relevance(table, diagnosis.judged)
    return table


def _add_relevance(table: Table, judged: Judged) -> None:
    names = {
        "alignment": "alignment of positives",
        "positive": "mean cosine, positives",
        "negative": "mean cosine, negatives",
        "margin": "margin",
        "hard_margin": "margin to the best negative",
    }
    for name, shown in names.items():
        table.add_row(shown, *(_number(getattr(part, name)) for part in (judged.before, judged.after)))
    pairs = list(zip(judged.ndcg_before, judged.ndcg_after, strict=True))
    means = [sum(scores) / len(pairs) for scores in zip(*pairs, strict=True)]
    table.add_row(f"nDCG@10 ({len(pairs):,} queries)", *(f"{mean:.4f}" for mean in means))
    won, lost = sum(after > before for before, after in pairs), sum(after < before for before, after in pairs)
    table.add_row("queries that gained / lost", "", f"{won:,} / {lost:,}")


def _examples(title: str, examples: Sequence[Example]) -> list[str]:
    lines = ["", f"{title}:"] if examples else []
    for example in examples:
        change = f"  {example.before:.2f} -> {example.after:.2f}  "
        lines.append(change + textwrap.shorten(f"{example.query_id}: {example.query}", _WIDTH - 18, placeholder="..."))
    return lines


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"
