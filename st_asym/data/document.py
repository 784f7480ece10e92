"""What one document is, the one rule for which texts are the same, and digests that recognise texts trained on."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from st_asym.data.collection import Qrels, RetrievalData

# Zero-width characters, marks of direction and soft hyphens, which tokenizers drop.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")

# Digests beyond this are left out, so that the file stays as small as a configuration.
MOST_QUERIES = 100_000
_MOST_PAIRS = 50_000
_BYTES = 8


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
        if isinstance(value, cls):
            return value
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
    r"""The key that texts share where they are one: they may differ in white space, case and Unicode form (NFKC).

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
    """Document id to the other ids with its text, for wanted ids that are in the corpus and have copies there."""
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


@dataclass(frozen=True)
class TrainedQueries:
    """Digests of training queries, and of these with their relevant documents.

    They are computed on :func:`st_asym.data.text_key`, so that another spelling is the same query, with a random key of
    each model, so that those of two models cannot be compared. The key is saved beside them: no query can be read out,
    but whoever guesses one can check the guess.

    Example:
        >>> from st_asym.data.collection import RetrievalData
        >>> data = RetrievalData({"q": "Error E17"}, {"d": "Replace the filter."}, {"train": {"q": {"d": 1}}})
        >>> found = TrainedQueries.of([data])
        >>> found.among({"1": "error  e17", "2": "error E18"})
        {'1'}
    """

    key: bytes
    queries: int  # how many there are
    query_digests: frozenset[bytes] | None  # None for more than 100,000
    pairs: int  # how many queries with a relevant document
    pair_digests: frozenset[bytes] | None  # None for more than 50,000

    @classmethod
    def of(cls, collections: Iterable[RetrievalData]) -> TrainedQueries:
        """Digest the training queries of collections."""
        queries, pairs = set(), []
        for data in collections:
            for query_id, documents in data.relevant("train").items():
                if (query := data.queries.get(query_id)) is not None:
                    queries.add(text_key(query))
                    pairs += [(query, data.corpus[document]) for document in documents if document in data.corpus]
        key = secrets.token_bytes(16)
        query_digests = None if len(queries) > MOST_QUERIES else frozenset(_digest(key, query) for query in queries)
        pair_digests = None if len(pairs) > _MOST_PAIRS else frozenset(_digest(key, *pair) for pair in pairs)
        number = len(pairs) if pair_digests is None else len(pair_digests)
        return cls(key, len(queries), query_digests, number, pair_digests)

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> TrainedQueries:
        """Out of JSON; a ``TypeError`` or ``ValueError`` where it is not what :meth:`as_dict` gives."""
        names = {field.name for field in fields(cls)}
        if set(found) != names:
            raise ValueError(f"The digests of training queries have the parts {sorted(found)}, not {sorted(names)}.")
        key = bytes.fromhex(found["key"])
        if not 1 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError(f"The key of the digests of training queries has {len(key)} bytes.")
        queries = _unpacked(found["query_digests"], found["queries"])
        pairs = _unpacked(found["pair_digests"], found["pairs"])
        return cls(key, found["queries"], queries, found["pairs"], pairs)

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        queries, pairs = _packed(self.query_digests), _packed(self.pair_digests)
        return {**vars(self), "key": self.key.hex(), "query_digests": queries, "pair_digests": pairs}

    def among(self, queries: Mapping[str, str]) -> set[str]:
        """The ids of queries, given with their texts, that were trained on; none where the digests are left out."""
        known = self.query_digests or frozenset()
        return {query_id for query_id, text in queries.items() if _digest(self.key, text) in known}

    def with_their_documents(
        self, queries: Mapping[str, str], corpus: Mapping[str, str], relevant: Mapping[str, Collection[str]]
    ) -> set[str]:
        """The ids of queries that were trained on with one of the documents that are relevant to them here."""
        known = self.pair_digests or frozenset()
        return {
            query_id
            for query_id, documents in relevant.items()
            if any(_digest(self.key, queries[query_id], corpus[document]) in known for document in documents)
        }


def _digest(key: bytes, *texts: str) -> bytes:
    digest = hashlib.blake2b(key=key, digest_size=_BYTES)
    digest.update("\0".join(map(text_key, texts)).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _packed(digests: frozenset[bytes] | None) -> str | None:
    # Sorted: their order must not tell that of the training data.
    return None if digests is None else base64.b64encode(b"".join(sorted(digests))).decode("ascii")


def _unpacked(text: Any, number: Any) -> frozenset[bytes] | None:
    if type(number) is not int or number < 0:
        raise TypeError(f"The number of digests of training queries is {number!r:.40}.")
    if text is None:
        return None
    content = base64.b64decode(text, validate=True)
    found = frozenset(content[start : start + _BYTES] for start in range(0, len(content), _BYTES))
    if len(content) != number * _BYTES or len(found) != number:
        raise ValueError(f"There are not {number} digests of training queries.")
    return found
