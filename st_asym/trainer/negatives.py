"""For each training pair, documents that the model takes for relevant and that are not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from tqdm.auto import trange

from st_asym.data import Qrels, RetrievalData, text_key
from st_asym.data.collection import own_documents
from st_asym.retrieval import nearest

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Documents that are compared with all queries at once.
_AT_ONCE = 65_536
# With a margin, so many documents are looked at for each negative that is asked for.
_CANDIDATES = 10


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

    It is what the library's ``mine_hard_negatives`` does, over a collection: documents that are relevant to the query,
    or have the text of one that is, are never its negatives, nor is a query that is a document itself, as in ArguAna;
    and no text is a negative of a pair twice. Texts are the same by :func:`st_asym.data.text_key`. With a
    :class:`st_asym.CachedSentenceTransformer` the encoder does not run for texts that the cache holds. The vectors of
    the whole corpus are held in memory.

    The result is for losses of in-batch negatives, which take further columns as negatives of every query.
    :class:`st_asym.CorpusContrastiveLoss` compares with the whole corpus, and needs none.

    Args:
        model: Tells which documents are similar, with its own prompts for queries and documents: by inner product where
            that is its similarity, and by cosine otherwise.
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
        show_progress_bar: Whether to show progress bars.

    Returns:
        A data set with the text columns ``query``, ``document`` and ``negative_1`` to ``negative_n``, the most similar
        first; one row per relevant pair, those of a query together.

    Raises:
        KeyError: No such split.
        ValueError: ``num_negatives`` is below 1, ``range_min`` below 0, or no pair has so many negatives.

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
    for name, value, least in (("num_negatives", num_negatives, 1), ("range_min", range_min, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    judged, pairs = data.qrels.get(split, {}), data.pairs(split)
    # Each text once: a query as it is, a document by its key, in its first spelling, or in that of its pair.
    spelt = {(q, text_key(text)): text for q, text in zip(pairs["query"], pairs["document"], strict=True)}
    texts: dict[str, str] = {}
    for text in data.corpus.values():
        texts.setdefault(text_key(text), text)
    rows = {query: row for row, query in enumerate(dict.fromkeys(query for query, _ in spelt))}
    places = {key: place for place, key in enumerate(texts)}
    relevant = [(rows[query], places[key]) for query, key in spelt]
    spellings: dict[str, list[int]] = {}
    for query, row in rows.items():
        spellings.setdefault(text_key(query), []).append(row)
    others = [(one, one) for one in own_documents(data.corpus, judged)]
    others += [(one, document) for one in judged for document in (ignored or {}).get(one, ())]
    passed_over = [(row, places[key]) for query, key in spelt for row in spellings[text_key(query)]] + [
        (rows[data.queries[one]], places[text_key(data.corpus[document])])
        for one, document in others
        if data.queries[one] in rows and document in data.corpus
    ]
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
    count = range_min + num_negatives
    found = _most_similar(
        model, list(rows), list(texts.values()), relevant, passed_over, count, relative_margin, options
    )
    mined = [
        (query, document, *found[rows[query]][range_min:])
        for (query, _), document in sorted(spelt.items(), key=lambda pair: rows[pair[0][0]])
        if len(found[rows[query]]) == count
    ]
    if not mined:
        raise ValueError(
            f"None of the {len(spelt):,} pairs of {split} has {num_negatives} negatives among {len(data.corpus):,} "
            "documents: ask for fewer, or lower range_min or relative_margin."
        )
    if len(mined) < len(spelt):
        logger.warning(
            "%d of %d pairs of %s are dropped: they have fewer than %d negatives. Lower range_min or relative_margin "
            "to keep more.",
            *(len(spelt) - len(mined), len(spelt), split, num_negatives),
        )
    names = ["query", "document", *(f"negative_{i + 1}" for i in range(num_negatives))]
    return type(pairs).from_list([dict(zip(names, row, strict=True)) for row in mined])


def _most_similar(
    model: SentenceTransformer,
    queries: list[str],
    documents: list[str],
    relevant: list[tuple[int, int]],
    passed_over: list[tuple[int, int]],
    count: int,
    margin: float | None,
    options: dict[str, Any],
) -> list[list[str]]:
    """The ``count`` documents that are most similar to each query, or fewer, without those of it that are passed over.

    With a margin, only such as are less similar than the relevant ones by that share.
    """
    if not queries:
        return []
    vectors = [
        encode(texts, convert_to_tensor=True, **options).float()
        for encode, texts in ((model.encode_query, queries), (model.encode_document, documents))
    ]
    ours, theirs = vectors if model.similarity_fn_name == "dot" else map(normalize, vectors)
    bar = trange(0, len(theirs), _AT_ONCE, desc="Computing similarity", disable=not options["show_progress_bar"])
    stretches = ((start, theirs[start : start + _AT_ONCE]) for start in bar)
    most = count if margin is None else _CANDIDATES * count
    similarities, positions = nearest(ours, stretches, most, excluded=torch.tensor(passed_over).T)
    usable = similarities > -torch.inf
    if margin is not None:
        rows, columns = torch.tensor(relevant, device=ours.device).T
        own = (ours[rows] * theirs[columns]).sum(dim=1)
        least = torch.full_like(ours[:, 0], torch.inf).scatter_reduce(0, rows, own, "amin")
        usable &= similarities <= (least - least.abs() * margin)[:, None]
    pairs = zip(positions, usable, strict=True)
    return [[documents[place] for place in found[use].tolist()[:count]] for found, use in pairs]
