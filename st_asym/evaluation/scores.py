"""What models scored, by query: flat records, and where they are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from st_asym.data.collection import text_key
from st_asym.disk.writing import write_text

logger = logging.getLogger(__name__)

METRICS = ("ndcg@10", "map@100", "mrr@10", "recall@100")
MAIN = METRICS[0]
# The form of vectors that are not compressed.
FULL = "full"
FORMAT = 1


def text_digest(text: str) -> str:
    """A short digest of a text, whatever its case and white space."""
    return hashlib.blake2b(text_key(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Scores:
    """What one model scored on one data set.

    Attributes:
        benchmark: Name of the task.
        data: Name of the data set, which is that of the task where the task has only one.
        split: Its split.
        documents: Size of the corpus that was searched.
        queries: Ids of the queries.
        means: Each of :data:`METRICS` over all queries, as MTEB gives it.
        by_query: The same for each query, in the order of ``queries``.
        relevant: Query id to the ids of its relevant documents, each with a digest of its text.
        mteb: Everything else that MTEB measured.
        bm25_weight: How much BM25 counted beside the cosine, where it was added.
    """

    benchmark: str
    data: str
    split: str
    documents: int
    queries: tuple[str, ...]
    means: dict[str, float]
    by_query: dict[str, tuple[float, ...]]
    relevant: dict[str, dict[str, str]]
    mteb: dict[str, Any] = field(default_factory=dict)
    bm25_weight: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """What ``asdict`` made of it, out of JSON."""
        by_query = {metric: tuple(scores) for metric, scores in values["by_query"].items()}
        return cls(**{**values, "queries": tuple(values["queries"]), "by_query": by_query})


class Measurement(NamedTuple):
    """One record: what one model of a system scored on one data set, with vectors of one form."""

    system: str
    number: int  # which of its models: there is one per seed
    form: str  # "full", "int8", "binary" or a number of dimensions
    scores: Scores


class ResultStore:
    """Scores on disk, found by everything that they depend on.

    A file is written when a model has been through a data set, in one step, so that an interrupted evaluation goes on
    with the next one. A file that is damaged, or of another format or version, counts as missing.

    Args:
        folder: Made when the first scores are written; None keeps nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def get_or(self, key: Mapping[str, str], what: str, measure: Callable[[], Sequence[Scores]]) -> Sequence[Scores]:
        """The scores under exactly this key; measured, logged and kept where there are none."""
        found = self.get(key)
        if found is None:
            logger.info("%s: %s", key["name"], what)
            found = list(measure())
            self.put(key, found)
        return found

    def get(self, key: Mapping[str, str]) -> list[Scores] | None:
        """The scores under exactly this key."""
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT or found["key"] != dict(key):
                raise ValueError("it is of another version")
            return [Scores.from_dict(values) for values in found["scores"]]
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("%s cannot be used (%s): this is evaluated again.", path, error)
            return None

    def put(self, key: Mapping[str, str], scores: Sequence[Scores]) -> None:
        """Keep the scores under this key."""
        path = self._path(key)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"format": FORMAT, "key": dict(key), "scores": [asdict(one) for one in scores]}
            write_text(path, json.dumps(content))

    def _path(self, key: Mapping[str, str]) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
        name = re.sub(r"[^\w.-]+", "_", key["name"])
        return self.folder / name / f"{key['model'][:12]}-{key['form']}-{digest}.json"
