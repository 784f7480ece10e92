"""Queries, documents and which answers which."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from st_asym.data.document import ReadDocuments, relevant_of, text_key

if TYPE_CHECKING:
    from datasets import Dataset

Qrels = dict[str, dict[str, int]]

# Where the data come without splits, up to which fraction a query is in which.
_SPLITS = {"train": 0.7, "dev": 0.8, "test": 1.0}


@dataclass(frozen=True)
class RetrievalData:
    """A retrieval collection. Methods that take a split, a key of ``qrels``, raise a ``KeyError`` for any other name.

    Attributes:
        queries: Query id to text.
        corpus: Document id to text (title, one space, text).
        qrels: For each split, query id to document id to relevance: above zero is relevant.
        labels: Where the qrels come from: ``"judged"``, or pseudo-queries that are the documents' own ``"titles"`` or
            ``"sentences"``.
        notes: What was left out or changed on reading, a sentence each.
        numbered: Whether the ids are numbers given on reading, so that those of a corpus may replace them.
    """

    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: dict[str, Qrels]
    labels: Literal["judged", "titles", "sentences"] = "judged"
    notes: tuple[str, ...] = ()
    numbered: bool = field(default=False, compare=False)

    def __repr__(self) -> str:
        """Its numbers, and not its texts.

        Example:
            >>> RetrievalData({"q": "error E17"}, {"d": "Replace the filter."}, {"train": {"q": {"d": 1}}})
            RetrievalData(1 query, 1 document; train: 1)
        """
        sizes = f"{counted(len(self.queries), 'query', 'queries')}, {counted(len(self.corpus), 'document')}"
        splits = [f"{split}: {len(judged):,}" for split, judged in self.qrels.items()]
        return f"RetrievalData({'; '.join(filter(None, [sizes, ', '.join(splits)]))})"

    def pairs(self, split: str) -> Dataset:
        """The relevant pairs of a split, as the contrastive losses take them: texts in columns query and document."""
        from datasets import Dataset  # only training needs it

        rows = [
            (self.queries[query_id], self.corpus[document_id])
            for query_id, documents in self._split(split).items()
            for document_id, relevance in documents.items()
            if relevance > 0
        ]
        return Dataset.from_dict({"query": [query for query, _ in rows], "document": [text for _, text in rows]})

    def labelled_queries(self, split: str) -> Dataset:
        """The queries of a split that have a relevant document, as :class:`st_asym.CorpusContrastiveLoss` takes them.

        Returns:
            A data set with the text column ``query`` and the integer column ``label``, the position of the query in
            ``qrels[split]``, which the loss gets as ``relevant``.
        """
        from datasets import Dataset  # only training needs it

        answered = self.relevant(split)
        rows = [(self.queries[key], label) for label, key in enumerate(self._split(split)) if key in answered]
        return Dataset.from_dict({"query": [text for text, _ in rows], "label": [label for _, label in rows]})

    def relevant(self, split: str) -> dict[str, set[str]]:
        """Query id to the ids of its relevant documents, as ``InformationRetrievalEvaluator`` takes them.

        Queries that have no relevant document are left out.
        """
        sets = {query_id: relevant_of(documents) for query_id, documents in self._split(split).items()}
        return {query_id: documents for query_id, documents in sets.items() if documents}

    def with_dev_split(self, share: float = 0.2) -> RetrievalData:
        """The same data with a ``dev`` split, cut from the training queries by a stable hash where there is none.

        Args:
            share: Share of the training queries to hold out, more where a hash has cut a test split from them before.
                They are no training queries then.
        """
        if "dev" in self.qrels:
            return self
        self._split("train")  # or an error says which there are
        return replace(self, qrels={**self.qrels, **parts_by_hash(self, {"dev": share, "train": 1.0})})

    def with_all_split(self) -> RetrievalData:
        """The same data with a split ``all`` of every query, where there is none of that name.

        Of a pair that two splits judge, the highest grade counts.
        """
        if "all" in self.qrels:
            return self
        together: Qrels = {}
        for judged in self.qrels.values():
            for query_id, documents in judged.items():
                together.setdefault(query_id, {})
                for document_id, grade in documents.items():
                    add_judgment(together, query_id, document_id, grade)
        return replace(self, qrels={**self.qrels, "all": together})

    def _split(self, split: str) -> Qrels:
        if split not in self.qrels:
            raise KeyError(f"There is no split {split!r}: this collection has {sorted(self.qrels)}.")
        return self.qrels[split]


def own_documents(corpus: Collection[str], judged: Qrels) -> list[str]:
    """The ids of queries that are documents themselves, as in ArguAna: BEIR does not count those as results.

    Empty where one of them is relevant to itself: then queries and documents are numbered independently.
    """
    same = [query_id for query_id in judged if query_id in corpus]
    return [] if any(judged[query_id].get(query_id, 0) > 0 for query_id in same) else same


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def parts_by_hash(data: RetrievalData, ends: Mapping[str, float]) -> dict[str, Qrels]:
    """The training queries by part: the first whose end is above the hash of their text. Spellings stay together."""
    judged = data.qrels.get("train", {})
    keys = {query_id: text_key(data.queries[query_id]) for query_id in judged}
    spelt: dict[str, str] = {}  # the first spelling in alphabetical order
    for query_id, key in keys.items():
        spelt[key] = min(data.queries[query_id], spelt.get(key, data.queries[query_id]))
    parts: dict[str, Qrels] = {name: {} for name in ends}
    for query_id, documents in judged.items():
        fraction = stable_fraction(spelt[keys[query_id]])
        parts[next(name for name, end in ends.items() if fraction < end)][query_id] = documents
    return parts


def into_splits(data: RetrievalData) -> RetrievalData:
    """The collection of pairs, its queries in train, dev and test by a hash of their text."""
    return replace(data, qrels=parts_by_hash(data, _SPLITS))


def with_test_queries_apart(data: RetrievalData) -> RetrievalData:
    """The data with a ``test`` split of those training queries that :func:`into_splits` puts there, or its own one."""
    if "test" in data.qrels or "train" not in data.qrels:
        return data
    test = into_splits(data).qrels["test"]
    train = {query_id: judged for query_id, judged in data.qrels["train"].items() if query_id not in test}
    if not train or not test:
        raise ValueError(
            f"Of {counted(len(data.queries), 'query', 'queries')}, {len(test)} fall among those for the test by the "
            "hash of their text: give more pairs, or queries of their own to evaluate on."
        )
    return replace(data, qrels={**data.qrels, "train": train, "test": test})


def add_judgment(qrels: Qrels, query_id: str, document_id: str, grade: int) -> bool:
    """Add a judgment, keeping the higher grade; True if the pair had another one."""
    judged = qrels.setdefault(query_id, {})
    before = judged.setdefault(document_id, grade)
    judged[document_id] = max(grade, before)
    return before != grade


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """``3 queries``, ``1 query``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def first_few(names: Sequence[object], most: int = 5) -> str:
    """The first names of a list, and that there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def noted(
    names: Sequence[object], singular: str, rest: str, plural: str | None = None, *, source: str = ""
) -> list[str]:
    """A sentence that counts things of a source and names the first ones; none where there are none."""
    told = f"{counted(len(names), singular, plural)} {rest} ({first_few(names)})."
    return [f"{source}: {told}" if source else told] if names else []


def respelt_notes(places: Sequence[str], source: str) -> list[str]:
    """A note for texts that became documents in another spelling."""
    rest = "the same as another but for white space, case or Unicode form, and taken as that one"
    return noted(places, "document is", rest, "documents are", source=source)


def whole_number(value: object) -> int:
    """A grade out of an integer, or a float or text that stands for one; anything else is a ``ValueError``."""
    if type(value) is int:  # the same, and by far the most frequent
        return value
    if isinstance(value, str | numbers.Real | Decimal) and float(value).is_integer():
        return int(float(value))
    raise ValueError(f"{value!r} is not a whole number")


def merged(data: RetrievalData, other: RetrievalData, prefix: str) -> RetrievalData:
    """Both collections as one; the ids and spellings of the first stay, the splits of the second replace its own.

    Equal queries are one, and so are documents with the same text (:func:`st_asym.data.text_key`); an id that means
    something else in ``other`` gets the prefix: ``dev`` makes ``dev:q1`` of ``q1``. Where that makes two judgments one,
    the highest grade counts.
    """
    queries, query_ids, _ = _with_texts(data.queries, other.queries, prefix, key_of=str)
    corpus, document_ids, respelt = _with_texts(data.corpus, other.corpus, prefix)
    qrels = {**data.qrels, **{split: _renamed(part, query_ids, document_ids) for split, part in other.qrels.items()}}
    notes = [*data.notes, *(note for note in other.notes if note not in data.notes), *respelt_notes(respelt, prefix)]
    numbered = data.numbered and other.numbered
    return replace(data, queries=queries, corpus=corpus, qrels=qrels, notes=tuple(notes), numbered=numbered)


def with_documents(data: RetrievalData, documents: ReadDocuments) -> RetrievalData:
    """The collection with more documents to search among.

    A document of the collection whose text one of them has, by :func:`st_asym.data.text_key`, is that document: it
    takes its spelling and, unless that is a number given on reading, its id. Where the collection has ids of its own,
    those and its spellings stay. Documents that have ids keep them, also where several have one text.
    """
    added, notes = documents.joined, [*data.notes, *documents.notes]
    if data.numbered and (titled := _with_titles(data.corpus, documents)):
        data = replace(data, corpus={**data.corpus, **titled})
        notes += noted([*titled], "document", "of pairs taken with the title that corpus has")
    document_ids: dict[str, str] = {}
    if data.numbered and not documents.numbered:
        corpus, document_ids, respelt = _with_texts(added, data.corpus, "train")
    else:
        corpus, new_ids, respelt = _with_texts(data.corpus, added, "corpus")
        if data.numbered:
            # The corpus is what will be searched: its spelling, of several the first.
            for key, new in reversed(new_ids.items()):
                corpus[new] = added[key]
    # A query with the id of a document would be that document, see own_documents: a number must not be such an id.
    query_ids = {key: f"query:{key}" for key in data.queries if data.numbered and key in corpus}
    queries = {query_ids.get(key, key): text for key, text in data.queries.items()}
    qrels = {split: _renamed(judged, query_ids, document_ids) for split, judged in data.qrels.items()}
    notes += respelt_notes(respelt, "corpus")
    numbered = data.numbered and documents.numbered
    return replace(data, queries=queries, corpus=corpus, qrels=qrels, notes=tuple(notes), numbered=numbered)


def _with_titles(texts: Mapping[str, str], documents: ReadDocuments) -> dict[str, str]:
    """Texts that are the text of one of the documents, and of one alone, with its title; by id."""
    joined: dict[str, set[str]] = {}
    for document in documents.by_id.values():
        if document.title.strip():
            joined.setdefault(text_key(document.text), set()).add(document.joined)
    if not joined:
        return {}
    for document in documents.by_id.values():
        joined.pop(text_key(document.joined), None)  # as it stands, it is one of them
    found = {document_id: joined.get(text_key(text), ()) for document_id, text in texts.items()}
    return {document_id: next(iter(one)) for document_id, one in found.items() if len(one) == 1}


def _with_texts(
    texts: Mapping[str, str], others: Mapping[str, str], prefix: str, key_of: Callable[[str], str] = text_key
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The texts of both, the new id of each of the others, and the ids whose text the others spell differently.

    Texts are the same where ``key_of`` gives the same.
    """
    spelt: dict[str, str] = {}
    by_key: dict[str, str] = {}
    for key, text in texts.items():
        spelt.setdefault(text, key)
        by_key.setdefault(key_of(text), key)
    both, new_ids, respelt = dict(texts), {}, []
    for key, text in others.items():
        found = key if texts.get(key) == text else spelt.get(text)
        if found is None and (found := by_key.get(key_of(text))) is not None:
            respelt.append(found)  # the first in another spelling
        if found is None:
            found = key
            while found in both:
                found = f"{prefix}:{found}"
            both[found] = text
        new_ids[key] = found
    return both, new_ids, respelt


def _renamed(judged: Qrels, query_ids: Mapping[str, str], document_ids: Mapping[str, str]) -> Qrels:
    renamed: Qrels = {query_ids.get(query_id, query_id): {} for query_id in judged}
    for query_id, documents in judged.items():
        for document_id, grade in documents.items():
            add_judgment(renamed, query_ids.get(query_id, query_id), document_ids.get(document_id, document_id), grade)
    return renamed
