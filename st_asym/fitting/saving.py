"""Where a fit puts its model: written beside the place, then put there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_asym.data import RetrievalData
from st_asym.earlier import keep_what_is_not_ours
from st_asym.fitting.report import FitReport
from st_asym.heads_alone import rescued_heads
from st_asym.hub.facts import Encoder
from st_asym.hub.main import fitted_card
from st_asym.hub.memory import attach
from st_asym.markdown import code
from st_asym.names import REPORT_FILE
from st_asym.origin import public_name
from st_asym.provenance import save_provenance
from st_asym.writing import new_folder


def free_place(output: Path) -> Path:
    """A place that is empty, or holds an earlier result: known before hours of work.

    Raises:
        FileExistsError: It holds something else, or is in use.
    """
    if output == Path.cwd() or os.path.ismount(output):
        raise FileExistsError(f"{output} cannot be replaced by a new folder while it is in use: name a folder in it.")
    if output.exists() and not (output / REPORT_FILE).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"{output} exists and is not an earlier result of fit (it has no {REPORT_FILE}): name another output_dir."
        )
    return output


def save(
    model: SentenceTransformer,
    report: FitReport,
    output: Path,
    encoder: Encoder,
    data: RetrievalData,
    sources: Sequence[object],
) -> None:
    """Write model, report, card and provenance; what others put beside an earlier result stays.

    Args:
        model: The model of stock modules.
        report: What was done.
        output: As :func:`free_place` gave it.
        encoder: Where the encoder is from.
        data: What was read.
        sources: What it was read from, as the user named it.

    Raises:
        FileExistsError: Something else has come to be there since.
        OSError: The disk is full, or does not take it for another reason. The heads are kept elsewhere; the message
            says where.
    """
    with rescued_heads(model, output), new_folder(output, free_place, keep_what_is_not_ours) as new:
        model.save_pretrained(str(new), create_model_card=False)
        report.save(new / REPORT_FILE)
        # Data in memory have no name.
        data_name = code(public_name(sources[0])) if isinstance(sources[0], str | os.PathLike) else None
        card = fitted_card(model, report.as_dict(), encoder, data_name, new)
        if report.kept:  # otherwise it is the user's own encoder, with the encoder's own card
            attach(model, card, new)
        settings = {**report.settings.as_dict(), **{k: getattr(report, k) for k in ("collection", "expected_unseen")}}
        name = ", ".join(map(public_name, sources))
        save_provenance(new, model, data={name: data}, settings=settings, seed=report.seed)
