"""What a collection must be before anything is trained on it: each remedy is counted, the rest is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, noted, whole_number
from st_asym.data.document import copies_by_query, relevant_of, same_texts, text_key

# Names of the dev split, the one it gets first.
DEV_NAMES = ("dev", "validation", "valid", "val")


def checked(data: RetrievalData) -> RetrievalData:
    """The collection without what cannot be trained on or judged, and with at least one training query.

    Left out, each with a note that counts and names the first ones: empty texts; grades below zero, which become zero;
    queries with no relevant document, or with no other; and queries whose text is in several splits. Those stay in
    ``test`` rather than ``dev``, and in ``dev`` rather than ``train``, so that nothing is judged on what it was trained
    on. What has no remedy is a ``ValueError``.
    """
    notes = list(data.notes)
    check_texts(data.queries, data.corpus)
    if len(data.corpus) < 2:
        raise ValueError(f"The corpus holds {counted(len(data.corpus), 'document')}: there is nothing to rank.")
    dev = [split for split in data.qrels if split in DEV_NAMES]
    if len(dev) > 1:
        raise ValueError(f"There is more than one dev split: {dev}. Keep one.")
    qrels = {DEV_NAMES[0] if split in dev else split: judged for split, judged in data.qrels.items()}
    if "train" not in qrels:
        raise ValueError(
            f"There is no train split, only {sorted(qrels)}. To train without labels, give the corpus alone."
        )
    for split, judged in qrels.items():
        check_ids(data.queries, data.corpus, judged, f"The {split} split")
        qrels[split] = _none_below_zero(whole_grades(judged, split), split, notes)

    queries = _without_empty(data.queries, "query", "queries", notes)
    corpus = _without_empty(data.corpus, "document", "documents", notes)
    relevant = {document_id for judged in qrels.values() for own in judged.values() for document_id in relevant_of(own)}
    same = same_texts(relevant, corpus)
    copied = {split: copies_by_query(judged, same) for split, judged in qrels.items()}
    ids = list(dict.fromkeys(copy for part in copied.values() for own in part.values() for copy in own))
    same_text = "the text of a relevant one under another id: neither relevant nor not to its queries"
    notes += noted(ids, "document has", same_text, "documents have")
    later: dict[str, str] = {}  # normalised query text to the split that has it
    for split in sorted(qrels, key=lambda name: ({"dev": 1, "train": 2}.get(name, 0), name)):
        judged = {
            query_id: {document_id: grade for document_id, grade in own.items() if document_id in corpus}
            for query_id, own in qrels[split].items()
            if query_id in queries
        }
        judged = _useful(judged, split, len(corpus), copied[split], notes)
        qrels[split] = _apart(judged, split, queries, later, notes)
        if not qrels[split] and split in ("train", "dev"):
            raise ValueError(f"No {split} query can be used. {' '.join(notes) or 'It is empty.'}")
    return replace(data, queries=queries, corpus=corpus, qrels=qrels, notes=tuple(notes))


def check_texts(queries: Mapping[Any, Any], corpus: Mapping[Any, Any]) -> None:
    """Refuse ids and queries that are not strings, and documents that are None, numbers and the like."""
    for name, texts in (("queries", queries), ("corpus", corpus)):
        wrong = [f"{key} ({text!r:.40})" for key, text in texts.items() if not isinstance(text, str)]
        wrong += [f"id {key!r}" for key in texts if not isinstance(key, str)]
        if wrong:
            raise ValueError(
                f"{name}: {counted(len(wrong), 'text or id', 'texts or ids')} not a string: {first_few(wrong)}."
            )


def check_ids(queries: Mapping[str, str], corpus: Mapping[str, str], judged: Qrels, source: str) -> None:
    """Refuse qrels that name queries or documents that do not exist."""
    missing = [("query", query_id) for query_id in judged if query_id not in queries]
    missing += [("document", d) for documents in judged.values() for d in documents if d not in corpus]
    if missing:
        known = {"query": {key.strip() for key in queries}, "document": {key.strip() for key in corpus}}
        no_text = next((key for _, key in missing if not isinstance(key, str)), None)
        spaced = no_text is None and any(key.strip() in known[what] for what, key in missing)
        hint = " There are such with other white space around their ids." if spaced else ""
        if no_text is not None:
            hint = f" Ids are strings, and {no_text!r} is none: make it str({no_text!r})."
        named = first_few([f"{what} {key!r}" if spaced else f"{what} {key}" for what, key in missing])
        raise ValueError(f"{source} names {len(missing)} queries or documents that do not exist: {named}.{hint}")


def whole_grades(judged: Qrels, split: str) -> Qrels:
    """The same judgments, with integers for grades that stand for some; a ValueError names those that do not."""
    result: Qrels = {}
    wrong = []
    for query_id, documents in judged.items():
        result[query_id] = {}
        for document_id, value in documents.items():
            try:
                result[query_id][document_id] = whole_number(value)
            except ValueError:
                wrong.append(f"{query_id} {document_id} ({value!r:.40})")
    if wrong:
        raise ValueError(f"{counted(len(wrong), 'grade')} in {split} not a whole number: {first_few(wrong)}.")
    return result


def _none_below_zero(judged: Qrels, split: str, notes: list[str]) -> Qrels:
    below = [f"{query} {document}" for query, own in judged.items() for document, grade in own.items() if grade < 0]
    notes += noted(below, "grade", f"below zero in {split} taken as not relevant")
    return {query: {document: max(grade, 0) for document, grade in own.items()} for query, own in judged.items()}


def _without_empty(texts: Mapping[str, str], singular: str, plural: str, notes: list[str]) -> dict[str, str]:
    empty = [key for key, text in texts.items() if not text.strip()]
    notes += noted(empty, f"empty {singular}", "left out", f"empty {plural}")
    return {key: text for key, text in texts.items() if text.strip()}


def _useful(judged: Qrels, split: str, documents: int, copied: Qrels, notes: list[str]) -> Qrels:
    """Without queries that have nothing to find, or nothing to tell it from."""
    relevant = {query_id: len(relevant_of(grades)) for query_id, grades in judged.items()}
    others = {query_id: documents - count - len(copied.get(query_id, ())) for query_id, count in relevant.items()}
    for reason, counts in (
        ("without a relevant document", relevant),
        ("for which every document is relevant", others),
    ):
        left_out = [query_id for query_id, count in counts.items() if count == 0]
        notes += noted(left_out, "query", f"of {split} {reason} left out", "queries")
    return {query_id: grades for query_id, grades in judged.items() if relevant[query_id] and others[query_id]}


def _apart(judged: Qrels, split: str, queries: Mapping[str, str], later: dict[str, str], notes: list[str]) -> Qrels:
    """Without queries whose text another split has: ``later`` maps texts to it, and receives those of this split."""
    texts = {query_id: text_key(queries[query_id]) for query_id in judged}
    repeated = [query_id for query_id, text in texts.items() if text in later]
    splits = " or ".join(sorted({later[texts[query_id]] for query_id in repeated}))
    notes += noted(repeated, "query", f"of {split} left out, in {splits} too", "queries")
    kept = {query_id: grades for query_id, grades in judged.items() if texts[query_id] not in later}
    later.update({texts[query_id]: split for query_id in kept})
    return kept
