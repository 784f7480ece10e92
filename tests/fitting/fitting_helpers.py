"""Collections whose vectors are chosen, one word per text, for a stock encoder that runs in no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from st_asym import EmbeddingCache, Settings
from st_asym.data import RetrievalData
from st_asym.data.document import copies
from st_asym.fitting.vectors import Vectors, read_vectors

DIMENSION = 12
QUICK = Settings(epochs=3, batch_size=16, learning_rate=1e-2)
# One way to train, where what is asked does not depend on how many are tried.
ONE = replace(QUICK, sides="both", init="identity", contrastive="in-batch")


def encoder_of(vectors: dict[str, Any]) -> SentenceTransformer:
    """An encoder that gives each word its vector, and other words zero."""
    words = ["[UNK]", *vectors]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = WhitespaceSplit()
    weights = np.array([np.zeros(DIMENSION), *vectors.values()], dtype=np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def rotated(
    count: int = 60, *, labels: str = "true", seed: int = 0, noise: float = 0.05
) -> tuple[SentenceTransformer, RetrievalData]:
    """Queries, and documents that are their vectors turned and noisy: heads can learn the turn."""
    random = np.random.default_rng(seed)
    queries = random.standard_normal((count, DIMENSION))
    turn = np.eye(DIMENSION) + np.linalg.qr(random.standard_normal((DIMENSION, DIMENSION)))[0]
    documents = queries @ turn + noise * random.standard_normal((count, DIMENSION))
    answers = random.permutation(count) if labels == "random" else range(count)
    names = [f"q{i}" for i in range(count)], [f"d{i}" for i in range(count)]
    encoder = encoder_of(dict(zip((*names[0], *names[1]), (*queries, *documents), strict=True)))
    qrels = {f"q{i}": {f"d{answer}": 1} for i, answer in enumerate(answers)}
    data = RetrievalData({name: name for name in names[0]}, {name: name for name in names[1]}, {"train": qrels})
    return encoder, data


def vectors_of(encoder: SentenceTransformer, data: RetrievalData, folder: Path, seed: int = 0) -> Vectors:
    """What a fit would train on."""
    copied = copies(data.with_all_split().qrels["all"], data.corpus)
    return read_vectors(encoder, data, EmbeddingCache(folder), copied, seed=seed)


def both_sides(model: SentenceTransformer, data: RetrievalData) -> np.ndarray:
    """The vectors of all queries and documents."""
    sides = model.encode_query(list(data.queries.values())), model.encode_document(list(data.corpus.values()))
    return np.concatenate(sides)
