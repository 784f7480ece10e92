"""``st-asym verify``: whether a saved model is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_asym.cli import options


def verify(
    path: Annotated[Path, typer.Argument(help="A saved model, or heads saved alone.", show_default=False)],
    *,
    debug: options.Debug = False,
) -> None:
    """Check, without loading it, that a saved model is whole, finite, stock and on its own encoder."""
    from st_asym.trust import VerificationError

    with options.one_line_errors(debug=debug):
        from st_asym.trust.verify import verify

        try:
            found = verify(path)
        except VerificationError as error:
            if debug:
                raise
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(1) from None
    first, *rest = str(found).splitlines()
    typer.secho(first, bold=True)
    typer.echo("\n".join(rest))
