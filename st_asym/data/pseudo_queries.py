"""Queries out of a corpus that has none: titles against texts, or sentences against the rest of their documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from st_asym.data.collection import Qrels, RetrievalData, counted, stable_fraction
from st_asym.data.document import Document, text_key

# A sentence that is worth asking for, and what must be left of its document, in letters of an alphabet.
_SHORTEST, _LONGEST, _LEAST_REST = 30, 300, 60
# A title of so many words that stands in the text word for word gives its document away.
_TELLING_WORDS = 4
# Scripts without spaces between words, and those of them that write a syllable or a word by one sign, not by letters.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff]")
_SIGN = re.compile(r"[\u3040-\u9fff]")
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
        telling = _words(title) >= _TELLING_WORDS and known in text_key(rest)
        query = title.strip() if titles[known] == 1 and rest and not telling else ""
        halves[document_id] = (query, rest or title.strip())
    return halves


def _words(text: str) -> int:
    """How many there are; where no spaces part them, two signs or four letters are one."""
    unspaced, signs = len(_UNSPACED.findall(text)), len(_SIGN.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + (unspaced + signs) // 4


def _letters(text: str) -> int:
    """How long a text is: a sign stands for two letters."""
    return len(text) + len(_SIGN.findall(text))


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
            fits = _SHORTEST <= _letters(query) <= _LONGEST and _letters(rest) >= _LEAST_REST
            if fits and text_key(query) not in text_key(f"{title} {rest}"):
                halves[document_id] = (query, Document(title, rest).joined)
                break
    return halves
