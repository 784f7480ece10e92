"""What a report consists of: sections of text, tables, pictures and examples, and the HTML of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

REQUIRES = 'HTML reports need jinja2 and matplotlib: pip install "st_asym[report]".'


@dataclass(frozen=True)
class Picture:
    """A plot, once for a light and once for a dark page.

    Attributes:
        light: Data URI.
        dark: Data URI.
        alt: What it shows, for those who do not see it.
        caption: How to read it.
    """

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
class Card:
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
    cards: Sequence[Card] = ()


@dataclass(frozen=True)
class Page:
    """One report.

    Attributes:
        title: What is reported on.
        lead: What came of it, in one sentence.
        sections: Its parts.
        versions: Packages, for the foot of the page.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    versions: dict[str, str] = field(default_factory=dict)


def html(pages: Sequence[Page]) -> str:
    """One document that holds all of them, and needs nothing from elsewhere. All texts are escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(REQUIRES) from error

    loader = PackageLoader("st_asym.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(pages=pages, title=" and ".join(p.title for p in pages))
