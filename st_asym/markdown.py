"""Tables and names in Markdown, whatever is in them."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table; a cell stays one cell, on one line.

    Example:
        >>> print(table(["model", "nDCG@10"], [["a|b", "0.5"]]))
        | model | nDCG@10 |
        | --- | --- |
        | a\|b | 0.5 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def code(text: str) -> str:
    r"""A name as code, on one line.

    Example:
        >>> code("a `quoted`\nname")
        "`a 'quoted' name`"
    """
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
