"""What one document is: its title and text put together, and the one rule for which texts are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from st_asym.data.collection import Qrels

# Zero-width characters, marks of direction and soft hyphens, which tokenizers drop.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


class Document(NamedTuple):
    """A document before its title and text are put together."""

    title: str
    text: str

    @property
    def joined(self) -> str:
        """What is encoded: title, one space, text."""
        return f"{self.title} {self.text}".strip()

    @classmethod
    def of(cls, value: Any) -> Document | None:
        """A text, or what has a ``text`` and perhaps a ``title``; None where they are no strings."""
        if isinstance(value, str):
            return cls("", value)
        if isinstance(value, Mapping) and "text" in value:
            title, text = ("" if is_missing(value.get(name)) else value[name] for name in ("title", "text"))
            if isinstance(title, str) and isinstance(text, str):
                return cls(title, text)
        return None


@dataclass(frozen=True)
class ReadDocuments:
    """Documents alone, as they were read: by id, with a note for each thing that was left out or changed."""

    by_id: dict[str, Document]
    notes: tuple[str, ...] = ()
    numbered: bool = False  # whether the ids are numbers given on reading, so that they may change

    @property
    def joined(self) -> dict[str, str]:
        """Document id to what is encoded."""
        return {key: document.joined for key, document in self.by_id.items()}


def relevant_of(grades: Mapping[str, int]) -> set[str]:
    """The ids of the documents whose grade is above zero."""
    return {document_id for document_id, grade in grades.items() if grade > 0}


def is_missing(value: Any) -> bool:
    """None, or what stands for it in data frames: NaN, NaT, ``pandas.NA``."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def text_key(text: str) -> str:
    r"""What is the same for texts that are one: they may differ in white space, case and Unicode form (NFKC).

    What cannot be seen, such as a zero-width space or a soft hyphen, does not count either.

    Example:
        >>> text_key(" Care of\u00a0the\nPUMP ") == text_key("care of the pump")
        True
    """
    if text.isascii():  # the same, four times as fast
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def same_texts(wanted: Iterable[str], corpus: Mapping[str, str]) -> dict[str, list[str]]:
    """Document id to the other ids with its text, for those of the wanted ids that are in the corpus and have such."""
    keys = {document_id: text_key(corpus[document_id]) for document_id in wanted if document_id in corpus}
    ids: dict[str, list[str]] = {key: [] for key in keys.values()}
    for document_id, text in corpus.items() if ids else ():
        key = keys[document_id] if document_id in keys else text_key(text)
        if key in ids:
            ids[key].append(document_id)
    return {
        document_id: [other for other in ids[key] if other != document_id]
        for document_id, key in keys.items()
        if len(ids[key]) > 1
    }


def copies(qrels: Qrels, corpus: Mapping[str, str]) -> Qrels:
    """The documents that have the text of a relevant one under another id, and are not relevant themselves.

    They are neither positives nor negatives of the query: a loss passes over them, as
    :class:`st_asym.CorpusContrastiveLoss` does over those that it gets as ``ignored``.

    Returns:
        Query id to document id to 1, without queries that have none.

    Example:
        >>> copies({"q": {"a": 1}, "r": {"c": 1}}, {"a": "Red head", "b": "red  HEAD", "c": "blue"})
        {'q': {'b': 1}}
    """
    relevant = {document_id for judged in qrels.values() for document_id in relevant_of(judged)}
    return copies_by_query(qrels, same_texts(relevant, corpus))


def copies_by_query(qrels: Qrels, same: Mapping[str, Iterable[str]]) -> Qrels:
    """:func:`copies`, given what :func:`same_texts` found."""
    found: Qrels = {}
    for query_id, judged in qrels.items():
        others = (other for document_id, grade in judged.items() if grade > 0 for other in same.get(document_id, ()))
        if own := {other: 1 for other in others if judged.get(other, 0) <= 0}:
            found[query_id] = own
    return found
