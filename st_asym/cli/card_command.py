"""``st-asym card``: the model card of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from st_asym.cli.options import Debug, Quiet, one_line_errors, quietly


def card(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.", show_default=False)],
    *,
    evaluation: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A comparison with this model, as 'st-asym evaluate --json' writes it."),
    ] = None,
    license_: Annotated[Optional[str], typer.Option("--license", help="Such as apache-2.0.")] = None,  # noqa: UP045
    base_model: Annotated[Optional[str], typer.Option(help="Hub id of the encoder, or ID@REVISION.")] = None,  # noqa: UP045
    dataset: Annotated[Optional[list[str]], typer.Option(help="Hub id of what was trained on.")] = None,  # noqa: UP045
    model_id: Annotated[Optional[str], typer.Option(help="What the model will be called on the Hub.")] = None,  # noqa: UP045
    new: Annotated[bool, typer.Option("--new", help="Write the whole card anew.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Complete the model card (README.md) of a saved model for the Hub, or write one."""
    with one_line_errors(debug=debug), quietly(quiet=quiet):
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
