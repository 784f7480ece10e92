"""Works, marginal or fails, and what to try next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from st_asym.disk.writing import write_text
from st_asym.evaluation.scores import FORMAT
from st_asym.retrieval.significance import Difference

_STILL = "No query scores otherwise than before: the heads did not move. Raise the learning rate."

Verdict = Literal["works", "marginal", "fails"]


@dataclass(frozen=True)
class Bar:
    """What a system must reach to work.

    Attributes:
        at_least: Share of the first system's mean nDCG@10 that it must gain.
        significance: What its corrected p-value must be below.
    """

    at_least: float = 0.035
    significance: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what cannot be reached.

        Raises:
            ValueError: It names the value.
        """
        if not 0 <= self.at_least < float("inf"):
            raise ValueError(f"at_least must be a share of at least 0, such as 0.035, got {self.at_least}.")
        if not 0 < self.significance < 1:
            raise ValueError(f"significance must be between 0 and 1, such as 0.05, got {self.significance}.")


def judge(difference: Difference, bar: Bar) -> Verdict:
    """``"works"`` for a significant gain that is large, ``"fails"`` for a significant loss, else ``"marginal"``."""
    significant = difference.p_corrected < bar.significance
    if significant and difference.points < 0:
        return "fails"
    relative = difference.relative if difference.relative is not None else float("inf")
    return "works" if significant and relative >= bar.at_least else "marginal"


def next_steps(
    verdict: Verdict,
    difference: Difference,
    bar: Bar,
    *,
    moved: bool,
    differences: Mapping[str, Difference],
    groups: Mapping[str, Mapping[str, Group]],
) -> tuple[str, ...]:
    """What the evidence suggests, a sentence each.

    Args:
        verdict: What was said of the system.
        difference: On which it was said.
        bar: What it had to reach.
        moved: Whether the score of any query differs from the first system's.
        differences: The same for each data set.
        groups: Data set to ``"seen"`` and ``"unseen"`` documents, where the training data are known.
    """
    steps = [_overall(verdict, difference, bar) if moved else _STILL]
    if verdict != "fails":
        steps += [
            f"{data}: worse than the first system ({100 * own.points:+.2f}), whatever the average says. Use the first "
            "system there, or train on pairs of it too."
            for data, own in differences.items()
            if own.points < 0 and own.p_corrected < bar.significance
        ]
    steps += [
        f"{data}: worse where no relevant document was in training. Use more isotropy, fewer epochs, or the query side "
        "only."
        for data, group in groups.items()
        if "unseen" in group and _clearly_worse(group["unseen"].difference)
    ]
    return tuple(filter(None, steps))


def _overall(verdict: Verdict, difference: Difference, bar: Bar) -> str:
    if verdict == "works":
        return ""
    if verdict == "fails":
        return "It is worse than the first system: lower the learning rate or stop earlier, and look at the data."
    if difference.p_corrected < bar.significance:
        return f"It gains, but less than {bar.at_least:.1%}: train longer, on more pairs, or with both heads."
    return (
        f"The difference is not distinguishable from chance on {difference.queries:,} queries: evaluate on more of "
        "them, or train on more pairs."
    )


def _clearly_worse(difference: Difference | None) -> bool:
    return difference is not None and difference.high is not None and difference.high < 0


@dataclass(frozen=True)
class Group:
    """The queries of a data set whose relevant documents were in training, or the others; or the same of queries.

    Attributes:
        queries: How many.
        score: Their mean nDCG@10.
        difference: To the first system, None for that itself.
    """

    queries: int
    score: float
    difference: Difference | None = None


