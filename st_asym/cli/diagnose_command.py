"""``st-asym diagnose``: what the heads learned."""

from __future__ import annotations

from typing import Annotated

import typer

from st_asym.cli import options


def diagnose(
    model: Annotated[
        str, typer.Argument(help="A saved model with heads, its Hub id, or the folder of a run.", show_default=False)
    ],
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

        options.check_files(html, json)
        split = split or "test"
        collection = load_data(data)
        if split == "all":
            collection = collection.with_all_split()
        if split not in collection.qrels:
            raise ValueError(f"{data} has no split {split!r}: choose one of {', '.join(sorted(collection.qrels))}.")
        qrels = collection.qrels[split]
        queries = {query_id: collection.queries[query_id] for query_id in qrels}
        model = options.model_of(model)
        given = load_encoder(model, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype)
        made = made_with_heads(model)
        found = diagnose(given, queries, collection.corpus, qrels, cache=cache, made=made)
        if json is not None:
            found.save(json)
    typer.echo(str(found))
    options.write_html(html, found, debug=debug)
