"""For each training pair, documents that the model takes for relevant and that are not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import hard_negatives as library
from sentence_transformers.util import mine_hard_negatives

from st_asym.data import Qrels, RetrievalData, text_key
from st_asym.data.collection import own_documents

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Similarities that are held at once: 256 MiB.
_SIMILARITIES = 2**26
_QUIET: ContextVar[bool] = ContextVar("_QUIET", default=False)


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

    This is the library's ``mine_hard_negatives`` over a collection. Documents that are relevant to the query, or have
    the text of one that is, are never its negatives, nor is a query that is a document itself, as in ArguAna; and no
    text is a negative of a pair twice. Texts are the same by :func:`st_asym.data.text_key`. With a
    :class:`st_asym.CachedSentenceTransformer` the encoder does not run for texts that the cache holds. The vectors of
    the whole corpus are held in memory.

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
        show_progress_bar: Whether to show the library's progress bars.

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
    as_spelt = data.pairs(split)
    data = _spelt_alike(data)
    pairs = data.pairs(split)
    # To the library they are positives too, so that it passes over them; their rows are dropped below.
    judged = data.qrels[split]
    known = {q: {**own, **dict.fromkeys((ignored or {}).get(q, ()), 1)} for q, own in judged.items()}
    for document_id in own_documents(data.corpus, judged):
        known[document_id][document_id] = 1
    passed_over = replace(data, qrels={split: known}).pairs(split)
    with contextlib.nullcontext() if show_progress_bar else _without_a_bar():
        mined = mine_hard_negatives(
            passed_over,
            model if show_progress_bar else _Quiet(model),  # type: ignore[arg-type]
            anchor_column_name="query",
            positive_column_name="document",
            corpus=list(data.corpus.values()),
            num_negatives=num_negatives,
            range_min=range_min,
            relative_margin=relative_margin,
            output_format="n-tuple",
            batch_size=batch_size,
            faiss_batch_size=max(1, _SIMILARITIES // len(data.corpus)),
            verbose=False,
        )
    asked = set(zip(pairs["query"], pairs["document"], strict=True))
    rows = zip(mined["query"], mined["document"], strict=True)
    mined = mined.select([row for row, pair in enumerate(rows) if pair in asked])
    if not len(mined):
        raise ValueError(
            f"None of the {len(asked):,} pairs of {split} has {num_negatives} negatives among {len(data.corpus):,} "
            "documents: ask for fewer, or lower range_min or relative_margin."
        )
    if len(mined) < len(asked):
        logger.warning(
            "%d of %d pairs of %s are dropped: they have fewer than %d negatives. Lower range_min or relative_margin "
            "to keep more.",
            *(len(asked) - len(mined), len(asked), split, num_negatives),
        )
    return _with_own_documents(mined, as_spelt)


def _spelt_alike(data: RetrievalData) -> RetrievalData:
    """The collection with one spelling of each text of a document: the library compares them as they are."""
    keys = {document_id: text_key(text) for document_id, text in data.corpus.items()}
    first: dict[str, str] = {}
    for document_id, key in keys.items():
        first.setdefault(key, data.corpus[document_id])
    return replace(data, corpus={document_id: first[key] for document_id, key in keys.items()})


def _with_own_documents(mined: Dataset, pairs: Dataset) -> Dataset:
    """What was mined, each relevant document in the spelling that it has in the pairs."""
    spelt = {(q, text_key(d)): d for q, d in zip(pairs["query"], pairs["document"], strict=True)}
    columns = {name: mined[name][:] for name in mined.column_names}
    rows = zip(columns["query"], columns["document"], strict=True)
    columns["document"] = [spelt[query, text_key(document)] for query, document in rows]
    return type(mined).from_dict(columns)


class _Quiet:
    """A model that encodes without a progress bar, whatever the library asks for."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if name not in ("encode_query", "encode_document"):
            return found
        return lambda *arguments, **options: found(*arguments, **{**options, "show_progress_bar": False})


@contextlib.contextmanager
def _without_a_bar() -> Iterator[None]:
    """Without the library's bar over similarities, for which it has no argument; other threads keep theirs."""
    original = vars(library)["trange"]

    def trange(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, **{**options, **({"disable": True} if _QUIET.get() else {})})

    token = _QUIET.set(True)
    vars(library)["trange"] = trange
    try:
        yield
    finally:
        vars(library)["trange"] = original
        _QUIET.reset(token)
