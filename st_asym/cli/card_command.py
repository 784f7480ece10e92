"""``st-asym card``: the model card of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_asym.cli import options


def card(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.", show_default=False)],
    *,
    evaluation: Annotated[
        Path | None, typer.Option(help="A comparison with this model, as 'st-asym evaluate --json' writes it.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Such as apache-2.0.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the encoder, or ID@REVISION.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub id of what was trained on.")] = None,
    model_id: Annotated[str | None, typer.Option(help="What the model will be called on the Hub.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Write the whole card anew.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Complete the model card (README.md) of a saved model for the Hub, or write one."""
    with options.one_line_errors(debug=debug, quiet=quiet):
        from st_asym.report import write_card

        path = write_card(
            model,
            comparison=evaluation,
            license=license_,
            base_model=base_model,
            datasets=dataset or None,
            model_id=model_id,
            new=new,
        )
    typer.echo(f"Wrote {path}.")
