"""What the candidates of a fit gained on held-out queries, as a file beside the card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from sentence_transformers import SentenceTransformer

from st_asym.cache import model_fingerprint
from st_asym.cache.fingerprint import without_heads
from st_asym.data.collection import counted
from st_asym.disk.card_file import usage
from st_asym.disk.writing import PLOT_FILE, REPORT_FILE
from st_asym.evaluation.comparison import Comparison, Row, mean
from st_asym.evaluation.scores import MAIN, METRICS
from st_asym.heads.anatomy import Encoder
from st_asym.report import facts as of_fit
from st_asym.report.facts import Facts, Report
from st_asym.report.tables import code, notes, table, wide_tables
from st_asym.trainer.columns import plain_encode


def plot(report: Report, folder: Path) -> str | None:
    """Draw it; None where nothing was judged, or without matplotlib (extra ``report``)."""
    if find_spec("matplotlib") is None:
        return None
    from st_asym.report.plots import LIGHT, candidate_forest, draw_into

    forest = candidate_forest(report)
    if forest is None:
        return None
    path = folder / PLOT_FILE
    path.unlink(missing_ok=True)  # a link would be followed
    draw_into(path, forest.draw, LIGHT, forest.height, dpi=120, facecolor="white", metadata={"Software": None})
    return PLOT_FILE


USE, MODEL, TRAINING, HELD_OUT = "Use", "Model", "Training", "Held-out queries"
EVALUATION, LIMITS, LICENSE = "Evaluation", "Limits", "License"
ORDER = (USE, MODEL, TRAINING, HELD_OUT, EVALUATION, LIMITS, LICENSE)

_SIDES = (("query", "queries"), ("document", "documents"))


def title(encoder: Encoder) -> str:
    """The heading of the card, and the name of the model in its metadata."""
    return f"Query and document heads on {encoder.name}" if encoder.name else "Query and document heads on an encoder"


def lead(facts: Facts, encoder: Encoder, first_line: str | None) -> str:
    """Title, what the model is, and what came of the fit."""
    learned = [plural for side, plural in _SIDES if facts.heads.get(side)]
    dimensions = "" if facts.dimension is None else f" It maps a text to {facts.dimension} dimensions."
    what = "an encoder without heads"
    if learned:
        what = f"a frozen encoder with a small trained head for {' and one for '.join(learned)}"
    lines = [
        f"# {title(encoder)}" if learned else f"# {encoder.name or 'An encoder'}, as it is",
        f"A [sentence-transformers](https://sbert.net) model: {what}.{dimensions} Vectors are compared by "
        f"{facts.similarity}. It needs sentence-transformers alone; st_asym, which made it, need not be installed.",
    ]
    return "\n\n".join([*lines, *([f"**{first_line}**"] if first_line else [])])


def use(facts: Facts) -> str:
    """How to load it and encode both sides."""
    example = "\n".join(
        [
            "```python",
            "from sentence_transformers import SentenceTransformer",
            "",
            f"{usage()}  # this repository, or a folder",
            'queries = model.encode_query(["a question"])',
            'documents = model.encode_document(["a text that answers it", "another text"])',
            "print(model.similarity(queries, documents))",
            "```",
        ]
    )
    lines = ["```bash\npip install -U sentence-transformers\n```", example]
    if facts.plain is not None:
        lines.append(
            "Queries and documents take different ways through the model: use `encode_query` for the one and "
            "`encode_document` for the other."
        )
        lines.append(plain_encode(facts.plain))
    if facts.heads and not facts.heads.get("document"):
        lines.append("Documents get the encoder's own vectors: an index of them that exists stays valid, by cosine.")
    if facts.heads and not facts.heads.get("query"):
        lines.append("Queries get the encoder's own vectors, by cosine.")
    return "\n\n".join(lines)


def model(facts: Facts, encoder: Encoder) -> str:
    """What it consists of."""
    name = "from a local folder or from memory, without a Hub id" if encoder.recorded else "not recorded"
    if encoder.name:
        name = f"[{encoder.name}](https://huggingface.co/{encoder.name})"
    rows = [["base encoder", name]]
    if encoder.name:
        rows.append(["its revision", code(encoder.revision) if encoder.revision else "unknown"])
    rows += [
        ["its fingerprint (`st_asym.encoder_fingerprint`)", code(facts.fingerprint)],
        ["dimensions", str(facts.dimension or "unknown")],
        ["longest text", f"{counted(facts.max_tokens, 'token')}" if facts.max_tokens else "not limited"],
        ["similarity", facts.similarity],
        ["weights", facts.dtype],
    ]
    rows += [[f"head for {plural}", facts.heads.get(side) or "none"] for side, plural in _SIDES]
    rows.append(["weights of the heads", f"{facts.trained:,}"])
    rows += [[f"prompt {code(side)}", code(prompt)] for side, prompt in facts.prompts.items()]
    return table(["part", ""], rows)


def training(report: Report | None, data: str | None) -> str:
    """Data, settings and versions."""
    if report is None:
        return "How the model was trained is not recorded with it."
    parts = [_data(report, data)]
    if report["evidence"]:
        rows = of_fit.settings_rows(report)
        chosen = report["chosen"]
        if chosen is not None:
            choice = chosen["choice"]
            rows.append(["candidate that was kept", choice["candidate"]])
            rows.append(["epoch and dial that were kept", of_fit.how_far(choice)])
        intro = "Settings of the heads that were kept." if chosen is not None else "Settings that were tried."
        parts += [intro, table(["setting", "value"], rows)]
    if report["refitted"]:
        parts.append("The kept heads were then made of all training queries, those held out included.")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n\n".join([*parts, f"Made with {versions}."])


def held_out(report: Report) -> str:
    """What was tried, and what the choice was made on."""
    parts = list(dict.fromkeys(report["held_out"]))
    parts += [" ".join(of_fit.why(report)), " ".join(of_fit.how_to_read(report)), _candidates(report)]
    best = of_fit.best(report)
    if best is not None:
        what = "What was kept"
        if report["chosen"] is None:
            choice = best["choice"]
            what = f"The best of what was tried, {choice['candidate']}, {of_fit.how_far(choice)}, which was not kept"
        parts += [f"{what}, beside the untouched encoder:", _levels(best)]
    parts.append(
        "The heads of these tables were trained without these queries. The choice was made on them, so the figures "
        "flatter it: they are no test."
    )
    return "\n\n".join(filter(None, parts))


def _candidates(report: Report) -> str:
    header, rows = of_fit.candidate_table(report, of_fit.MOST)
    others = len(report["candidates"]) - len(rows)
    lines = [table(header, rows)]
    if others > 0:
        lines.append(f"{counted(others, 'more candidate')} behind these: `{REPORT_FILE}`.")
    return "\n\n".join(lines)


def _levels(found: Mapping[str, Any]) -> str:
    rows = [
        [
            f"on {name}",
            f"{gain['queries']:,}",
            f"{gain['untouched']:.4f}",
            f"{gain['untouched'] + gain['mean']:.4f}",
            of_fit.half(gain, digits=4),
        ]
        for name, gain in ((name, found[half]) for half, name in of_fit.HALVES.items())
        if gain["queries"]
    ]
    return table(["nDCG@10 of held-out queries", "queries", "untouched encoder", "heads", "difference"], rows)


def caption(report: Report) -> str:
    """What the plot shows, for those who do not see it."""
    drawn = counted(min(of_fit.MOST, len(report["candidates"])), "candidate")
    return (
        f"Gain in nDCG@10 of {drawn} on held-out queries, on seen and on unseen documents; the figures are in the table"
    )


def no_evaluation() -> str:
    """Where no test queries were judged."""
    return "Not evaluated on test queries yet."


def limits(facts: Facts, report: Report | None) -> str:
    """What not to expect."""
    lines = []
    if facts.trained:
        lines = [
            "On text unlike what the heads were trained on, expect the encoder's own quality at best.",
            "On documents that training has not seen, expect less than on those that it has.",
            "The encoder stays as it is: what its vectors do not hold, its biases and its languages, no head changes.",
        ]
    if report is not None and report["labels"] != "judged":
        lines.append(f"There were no judged queries: they are the documents' own {report['labels']}.")
    if facts.max_tokens:
        lines.append(f"Of a text, the first {counted(facts.max_tokens, 'token')} count.")
    lines.append("Vectors of different models, and of other heads on the same encoder, must not be mixed in one index.")
    return "\n".join(f"- {line}" for line in lines)


def licence(given: str | None, encoder: Encoder | None = None) -> str:
    """Under what it may be used, as far as that is known."""
    if given is not None:
        return f"{code(given)}, as stated by who published this model."
    if encoder is not None and encoder.license:
        link = encoder.license.get("license_link")
        name = encoder.license.get("license_name") or encoder.license["license"]
        where = f" ({code(link)})" if link else ""
        return f"{code(name)}, that of the encoder by its own card{where}. What the training data ask for is not known."
    return "Unknown: none is stated for this model, and none could be read from its encoder's card."


def _data(report: Report, data: str | None) -> str:
    rows = []
    for split, count in report["counts"].items():
        role = {"documents": "", "train": "trained on", "dev": "to choose what is kept"}.get(split, "not used here")
        rows.append([split if split == "documents" else f"queries, {split}", f"{count:,}", role])
    source = "given in memory, without a name" if data is None else data
    return f"Data: {source}.\n\n{table(['texts', 'number', ''], rows)}"


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
            names = [row.name for row in comparison.rows if not row.baseline]
            raise ValueError(
                f"The comparison has the models {', '.join(map(repr, names))}, and none of "
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
