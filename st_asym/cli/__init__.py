"""``st-asym``: what the library does, on the command line."""

from typing import Annotated

import typer

from st_asym import __version__
from st_asym.cli.card_command import card
from st_asym.cli.diagnose_command import diagnose
from st_asym.cli.evaluate_command import evaluate
from st_asym.cli.export_command import export
from st_asym.cli.fit_command import fit
from st_asym.cli.serve_command import serve
from st_asym.cli.verify_command import verify

app = typer.Typer(
    help="Query and document heads for a frozen Sentence Transformers encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"st-asym {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of all commands."""


for command in (fit, evaluate, diagnose, export, serve, card, verify):
    app.command()(command)
