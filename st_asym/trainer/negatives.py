"""For each training pair, documents that the model takes for relevant and that are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_asym.data import Qrels, RetrievalData, text_key
from st_asym.data.collection import own_documents
from st_asym.retrieval import nearest

logger = logging.getLogger(__name__)

# Documents that queries are compared with at a time.
_PORTION = 65_536


def mine_negatives(
    model: SentenceTransformer,
    data: RetrievalData,
    split: str = "train",
    *,
    num_negatives: int = 1,
    range_min: int = 0,
    relative_margin: float | None = None,
    ignored: Qrels | None = None,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> Dataset:
    """Add to each relevant pair of a split the documents of the corpus that are most similar to its query.

    This is what the library's ``mine_hard_negatives`` does, over a collection and by cosine. Documents that are
    relevant to the query, or have the text of one that is, are never its negatives, nor is a query that is a document
    itself, as in ArguAna; and no text is a negative of a pair twice. Texts are the same by
    :func:`st_asym.data.text_key`. With a :class:`st_asym.CachedSentenceTransformer` the encoder does not run for texts
    that the cache holds. The vectors of the whole corpus are held in memory.

    The result is for losses of in-batch negatives, which take further columns as negatives of every query.
    :class:`st_asym.CorpusContrastiveLoss` compares with the whole corpus, and needs none.

    Args:
        model: Tells which documents are similar, with its own prompts for queries and documents.
        data: The collection.
        split: A key of ``data.qrels``.
        num_negatives: How many for each pair.
        range_min: How many of the most similar to leave out, as they may be relevant without being judged.
        relative_margin: Leave out documents whose similarity is not below that of the query's least similar relevant
            document by at least this share of it, 0.05 in NV-Retriever (Moreira et al. 2024,
            https://arxiv.org/abs/2407.15831). Pairs that are left with too few negatives are dropped, with a warning:
            those that the model finds hardest.
        ignored: Query id to document ids that are no negatives either, as for
            :class:`st_asym.CorpusContrastiveLoss`.
        batch_size: Texts per batch where they are encoded or looked up.
        show_progress_bar: Whether to show encoding and searching.

    Returns:
        A data set with the text columns ``query``, ``document`` and ``negative_1`` to ``negative_n``, the most similar
        first; one row per relevant pair, those of a query together.

    Raises:
        KeyError: No such split.
        ValueError: ``num_negatives`` is below 1, or no pair has so many negatives.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> from st_asym.data import RetrievalData
        >>> model = SentenceTransformer(modules=[BoW(["red", "small", "head"])])
        >>> corpus = {"a": "red head", "b": "small head", "c": "small red"}
        >>> data = RetrievalData({"q": "head"}, corpus, {"train": {"q": {"a": 1}}})
        >>> mine_negatives(model, data)[0]
        {'query': 'head', 'document': 'red head', 'negative_1': 'small head'}
    """
    pairs, judged = data.pairs(split), data.qrels[split]
    if num_negatives < 1 or not len(pairs):
        raise ValueError(
            f"There are {len(pairs)} pairs in {split}, and num_negatives={num_negatives}: both must be above 0."
        )
    first: dict[str, str] = {}  # of the texts that are the same
    for text in data.corpus.values():
        first.setdefault(text_key(text), text)
    texts, places = list(first.values()), {key: place for place, key in enumerate(first)}
    themselves = {key: [key] for key in own_documents(data.corpus, judged)}
    passed = {q: [*(ignored or {}).get(q, ()), *themselves.get(q, ())] for q in judged}
    known = {q: {**own, **dict.fromkeys(passed[q], 1)} for q, own in judged.items()}
    asked, barred = _by_query(pairs, places), _by_query(replace(data, qrels={split: known}).pairs(split), places)
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
    documents = torch.as_tensor(model.encode_document(texts, normalize_embeddings=True, **options))
    queries = torch.as_tensor(model.encode_query(list(asked), normalize_embeddings=True, **options))
    starts = tqdm(range(0, len(texts), _PORTION), desc="Computing similarity", disable=not show_progress_bar)
    many = range_min + num_negatives * (1 if relative_margin is None else 10) + 2 * max(map(len, barred.values()))
    found = nearest(queries, ((start, documents[start : start + _PORTION]) for start in starts), many)
    rows: list[list[str]] = []
    for row, (query, own) in enumerate(asked.items()):
        known_places = torch.tensor([*barred[query]])
        similarities, positions = (part[row] for part in found)
        wanted = ~torch.isin(positions, known_places)
        if relative_margin is not None:
            least = (documents[known_places] @ queries[row]).min()
            wanted &= similarities <= least - least.abs() * relative_margin
        mined = positions[wanted][range_min : range_min + num_negatives].tolist()
        if len(mined) == num_negatives:
            rows += [[query, spelt, *(texts[place] for place in mined)] for spelt in own.values()]
    count = sum(map(len, asked.values()))
    if not rows:
        raise ValueError(
            f"None of the {count:,} pairs of {split} has {num_negatives} negatives among {len(data.corpus):,} "
            "documents: ask for fewer, or lower range_min or relative_margin."
        )
    if len(rows) < count:
        logger.warning(
            "%d of %d pairs of %s are dropped: they have fewer than %d negatives. Lower range_min or relative_margin "
            "to keep more.",
            *(count - len(rows), count, split, num_negatives),
        )
    names = ["query", "document", *(f"negative_{place + 1}" for place in range(num_negatives))]
    return Dataset.from_dict(dict(zip(names, zip(*rows, strict=True), strict=True)))


def _by_query(pairs: Dataset, places: Mapping[str, int]) -> dict[str, dict[int, str]]:
    """Query to the places of its documents among the texts, each with its own spelling."""
    found: dict[str, dict[int, str]] = {}
    for query, document in zip(pairs["query"], pairs["document"], strict=True):
        found.setdefault(query, {})[places[text_key(document)]] = document
    return found
