"""What all training runs of one fit share: the encoder's vectors, read once, and heads to train on them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache
from st_asym.cache.filling import Precision
from st_asym.data import Qrels, RetrievalData
from st_asym.fitting.heads import State, heads_state
from st_asym.fitting.settings import Settings
from st_asym.losses.corpus import Corpus, Texts, Vectors
from st_asym.negatives import mine_negatives
from st_asym.systems import Init, System

# The largest corpus whose vectors are held in memory, and is searched in full to judge.
_IN_MEMORY = 100_000


@dataclass(frozen=True)
class Stage:
    """Heads of one shape, to be trained.

    Attributes:
        settings: How they are shaped and trained.
        model: The model, its encoder answered from the cache.
        start: The heads as they start.
    """

    settings: Settings
    model: CachedSentenceTransformer
    start: State


class Workbench:
    """What all training runs of one fit share.

    Args:
        encoder: The encoder.
        system: What is trained.
        init: How its heads start.
        data: Queries and corpus.
        cache: Where the encoder's vectors are.
        precision: How they are made.
        deadline: When training ends, by ``time.monotonic()``.
        seed: Of everything that is drawn.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        system: System,
        init: Init,
        data: RetrievalData,
        cache: EmbeddingCache,
        *,
        precision: Precision = "fp32",
        deadline: float = float("inf"),
        seed: int = 0,
    ) -> None:
        self.encoder, self.system, self.init, self.data, self.seed = encoder, system, init, data, seed
        self.dials_back = init == "identity"
        self._cache, self._precision, self._deadline = cache, precision, deadline
        self._vectors: Vectors | None = None
        self.twins = _twins(data)
        # The model of a choice may still have to be trained: it takes as long as its rehearsal did.
        self.seconds_kept_back = 0.0

    @property
    def out_of_time(self) -> bool:
        """Whether rehearsing must end, so that there is time to train what is chosen."""
        return not self.has_time_for(0.0)

    def has_time_for(self, seconds: float) -> bool:
        """Whether rehearsing may go on for so long."""
        return time.monotonic() + seconds + self.seconds_kept_back <= self._deadline

    @property
    def dimension(self) -> int:
        """The dimension of the encoder's vectors."""
        return self.encoder.get_embedding_dimension() or 0

    @property
    def documents(self) -> Texts | Vectors:
        """The corpus, as :class:`st_asym.CorpusContrastiveLoss` takes it."""
        return self.data.corpus if self._vectors is None else self._vectors

    def fill(self, *, show_progress_bar: bool) -> None:
        """Encode what is missing of the judged queries and the corpus."""
        judged = dict.fromkeys(query_id for split in self.data.qrels.values() for query_id in split)
        queries = [self.data.queries[query_id] for query_id in judged]
        for texts, side in ((queries, "query"), (self.data.corpus.values(), "document")):
            self._cache.fill(
                self.encoder,
                texts,
                prompt=self.encoder.prompts.get(side),
                task=side,
                precision=self._precision,
                show_progress_bar=show_progress_bar,
            )

    def stage(self, settings: Settings) -> Stage:
        """Fresh heads, on the shared encoder."""
        model = self._heads(settings)
        cached = CachedSentenceTransformer(model, self._cache, precision=self._precision)
        if self._vectors is None and len(self.data.corpus) <= _IN_MEMORY:
            texts = list(self.data.corpus.values())
            prompt = cached.prompts.get("document") or None
            vectors = cached.preprocess(texts, prompt=prompt, task="document")["sentence_embedding"]
            self._vectors = list(self.data.corpus), vectors
        return Stage(settings, cached, heads_state(cached))

    def searched(self, stage: Stage, qrels: Qrels) -> Corpus:
        """The documents among which held-out queries are judged: all, or of a large corpus a part that has theirs."""
        documents = self._vectors or self._part_of_corpus(d for graded in qrels.values() for d in graded)
        return Corpus(stage.model, documents, keep=_IN_MEMORY)

    def pairs(self, stage: Stage, data: RetrievalData, ignored: Qrels | None = None) -> Dataset:
        """The training pairs of ``data``, with the hard negatives that the settings ask for.

        The untouched encoder finds them, among the documents that are searched: heads with a random start could not.
        """
        if not stage.settings.hard_negatives:
            return data.pairs("train")
        encoder = CachedSentenceTransformer(self.encoder, self._cache, precision=self._precision)
        searched = data.corpus
        if len(searched) > _IN_MEMORY:
            judged = [d for part in (data.qrels["train"], ignored or {}) for graded in part.values() for d in graded]
            searched = {**self._part_of_corpus(judged), **{d: data.corpus[d] for d in judged}}
        return mine_negatives(
            encoder, replace(data, corpus=searched), num_negatives=stage.settings.hard_negatives, ignored=ignored
        )

    def check(self, settings: Settings) -> None:
        """Refuse what cannot be trained, before anything is encoded.

        Raises:
            TypeError, ValueError: As for :func:`st_asym.asymmetric_model`, or a loss that the system cannot have.
        """
        if settings.contrastive == "corpus" and self.system.contrastive and self.system.predictive is not None:
            raise ValueError(
                f"The system {self.system.name!r} trains on pairs: its settings need contrastive='in-batch'."
            )
        self._heads(settings)

    def _heads(self, settings: Settings) -> SentenceTransformer:
        options = settings.projection(self.system)
        options["init"] = self.init
        torch.manual_seed(self.seed)
        return self.system.build(self.encoder, **options)

    def _part_of_corpus(self, wanted: Iterable[str]) -> dict[str, str]:
        """Of a large corpus the wanted documents, and as many others, at random, as fit."""
        chosen = dict.fromkeys(wanted)
        others = [document_id for document_id in self.data.corpus if document_id not in chosen]
        room = max(0, _IN_MEMORY - len(chosen))
        drawn = np.random.default_rng(self.seed).choice(len(others), min(room, len(others)), replace=False)
        chosen.update(dict.fromkeys(others[i] for i in sorted(drawn)))
        return {document_id: self.data.corpus[document_id] for document_id in list(chosen)[:_IN_MEMORY]}


def _twins(data: RetrievalData) -> Qrels:
    """For each query the documents that have the text of a relevant one, and are not judged relevant themselves."""
    by_text: dict[str, list[str]] = {}
    for document_id, text in data.corpus.items():
        by_text.setdefault(text, []).append(document_id)
    return {
        query_id: found
        for judged in data.qrels.values()
        for query_id, documents in judged.items()
        if (found := dict.fromkeys(_copies(documents, data.corpus, by_text), 1))
    }


def _copies(documents: dict[str, int], corpus: dict[str, str], by_text: dict[str, list[str]]) -> Iterator[str]:
    for document_id, grade in documents.items():
        if grade > 0:
            yield from (other for other in by_text[corpus[document_id]] if documents.get(other, 0) <= 0)
