"""The model card: ``card.md.j2`` filled with what is known, whole, or one section of a card that is there."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from jinja2 import Environment, PackageLoader, StrictUndefined, Template, TemplateError, select_autoescape
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.base.modules import Dense, Router

from st_asym.cache import encoder_fingerprint, model_fingerprint
from st_asym.data.collection import counted
from st_asym.data.files import CARD_FILE, PLOT_FILE, REPORT_FILE, write_text
from st_asym.evaluation.comparison import MAIN, METRICS, Comparison, Row, mean
from st_asym.heads.anatomy import EncoderSource, is_license, without_heads
from st_asym.report import tables
from st_asym.report.plots import candidate_forest
from st_asym.report.tables import Report, cell, code, table
from st_asym.trainer.columns import encode_caveat

# The sections of a card in this order; written anew with each model.
SECTIONS = ("Use", "Model", "Training", "Held-out queries", "Evaluation", "Limits", "License")
TAG = "st-asym"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", TAG]
_TRAINED_SINCE = "> The model was trained further since this card was written: it describes what it was before.\n\n"
# As MTEB names them in its own results.
_METRIC_TYPES = {metric: metric.replace("@", "_at_") for metric in METRICS}
# What the version of a task of MTEB says: the id and the revision of its data set on the Hub.
_ON_HUB = re.compile(r" (?P<id>\S+/\S+)@(?P<revision>[0-9a-f]{40}) \[")
# The line that loads the model, in which sentence-transformers names the repository when it uploads a loaded model.
_LOADS = re.compile(r'(model = SentenceTransformer\(")([^"\n]*)(")')
_OF_LICENSE = ("license", "license_name", "license_link")
# What was measured on the earlier model.
_OF_SCORES = ("model-index", "model_name", "eval_results", "metrics")
# What the template calls.
_FUNCTIONS: dict[str, Any] = {
    "cell": cell,
    "code": code,
    "counted": counted,
    "number": "{:,}".format,
    "encode_caveat": encode_caveat,
    "table": table,
    "tables": tables,
}


@cache
def template(name: str) -> Template:
    """A template of this package, compiled once; what is put into one in HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("st_asym.report", "templates"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(_FUNCTIONS)
    environment.filters.update(_FUNCTIONS)
    return environment.get_template(name)


@dataclass
class Card:
    """A model card: its metadata, and what people read, in Markdown."""

    data: ModelCardData
    text: str

    @classmethod
    def parse(cls, content: str) -> Card:
        """Read a card; a ValueError where its metadata are not what a card may have."""
        try:
            card = ModelCard(content)
        except Exception as error:  # of YAML, or of what metadata may hold
            raise ValueError(f"its metadata cannot be read: {' '.join(str(error).split())}") from error
        assert isinstance(card.data, ModelCardData)  # noqa: S101 - for the type checker
        return cls(card.data, card.text.lstrip("\n"))

    @classmethod
    def load(cls, folder: Path) -> Card | None:
        """The card of a saved model; None where there is none."""
        path = folder / CARD_FILE
        if not path.is_file():
            return None
        try:
            return cls.parse(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}. Mend it, or write a new card (new=True).") from error

    def __str__(self) -> str:
        """The card as it stands in ``README.md``."""
        return f"---\n{self.data.to_yaml()}\n---\n\n{self.text}"

    def save(self, folder: Path) -> Path:
        """Write it."""
        return write_text(folder / CARD_FILE, str(self))

    @property
    def title(self) -> str:
        """Its first heading."""
        first = re.search(r"^# (.+)$", self.text, re.MULTILINE)
        return first[1].strip() if first else "Query and document heads"

    def set_model_id(self, model_id: str) -> None:
        """Name the model in the line that loads it."""
        self.text = _LOADS.sub(lambda match: match[1] + model_id + match[3], self.text)

    def put(self, heading: str, text: str, order: Sequence[str] = SECTIONS) -> None:
        """Replace a section, or add it: in that order, before the first of those after it, else at the end."""
        lines, places = self._places()
        new = f"## {heading}\n\n{text.strip()}\n"
        spans = {name: (start, end) for (start, name), (end, _) in itertools.pairwise(places)}
        later = order[order.index(heading) + 1 :] if heading in order else ()
        place = next((start for start, name in places if name in later), len(lines))
        start, end = spans.get(heading, (place, place))
        before, after = "".join(lines[:start]).rstrip("\n"), "".join(lines[end:])
        self.text = "\n\n".join(filter(None, [before, f"{new}\n{after}" if after else new]))

    def sections(self) -> dict[str, str]:
        """The text of each section by its heading."""
        lines, places = self._places()
        return {name: "".join(lines[start + 1 : end]) for (start, name), (end, _) in itertools.pairwise(places)}

    def keep(self, earlier: Card) -> None:
        """Take over from the card of an earlier model what this one does not say anew.

        These are sections that it has not, licence and data, and other metadata, apart from the earlier model's scores.
        """
        own = self.sections()
        for heading, text in earlier.sections().items():
            if heading not in own or heading == "License":
                self.put(heading, text)
        said: dict[str, Any] = self.data.to_dict()  # type: ignore[no-untyped-call]
        before: dict[str, Any] = earlier.data.to_dict()  # type: ignore[no-untyped-call]
        for name, value in before.items():
            if said.get(name) is None and name not in (*_OF_LICENSE, *_OF_SCORES):
                setattr(self.data, name, value)
        if "license" in before:
            for name in _OF_LICENSE:
                setattr(self.data, name, before.get(name))
        self.data.tags = list(dict.fromkeys([*(self.data.tags or []), *(earlier.data.tags or [])]))

    def _places(self) -> tuple[list[str], list[tuple[int, str]]]:
        """The lines of the text, and those of its headings with their names, and the end."""
        lines = self.text.splitlines(keepends=True)
        return lines, [*_headings(lines), (len(lines), "")]


def facts_of(model: SentenceTransformer) -> dict[str, Any]:
    """What a model with or without heads says of itself; what it does not say is None.

    ``max_tokens`` are those of a text, what is beyond is cut off; ``heads`` has the widths of each side's head, empty
    for one without; ``plain`` is the side that plain encode takes; ``trained`` counts the weights of the heads.
    """
    router = next((module for module in model.children() if isinstance(module, Router)), None)
    routes: Any = {} if router is None else router.sub_modules
    length: float | None = model.max_seq_length  # encoders without a limit give none, or an infinite one
    return {
        "dimension": model.get_embedding_dimension(),
        "max_tokens": int(length) if length is not None and math.isfinite(length) else None,
        "similarity": str(model.similarity_fn_name),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},
        "heads": {side: _widths(route) for side, route in routes.items()},
        "plain": None if router is None else router.default_route,
        "trained": 0 if router is None else sum(parameter.numel() for parameter in router.parameters()),
        "fingerprint": encoder_fingerprint(model),
    }


