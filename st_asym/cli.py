"""``st-asym``: what the library does, on the command line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

app = typer.Typer(
    help="Query and document heads for a frozen Sentence Transformers encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

# The same for all commands.
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and warnings.")]
Html = Annotated[Optional[Path], typer.Option(help="Write a page there (extra 'report').")]  # noqa: UP045


@app.callback()
def main() -> None:
    """Name a command: with one alone, typer would leave its name out."""


# typer reads the annotations when it runs: with Python 3.10, too, these must be what it knows.
@app.command()
def fit(
    encoder: Annotated[str, typer.Argument(help="Hub id or path of the encoder.", show_default=False)],
    train: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="BEIR folder or zip, or a .jsonl, .csv or .tsv of pairs; a corpus, or nothing and --corpus, to train "
            "without labels.",
            show_default=False,
        ),
    ] = None,
    *,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the model is saved.")],
    dev: Annotated[Optional[str], typer.Option(help="Queries to judge on; cut from TRAIN if not given.")] = None,  # noqa: UP045
    corpus: Annotated[Optional[str], typer.Option(help="More documents to search among.")] = None,  # noqa: UP045
    system: Annotated[
        Literal["asymmetric", "frozen", "iso_pred", "respred"], typer.Option(help="What is trained.")
    ] = "asymmetric",
    init: Annotated[Optional[Literal["identity", "random"]], typer.Option(help="How heads start.")] = None,  # noqa: UP045
    open_collection: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--open/--closed", help="Whether queries will ask for documents that training never saw."),
    ] = None,
    sides: Annotated[
        Optional[Literal["both", "query", "document", "shared"]],  # noqa: UP045
        typer.Option(help="Which sides get a head. With 'query', an existing index of documents stays valid."),
    ] = None,
    trials: Annotated[int, typer.Option(min=0, help="How many other settings to try (extra 'tune').")] = 0,
    max_seconds: Annotated[Optional[float], typer.Option(help="When to stop; encoding is not cut short.")] = None,  # noqa: UP045
    cache: Annotated[Optional[Path], typer.Option(help="Folder of the encoder's vectors.")] = None,  # noqa: UP045
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="How texts are encoded.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    evaluate: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="A BEIR folder or zip, a file of pairs or a task of MTEB to evaluate on in the end, beside the "
            "untouched encoder; again for more. If it is TRAIN, a file of pairs, a fifth of the queries is kept out of "
            "training for that."
        ),
    ] = None,
    html: Html = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit heads to labelled pairs and save a stock model, or the encoder itself where it is better."""
    with _one_line_errors(debug=debug), _quiet(quiet=quiet):
        from st_asym.fitting import Settings, fit
        from st_asym.systems import get_system

        _check_html(html)
        if evaluate:
            from st_asym.evaluation.runs import check_tasks

            check_tasks(evaluate)

        settings = None
        if sides is not None:
            kind = get_system(system)
            if kind.shared:
                raise ValueError(f"The system {system!r} has one shared head: leave --sides out.")
            settings = replace(Settings.of(kind, init or "identity"), sides=sides)
        result = fit(
            encoder,
            train,
            output_dir=output_dir,
            dev=dev,
            corpus=corpus,
            system=system,
            init=init,
            collection=None if open_collection is None else "open" if open_collection else "closed",
            settings=settings,
            trials=trials,
            max_seconds=max_seconds,
            cache=cache,
            precision=precision,
            seed=seed,
            hold_out_test=train is not None and _is_among(train, evaluate or []),
            show_progress_bar=not quiet,
        )
    first, *rest = str(result.report).splitlines()
    typer.secho(first, bold=True)
    typer.echo("\n".join([*rest, f"Saved in {output_dir}."]))
    if evaluate:
        if not quiet:
            typer.echo(f"Evaluating on {', '.join(evaluate)}: texts without fp32 vectors yet are encoded.", err=True)
        with _one_line_errors(debug=debug), _quiet(quiet=quiet):
            from st_asym.evaluation import evaluate_run
            from st_asym.evaluation.models import UNTOUCHED

            trained_on = train if result.report.labels == "judged" else None
            found = evaluate_run(output_dir, evaluate, models={UNTOUCHED: encoder}, cache=cache, train=trained_on)
        typer.echo(f"\n{found}\nResults, log and table are in {output_dir / 'evaluation'}.")
    _write_html(html, result.report, debug=debug)


