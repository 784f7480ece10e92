"""``st-asym export``: one side as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from st_asym.cli import options


def export(
    model: Annotated[
        str,
        typer.Argument(help="A model with or without heads, its Hub id, or the folder of a run.", show_default=False),
    ],
    *,
    side: Annotated[Literal["query", "document"], typer.Option(help="Which side.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new or empty.")],
    format: Annotated[  # noqa: A002
        Literal["sentence-transformers", "onnx"], typer.Option(help="'onnx' needs the extra of this name.")
    ] = "sentence-transformers",
    int8: Annotated[bool, typer.Option("--int8", help="With 'onnx': 8-bit weights.")] = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Weights = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write one side as a plain dense model, for servers."""
    with options.one_line_errors(debug=debug, quiet=quiet):
        from st_asym.export import export_side

        given = options.loaded(options.model_of(model), revision, dtype, trust_remote_code=trust_remote_code)
        found = export_side(given, side, output, format=format, int8=int8)
    typer.echo(str(found))