def _widths(route: Any) -> str:
    """The layers of one route: ``384 → 768 → 384, ReLU``."""
    layers = [module for module in route if isinstance(module, Dense)]
    if not layers:
        return ""
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    names = [type(layer.activation_function).__name__ for layer in layers]
    used = dict.fromkeys(name for name in names if name != "Identity")
    return ", ".join([" → ".join(map(str, widths)), *used]) + ("" if used else ", linear")


def write_card(
    path: str | os.PathLike[str],
    *,
    comparison: Comparison | str | os.PathLike[str] | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's own word
    base_model: str | None = None,
    datasets: Sequence[str] | None = None,
    model_id: str | None = None,
    new: bool = False,
) -> Path:
    """Complete the model card of a saved model, or write one where there is none.

    ``fit`` writes a card of what it knows. This adds what is known later, each in its own section and in the metadata
    that the Hub reads; everything else in the card stays as it is, also what was written by hand. The scores in the
    metadata (``model-index``) are those of this very model: it is found in the comparison by a digest of its weights.

    A model that is loaded from ``path`` and uploaded by its own ``push_to_hub`` takes the card along, with its new
    name in it; ``push_to_hub(..., local_model_path=path)`` uploads the whole folder, with the plot and the report.

    Args:
        path: Folder of the model.
        comparison: What :func:`st_asym.evaluate` gave, or the JSON file of it, for the section ``Evaluation``.
        license: An identifier of the Hub, such as ``"apache-2.0"``. Without it, ``fit`` states that of the encoder's
            card, or that it is unknown.
        base_model: Hub id of the encoder, as ``name`` or ``name@revision``, where it was read from a folder.
        datasets: Hub ids of what was trained on.
        model_id: What the model will be called on the Hub, for the line that loads it.
        new: Write the whole card anew, from the model and the report of ``fit`` beside it.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: There is no model in ``path``.
        ValueError: The comparison is of other models, a name that the Hub cannot have, or a card with metadata that
            cannot be read.

    Example:
        >>> comparison = evaluate({"MiniLM": "all-MiniLM-L6-v2", "fit": "model"}, "scifact.zip")  # doctest: +SKIP
        >>> write_card("model", comparison=comparison, license="apache-2.0")  # doctest: +SKIP
        >>> SentenceTransformer("model").push_to_hub("user/model", private=True)  # doctest: +SKIP
    """
    folder = Path(path)
    if not (folder / "modules.json").is_file():
        raise FileNotFoundError(f"{folder} holds no saved model: it has no modules.json.")
    for name in [*(datasets or []), *([] if model_id is None else [model_id])]:
        validate_repo_id(name)
    card = None if new else Card.load(folder)
    if card is None or base_model is not None or comparison is not None:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        card = _fresh(model, folder) if card is None else card
        _complete(card, model, base_model, comparison)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *_TAGS]))
    if license is not None:
        if not is_license(license):
            raise ValueError(
                f"license must be an identifier of the Hub, such as 'apache-2.0' or 'other', got {license!r}: see "
                "https://huggingface.co/docs/hub/repositories-licenses."
            )
        card.data.license, card.data.license_name, card.data.license_link = license, None, None
        card.put("License", _section("license", license=license))
    if datasets is not None:
        card.data.datasets = list(datasets)
    if model_id is not None:
        card.set_model_id(model_id)
    return card.save(folder)


