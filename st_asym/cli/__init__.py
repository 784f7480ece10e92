"""``st-asym``: what the library does, on the command line."""

import typer

from st_asym.cli.card import card
from st_asym.cli.diagnose import diagnose
from st_asym.cli.evaluate import evaluate
from st_asym.cli.export import export
from st_asym.cli.fit import fit
from st_asym.cli.verify import verify

app = typer.Typer(
    help="Query and document heads for a frozen Sentence Transformers encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (fit, evaluate, diagnose, export, card, verify):
    app.command()(command)
