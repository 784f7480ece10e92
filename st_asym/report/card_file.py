"""A model card as metadata and sections, so that one section can be replaced and the others stay as they are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from st_asym.data.files import CARD_FILE, write_text
from st_asym.heads.anatomy import is_license

TAG = "st-asym"
# In this order; written anew with each model.
SECTIONS = ("Use", "Model", "Training", "Held-out queries", "Evaluation", "Limits", "License")

# What sentence-transformers replaces by the repository's name when it uploads a loaded model, in exactly this line.
_MODEL_ID = "sentence_transformers_model_id"
_LOADS = re.compile(r'(model = SentenceTransformer\(")([^"\n]*)(")')
_LICENSE_HEADING = "License"
_OF_LICENSE = ("license", "license_name", "license_link")
# What was measured on the earlier model.
_OF_SCORES = ("model-index", "model_name", "eval_results", "metrics")


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
            if heading not in own or heading == _LICENSE_HEADING:
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


def usage(model_id: str = _MODEL_ID) -> str:
    """The line that loads the model."""
    return f'model = SentenceTransformer("{model_id}")'


def checked_license(name: str) -> str:
    """The Hub's name of a licence, if it can be one."""
    if not is_license(name):
        raise ValueError(
            f"license must be an identifier of the Hub, such as 'apache-2.0' or 'other', got {name!r}: see "
            "https://huggingface.co/docs/hub/repositories-licenses."
        )
    return name


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
