"""What a diagnosis holds: figures, arrays for plots, examples, and what they mean in words."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from st_asym.diagnosis.movement import Head, Side

_PACKAGES = ("st_asym", "sentence-transformers", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Spread:
    """How the vectors of one side fill their space. All but ``length`` look at directions, as cosine does.

    Attributes:
        dimension: Of the vectors.
        mean_norm: Length of the mean of the unit vectors: 0 centred, 1 all coincide.
        std: Standard deviation of the unit vectors, averaged over dimensions and scaled by the square root of their
            number: 1 even and centred, 0 all coincide.
        mean_cosine: Mean cosine of two of them.
        isoscore: IsoScore*, see :func:`st_asym.diagnosis.geometry.isoscore`: 1 even, 0 on one axis.
        effective_rank: See :func:`st_asym.diagnosis.geometry.effective_rank`.
        uniformity: See :func:`st_asym.losses.isotropy.uniformity`: about -4 even, 0 all coincide.
        hubness: See :func:`st_asym.diagnosis.geometry.hubness`, of the vectors of this side among themselves.
        length: Mean length before the last ``Normalize``.
        length_std: Standard deviation of the lengths.
        std_by_dimension: Standard deviation of each dimension, scaled in the same way.
        spectrum: Share of the variance along each principal axis, the largest first.
    """

    dimension: int
    mean_norm: float
    std: float
    mean_cosine: float
    isoscore: float
    effective_rank: float
    uniformity: float
    hubness: float
    length: float
    length_std: float
    std_by_dimension: tuple[float, ...]
    spectrum: tuple[float, ...]


@dataclass(frozen=True)
class SideOf:
    """One side of a model.

    Attributes:
        texts: How many.
        before: Their vectors before the head.
        after: Their vectors after it.
        head: What the head does.
    """

    texts: int
    before: Spread
    after: Spread
    head: Head


@dataclass(frozen=True)
class Ranking:
    """What queries find, without regard to what is relevant.

    Attributes:
        changed: Share of queries with another document among their ten nearest.
        replaced: Share of the ten nearest that are others, over all queries.
        first_changed: Share of queries with another nearest document.
        hubness_before: Skewness of the number of queries that have a document among their ten nearest.
        hubness_after: The same with the heads.
    """

    changed: float
    replaced: float
    first_changed: float
    hubness_before: float
    hubness_after: float


@dataclass(frozen=True)
class Relevance:
    """How near queries are to their relevant documents.

    Attributes:
        alignment: Mean squared distance of a query and a relevant document on the unit sphere, 0 where they coincide
            (Wang and Isola 2020, https://arxiv.org/abs/2005.10242).
        positive: Mean cosine of a query and a relevant document.
        negative: Mean cosine of a query and any other document.
        margin: ``positive`` less ``negative``.
        hard_margin: For each query the mean cosine with its relevant documents less that with the nearest other
            document, averaged over queries.
    """

    alignment: float
    positive: float
    negative: float
    margin: float
    hard_margin: float


@dataclass(frozen=True)
class Example:
    """A query whose nDCG@10 changed, with texts cut to 300 characters.

    Attributes:
        query_id: Its id.
        query: Its text.
        before: Its nDCG@10 with the encoder as it is.
        after: The same with the heads.
        relevant: Its most relevant document.
        first_before: The document it found first.
        first_after: The document it finds first now.
    """

    query_id: str
    query: str
    before: float
    after: float
    relevant: str
    first_before: str
    first_after: str


@dataclass(frozen=True)
class Judged:
    """What the relevant documents say.

    Attributes:
        before: Relevance with the encoder as it is.
        after: The same with the heads.
        query_ids: The judged queries.
        ndcg_before: nDCG@10 of each with the encoder as it is.
        ndcg_after: The same with the heads.
        difference: Mean of the differences.
        error: Its standard error; None for a single query.
        gains: The ten queries that gained most, the largest first.
        losses: The ten that lost most, the largest first.
    """

    before: Relevance
    after: Relevance
    query_ids: tuple[str, ...]
    ndcg_before: tuple[float, ...]
    ndcg_after: tuple[float, ...]
    difference: float
    error: float | None
    gains: tuple[Example, ...]
    losses: tuple[Example, ...]


@dataclass(frozen=True)
class Histograms:
    """How many pairs of a query and a document have which cosine.

    Attributes:
        edges: Of the bins, one more than there are bins.
        positive_before: Relevant pairs, with the encoder as it is; zeros without qrels.
        positive_after: The same with the heads.
        negative_before: All other pairs.
        negative_after: The same with the heads.
    """

    edges: tuple[float, ...]
    positive_before: tuple[int, ...]
    positive_after: tuple[int, ...]
    negative_before: tuple[int, ...]
    negative_after: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """Something that a person should know, in plain words.

    Attributes:
        kind: ``"queries that were trained on"``, ``"identity"``, ``"idle side"``, ``"collapse"``,
            ``"length explosion"``, ``"length collapse"``, ``"hubs"``, ``"unchanged ranking"``, ``"worse"``,
            ``"margin"``, ``"better"`` or ``"no head"``.
        side: The side it is about; None for both.
        trouble: Whether something is out of range; otherwise it is only worth knowing.
        text: The figure, what it means, and what to do.
    """

    kind: str
    side: Side | None
    trouble: bool
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`st_asym.diagnose` found: ``print`` it, or look at its parts.

    Attributes:
        query: The query side.
        document: The document side.
        ranking: What queries find.
        judged: What the relevant documents say; None without qrels.
        histograms: Of cosines.
        findings: What is out of range, or worth knowing.
        normalised: Whether the model ends in ``Normalize``.
        seconds: How long it took.
        versions: Of the packages.

    Example:
        >>> diagnosis.save("diagnosis.json")  # doctest: +SKIP
        >>> [finding.kind for finding in diagnosis.findings if finding.trouble]  # doctest: +SKIP
        []
    """

    query: SideOf
    document: SideOf
    ranking: Ranking
    judged: Judged | None
    histograms: Histograms
    findings: tuple[Finding, ...]
    normalised: bool
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=lambda: {name: version(name) for name in _PACKAGES})

    @property
    def sides(self) -> dict[Side, SideOf]:
        """Both sides by name."""
        return {"query": self.query, "document": self.document}

    @property
    def first_line(self) -> str:
        """What came of it, in one sentence."""
        trouble = [finding for finding in self.findings if finding.trouble]
        if not trouble:
            return "Nothing is out of range."
        kinds = dict.fromkeys(f.kind if f.side is None else f"{f.kind} ({f.side})" for f in trouble)
        return f"Out of range: {', '.join(kinds)}."

    def __str__(self) -> str:
        """Findings, tables and examples, for the terminal."""
        from st_asym.report.tables import as_text

        return as_text(self)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON knows it: what is not a finite number is None."""
        plain: dict[str, Any] = _plain({"first_line": self.first_line, **asdict(self)})
        return plain

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8", errors="replace")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def figures(spread: Spread) -> dict[str, float]:
    """The single figures of a :class:`Spread` by name."""
    named = {item.name: getattr(spread, item.name) for item in fields(spread)}
    return {name: value for name, value in named.items() if not isinstance(value, tuple)}
