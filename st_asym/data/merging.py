"""Two collections as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from st_asym.data.collection import Qrels, RetrievalData


def merged(data: RetrievalData, other: RetrievalData, prefix: str) -> RetrievalData:
    """Both collections as one, with the splits of both.

    Equal texts are one; an id that means something else in ``other`` gets the prefix there. Where that makes two
    judgments one, the highest grade counts.

    Args:
        data: Its ids stay.
        other: Its splits replace those of the same name.
        prefix: ``dev`` makes ``dev:q1`` of ``q1``.
    """
    queries, query_ids = _merged_texts(data.queries, other.queries, prefix)
    corpus, document_ids = _merged_texts(data.corpus, other.corpus, prefix)
    qrels = dict(data.qrels)
    for split, judged in other.qrels.items():
        renamed: Qrels = {}
        for query_id, documents in judged.items():
            grades = renamed.setdefault(query_ids.get(query_id, query_id), {})
            for document_id, grade in documents.items():
                new = document_ids.get(document_id, document_id)
                grades[new] = max(grade, grades.get(new, grade))
        qrels[split] = renamed
    notes = (*data.notes, *(note for note in other.notes if note not in data.notes))
    return replace(data, queries=queries, corpus=corpus, qrels=qrels, notes=notes)


def _merged_texts(
    texts: Mapping[str, str], others: Mapping[str, str], prefix: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of both, and the new id of each of the others."""
    merged = dict(texts)
    by_text = {text: key for key, text in texts.items()}
    new_ids = {}
    for key, text in others.items():
        new = key if merged.get(key) == text else by_text.get(text)
        if new is None:
            new = key
            while new in merged:
                new = f"{prefix}:{new}"
            merged[new] = text
        new_ids[key] = new
    return merged, new_ids