@dataclass(frozen=True)
class Row:
    """One system; with several seeds, their mean.

    Attributes:
        name: As given.
        digests: Of each of its models.
        seeds: Of each, where they were given.
        scores: Data set to metric to mean score.
        average: Metric to the mean over data sets.
        spread: Data set, and ``"average"``, to the standard deviation of nDCG@10 over seeds; empty for one.
        difference: In average nDCG@10 to the first system, None for that itself.
        differences: The same for each data set.
        groups: Data set to ``"seen"`` and ``"unseen"``, where training data were given, and to ``"trained on"`` and
            ``"not trained on"``, where a model was trained on judged queries.
        compressed: Form to data set, and ``"average"``, to nDCG@10 with compressed vectors.
        verdict: ``"works"``, ``"marginal"`` or ``"fails"``, by the queries that it was not trained on; None for the
            first system, and where no such queries are left.
        next_steps: What the evidence suggests, a sentence each.
    """

    name: str
    digests: tuple[str, ...]
    seeds: tuple[int, ...] | None
    scores: dict[str, dict[str, float]]
    average: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
    difference: Difference | None = None
    differences: dict[str, Difference] = field(default_factory=dict)
    groups: dict[str, dict[str, Group]] = field(default_factory=dict)
    compressed: dict[str, dict[str, float]] = field(default_factory=dict)
    verdict: str | None = None
    next_steps: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """What ``asdict`` made of it, out of JSON."""
        groups = {
            data: {
                name: Group(**{**group, "difference": _difference(group["difference"])}) for name, group in own.items()
            }
            for data, own in values["groups"].items()
        }
        return cls(
            **{
                **values,
                "digests": tuple(values["digests"]),
                "seeds": None if values["seeds"] is None else tuple(values["seeds"]),
                "difference": _difference(values["difference"]),
                "differences": {data: Difference(**own) for data, own in values["differences"].items()},
                "groups": groups,
                "next_steps": tuple(values["next_steps"]),
            }
        )


@dataclass(frozen=True)
class Comparison:
    """What :func:`st_asym.evaluate` gives: ``print(comparison)`` is the table.

    Attributes:
        rows: One per system, the first being what the others are compared with.
        data: Data set to its split, version, and numbers of documents and queries.
        queries: Data set to ``"ids"``, ``"seen"`` (ids, None where training data were not given), ``"trained on"`` (ids
            that a model was trained on) and ``"scores"``: system to metric to one list of scores per model, in the
            order of the ids.
        settings: Of the comparison.
        versions: Of the packages.
        notes: What was left out of the data, or is odd about the models.
        created: When, in UTC.
        cautions: Those of the notes that stand above the table: what makes its numbers no evidence.

    Example:
        >>> comparison = Comparison.load("comparison.json")  # doctest: +SKIP
        >>> print(comparison.to_markdown())  # doctest: +SKIP
    """

    rows: tuple[Row, ...]
    data: dict[str, dict[str, Any]]
    queries: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    created: str = ""
    cautions: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Row:
        """The row of a system.

        Raises:
            KeyError: There is none of this name. The message names those that are.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"There is no system {name!r}: this comparison has {[row.name for row in self.rows]}.")

    def __str__(self) -> str:
        """The table for a terminal."""
        from st_asym.report.tables import terminal_tables

        return terminal_tables(self)

    def to_markdown(self, *, wide: bool = True) -> str:
        """The table ``Model | Avg NDCG@10 | vs Baseline``, and under it the wider one with what it rests on.

        Args:
            wide: False for the first table alone.
        """
        from st_asym.report.tables import narrow_table, notes, wide_tables

        parts = [*self.cautions, narrow_table(self)]
        if wide:
            parts += [*wide_tables(self), *notes(self)]
        return "\n\n".join(parts) + "\n"

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything, per-query scores included."""
        content = {"format": FORMAT, **asdict(self)}
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what :meth:`to_json` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no comparison, or of another format.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            found = content.pop("format")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a comparison that Comparison.to_json wrote.") from error
        if found != FORMAT:
            raise ValueError(
                f"{path} is of format {found}, this version of st_asym reads {FORMAT}: evaluate again, or read it with "
                f"the version that wrote it ({content.get('versions', {}).get('st_asym', 'unknown')})."
            )
        try:
            rows = tuple(Row.from_dict(row) for row in content.pop("rows"))
            several = {name: tuple(content.get(name, ())) for name in ("notes", "cautions")}  # 0.1 had no cautions
            return cls(**{**content, "rows": rows, **several})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a comparison that Comparison.to_json wrote: {error}.") from error


def mean(values: Sequence[float]) -> float:
    """As Python's own float, which JSON knows."""
    return float(np.mean(values))


def _difference(values: Mapping[str, Any] | None) -> Difference | None:
    return None if values is None else Difference(**values)
