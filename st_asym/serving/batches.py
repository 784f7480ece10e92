"""Texts of requests that arrive together, encoded in one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_asym.heads.anatomy import Side, side_prompt

Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class _Piece:
    """A few texts of one request: what they become, and how many tokens they have."""

    texts: list[str]
    answer: asyncio.Future[tuple[Vectors, int]]


class Batches:
    """Encodes texts of many requests, both sides in turn, in one thread.

    Neither a tokenizer nor PyTorch's threads like to be shared. What arrives while a batch is encoded makes up the next
    one; nothing waits for a batch to become full. A request of more texts than fit sends one piece after the other, so
    that a small one never waits for all of a large one.

    Args:
        model: What encodes.
        max_batch: How many texts are encoded in one call.
    """

    def __init__(self, model: SentenceTransformer, max_batch: int) -> None:
        self._model = model
        self._max_batch = max_batch
        self._waiting: dict[Side, deque[_Piece]] = {"query": deque(), "document": deque()}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._work: asyncio.Task[None] | None = None

    async def encode(self, side: Side, texts: Sequence[str]) -> tuple[Vectors, int]:
        """What ``encode_query`` or ``encode_document`` gives.

        Args:
            side: Which of the two.
            texts: At least one.

        Returns:
            Vectors, float32 of shape ``(n, d)``, and the number of tokens that the encoder read: with prompt and
            special tokens, without what was cut off.

        Raises:
            ValueError: A vector is not finite.
        """
        order = np.argsort([-len(text) for text in texts], kind="stable")
        found = [
            await self._encoded(side, [texts[i] for i in order[start : start + self._max_batch]])
            for start in range(0, len(texts), self._max_batch)
        ]
        vectors = np.concatenate([vectors for vectors, _ in found])
        return vectors[np.argsort(order)], sum(tokens for _, tokens in found)

    def _encoded(self, side: Side, texts: list[str]) -> asyncio.Future[tuple[Vectors, int]]:
        piece = _Piece(texts, asyncio.get_running_loop().create_future())
        self._waiting[side].append(piece)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._encode_all())
        return piece.answer

    async def _encode_all(self) -> None:
        """Encode until nobody waits, one batch of each side in turn."""
        while any(self._waiting.values()):
            for side, waiting in self._waiting.items():
                batch: list[_Piece] = []
                room = self._max_batch
                while waiting and len(waiting[0].texts) <= room:
                    piece = waiting.popleft()
                    if not piece.answer.done():  # its client may have gone
                        batch.append(piece)
                        room -= len(piece.texts)
                if batch:
                    await self._answer(side, batch)

    async def _answer(self, side: Side, batch: list[_Piece]) -> None:
        texts = [piece.texts for piece in batch]
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._vectors_or_errors, side, texts)
        for piece, answer in zip(batch, found, strict=True):
            if piece.answer.done():
                continue
            if isinstance(answer, Exception):
                piece.answer.set_exception(answer)
            else:
                piece.answer.set_result(answer)

    def _vectors_or_errors(self, side: Side, requests: list[list[str]]) -> list[tuple[Vectors, int] | Exception]:
        """An answer for each request: what one of them breaks, the others get all the same."""
        try:
            return list(self._vectors(side, requests))
        except BaseException as error:  # a panic of the tokenizers is no Exception
            if len(requests) > 1:
                return [answer for request in requests for answer in self._vectors_or_errors(side, [request])]
            return [error if isinstance(error, Exception) else RuntimeError(str(error))]

    def _vectors(self, side: Side, requests: list[list[str]]) -> list[tuple[Vectors, int]]:
        encode = self._model.encode_query if side == "query" else self._model.encode_document
        texts = [text for request in requests for text in request]
        tensor = encode(texts, batch_size=self._max_batch, convert_to_tensor=True, show_progress_bar=False)
        vectors: Vectors = tensor.float().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ValueError(f"A {side} vector of the model is not finite.")
        ends = np.cumsum([len(request) for request in requests])
        parts = np.split(vectors, ends[:-1])
        return [(part, self._tokens(side, request)) for part, request in zip(parts, requests, strict=True)]

    def _tokens(self, side: Side, texts: list[str]) -> int:
        features = self._model.preprocess(texts, prompt=side_prompt(self._model, side) or None, task=side)
        counted = features.get("attention_mask", features.get("input_ids"))
        if not isinstance(counted, Tensor):
            return 0
        return int(counted.sum()) if "attention_mask" in features else counted.numel()
