"""What is done with a saved model: its card, a diagnosis, one side of it, a server, and whether it is whole."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Annotated, Literal

import typer

from st_asym.cli import options

_SECONDS_TO_FINISH = 30


def diagnose(
    model: Annotated[str, typer.Argument(help="A saved model with heads, or its Hub id.", show_default=False)],
    data: Annotated[str, typer.Argument(help="BEIR folder or zip, or a file of pairs.", show_default=False)],
    *,
    split: options.Split = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Weights = None,
    cache: options.Cache = None,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say whether the heads of a model learned anything, and what."""
    with options.one_line_errors(debug=debug, quiet=quiet):
        from st_asym.data import load_data
        from st_asym.diagnosis import diagnose
        from st_asym.heads.model import load_encoder
        from st_asym.trust.provenance import made_with_heads

        options.check_html(html)
        split = split or "test"
        collection = load_data(data)
        if split == "all":
            collection = collection.with_all_split()
        if split not in collection.qrels:
            raise ValueError(f"{data} has no split {split!r}: choose one of {', '.join(sorted(collection.qrels))}.")
        qrels = collection.qrels[split]
        queries = {query_id: collection.queries[query_id] for query_id in qrels}
        given = load_encoder(model, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype)
        made = made_with_heads(model)
        found = diagnose(given, queries, collection.corpus, qrels, cache=cache, made=made)
        if json is not None:
            found.save(json)
    typer.echo(str(found))
    options.write_html(html, found, debug=debug)


def export(
    model: Annotated[str, typer.Argument(help="A model with or without heads, or its Hub id.", show_default=False)],
    *,
    side: Annotated[Literal["query", "document"], typer.Option(help="Which side.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must not exist yet.")],
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

        given = options.loaded(model, revision, dtype, trust_remote_code=trust_remote_code)
        found = export_side(given, side, output, format=format, int8=int8)
    typer.echo(str(found))


def serve(
    model: Annotated[str, typer.Argument(help="A model with or without heads, or its Hub id.", show_default=False)],
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
        encoder = load_encoder(model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
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
    debug: options.Debug = False,
) -> None:
    """Check that a saved model is whole, finite, stock and on its own encoder; or that a server gives its vectors."""
    from st_asym.trust import VerificationError

    with options.one_line_errors(debug=debug):
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
            )
            _show(str(compared))
            raise typer.Exit(0 if compared.right else 1)
        from st_asym.trust.verify import verify

        try:
            found = verify(path)
        except VerificationError as error:
            if debug:
                raise
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(1) from None
    _show(str(found))


def _show(lines: str) -> None:
    first, *rest = lines.splitlines()
    typer.secho(first, bold=True)
    typer.echo("\n".join(rest))
