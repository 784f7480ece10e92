"""A model card as metadata and sections, so that one section can be replaced and the others stay as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData

from st_asym.disk.card_file import TAG, Card, checked_license
from st_asym.disk.writing import PLOT_FILE, REPORT_FILE
from st_asym.heads.anatomy import Encoder
from st_asym.report import card_sections as sections
from st_asym.report.card_sections import plot
from st_asym.report.facts import Facts, Report, read_report

if TYPE_CHECKING:
    from st_asym.evaluation import Comparison


_TRAINED_SINCE = "> The model was trained further since this card was written: it describes what it was before.\n\n"


class WrittenCardData(SentenceTransformerModelCardData):
    """A card that is written already, in the place of one that sentence-transformers would generate."""

    def __init__(self, card: Card, picture: bytes | None = None) -> None:
        super().__init__(local_files_only=True, generate_widget_examples=False)
        self.template_path = Path(__file__).with_name("templates") / "card.md.j2"
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


NOT_RECORDED = "not recorded"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", TAG]


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
    encoder = None if base_model is None else _named(base_model)
    for name in [*(datasets or []), *([] if model_id is None else [model_id])]:
        validate_repo_id(name)
    card = None if new else Card.load(folder)
    if card is None or encoder is not None or comparison is not None:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        card = _fresh(model, folder) if card is None else card
        if encoder is not None:
            card.data.base_model = encoder.name
            card.text = card.text.replace(f"# {sections.title(Encoder())}\n", f"# {sections.title(encoder)}\n", 1)
            card.put(sections.MODEL, sections.model(Facts.of(model), encoder), sections.ORDER)
        if comparison is not None:
            _evaluate(card, comparison, model)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *_TAGS]))
    _state(card, license, datasets, model_id)
    return card.save(folder)


def _state(card: Card, license_: str | None, datasets: Sequence[str] | None, model_id: str | None) -> None:
    """What only who publishes the model knows."""
    if license_ is not None:
        card.data.license, card.data.license_name, card.data.license_link = checked_license(license_), None, None
        card.put(sections.LICENSE, sections.licence(license_))
    if datasets is not None:
        card.data.datasets = list(datasets)
    if model_id is not None:
        card.set_model_id(model_id)


def _named(base_model: str) -> Encoder:
    """An encoder of the Hub, given as ``name`` or ``name@revision``."""
    name, _, revision = base_model.partition("@")
    validate_repo_id(name)
    return Encoder(name, revision or None)


def _fresh(model: SentenceTransformer, folder: Path) -> Card:
    """A card of a model, and of the report of ``fit`` beside it."""
    try:
        report = read_report(folder)
        card = new_card(Facts.of(model), Encoder(recorded=False), report, NOT_RECORDED)
        _add_plot(card, report, folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / REPORT_FILE} is not a report that this version of st_asym can read ({type(error).__name__}: "
            f"{error}): move it away to write a card without it."
        ) from error
    return card


def fitted_card(model: SentenceTransformer, report: Report, encoder: Encoder, data: str | None, folder: Path) -> Card:
    """Write the card of what ``fit`` saved in ``folder``; arguments as of :func:`new_card`."""
    card = new_card(Facts.of(model), encoder, report, data)
    _add_plot(card, report, folder)
    card.save(folder)
    return card


def new_card(facts: Facts, encoder: Encoder, report: Report | None, data: str | None = None) -> Card:
    """A card of what is known.

    Args:
        facts: Of the model.
        encoder: Where its encoder is from.
        report: ``as_dict()`` of the report of ``fit``; None where the model was trained otherwise.
        data: The name of the training data; None where they had none.
    """
    metadata = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=list(_TAGS),
        base_model=encoder.name,
        model_name=None,
        **encoder.license,  # type: ignore[arg-type] # the keys of a licence alone
    )
    card = Card(metadata, sections.lead(facts, encoder, None if report is None else report["first_line"]) + "\n")
    card.put(sections.USE, sections.use(facts))
    card.put(sections.MODEL, sections.model(facts, encoder))
    card.put(sections.TRAINING, sections.training(report, data))
    if report is not None and report["evidence"]:
        card.put(sections.HELD_OUT, sections.held_out(report))
    card.put(sections.EVALUATION, sections.no_evaluation())
    card.put(sections.LIMITS, sections.limits(facts, report))
    card.put(sections.LICENSE, sections.licence(None, encoder))
    return card


def _add_plot(card: Card, report: Report | None, folder: Path) -> None:
    """Draw what the candidates gained on the held-out queries, and show it in their section."""
    picture = None if report is None else plot(report, folder)
    if report is not None and picture is not None:
        card.put(sections.HELD_OUT, f"{sections.held_out(report)}\n\n![{sections.caption(report)}]({picture})")


def _evaluate(card: Card, comparison: Comparison | str | os.PathLike[str], model: SentenceTransformer) -> None:
    from st_asym.evaluation.comparison import Comparison
    from st_asym.report.card_sections import METRIC_TYPES, Own

    own = Own.of(comparison if isinstance(comparison, Comparison) else Comparison.load(comparison), model)
    card.put(sections.EVALUATION, own.text(), sections.ORDER)
    card.data.model_name = card.title
    card.data.eval_results = list(own.results())
    card.data.metrics = list(METRIC_TYPES.values())