def _complete(
    card: Card,
    model: SentenceTransformer,
    base_model: str | None,
    comparison: Comparison | str | os.PathLike[str] | None,
) -> None:
    """Say where the encoder is from, and what the model scores, as far as either is given."""
    if base_model is not None:
        hub_id, _, revision = base_model.partition("@")
        validate_repo_id(hub_id)
        encoder = EncoderSource(hub_id, revision or None)
        card.data.base_model = encoder.name
        card.text = card.text.replace(f"# {_title(None)}\n", f"# {_title(encoder.name)}\n", 1)
        card.put("Model", _section("model", facts=facts_of(model), encoder=encoder))
    if comparison is not None:
        own = Own.of(comparison if isinstance(comparison, Comparison) else Comparison.load(comparison), model)
        card.put("Evaluation", _section("evaluation", own=own))
        card.data.model_name = card.title
        card.data.eval_results = list(own.results())
        card.data.metrics = list(_METRIC_TYPES.values())


def _fresh(model: SentenceTransformer, folder: Path) -> Card:
    """A card of a model, and of the report of ``fit`` beside it."""
    try:
        return new_card(model, EncoderSource(recorded=False), tables.read_report(folder), "not recorded", folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, TemplateError) as error:
        raise ValueError(
            f"{folder / REPORT_FILE} is not a report that this version of st_asym can read ({type(error).__name__}: "
            f"{error}): move it away to write a card without it."
        ) from error


def new_card(
    model: SentenceTransformer, encoder: EncoderSource, report: Report | None, data: str | None, folder: Path
) -> Card:
    """A card of what is known; its plot is written into the folder. ``data`` is the name of the training data."""
    facts = facts_of(model)
    learned = [plural for side, plural in (("query", "queries"), ("document", "documents")) if facts["heads"].get(side)]
    what = f"a frozen encoder with a small trained head for {' and one for '.join(learned)}"
    forest = []
    if report is not None and report["evidence"] and find_spec("matplotlib") is not None:
        forest = candidate_forest(report)
    text = template("card.md.j2").render(
        title=_title(encoder.name) if learned else f"{encoder.name or 'An encoder'}, as it is",
        what=what if learned else "an encoder without heads",
        facts=facts,
        encoder=encoder,
        report=report,
        data=data,
        picture=PLOT_FILE if forest else None,
        own=None,
        license=None,
        report_file=REPORT_FILE,
    )
    for plot in forest:
        (folder / PLOT_FILE).unlink(missing_ok=True)  # a link would be followed
        plot.save(folder / PLOT_FILE, dpi=120, facecolor="white", metadata={"Software": None})
    metadata = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=list(_TAGS),
        base_model=encoder.name,
        model_name=None,
        **encoder.license,  # type: ignore[arg-type] # the keys of a licence alone
    )
    return Card(metadata, text)


