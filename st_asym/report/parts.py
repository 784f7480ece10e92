"""What a page consists of, and the templates: of a page in HTML, and of a card in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

REQUIRES = 'HTML reports need jinja2 and matplotlib: pip install "st_asym[report]".'


@dataclass(frozen=True)
class Picture:
    """A plot as data URIs, once for a light and once for a dark page, in words (``alt``), and how to read it."""

    light: str
    dark: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; a folded one, which needs a caption, is opened by the reader."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Note:
    """A sentence or two that stand out, as trouble or as news, after a word for what they are."""

    text: str
    trouble: bool = False
    label: str = ""


@dataclass(frozen=True)
class Box:
    """An example: a heading, and texts with what they are."""

    heading: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    text: str = ""
    notes: Sequence[Note] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    cards: Sequence[Box] = ()


@dataclass(frozen=True)
class Page:
    """One report: what is reported on, what came of it in one sentence, sections, and versions for its foot.

    Sections in which nothing is shown are left out.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> list[Section]:
        """The sections in which there is something."""
        return [part for part in self.sections if part.notes or part.tables or part.pictures or part.cards]


def template(name: str, functions: dict[str, Any] | None = None) -> Template:
    """A template of this package, and what it may call, also as filters; what is put into one in HTML is escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(REQUIRES) from error

    environment = Environment(
        loader=PackageLoader("st_asym.report", "templates"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(functions or {})
    return environment.get_template(name, globals=functions)
