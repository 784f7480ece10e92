"""Two collections as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from st_asym.data.collection import Qrels, RetrievalData, spelling_note
from st_asym.data.document import ByText, Documents


def merged(data: RetrievalData, other: RetrievalData, prefix: str) -> RetrievalData:
    """Both collections as one, with the splits of both.

    Equal queries are one, and so are documents with the same text (:func:`st_asym.data.text_key`); an id that means
    something else in ``other`` gets the prefix there. Where that makes two judgments one, the highest grade counts.

    Args:
        data: Its ids and spellings stay.
        other: Its splits replace those of the same name.
        prefix: ``dev`` makes ``dev:q1`` of ``q1``.
    """
    known = {text: key for key, text in data.queries.items()}
    queries, query_ids = dict(data.queries), {}
    for key, text in other.queries.items():
        found = key if queries.get(key) == text else known.get(text)
        query_ids[key] = _added(queries, key, text, prefix) if found is None else found
    corpus, document_ids, respelt = _with_texts(data.corpus, other.corpus, prefix)
    qrels = {**data.qrels, **{split: _renamed(part, query_ids, document_ids) for split, part in other.qrels.items()}}
    notes = [*data.notes, *(note for note in other.notes if note not in data.notes)]
    if respelt:
        notes.append(spelling_note(prefix, respelt))
    numbered = data.numbered and other.numbered
    return replace(data, queries=queries, corpus=corpus, qrels=qrels, notes=tuple(notes), numbered=numbered)


def with_documents(data: RetrievalData, documents: Documents) -> RetrievalData:
    """The collection with more documents to search among.

    A document of the collection whose text one of them has, by :func:`st_asym.data.text_key`, is that document: it
    takes its spelling and, unless that is a number given on reading, its id. Where the collection has ids of its own,
    those and its spellings stay. Documents that have ids keep them, also where several have one text.

    Args:
        data: A collection.
        documents: What else there is.
    """
    added = documents.joined
    if not data.numbered or documents.numbered:
        corpus, new_ids, respelt = _with_texts(data.corpus, added, "corpus")
        if data.numbered:
            # The corpus is what will be searched: its spelling, of several the first.
            for key, new in reversed(new_ids.items()):
                corpus[new] = added[key]
        document_ids: dict[str, str] = {}
    else:
        corpus, document_ids, respelt = _with_texts(added, data.corpus, "train")
    qrels = {split: _renamed(judged, {}, document_ids) for split, judged in data.qrels.items()}
    notes = [*data.notes, *documents.notes]
    if respelt:
        notes.append(spelling_note("corpus", respelt))
    numbered = data.numbered and documents.numbered
    return replace(data, corpus=corpus, qrels=qrels, notes=tuple(notes), numbered=numbered)


def _with_texts(
    texts: Mapping[str, str], others: Mapping[str, str], prefix: str
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The texts of both, the new id of each of the others, and which of the first some of those spell otherwise."""
    merged, known = dict(texts), ByText(texts)
    new_ids, respelt = {}, []
    for key, text in others.items():
        found = key if texts.get(key) == text else known.find(text)
        if found is not None and texts[found] != text:
            respelt.append(found)
        new_ids[key] = _added(merged, key, text, prefix) if found is None else found
    return merged, new_ids, respelt


def _added(texts: dict[str, str], key: str, text: str, prefix: str) -> str:
    """The id under which a text was added: its own, or with a prefix where that means something else."""
    while key in texts:
        key = f"{prefix}:{key}"
    texts[key] = text
    return key


def _renamed(judged: Qrels, query_ids: Mapping[str, str], document_ids: Mapping[str, str]) -> Qrels:
    renamed: Qrels = {}
    for query_id, documents in judged.items():
        grades = renamed.setdefault(query_ids.get(query_id, query_id), {})
        for document_id, grade in documents.items():
            new = document_ids.get(document_id, document_id)
            grades[new] = max(grade, grades.get(new, grade))
    return renamed
