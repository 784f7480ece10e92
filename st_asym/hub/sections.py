"""What the sections of a card say: use, model, training, held-out queries, limits and licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_asym.data.collection import counted
from st_asym.hub import fitted
from st_asym.hub.card import usage
from st_asym.hub.facts import Encoder, Facts
from st_asym.hub.fitted import Report
from st_asym.markdown import code, table
from st_asym.names import REPORT_FILE
from st_asym.routing import plain_encode

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
        rows = fitted.settings_rows(report)
        chosen = report["chosen"]
        if chosen is not None:
            choice = chosen["choice"]
            rows.append(["candidate that was kept", choice["candidate"]])
            rows.append(["epoch and dial that were kept", fitted.how_far(choice)])
        intro = "Settings of the heads that were kept." if chosen is not None else "Settings that were tried."
        parts += [intro, table(["setting", "value"], rows)]
    if report["refitted"]:
        parts.append("The kept heads were then made of all training queries, those held out included.")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n\n".join([*parts, f"Made with {versions}."])


def held_out(report: Report) -> str:
    """What was tried, and what the choice was made on."""
    parts = list(dict.fromkeys(report["held_out"]))
    parts += [" ".join(fitted.why(report)), " ".join(fitted.how_to_read(report)), _candidates(report)]
    best = fitted.best(report)
    if best is not None:
        what = "What was kept"
        if report["chosen"] is None:
            choice = best["choice"]
            what = f"The best of what was tried, {choice['candidate']}, {fitted.how_far(choice)}, which was not kept"
        parts += [f"{what}, beside the untouched encoder:", _levels(best)]
    parts.append(
        "The heads of these tables were trained without these queries. The choice was made on them, so the figures "
        "flatter it: they are no test."
    )
    return "\n\n".join(filter(None, parts))


def _candidates(report: Report) -> str:
    header, rows = fitted.candidate_table(report, fitted.MOST)
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
            fitted.half(gain, digits=4),
        ]
        for name, gain in ((name, found[half]) for half, name in fitted.HALVES.items())
        if gain["queries"]
    ]
    return table(["nDCG@10 of held-out queries", "queries", "untouched encoder", "heads", "difference"], rows)


def caption(report: Report) -> str:
    """What the plot shows, for those who do not see it."""
    drawn = counted(min(fitted.MOST, len(report["candidates"])), "candidate")
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
