"""What a fit did, and why: for people, and as JSON."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from st_asym.data import RetrievalData
from st_asym.fitting.gate import Evidence
from st_asym.fitting.rehearsing import Attempt
from st_asym.fitting.settings import Settings
from st_asym.splitting import HeldOut

_PACKAGES = ("st_asym", "sentence-transformers", "transformers", "torch", "numpy", "datasets")


@dataclass
class FitReport:
    """What a fit did, and why.

    Attributes:
        system: What was trained.
        init: How its heads started.
        collection: ``"open"``, ``"closed"`` or None, as given.
        settings: How it was trained; of several trials, the best.
        seed: Of everything that was drawn.
        labels: Where the queries came from: ``"judged"``, ``"titles"`` or ``"sentences"``.
        counts: Documents, and queries by split.
        held_out: How queries were held out, in words.
        chosen: What the held-out queries say about the choice; None where the encoder was left alone.
        evidence: The same for all choices.
        log: Training by epoch, from 0, as the rehearsals saw it, see :class:`st_asym.fitting.rehearsing.Attempt`.
        refitted: Whether the heads were trained again at the end, on all queries.
        trials: The settings that were tried, with the gain of each.
        notes: What was left out or changed in the data.
        seconds: What took how long.
        versions: Of the packages.

    Example:
        >>> report = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model").report  # doctest: +SKIP
        >>> report.kept, report.chosen.choice.epoch  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """

    system: str
    init: str
    collection: str | None
    settings: Settings
    seed: int
    labels: str = "judged"
    counts: dict[str, int] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)
    chosen: Evidence | None = None
    evidence: Sequence[Evidence] = ()
    log: Sequence[dict[str, float]] = ()
    refitted: bool = False
    trials: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in _PACKAGES})

    @property
    def kept(self) -> bool:
        """Whether trained heads were kept; otherwise the model is the encoder itself."""
        return self.chosen is not None

    def note_data(self, data: RetrievalData) -> None:
        """Say what was read."""
        self.labels, self.notes = data.labels, data.notes
        self.counts = {"documents": len(data.corpus), **{split: len(judged) for split, judged in data.qrels.items()}}

    def note_attempt(self, best: Attempt, parts: Sequence[HeldOut]) -> None:
        """Say what the held-out queries have decided."""
        self.settings, self.evidence, self.chosen = best.stage.settings, best.evidence, best.chosen
        self.log, judged = best.log, len(best.rehearsals)
        self.held_out = [str(parts[0])]
        if judged > 1:
            seen, unseen = (sum(len(getattr(part, kind)) for part in parts[:judged]) for kind in ("seen", "unseen"))
            self.held_out = [
                f"{seen + unseen:,} queries were held out, each once, in {judged} cuts: {seen:,} seen, {unseen:,} "
                f"whose documents are no training positives. The first cut: {parts[0]}"
            ]
        if self.collection == "open" and not any(part.unseen for part in parts[:judged]):
            self.held_out.append(
                "No query on unseen documents could be held out: an open collection is judged blindly."
            )
        if judged < len(parts):
            self.held_out.append(f"There was no time for {len(parts) - judged} of {len(parts)} cuts.")
        self.refitted = self.kept and "dev" not in self.counts

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds of a part."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    @property
    def first_line(self) -> str:
        """What came of it, in one sentence."""
        if not self.evidence:
            reason = "there was nothing to judge on" if self.held_out else "there was nothing to train"
            return f"The model is the untouched encoder: {reason}."
        if self.chosen is None:
            return (
                "The model is the untouched encoder: no trained heads beat it on held-out queries, beyond noise, "
                "without a loss on documents that training had not seen."
            )
        gain, seen, unseen = self.chosen, self.chosen.seen, self.chosen.unseen
        line = f"Trained heads are kept: nDCG@10 of held-out queries {gain.gain:+.3f} ± {gain.error:.3f}"
        if min(seen.queries, unseen.queries) > 1:  # the figure is no mean of all: the two weigh the same
            line += (
                f", that is {seen.mean:+.3f} on documents seen in training ({seen.queries:,} queries) and "
                f"{unseen.mean:+.3f} on others ({unseen.queries:,}),"
            )
        return f"{line} to the untouched encoder."

    def __str__(self) -> str:
        """The report as text."""
        lines = [self.first_line, *self.held_out]
        shown = self.chosen or max(self.evidence, key=lambda entry: entry.gain, default=None)
        if shown is not None:
            what = "kept" if self.kept else "the best of what was tried"
            lines += [
                f"Epoch {shown.choice.epoch}, dial {shown.choice.dial:g} ({what}), nDCG@10 untouched -> trained:",
                f"  seen documents    {shown.seen}",
                f"  unseen documents  {shown.unseen}",
            ]
        if self.refitted:
            lines.append("The kept heads were then trained on all queries, those held out included.")
        if self.labels != "judged":
            lines.append(f"There were no labels: queries are the documents' own {self.labels}.")
        lines += [*self.notes, ", ".join(f"{name}: {value:.1f} s" for name, value in self.seconds.items())]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON knows it, with None for numbers that are not finite."""
        found: dict[str, Any] = _finite({"first_line": self.first_line, **asdict(self)})
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same without infinite standard errors, which JSON has no name for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
