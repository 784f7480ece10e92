"""A diagnosis as text for the terminal."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from st_asym.diagnosis.tables import Rows, heads_table, search_table, vectors_table

if TYPE_CHECKING:
    from st_asym.diagnosis.result import Diagnosis, Example

_WIDTH = 100


def as_text(diagnosis: Diagnosis) -> str:
    """Findings, tables and examples; the tables are Markdown too."""
    lines = [diagnosis.first_line]
    for finding in diagnosis.findings:
        lines += textwrap.wrap(f"{'!' if finding.trouble else '-'} {finding.text}", _WIDTH, subsequent_indent="  ")
    for rows in (vectors_table(diagnosis), heads_table(diagnosis), search_table(diagnosis)):
        lines += ["", _rendered(rows)]
    if diagnosis.judged is not None:
        lines += _examples("Largest gains in nDCG@10", diagnosis.judged.gains)
        lines += _examples("Largest losses in nDCG@10", diagnosis.judged.losses)
    return "\n".join(lines)


def _rendered(rows: Rows) -> str:
    table = Table(box=box.MARKDOWN)
    for position, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=_WIDTH, color_system=None, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines() if line.strip())


def _examples(title: str, examples: Sequence[Example]) -> list[str]:
    lines = ["", f"{title}:"] if examples else []
    for example in examples:
        change = f"  {example.before:.2f} -> {example.after:.2f}  "
        text = f"{example.query_id}: {example.query}"
        lines.append(change + textwrap.shorten(text, _WIDTH - len(change), placeholder="..."))
    return lines
