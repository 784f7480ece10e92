"""``st-asym verify``: whether a saved model is whole, or a running server gives its vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from st_asym.cli import options


def verify(
    path: Annotated[Path, typer.Argument(help="A saved model, or heads saved alone.", show_default=False)],
    *,
    against: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A server of embeddings, whose vectors are compared with the model's."),
    ] = None,
    query_model: Annotated[str | None, typer.Option(help="What the server calls the model for queries.")] = None,
    document_model: Annotated[str | None, typer.Option(help="What it calls that for documents.")] = None,
    side: Annotated[
        Literal["query", "document"] | None, typer.Option(help="The only side that the server has.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="ST_ASYM_API_KEY", help="Of the server, where it wants one.")
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check that a saved model is whole, finite, stock and on its own encoder; or that a server gives its vectors."""
    from st_asym.trust import VerificationError

    with options.one_line_errors(debug=debug, quiet=quiet):
        if against is None and (query_model or document_model or side):
            raise ValueError("--query-model, --document-model and --side say what to ask of a server: add --against.")
        if against is not None:
            from st_asym.serving import compare_with_server

            compared = compare_with_server(
                path,
                against,
                sides=("query", "document") if side is None else (side,),
                query_model=query_model,
                document_model=document_model,
                api_key=api_key,
            )
            options.show(str(compared))
            raise typer.Exit(0 if compared.right else 1)
        from st_asym.trust.verify import verify

        try:
            found = verify(path)
        except VerificationError as error:
            if debug:
                raise
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(1) from None
    options.show(str(found))