def _title(encoder: str | None) -> str:
    """The heading of the card, and the name of the model in its metadata."""
    return f"Query and document heads on {encoder or 'an encoder'}"


def _section(block: str, **context: Any) -> str:
    """One section of a card, which is a block of the template."""
    card = template("card.md.j2")
    return "".join(card.blocks[block](card.new_context(context)))


@dataclass(frozen=True)
class Own:
    """A model's place in a comparison."""

    comparison: Comparison
    row: Row
    number: int  # which of the models of that row it is
    on_its_encoder: bool  # whether the first row is the model's own encoder, without heads

    @classmethod
    def of(cls, comparison: Comparison, model: SentenceTransformer) -> Own:
        """Find the model by the digest of its weights and settings."""
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

    def score(self, data: str, metric: str = MAIN) -> float | None:
        """The model's own mean score, not that of its row, on queries that nothing was trained on; None without any."""
        known = self.comparison.queries[data]
        trained = set(known["trained on"])
        scores = zip(known["ids"], known["scores"][self.row.name][metric][self.number], strict=True)
        others = [score for query, score in scores if query not in trained]
        return mean(others) if others else None

    def results(self) -> Iterator[EvalResult]:
        """The scores for the metadata, one per data set with queries that nothing was trained on, and metric."""
        kinds: list[str] = []
        for name, facts in self.comparison.data.items():
            hub = _ON_HUB.search(str(facts["version"]))
            label = re.sub(r"[^\w.-]+", "-", name).strip("-") or "unknown"
            kinds.append(hub["id"] if hub else label)
            # What has one type and no configuration is one data set to the Hub.
            another = f"{label}-{len(kinds)}" if kinds[-1] in kinds[:-1] else None
            config = facts.get("subset") if hub else another
            values = {metric: self.score(name, metric) for metric in METRICS}
            yield from (
                EvalResult(
                    task_type="information-retrieval",
                    task_name="Information Retrieval",
                    dataset_type=kinds[-1],
                    dataset_name=name,
                    dataset_config=config,
                    dataset_split=facts["split"],
                    dataset_revision=hub["revision"] if hub else None,
                    metric_type=_METRIC_TYPES[metric],
                    metric_name=tables.TITLES[metric],
                    metric_value=round(value, 5),
                )
                for metric, value in values.items()
                if value is not None
            )


class WrittenCardData(SentenceTransformerModelCardData):
    """A card that is written already, in the place of one that sentence-transformers would generate."""

    def __init__(self, card: Card, picture: bytes | None = None) -> None:
        super().__init__(local_files_only=True, generate_widget_examples=False)
        self.template_path = Path(__file__).with_name("templates") / "written_card.md.j2"
        self._card, self._picture = str(card), picture

    def to_dict(self) -> dict[str, Any]:
        """What the template shows; its plot goes where the card will be."""
        if self._picture is not None and self.save_dir is not None:
            Path(self.save_dir, PLOT_FILE).write_bytes(self._picture)
        text = self._written().text
        return {"text": _TRAINED_SINCE + text if self._trained_since else text}

    def to_yaml(self, line_break: str | None = None, original_order: list[str] | None = None) -> str:
        """The metadata."""
        return self._written().data.to_yaml(line_break=line_break, original_order=original_order)

    @property
    def _trained_since(self) -> bool:
        return "generated_from_trainer" in self.tags  # by the stock trainer

    def _written(self) -> Card:
        card = Card.parse(self._card)
        if self.model_id:
            card.set_model_id(self.model_id)
        if self._trained_since:
            card.data.eval_results = card.data.metrics = None
        return card


def attach(model: SentenceTransformer, card: Card, folder: Path) -> None:
    """Give a model in memory the card of its copy that was saved in ``folder``."""
    picture = folder / PLOT_FILE
    model.model_card_data = WrittenCardData(card, picture.read_bytes() if picture.is_file() else None)
    model.model_card_data.register_model(model)


def _headings(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The sections' lines; a heading inside a block of code or a comment is none."""
    fence, comment = "", False
    for place, line in enumerate(lines):
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if mark and (not fence or (line.strip() == mark[1] and mark[1].startswith(fence))):
            fence = "" if fence else mark[1]
        if not fence and ("<!--" in line or "-->" in line):
            comment = line.rfind("<!--") > line.rfind("-->")
        if line.startswith("## ") and not fence and not comment:
            yield place, line[3:].strip()
