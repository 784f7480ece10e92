"""What a collection must be before anything is trained on it, and queries out of a corpus that has none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from st_asym.data.collection import Qrels, RetrievalData, counted, first_few, noted, stable_fraction, whole_number
from st_asym.data.document import Document, copies_by_query, relevant_of, same_texts, text_key

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
    qrels = _dev_by_its_name(data.qrels)
    if "train" not in qrels:
        raise ValueError(
            f"There is no train split, only {sorted(qrels)}. To train without labels, give the corpus alone."
        )
    for split, judged in qrels.items():
        check_ids(data.queries, data.corpus, judged, f"The {split} split")
        qrels[split] = _whole_grades(judged, split, notes)

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
        wrong = [f"{key} ({text!r:.40})" for key, text in texts.items() if not isinstance(text, str | Document)]
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
        known = {key.strip() for key in (*queries, *corpus)}
        spaced = any(str(key).strip() in known for _, key in missing)
        hint = " There are such with other white space around their ids." if spaced else ""
        named = first_few([f"{what} {key!r}" if spaced else f"{what} {key}" for what, key in missing])
        raise ValueError(f"{source} names {len(missing)} queries or documents that do not exist: {named}.{hint}")


def _dev_by_its_name(qrels: Mapping[str, Qrels]) -> dict[str, Qrels]:
    found = [split for split in qrels if split in DEV_NAMES]
    if len(found) > 1:
        raise ValueError(f"There is more than one dev split: {found}. Keep one.")
    return {DEV_NAMES[0] if split in found else split: judged for split, judged in qrels.items()}


def _whole_grades(judged: Qrels, split: str, notes: list[str]) -> Qrels:
    result: Qrels = {}
    wrong, below = [], []
    for query_id, documents in judged.items():
        result[query_id] = {}
        for document_id, value in documents.items():
            try:
                grade = whole_number(value)
            except ValueError:
                wrong.append(f"{query_id} {document_id} ({value!r:.40})")
                continue
            if grade < 0:
                below.append(f"{query_id} {document_id}")
            result[query_id][document_id] = max(grade, 0)
    if wrong:
        raise ValueError(f"{counted(len(wrong), 'grade')} in {split} not a whole number: {first_few(wrong)}.")
    notes += noted(below, "grade", f"below zero in {split} taken as not relevant")
    return result


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


# A sentence that is worth asking for, and what must be left of its document, in characters.
_SHORTEST, _LONGEST, _LEAST_REST = 30, 300, 60
# A title of so many words that stands in the text word for word gives its document away.
_TELLING_WORDS = 4
_SENTENCE = re.compile(r".+?(?:[.!?]+(?=\s)|[\u3002\uff01\uff1f]|\n|$)", re.DOTALL)


def pseudo_queries(documents: Mapping[str, Document]) -> RetrievalData:
    """Make a training collection of documents alone.

    Where at least half of the documents have a title of their own, titles are the queries and the corpus is the texts
    *without* titles: otherwise each query would stand in its document word for word. A text that begins by repeating
    its title loses that; a title of four or more words that stands elsewhere in its text makes no query, nor does a
    title that several documents share.

    Else one sentence of each document is its query, chosen by a hash of the text, and is cut out of the document; this
    is the inverse cloze task of Lee et al. 2019, "Latent Retrieval for Weakly Supervised Open Domain Question
    Answering" (https://arxiv.org/abs/1906.00300). A sentence that occurs twice in the corpus is never chosen.

    Documents without a query stay in the corpus. So the corpus is for training and for judging on held-out
    pseudo-queries; the documents to search are the whole ones.

    Args:
        documents: Document id to title and text.

    Returns:
        A collection with a ``train`` split, whose ``labels`` say ``"titles"`` or ``"sentences"``. A query has the id of
        its document.

    Raises:
        ValueError: Fewer than two documents give a query.
    """
    titles = Counter(text_key(document.title) for document in documents.values() if document.text.strip())
    own_title = sum(count for title, count in titles.items() if title and count == 1)
    kind: Literal["titles", "sentences"] = "titles" if own_title * 2 >= len(documents) else "sentences"
    halves = _titles(documents, titles) if kind == "titles" else _sentences(documents)

    queries = {document_id: query for document_id, (query, _) in halves.items() if query}
    number = counted(len(queries), "pseudo-query", "pseudo-queries")
    if len(queries) < 2:
        raise ValueError(
            f"A corpus of {counted(len(documents), 'document')} gives {number}: at least two documents need a title of "
            "their own, or two sentences or more."
        )
    corpus = {document_id: rest for document_id, (_, rest) in halves.items()}
    train: Qrels = {document_id: {document_id: 1} for document_id in queries}
    note = (
        f"No labels: {number} from the {kind} of {counted(len(documents), 'document')}; the documents to train on are "
        "left without them."
    )
    return RetrievalData(queries, corpus, {"train": train}, labels=kind, notes=(note,))


def _titles(documents: Mapping[str, Document], titles: Counter[str]) -> dict[str, tuple[str, str]]:
    """Document id to title, empty where it is no query, and text."""
    halves = {}
    for document_id, (title, text) in documents.items():
        rest = _without_heading(title, text)
        known = text_key(title)
        telling = len(title.split()) >= _TELLING_WORDS and known in text_key(rest)
        query = title.strip() if titles[known] == 1 and rest and not telling else ""
        halves[document_id] = (query, rest or title.strip())
    return halves


def _without_heading(title: str, text: str) -> str:
    """The text less a title that it begins with: a long one, or a short one that is not part of a sentence."""
    words = title.split()
    if not words:
        return text.strip()
    end = r"(?!\w)" if len(words) >= _TELLING_WORDS else r"(?=\s*(?:[.:\n]|$))"
    heading = re.match(r"\s*" + r"\s+".join(map(re.escape, words)) + end + r"[\s.:]*", text, re.IGNORECASE)
    return (text[heading.end() :] if heading else text).strip()


def _sentences(documents: Mapping[str, Document]) -> dict[str, tuple[str, str]]:
    """Document id to one of its sentences, empty where none will do, and the title and rest of the text."""
    seen = Counter(text_key(match[0]) for document in documents.values() for match in _SENTENCE.finditer(document.text))
    halves = {}
    for document_id, document in documents.items():
        title, text = document
        spans = [match.span() for match in _SENTENCE.finditer(text) if seen[text_key(match[0])] == 1]
        first = int(stable_fraction(text) * len(spans))
        halves[document_id] = ("", document.joined)
        for start, end in spans[first:] + spans[:first]:
            query, rest = text[start:end].strip(), f"{text[:start].strip()} {text[end:].strip()}".strip()
            fits = _SHORTEST <= len(query) <= _LONGEST and len(rest) >= _LEAST_REST
            if fits and text_key(query) not in text_key(f"{title} {rest}"):
                halves[document_id] = (query, Document(title, rest).joined)
                break
    return halves
