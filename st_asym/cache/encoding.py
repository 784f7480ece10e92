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

from st_asym.cache.described import is_stock
from st_asym.cache.store import Floats, VectorStore
from st_asym.heads.anatomy import encoder_alone, encoder_modules

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
    longest = model.max_seq_length
    plan = batches(
        [texts[row] for row in wanted],
        max_tokens=int(longest) if longest and longest < 1 << 31 else None,  # a StaticEmbedding says infinity
        batch_tokens=batch_tokens,
        on_cpu=(torch.device(devices[0]) if devices else model.device).type == "cpu",
        workers=len(devices or [""]),
    )
    named = getattr(model.config, "_name_or_path", None) or model.model_card_data.base_model
    parts = [type(module).__name__ for module in encoder_modules(model).values()]
    pending = _Pending(store, str(named or " + ".join(parts)))
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
                bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
                if len(bad):  # no later step could use them, and none would notice
                    row = part[int(bad[0])]
                    raise ValueError(
                        f"The encoder gives values that are not finite for {len(bad)} of {len(part)} texts, the first "
                        f"in row {row}, {texts[row]!r:.80}: check its weights, and its precision."
                    )
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
    in_bf16 = precision == "bf16" and has_bfloat16(torch.device(devices[0] if devices else device.type))
    kind = _Bfloat16Encoder if in_bf16 else SentenceTransformer
    encoder = encoder_alone(model, kind, trust_remote_code=model.trust_remote_code)
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

    The encoder truncates at ``max_tokens``; ``workers`` processes share a block. Tokens are guessed from the length of
    the texts, and those of a batch, padding included, are at most ``batch_tokens``; None is a good number for the
    device.
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


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def accepted_options(model: SentenceTransformer) -> set[str]:
    """The keyword arguments that the modules before the heads take, ``task`` among them if one does."""
    options: set[str] = set()
    for name, module in encoder_modules(model).items():
        options |= set((model.module_kwargs or {}).get(name, ())) | set(getattr(module, "forward_kwargs", ()))
    return options


def listens_to_task(model: SentenceTransformer) -> bool:
    """Whether the encoder may treat a query and a document of the same text and prompt differently, before the heads.

    A first module that is not the library's is asked to turn texts into features with the task at hand, so it may.
    """
    if "task" in accepted_options(model):
        return True
    modules = list(encoder_modules(model).values())
    if not is_stock(type(modules[0])):
        return True
    for module in modules:
        if any(getattr(module, name, None) for name in ("query_length", "document_length", "query_expansion")):
            return True
        templates = [getattr(getattr(module, one, None), "chat_template", None) for one in ("tokenizer", "processor")]
        if any("task" in str(template or "") for template in templates):
            return True
    return False


class _Bfloat16Encoder(SentenceTransformer):
    """A stock model whose matrix products run in bfloat16, in this process or in those of a pool."""

    def forward(self, input: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:  # noqa: A002 - the library's name
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            features = super().forward(input, **kwargs)
        features["sentence_embedding"] = features["sentence_embedding"].float()
        return features


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


def _name_the_row(encode: Any, texts: Sequence[str], rows: Sequence[int], error: Exception) -> None:
    """Raise for the text that the encoder stumbles over, if it is one alone."""
    for row in rows:
        try:
            encode([texts[row]], 1)
        except (TypeError, ValueError) as reason:
            raise ValueError(f"Row {row}, {texts[row]!r:.80}, cannot be encoded: {reason}") from error
