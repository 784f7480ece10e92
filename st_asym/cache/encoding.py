"""Running the encoder over many texts: one model of the modules before the heads, batches by token budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

from st_asym.cache.store import Floats, VectorStore
from st_asym.heads.anatomy import encoder_modules, with_module_kwargs

Precision = Literal["fp32", "bf16"]
Encode = Callable[[Sequence[str], int], Floats]

# Tokens per batch: a processor is fastest on few texts at a time, a GPU needs many.
_CPU_TOKENS, _GPU_TOKENS = 4096, 65536
_MOST_TEXTS = 1024
# A low guess for English, about right for scripts of three bytes per character.
_BYTES_PER_TOKEN = 3
# Batches that a process of a pool gets at a time.
_BATCHES_PER_WORKER = 8
# What a process that is killed may lose.
_COMMIT_SECONDS = 1.0
_COMMIT_VECTORS = 16384


def encode_into(
    store: VectorStore,
    model: SentenceTransformer,
    texts: Sequence[str],
    rows: Mapping[bytes, int],
    options: Mapping[str, Any],
    *,
    precision: Precision,
    batch_tokens: int | None = None,
    devices: Sequence[str] | None = None,
    show_progress_bar: bool = False,
    keys_changed: Callable[[Sequence[int]], Sequence[bytes] | None] = lambda _: None,
) -> int:
    """Encode ``texts[row]`` by the modules before the heads for each ``key: row``, and commit as it goes.

    ``options`` go to the encoder; ``keys_changed`` gives other keys for the rows where running the encoder has shown
    that these are not its keys; the rest is that of :meth:`st_asym.EmbeddingCache.fill`.

    Returns:
        How many texts were encoded.

    Raises:
        ValueError: The encoder cannot encode a text. The message names its row.
    """
    keys, wanted = list(rows), list(rows.values())
    plan = batches(
        [texts[row] for row in wanted],
        max_tokens=_max_tokens(model),
        batch_tokens=batch_tokens,
        on_cpu=(torch.device(devices[0]) if devices else model.device).type == "cpu",
        workers=len(devices or [""]),
    )
    pending = _Pending(store, _name(model))
    there: set[int] = set()
    encoded = 0
    with (
        encoding(model, precision=precision, devices=devices, **options) as encode,
        tqdm(total=len(keys), unit="text", desc="Encoding", disable=not show_progress_bar) as progress,
    ):
        try:
            for planned, batch_size in plan:
                progress.update(len(planned))
                if not (block := [i for i in planned if i not in there]):
                    continue
                part = [wanted[i] for i in block]
                try:
                    vectors = encode([texts[row] for row in part], batch_size)
                except (TypeError, ValueError) as error:
                    _name_the_row(encode, texts, part, error)
                    raise
                _check_finite(vectors, texts, part)
                encoded += len(block)
                if (others := keys_changed(wanted)) is not None:
                    keys = list(others)
                    there = set(range(len(keys))).difference(store.get(keys).missing)
                pending.add([keys[i] for i in block], vectors)
        finally:
            pending.commit()
    return encoded


@contextmanager
def encoding(
    model: SentenceTransformer, *, precision: Precision, devices: Sequence[str] | None, **options: Any
) -> Iterator[Encode]:
    """Give a function that encodes texts by the modules before the heads: ``(texts, batch_size) -> (n, d)`` float32.

    With ``devices`` it runs in the library's multi-process pool, which ends with the context; the model is back on its
    own device then.
    """
    device = model.device
    encoder = _encoder(model, precision, devices[0] if devices else device.type)
    pool = encoder.start_multi_process_pool(list(devices)) if devices else None

    def encode(texts: Sequence[str], batch_size: int) -> Floats:
        chunk_size = batch_size if pool is not None else None
        vectors = encoder.encode(
            list(texts), batch_size=batch_size, show_progress_bar=False, pool=pool, chunk_size=chunk_size, **options
        )
        return np.asarray(vectors, dtype=np.float32)

    try:
        yield encode
    finally:
        if pool is not None:
            encoder.stop_multi_process_pool(pool)
            encoder.to(device)


def batches(
    texts: Sequence[str], *, max_tokens: int | None, batch_tokens: int | None, on_cpu: bool, workers: int = 1
) -> Iterator[tuple[list[int], int]]:
    """Cut texts, longest first, into blocks of rows and the batch size for each.

    Args:
        texts: Strings, in any order.
        max_tokens: What the encoder truncates at, None for no limit.
        batch_tokens: Tokens per batch, padding included, as guessed from the length of the texts; None for a good
            value on this kind of device.
        on_cpu: Whether the encoder runs on a processor.
        workers: Processes that share a block.
    """
    budget = batch_tokens or (_CPU_TOKENS if on_cpu else _GPU_TOKENS)
    sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        longest = int(sizes[order[start]]) // _BYTES_PER_TOKEN + 2
        batch_size = min(_MOST_TEXTS, max(1, budget // int(min(longest, max_tokens or longest))))
        end = start + batch_size * (1 if workers == 1 else workers * _BATCHES_PER_WORKER)
        yield order[start:end].tolist(), batch_size
        start = end


class _Bfloat16Encoder(SentenceTransformer):
    """A stock model whose matrix products run in bfloat16, in this process or in those of a pool."""

    def forward(self, input: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:  # noqa: A002 - the library's name
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            features = super().forward(input, **kwargs)
        features["sentence_embedding"] = features["sentence_embedding"].float()
        return features


def _encoder(model: SentenceTransformer, precision: Precision, device: str) -> SentenceTransformer:
    modules = encoder_modules(model)
    kind = _Bfloat16Encoder if precision == "bf16" and has_bfloat16(torch.device(device)) else SentenceTransformer
    encoder = kind(
        modules=modules,  # type: ignore[arg-type]  # names are kept where they come as a dict
        device=model.device,  # type: ignore[arg-type]  # annotated as str, handed to Module.to
        trust_remote_code=model.trust_remote_code,
    )
    return with_module_kwargs(encoder, model)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class _Pending:
    """Vectors that wait for the next commit."""

    def __init__(self, store: VectorStore, name: str) -> None:
        self._store, self._name = store, name
        self._keys: list[bytes] = []
        self._vectors: list[Floats] = []
        self._since = time.monotonic()

    def add(self, keys: list[bytes], vectors: Floats) -> None:
        self._keys += keys
        self._vectors.append(vectors)
        if time.monotonic() - self._since >= _COMMIT_SECONDS or len(self._keys) >= _COMMIT_VECTORS:
            self.commit()

    def commit(self) -> None:
        keys, vectors = self._keys, self._vectors
        self._keys, self._vectors = [], []
        if keys:
            self._store.put(keys, np.concatenate(vectors), self._name)
        self._since = time.monotonic()


def _name(model: SentenceTransformer) -> str:
    """What to call an encoder in :meth:`EmbeddingCache.stats`."""
    known = getattr(model.config, "_name_or_path", None) or model.model_card_data.base_model
    return str(known or " + ".join(type(module).__name__ for module in encoder_modules(model).values()))


def _max_tokens(model: SentenceTransformer) -> int | None:
    """What the encoder truncates at; a ``StaticEmbedding`` says infinity."""
    length = model.max_seq_length
    return int(length) if length and length < 1 << 31 else None


def _check_finite(vectors: Floats, texts: Sequence[str], rows: Sequence[int]) -> None:
    """Refuse what no later step could use, and would not notice."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        row = rows[int(bad[0])]
        raise ValueError(
            f"The encoder gives values that are not finite for {len(bad)} of {len(rows)} texts, the first in row "
            f"{row}, {texts[row]!r:.80}: check its weights, and its precision."
        )


def _name_the_row(encode: Any, texts: Sequence[str], rows: Sequence[int], error: Exception) -> None:
    """Raise for the text that the encoder stumbles over, if it is one alone."""
    for row in rows:
        try:
            encode([texts[row]], 1)
        except (TypeError, ValueError) as reason:
            raise ValueError(f"Row {row}, {texts[row]!r:.80}, cannot be encoded: {reason}") from error
