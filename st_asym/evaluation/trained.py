"""Judged queries that the models were trained on: counted, and told from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from st_asym.provenance import Provenance, described, made_with_heads

if TYPE_CHECKING:
    from st_asym.evaluation.models import Models
    from st_asym.evaluation.tasks import Benchmark

TRAINED, OTHERS = "trained on", "not trained on"
# Fewer queries say little.
FEW = 20
_KEEP_OUT = (
    "Keep a part out of training: fit(..., hold_out_test=True), or st-asym fit with --evaluate of the file that is "
    "trained on."
)


@dataclass(frozen=True)
class TrainedOn:
    """What the provenance of saved models says of the queries that they are judged on.

    Attributes:
        notes: A sentence or two for each model and data set.
        queries: Data set to system to the ids of judged queries that it was trained on, where there are any.
    """

    notes: tuple[str, ...] = ()
    queries: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Models, found: Sequence[Benchmark], split: str) -> TrainedOn:
        """Look at all models and all local data sets."""
        notes: list[str] = []
        queries: dict[str, dict[str, frozenset[str]]] = {}
        local = [_Local(one.name, one.data, split) for one in found if one.data is not None]
        for name, given in models.items():
            made = [one for one in map(made_with_heads, _models(given)) if one is not None]
            for data in local:
                again, note = data.trained_on(name, made)
                notes += note
                if again:
                    queries.setdefault(data.name, {})[name] = frozenset(again)
        return cls(tuple(notes), queries)

    def parts(self, data: str, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Judged queries that any system was trained on, and the others; empty where there are none of the first."""
        again = {query for own in self.queries.get(data, {}).values() for query in own}
        if not again:
            return {}
        return {
            TRAINED: tuple(query for query in ids if query in again),
            OTHERS: tuple(query for query in ids if query not in again),
        }


class _Local:
    """A local data set."""

    def __init__(self, name: str, data: Any, split: str) -> None:
        self.name, self._data, self._split = name, data, split
        self._judged: dict[str, set[str]] = data.relevant(split)
        self._asked = data.with_all_split().relevant("all")

    @cached_property
    def _described(self) -> Any:
        return described(self._data)["queries"]

    def trained_on(self, name: str, made: Sequence[Provenance]) -> tuple[set[str], list[str]]:
        """The judged queries that a system was trained on, and what to say of it."""
        digests = [one.trained_queries for one in made]
        known = [found for found in digests if found is not None and found.query_digests is not None]
        rest = [one for one, found in zip(made, digests, strict=True) if found not in known]
        texts = {query: self._data.queries[query] for query in self._asked}
        trained = {query for one in known for query in one.among(texts)}
        if any(map(self._is_whole, rest)):
            trained = set(self._asked)
        again = trained & self._judged.keys()
        if not again:
            return again, self._unknown(name, rest)
        if trained >= self._asked.keys():
            return again, [
                f"{name} was trained on all queries of {self.name}, those judged here included: its scores say nothing "
                f"about new ones. {_KEEP_OUT}"
            ]
        relevant = {query: self._judged[query] for query in again}
        pairs: set[str] = set().union(*(one.with_their_documents(texts, self._data.corpus, relevant) for one in known))
        return again, [self._part(name, again, len(pairs), trained)]

    def _is_whole(self, made: Provenance) -> bool:
        """Whether a model without digests of each query was trained on all queries of this data set."""
        return any(
            part.get("queries") == self._described and self._split not in part.get("qrels", {self._split})
            for part in made.data.values()
        )

    def _unknown(self, name: str, made: Sequence[Provenance]) -> list[str]:
        """Say that it cannot be told where there were too many queries; of models of 0.1 nothing is known."""
        numbers = [one.trained["queries"] for one in made if one.trained]
        return [
            f"{name} was trained on {number:,} queries, too many for a digest of each: whether queries of {self.name} "
            "were among them is not known."
            for number in numbers[:1]
        ]

    def _part(self, name: str, again: set[str], pairs: int, trained: set[str]) -> str:
        judged, left = len(self._judged), len(self._judged) - len(again)
        if not left:
            new = [split for split in self._data.qrels if split != "all" and not trained & self._asked_of(split)]
            every = f"all {judged:,} judged queries" if judged > 1 else "the one judged query"
            return (
                f"{name} was trained on {every} of {self.name} (split {self._split}): its scores say nothing about new "
                "ones. "
                + (f"It was not trained on those of the split {new[0]}: evaluate on them." if new else _KEEP_OUT)
            )
        shared = f" ({pairs:,} with a document that answers them here)" if pairs else ""
        few = f" {left:,} {'says' if left == 1 else 'say'} little: evaluate on more new ones." if left < FEW else ""
        return (
            f"{name} was trained on {len(again):,} of {judged:,} judged queries of {self.name}{shared}. They are no "
            f"evidence: its verdict is by the other {left:,}, whose scores stand apart ({OTHERS}).{few}"
        )

    def _asked_of(self, split: str) -> set[str]:
        return set(self._data.relevant(split))


def _models(given: Any) -> list[Any]:
    """The models of one system."""
    several = list(given.values()) if isinstance(given, Mapping) else given
    return list(several) if isinstance(several, list | tuple) else [several]
