"""A comparison in the card: its tables, and this model's own scores as ``model-index``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from huggingface_hub import EvalResult
from sentence_transformers import SentenceTransformer

from st_asym.cache import model_fingerprint
from st_asym.cache.fingerprint import without_heads
from st_asym.evaluation.comparison import Comparison, Row, mean
from st_asym.evaluation.scores import MAIN, METRICS
from st_asym.evaluation.tables import notes, wide_tables
from st_asym.markdown import code

# As MTEB names them in its own results.
METRIC_TYPES = {metric: metric.replace("@", "_at_") for metric in METRICS}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Own:
    """A model's place in a comparison.

    Attributes:
        comparison: The comparison.
        row: The model's row.
        number: Which of the models of that row it is.
        on_its_encoder: Whether the first row is the model's own encoder, without heads.
    """

    comparison: Comparison
    row: Row
    number: int
    on_its_encoder: bool

    @classmethod
    def of(cls, comparison: Comparison, model: SentenceTransformer) -> Own:
        """Find the model by the digest of its weights and settings.

        Raises:
            ValueError: The comparison is of other models.
        """
        digest = model_fingerprint(model)
        first, *others = comparison.rows
        row = next((row for row in [*others, first] if digest in row.digests), None)
        if row is None:
            raise ValueError(
                f"The comparison has the models {', '.join(repr(row.name) for row in comparison.rows)}, and none of "
                "them is this one, by the digest of weights and settings: evaluate this model."
            )
        return cls(comparison, row, row.digests.index(digest), model_fingerprint(without_heads(model)) in first.digests)

    def score(self, data: str, metric: str) -> float:
        """The model's own mean score, not that of its row."""
        return mean(self.comparison.queries[data]["scores"][self.row.name][metric][self.number])

    def results(self) -> Iterator[EvalResult]:
        """The scores for the metadata, one per data set and metric."""
        for name, facts in self.comparison.data.items():
            version = str(facts["version"])
            for metric in METRICS:
                yield EvalResult(
                    task_type="information-retrieval",
                    task_name="Information Retrieval",
                    dataset_type=re.sub(r"[^\w.-]+", "-", name).strip("-") or "unknown",
                    dataset_name=name,
                    dataset_split=facts["split"],
                    dataset_revision=version if _COMMIT.fullmatch(version) else None,
                    metric_type=METRIC_TYPES[metric],
                    metric_name=metric.replace("ndcg", "nDCG").replace("map", "MAP").replace("mrr", "MRR"),
                    metric_value=round(self.score(name, metric), 5),
                )

    def text(self) -> str:
        """The section."""
        rows, first = self.comparison.rows, self.comparison.rows[0]
        lines = [f"This model is {code(self.row.name)}."]
        if len(self.row.digests) > 1:
            own = ", ".join(f"{name} {self.score(name, MAIN):.4f}" for name in self.comparison.data)
            lines = [
                f"This model is one of the {len(self.row.digests)} of {code(self.row.name)}, which differ in the seed; "
                f"its own nDCG@10: {own}."
            ]
        if self.row is not first:
            what = "its encoder without heads" if self.on_its_encoder else "not its own encoder, but another model"
            lines.append(f"The first row, {code(first.name)}, is {what}.")
        if any("seen" in group or "unseen" in group for group in first.groups.values()):
            lines.append(
                "Queries on seen documents have a relevant document that was trained on; the others have none."
            )
        # What to try next is for who trains, not for who reads the card.
        plain = replace(self.comparison, rows=tuple(replace(row, next_steps=()) for row in rows))
        made = [f"Evaluated on {self.comparison.created[:10]}."] if self.comparison.created else []
        return "\n\n".join([" ".join(lines), *plain.cautions, *wide_tables(plain), *notes(plain), *made])
