"""``st-asym fit``: from texts to a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from st_asym.cli import options


def fit(
    encoder: Annotated[str, typer.Argument(help="Hub id or path of the encoder.", show_default=False)],
    train: Annotated[
        str | None,
        typer.Argument(
            help="BEIR folder or zip, or a .jsonl, .csv, .tsv or .parquet of pairs; a corpus, or nothing and --corpus, "
            "to train without labels.",
            show_default=False,
        ),
    ] = None,
    *,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the model is saved.")],
    dev: Annotated[str | None, typer.Option(help="Queries to judge on. If none or few, TRAIN is cut, too.")] = None,
    corpus: Annotated[str | None, typer.Option(help="More documents to search among.")] = None,
    init: Annotated[
        Literal["identity", "pairs", "random"] | None,
        typer.Option(help="How heads start: 'pairs' if not given, within-pair whitening."),
    ] = None,
    open_collection: Annotated[
        bool | None,
        typer.Option("--open/--closed", help="Whether queries will ask for documents that training never saw."),
    ] = None,
    expected_unseen: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="The share of queries on such documents; that of TRAIN if not given."),
    ] = None,
    sides: Annotated[
        Literal["both", "query", "document", "shared"] | None,
        typer.Option(
            help="Which sides get a head; 'both' and 'query' are tried if not given. With 'query', an existing index "
            "of documents stays valid."
        ),
    ] = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="Heads of one layer without bias, which all servers can run.")
    ] = False,
    hard_negatives: Annotated[
        int, typer.Option(min=0, help="Train with in-batch negatives and so many mined ones, not the whole corpus.")
    ] = 0,
    trials: Annotated[int, typer.Option(min=0, help="How many other settings to try (extra 'tune').")] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="When to stop; encoding is not cut short.")] = None,
    cache: options.Cache = None,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="How texts are encoded.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(
            help="A BEIR folder or zip, a file of pairs or a task of MTEB to evaluate on in the end, beside the "
            "untouched encoder; repeatable. If it is TRAIN, a file of pairs, a fifth of the queries is kept out of "
            "training for that."
        ),
    ] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Weights = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fit heads to labelled pairs and save a stock model, or the encoder itself where it is better."""
    with options.one_line_errors(debug=debug, quiet=quiet):
        from st_asym.fitting import Settings, fit

        options.check_files(html)
        if evaluate:
            from st_asym.evaluation.run_folder import check_tasks

            check_tasks(evaluate)

        given = options.loaded(encoder, revision, dtype, trust_remote_code=trust_remote_code)
        asked: dict[str, Any] = {"hidden_features": None, "bias": False} if linear else {}  # the rest is left to fit
        if hard_negatives:
            asked |= {"contrastive": "in-batch", "hard_negatives": hard_negatives}
        judged_on = [Path(one).resolve() for one in evaluate or ()]
        result = fit(
            given,
            train,
            output_dir=output_dir,
            dev=dev,
            corpus=corpus,
            collection=None if open_collection is None else "open" if open_collection else "closed",
            expected_unseen=expected_unseen,
            settings=Settings(init=init, sides=sides, **asked),
            trials=trials,
            max_seconds=max_seconds,
            cache=cache,
            precision=precision,
            seed=seed,
            hold_out_test=train is not None and Path(train).resolve() in judged_on,
            show_progress_bar=not quiet,
        )
    options.show(f"{result.report}\nSaved in {output_dir}.")
    if evaluate:
        if not quiet:
            typer.echo(f"Evaluating on {', '.join(evaluate)}: texts without fp32 vectors yet are encoded.", err=True)
        with options.one_line_errors(debug=debug, quiet=quiet):
            from st_asym.evaluation import evaluate_run
            from st_asym.evaluation.models import UNTOUCHED

            trained_on = train if result.report.labels == "judged" else None
            found = evaluate_run(output_dir, evaluate, models={UNTOUCHED: given}, cache=cache, train=trained_on)
        typer.echo(f"\n{found}\nResults, log and table are in {output_dir / 'evaluation'}.")
    options.write_html(html, result.report, debug=debug)
