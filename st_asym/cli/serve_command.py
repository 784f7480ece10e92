"""``st-asym serve``: both sides of a model behind ``/v1/embeddings``."""

from __future__ import annotations

import contextlib
import socket
from typing import Annotated

import typer

from st_asym.cli import options

_SECONDS_TO_FINISH = 30


def serve(
    model: Annotated[
        str,
        typer.Argument(help="A model with or without heads, its Hub id, or the folder of a run.", show_default=False),
    ],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; that of its folder if not given.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="How many texts are encoded in one call.")] = 32,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Weights = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Serve /v1/embeddings with a model name for queries and one for documents (extra 'serve')."""
    with options.one_line_errors(debug=debug, quiet=quiet):
        try:
            import uvicorn

            from st_asym.serving import app
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'st_asym[serve]'.") from None
        from st_asym.heads.anatomy import public_name
        from st_asym.heads.model import load_encoder

        name = public_name(model) if name is None else name
        encoder = load_encoder(
            options.model_of(model), revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
        )
        asgi = app(encoder, name=name, max_batch=max_batch)
        v6 = ":" in host
        try:
            listening = socket.create_server((host, port), family=socket.AF_INET6 if v6 else socket.AF_INET)
        except OSError as error:
            raise OSError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.") from error
    shown = f"[{host}]" if v6 else host
    typer.echo(f"{name}-query and {name}-document at http://{shown}:{listening.getsockname()[1]}/v1. Stop with Ctrl+C.")
    config = uvicorn.Config(asgi, log_level="warning", timeout_graceful_shutdown=_SECONDS_TO_FINISH)
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
