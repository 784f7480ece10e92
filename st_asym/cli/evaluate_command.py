"""``st-asym evaluate``: a table of models, or of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from st_asym.cli import options

if TYPE_CHECKING:
    from st_asym.evaluation import Comparison
    from st_asym.evaluation.evaluate import Replacement
    from st_asym.evaluation.models import Baseline, Model
    from st_asym.heads.model import DType

_BASELINES: dict[str, tuple[Baseline, ...]] = {"all": ("bm25", "hybrid"), "bm25": ("bm25",), "none": ()}


def evaluate(
    run_or_data: Annotated[
        list[str] | None,
        typer.Argument(
            help="The folder of a run of the stock trainer or of fit, whose best or latest checkpoint is evaluated. "
            "Or, short for --on, data that the models of --model are evaluated on.",
            metavar="RUN_DIR | DATA...",
            show_default=False,
        ),
    ] = None,
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model's path or Hub id, or the folder of a run, or NAME=PATH; repeatable. The others "
            "are compared with the first, or with its encoder where it has heads.",
        ),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="A BEIR folder or zip, a file of pairs or a task of MTEB to evaluate on; repeatable. Of RUN_DIR, "
            "what it was evaluated on before if not given."
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Of RUN_DIR, evaluate each new checkpoint until the run ends.")
    ] = False,
    interval: Annotated[
        float | None, typer.Option(help="With --watch, seconds between looks at the folder; 30 if not given.")
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(help="With --watch, seconds without a new checkpoint after which to stop; 3600 if not given."),
    ] = None,
    split: options.Split = None,
    train: Annotated[
        str | None, typer.Option(help="What was trained on, to tell queries on known documents from others.")
    ] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Weights = None,
    cache: options.Cache = None,
    results: Annotated[
        Path, typer.Option(help="Without RUN_DIR, folder of scores, which are not computed again.")
    ] = Path("runs/evaluate"),
    baselines: Annotated[
        Literal["all", "bm25", "none"] | None,
        typer.Option(
            help="Rows of BM25 and of each model with BM25 added (all), of BM25 alone, or none; all if not given, "
            "where bm25s is installed and no corpus has more than a million documents.",
            show_default=False,
        ),
    ] = None,
    decide: Annotated[
        bool,
        typer.Option(
            "--decide",
            help="Of two models: exit with 0 if the second one should replace the first, and with 3 if not. It should "
            "if its nDCG@10 is higher on queries that neither was trained on, and not significantly lower on those of "
            "them with seen, or with unseen documents (--train). The first line says so. Of two models of fit this is "
            "always asked.",
        ),
    ] = False,
    json: options.Json = None,
    html: options.Html = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the wide table as Markdown.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare models on retrieval data sets, with the scores of MTEB; or evaluate the model of a run."""
    with options.one_line_errors(debug=debug, quiet=quiet):
        from st_asym import evaluation

        options.check_files(html, json)
        waits = {name: one for name, one in {"interval": interval, "patience": patience}.items() if one is not None}
        if waits and not watch:
            raise ValueError("--interval and --patience say how to watch a run: add --watch.")
        run, data = _run_and_data(run_or_data or [], on or [], models=bool(models), watch=watch)
        if decide and (len(models or []) != 2 or run is not None):
            raise ValueError("--decide is between two models on data: name both with --model, and no run beside them.")
        named, chosen = _models(models or [], revision, dtype, trust_remote_code=trust_remote_code)
        rows = None if baselines is None else _BASELINES[baselines]
        asked: dict[str, Any] = {"cache": cache, "train": train, "baselines": rows}
        if run is None:
            found = evaluation.evaluate(named, data, results=results, split=split or "test", **asked)
        else:
            asked |= {"models": named or None, "split": split}
            if watch:
                asked |= {**waits, "tell": typer.echo}
            found = (evaluation.follow_run if watch else evaluation.evaluate_run)(run, data or None, **asked)
        found = replace(found, notes=(*chosen, *found.notes))
        if json is not None:
            found.to_json(json)
        answer = _answer(found, named, asked=decide) if run is None else None
    if answer is not None:
        typer.echo(f"{answer}\n")
    typer.echo(found.to_markdown(wide=True) if markdown else str(found))
    options.write_html(html, found, debug=debug)
    if answer is not None and not answer.replaces:
        raise typer.Exit(3)


def _answer(found: Comparison, named: dict[str, Model], *, asked: bool) -> Replacement | None:
    """Whether the second of two models replaces the first, where that is asked, or ``fit`` made both."""
    from st_asym.evaluation.evaluate import replacement
    from st_asym.trust.provenance import has_heads, has_provenance, made_with_heads

    made = {name: made_with_heads(model) for name, model in named.items()}
    by_fit = [one is not None or has_provenance(named[name]) for name, one in made.items()]
    if not asked and by_fit != [True, True]:
        return None
    # Nothing is known either of heads without st_asym.json, such as those of a model that was pushed and loaded again.
    known = {
        name: None if one is None else one.trained_queries
        for name, one in made.items()
        if one is not None or has_heads(named[name])
    }
    unknown = [name for name, queries in known.items() if queries is None or queries.query_digests is None]
    old, new = named
    return replacement(found, old, new, unknown=unknown)


def _run_and_data(
    given: Sequence[str], on: Sequence[str], *, models: bool, watch: bool
) -> tuple[str | None, Sequence[str]]:
    """The folder of a run, if one is evaluated, and the data: those of --on, or what is given beside models."""
    if models and not (given and on):
        if watch:
            raise ValueError("--watch follows one run: give its folder, and the data with --on.")
        return None, on or given
    if not given:
        raise ValueError("There is nothing to evaluate: give the folder of a run, or models with --model.")
    first = Path(given[0])
    found = first.is_dir() or (watch and not first.exists())  # one that is watched may not exist yet
    if len(given) > 1 or not found or (first / "corpus.jsonl").is_file():
        raise ValueError(
            f"{', '.join(given)}: {'with --on' if models else 'without --model'}, this must be the folder of one run, "
            "and the data are given with --on. To evaluate models on data, name them with --model."
        )
    return given[0], on


def _models(
    entries: Sequence[str], revision: str | None, dtype: DType | None, *, trust_remote_code: bool
) -> tuple[dict[str, Model], list[str]]:
    """Name to model of each ``PATH`` or ``NAME=PATH``, and what was chosen where a path is that of a run.

    Where nothing is asked for, the model is its path or Hub id.
    """
    from st_asym.evaluation.checkpoints import choose_model, is_run

    # A path may hold an equals sign itself, after the name's or without one.
    split_up = [(entry, "", "") if Path(entry).exists() else entry.partition("=") for entry in entries]
    paths, notes = {name: path or name for name, _, path in split_up}, []
    if len(paths) < len(split_up):
        raise ValueError("Two models have one name: give others with --model NAME=PATH.")
    for name, path in paths.items():
        if is_run(path):
            chosen = choose_model(path)
            paths[name] = str(chosen.path)
            notes.append(f"{name}: {chosen.why}")
    if not paths and (revision is not None or trust_remote_code or dtype is not None):
        raise ValueError("--revision, --trust-remote-code and --dtype are for models that --model names.")
    on_the_hub = [path for path in paths.values() if not Path(path).exists()]
    if revision is not None and len(on_the_hub) != 1:
        raise ValueError(f"--revision {revision} is for one Hub id, and --model names {len(on_the_hub)}.")
    found: dict[str, Model] = {}
    for name, path in paths.items():
        wanted = revision if path in on_the_hub else None
        found[name] = options.loaded(path, wanted, dtype, trust_remote_code=trust_remote_code)
    return found, notes
