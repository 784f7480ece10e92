"""What ``st-asym evaluate`` was given: models by name, and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from st_asym.evaluation.choosing import choose_model, is_run
from st_asym.evaluation.models import Model
from st_asym.model import DType, load_encoder


def named_models(entries: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Name to path or Hub id, and what was chosen where a path is that of a run.

    Args:
        entries: Each ``PATH`` or ``NAME=PATH``.

    Raises:
        ValueError: Two models have one name, or a run holds no model that is whole.
    """
    # A path may hold an equals sign itself, after the name's or without one.
    split_up = [(entry, "", "") if Path(entry).exists() else entry.partition("=") for entry in entries]
    named, notes = {name: path or name for name, _, path in split_up}, []
    if len(named) < len(split_up):
        raise ValueError("Two models have one name: give others with --model NAME=PATH.")
    for name, path in named.items():
        if is_run(path):
            chosen = choose_model(path)
            named[name] = str(chosen.path)
            notes.append(f"{name}: {chosen.why}")
    return named, notes


def loaded_models(
    named: Mapping[str, str], *, revision: str | None, trust_remote_code: bool, dtype: DType | None
) -> dict[str, Model]:
    """The models as they are asked for; their paths and Hub ids, where nothing is asked for.

    Raises:
        ValueError: Nothing is named that it could be asked of, or a revision of none or several Hub ids.
    """
    if revision is None and dtype is None and not trust_remote_code:
        return {**named}
    if not named:
        raise ValueError("--revision, --trust-remote-code and --dtype are for models that --model names.")
    on_the_hub = [path for path in named.values() if not Path(path).exists()]
    if revision is not None and len(on_the_hub) != 1:
        raise ValueError(f"--revision {revision} is for one Hub id, and --model names {len(on_the_hub)}.")
    return {
        name: load_encoder(
            path,
            revision=revision if path in on_the_hub else None,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
        )
        for name, path in named.items()
    }


def the_run(data: Sequence[str], *, watch: bool) -> str:
    """The only run folder; one that is watched may not exist yet.

    Raises:
        ValueError: Several, or no folder. The message says how to give models and data.
    """
    first = Path(data[0])
    found = first.is_dir() or (watch and not first.exists())
    if len(data) == 1 and found and not (first / "corpus.jsonl").is_file():
        return data[0]
    raise ValueError(
        f"{', '.join(data)}: without --model, this must be the folder of one run, and the data are given with --on. To "
        "evaluate models on data, name them with --model."
    )
