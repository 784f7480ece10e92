"""The card of a model that was not loaded from a folder, for its own ``save_pretrained`` and ``push_to_hub``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData

from st_asym.hub import plot
from st_asym.hub.card import Card

_TRAINED_SINCE = "> The model was trained further since this card was written: it describes what it was before.\n\n"


class WrittenCardData(SentenceTransformerModelCardData):
    """A card that is written already, in the place of one that sentence-transformers would generate."""

    def __init__(self, card: Card, picture: bytes | None = None) -> None:
        super().__init__(local_files_only=True, generate_widget_examples=False)
        self.template_path = Path(__file__).with_name("card.md.j2")
        self._card, self._picture = str(card), picture

    def to_dict(self) -> dict[str, Any]:
        """What the template shows; its plot goes where the card will be."""
        if self._picture is not None and self.save_dir is not None:
            Path(self.save_dir, plot.FILE).write_bytes(self._picture)
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
    picture = folder / plot.FILE
    model.model_card_data = WrittenCardData(card, picture.read_bytes() if picture.is_file() else None)
    model.model_card_data.register_model(model)
