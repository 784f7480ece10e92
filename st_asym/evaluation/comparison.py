"""A comparison of models: scores by query, rows of their means and differences; as a table and a file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from st_asym.data.files import write_text
from st_asym.retrieval.significance import Difference

METRICS = ("ndcg@10", "map@100", "mrr@10", "recall@100")
MAIN = METRICS[0]
# The form of vectors that are not compressed.
FULL = "full"
BM25 = "BM25"
# Fewer queries say little.
FEW = 20
FORMAT = 1


def digest_of(content: Any) -> str:
    """A short digest of what JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def fused_name(name: str) -> str:
    """The row of a system with BM25 added."""
    return f"{name} + {BM25}"


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
            first system, for baselines, and where no such queries are left.
        next_steps: What the evidence suggests, a sentence each.
        baseline: Whether it is BM25, or a system with BM25 added; these have no verdict.
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
    baseline: bool = False


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
        from st_asym.report.tables import long_tables, notes, short_table, table

        parts = [*self.cautions, table(*short_table(self))]
        if wide:
            parts += [*(table(*one) for one in long_tables(self)), *notes(self)]
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
            if found == FORMAT:
                comparison: Comparison = of_json(cls, content)
                return comparison
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a comparison that Comparison.to_json wrote: {error}.") from error
        raise ValueError(
            f"{path} is of format {found}, this version of st_asym reads {FORMAT}: evaluate again, or read it with "
            f"the version that wrote it ({content.get('versions', {}).get('st_asym', 'unknown')})."
        )


def mean(values: Any) -> float:
    """As Python's own float, which JSON knows."""
    return float(np.mean(values))


def of_json(kind: Any, value: Any) -> Any:
    """A value of this type, out of what JSON made of its ``asdict``."""
    if is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{name: of_json(types[name], part) for name, part in value.items()})  # type: ignore[operator]
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(of_json(inner[0], part) for part in value)
    if get_origin(kind) is dict:
        return {key: of_json(inner[1], part) for key, part in value.items()}
    return of_json(inner[0], value) if type(None) in inner and value is not None else value