@app.command()
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
        typer.Option(help="The queries to judge, of local data: test if not given."),
    ] = None,
    train: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What was trained on, to tell queries on known documents from others."),
    ] = None,
    cache: Annotated[Optional[Path], typer.Option(help="Folder of the encoder's vectors.")] = None,  # noqa: UP045
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
    with _one_line_errors(debug=debug), _quiet(quiet=quiet):
        from st_asym.evaluation.naming import named_models, the_run

        _check_html(html)
        named, chosen = named_models(models or [])
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
    _write_html(html, found, debug=debug)


@app.command()
def diagnose(
    model: Annotated[str, typer.Argument(help="A saved model with heads, or its Hub id.", show_default=False)],
    data: Annotated[str, typer.Argument(help="BEIR folder or zip, or a file of pairs.", show_default=False)],
    *,
    split: Annotated[str, typer.Option(help="The queries to look at.")] = "test",
    cache: Annotated[Optional[Path], typer.Option(help="Folder of the encoder's vectors.")] = None,  # noqa: UP045
    json: Annotated[Optional[Path], typer.Option(help="Write the figures there.")] = None,  # noqa: UP045
    html: Html = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say whether the heads of a model learned anything, and what."""
    with _one_line_errors(debug=debug), _quiet(quiet=quiet):
        from sentence_transformers import SentenceTransformer

        from st_asym.data import load_data
        from st_asym.diagnosis import diagnose

        _check_html(html)
        collection = load_data(data)
        if split not in collection.qrels:
            raise ValueError(f"{data} has no split {split!r}: choose one of {', '.join(sorted(collection.qrels))}.")
        qrels = collection.qrels[split]
        queries = {query_id: collection.queries[query_id] for query_id in qrels}
        found = diagnose(SentenceTransformer(model), queries, collection.corpus, qrels, cache=cache)
        if json is not None:
            found.save(json)
    typer.echo(str(found))
    _write_html(html, found, debug=debug)


def _is_among(path: str, paths: list[str]) -> bool:
    return Path(path).resolve() in [Path(one).resolve() for one in paths]


def _check_html(html: Path | None) -> None:
    """Refuse before the work whose page could not be written."""
    if html is not None:
        from st_asym.report import check_installed

        check_installed()
        if html.is_dir():
            raise IsADirectoryError(f"{html} is a folder: name a file for the page.")


def _write_html(html: Path | None, found: Any, *, debug: bool) -> None:
    """After the result is printed: it stays, whatever becomes of the page."""
    if html is not None:
        with _one_line_errors(debug=debug):
            from st_asym.report import save_html

            save_html(html, found)


@app.command()
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
    with _one_line_errors(debug=debug), _quiet(quiet=quiet):
        from st_asym.hub import write_card

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


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model with or without heads, or its Hub id.", show_default=False)],
    *,
    side: Annotated[Literal["query", "document"], typer.Option(help="Which side.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must not exist yet.")],
    format: Annotated[  # noqa: A002
        Literal["sentence-transformers", "onnx"], typer.Option(help="'onnx' needs the extra of this name.")
    ] = "sentence-transformers",
    int8: Annotated[bool, typer.Option("--int8", help="With 'onnx': 8-bit weights.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one side as a plain dense model, for servers."""
    with _one_line_errors(debug=debug), _quiet(quiet=quiet):
        from st_asym.export import export_side

        found = export_side(model, side, output, format=format, int8=int8)
    typer.echo(str(found))


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A saved model, or heads saved alone.", show_default=False)],
    *,
    debug: Debug = False,
) -> None:
    """Check, without loading it, that a saved model is whole, finite, stock and on its own encoder."""
    from st_asym.verification import VerificationError

    with _one_line_errors(debug=debug):
        from st_asym.verification.main import verify

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


@contextlib.contextmanager
def _one_line_errors(*, debug: bool) -> Iterator[None]:
    """What is wrong with the input in one line, and exit code 2; with ``debug``, and for anything else, a traceback."""
    from st_asym.cache import CacheError

    try:
        yield
    except (CacheError, ImportError, OSError, TypeError, ValueError) as error:
        if debug:
            raise
        typer.secho(f"Error: {' '.join(str(error).split())}", fg="red", err=True)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def _quiet(*, quiet: bool) -> Iterator[None]:
    """Without the progress bars of other packages, and warnings that the report repeats."""
    if not quiet:
        yield
        return
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loggers = [logging.getLogger(package) for package in ("st_asym", "sentence_transformers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
