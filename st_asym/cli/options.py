"""What all commands share: options, errors in one line, silence, and the page."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from st_asym.heads.model import DType

Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and warnings.")]
Html = Annotated[Path | None, typer.Option(help="Write a page there (extra 'report').")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, of a Hub id.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that a model brings along: only if you trust it.")
]
Weights = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option("--dtype", help="Data type of the weights; as they are saved if not given."),
]
Split = Annotated[
    str | None, typer.Option(help="The queries to judge, of local data: a split, or all; test if not given.")
]
Json = Annotated[Path | None, typer.Option(help="Write the result there, with all its figures.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of the encoder's vectors.")]


def model_of(path: str) -> str:
    """The path or Hub id of a model; of the folder of a run, its model's path, and why this one is said."""
    folder = Path(path)
    # A model's own folder is that model; and without checkpoints the imports below, which take seconds, are not needed.
    if (folder / "modules.json").is_file() or not any(folder.glob("checkpoint-*")):
        return path
    from st_asym.evaluation.checkpoints import choose_model

    chosen = choose_model(path)
    typer.echo(f"{path}: {chosen.why}")
    return str(chosen.path)


def loaded(
    model: str, revision: str | None, dtype: DType | None, *, trust_remote_code: bool
) -> str | SentenceTransformer:
    """A model as it is asked for; its name, where nothing is asked for."""
    if revision is None and dtype is None and not trust_remote_code:
        return model
    from st_asym.heads.model import load_encoder

    return load_encoder(model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)


def show(lines: str) -> None:
    """A result, whose first line stands out."""
    first, *rest = lines.splitlines()
    typer.secho(first, bold=True)
    typer.echo("\n".join(rest))


def check_files(html: Path | None, json: Path | None = None) -> None:
    """Refuse before the work whose page or JSON could not be written."""
    if html is not None:
        from st_asym.report import check_installed

        check_installed()
    for path, what in (html, "page"), (json, "JSON"):
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: name a file for the {what}.")


def write_html(html: Path | None, found: Any, *, debug: bool) -> None:
    """After the result is printed: it stays, whatever becomes of the page."""
    if html is not None:
        with one_line_errors(debug=debug):
            from st_asym.report import save_html

            save_html(html, found)


@contextlib.contextmanager
def one_line_errors(*, debug: bool, quiet: bool = False) -> Iterator[None]:
    """What is wrong with the input in one line, and exit code 2; with ``debug``, and for anything else, a traceback."""
    from st_asym.cache import CacheError

    try:
        with _quietly() if quiet else contextlib.nullcontext():
            yield
    except (CacheError, ImportError, OSError, TypeError, ValueError) as error:
        if debug:
            raise
        typer.secho(f"Error: {' '.join(str(error).split())}", fg="red", err=True)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bars of other packages, and warnings that the report repeats."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    packages = ("st_asym", "sentence_transformers", "transformers")
    levels = {logger: logger.level for logger in map(logging.getLogger, packages)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
