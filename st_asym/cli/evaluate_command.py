"""``st-asym evaluate``: a table of models, or of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from st_asym.cli.options import (
    Cache,
    Debug,
    Html,
    Quiet,
    Revision,
    TrustRemoteCode,
    Weights,
    check_html,
    one_line_errors,
    quietly,
    write_html,
)


def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(
            help="With --model: BEIR folders or zips, files of pairs, or tasks of MTEB. Else the folder of a run of "
            "the stock trainer or of fit, whose best or latest checkpoint is evaluated.",
            metavar="DATA... | RUN_DIR",
            show_default=False,
        ),
    ],
    *,
    models: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--model",
            "-m",
            help="A model's path or Hub id, or the folder of a run, or NAME= and that; the first is compared with.",
        ),
    ] = None,
    on: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Of RUN_DIR, what to evaluate it on, once for each; what it was before if not given."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Of RUN_DIR, evaluate each new checkpoint until the run ends.")
    ] = False,
    interval: Annotated[float, typer.Option(help="Of --watch, seconds between looks at the folder.")] = 30.0,
    patience: Annotated[
        float, typer.Option(help="Of --watch, seconds without a new checkpoint after which to stop.")
    ] = 3600.0,
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The queries to judge, of local data: a split, or all; test if not given."),
    ] = None,
    train: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What was trained on, to tell queries on known documents from others."),
    ] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Weights = None,
    cache: Cache = None,
    results: Annotated[Path, typer.Option(help="With DATA, folder of scores, which are not computed again.")] = Path(
        "runs/evaluate"
    ),
    json: Annotated[Optional[Path], typer.Option(help="Write the comparison there.")] = None,  # noqa: UP045
    html: Html = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the wide table as Markdown.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare models on retrieval data sets, with the scores of MTEB; or evaluate the model of a run."""
    with one_line_errors(debug=debug), quietly(quiet=quiet):
        from st_asym.evaluation.models import loaded_models, named_models, the_run

        check_html(html)
        paths, chosen = named_models(models or [])
        named = loaded_models(paths, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype)
        if on or not models:
            from st_asym.evaluation import evaluate_run, follow_run

            follow = {"interval": interval, "patience": patience, "tell": typer.echo} if watch else {}
            evaluate_it: Any = follow_run if watch else evaluate_run
            found = evaluate_it(
                the_run(data, watch=watch), on, models=named or None, cache=cache, split=split, train=train, **follow
            )
        else:
            from st_asym.evaluation import evaluate

            if watch:
                raise ValueError("--watch follows one run: give its folder, and the data with --on.")
            found = evaluate(named, data, cache=cache, results=results, split=split or "test", train=train)
        found = replace(found, notes=(*chosen, *found.notes))
        if json is not None:
            found.to_json(json)
    typer.echo(found.to_markdown(wide=True) if markdown else str(found))
    write_html(html, found, debug=debug)
