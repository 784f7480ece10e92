"""Running the encoder over many texts: one model of the modules before the heads, batches by token budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import infer_modality
from torch import Tensor, nn
from tqdm.auto import tqdm

from st_asym.cache.fingerprint import check_text, encoder_fingerprint, note_what_ran, record_keys
from st_asym.cache.foreign import is_library_class
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
_FILL = ("batch_tokens", "devices", "show_progress_bar")


@dataclass(frozen=True)
class Request:
    """Texts, and all that their vectors depend on."""

    model: SentenceTransformer
    texts: Sequence[str]
    prompt: str | None
    task: str | None
    precision: Precision
    options: dict[str, Any]

    def keys(self, fingerprint: str | None = None, rows: Sequence[int] | None = None) -> list[bytes]:
        """The keys of all texts, or of some; the fingerprint is asked for where it is not given."""
        if not isinstance(self.model, SentenceTransformer):
            raise TypeError(f"The model must be a SentenceTransformer, not a {type(self.model).__name__}.")
        check_text("task", self.task)
        if self.options:
            known = sorted({"processing_kwargs", *accepted_options(self.model)} - {"task"})
            if unknown := sorted(set(self.options).difference(known)):
                raise TypeError(
                    f"There is no option {unknown[0]!r}: beside prompt, task and precision this encoder takes "
                    f"{', '.join(known)}, and EmbeddingCache.fill takes {', '.join(_FILL)}."
                )
        _check_modalities(self.model, self.texts)
        return record_keys(
            fingerprint or encoder_fingerprint(self.model),
            self.texts if rows is None else [self.texts[row] for row in rows],
            prompt=self.prompt,
            task=self.task if self.task is not None and listens_to_task(self.model) else None,
            precision=self.precision,
            **self.options,
        )


def _check_modalities(model: SentenceTransformer, texts: Sequence[str]) -> None:
    """Refuse a string that the encoder reads as the picture, sound or film that it names: what is there may change."""
    known = model.modalities
    for row, text in enumerate(texts if len(known) > 1 else ()):
        if isinstance(text, str) and (kind := infer_modality(text, supported_modalities=known)) != "text":
            raise ValueError(
                f"Row {row}, {text!r:.80}, is read by this encoder as the {kind} that it names, and the cache holds "
                "vectors of texts alone: encode it with the model itself."
            )


def check_how(batch_tokens: Any, devices: Any) -> None:
    """Refuse a way to encode that there is not."""
    if batch_tokens is not None and (not isinstance(batch_tokens, int | np.integer) or batch_tokens < 1):
        raise ValueError(f"batch_tokens must be a whole number of at least 1, or None, got {batch_tokens!r}.")
    if devices is None:
        return
    if not isinstance(devices, list | tuple):
        raise TypeError(f"devices must be a list, such as ['cuda:0', 'cuda:1'], or None, got {devices!r}.")
    for device in devices:
        try:
            torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"devices has {device!r}, and torch knows no such device.") from error


def encode_into(
    store: VectorStore,
    asked: Request,
    missing: Mapping[bytes, int],
    *,
    batch_tokens: int | None = None,
    devices: Sequence[str] | None = None,
    show_progress_bar: bool = False,
) -> int:
    """Encode ``asked.texts[row]`` for each ``key: row`` that is missing, commit as it goes, and say how many were.

    They get other keys where running the encoder shows that these are not its keys.
    """
    model, texts = asked.model, asked.texts
    keys, rows = list(missing), list(missing.values())
    longest = model.max_seq_length
    plan = batches(
        [texts[row] for row in rows],
        max_tokens=int(longest) if longest and longest < 1 << 31 else None,  # a StaticEmbedding says infinity
        batch_tokens=batch_tokens,
        on_cpu=(torch.device(devices[0]) if devices else model.device).type == "cpu",
        workers=len(devices or [""]),
    )
    named = getattr(model.config, "_name_or_path", None) or model.model_card_data.base_model
    name = str(named or " + ".join(type(one).__name__ for one in encoder_modules(model).values()))
    options = {**asked.options, "prompt": asked.prompt or None, "task": asked.task}
    there: set[int] = set()
    waiting: dict[bytes, Floats] = {}
    committed, encoded = time.monotonic(), 0

    def commit() -> None:
        ready = dict(waiting)
        waiting.clear()  # first, as what cannot be stored is not tried again
        if ready:
            store.put(list(ready), np.stack(list(ready.values())), name)

    with (
        encoding(model, precision=asked.precision, devices=devices, **options) as encode,
        tqdm(total=len(keys), unit="text", desc="Encoding", disable=not show_progress_bar) as progress,
    ):
        try:
            for planned, batch_size in plan:
                progress.update(len(planned))
                if not (block := [i for i in planned if i not in there]):
                    continue
                vectors = _vectors(encode, texts, [rows[i] for i in block], batch_size)
                encoded += len(block)
                if note_what_ran(model):
                    keys = asked.keys(rows=rows)
                    there = set(range(len(keys))).difference(store.get(keys).missing)
                waiting.update(zip((keys[i] for i in block), vectors, strict=True))
                if time.monotonic() - committed >= _COMMIT_SECONDS or len(waiting) >= _COMMIT_VECTORS:
                    commit()
                    committed = time.monotonic()
        finally:
            commit()
    return encoded


def _vectors(encode: Encode, texts: Sequence[str], rows: Sequence[int], batch_size: int) -> Floats:
    """Vectors of some texts; a ValueError names the first that the encoder stumbles over."""
    try:
        vectors = encode([texts[row] for row in rows], batch_size)
    except (TypeError, ValueError) as error:
        for row in rows:
            try:
                encode([texts[row]], 1)
            except (TypeError, ValueError) as reason:
                raise ValueError(f"Row {row}, {texts[row]!r:.80}, cannot be encoded: {reason}") from error
        raise
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):  # no later step could use them, and none would notice
        row = rows[int(bad[0])]
        raise ValueError(
            f"The encoder gives values that are not finite for {len(bad)} of {len(rows)} texts, the first "
            f"in row {row}, {texts[row]!r:.80}: check its weights, and its precision."
        )
    return vectors


@contextmanager
def encoding(
    model: SentenceTransformer, *, precision: Precision, devices: Sequence[str] | None, **options: Any
) -> Iterator[Encode]:
    """Give a function that encodes texts by the modules before the heads: ``(texts, batch_size) -> (n, d)`` float32.

    With ``devices`` it runs in the library's multi-process pool, which ends with the context.
    """
    device = model.device
    in_bf16 = precision == "bf16" and has_bfloat16(torch.device(devices[0] if devices else device.type))
    kind = _Bfloat16Encoder if in_bf16 else SentenceTransformer
    encoder = encoder_alone(model, kind, trust_remote_code=model.trust_remote_code)
    pool = encoder.start_multi_process_pool(list(devices)) if devices else None

    def encode(texts: Sequence[str], batch_size: int) -> Floats:
        chunk_size = batch_size if pool is not None else None
        with torch.autocast(device.type, enabled=False):  # the precision asked for, wherever it is called from
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
    """Cut texts, longest first, into blocks of rows that ``workers`` processes share, and the batch size for each.

    Tokens are guessed from the length of the texts, of which the encoder takes ``max_tokens``; those of a batch,
    padding included, are at most ``batch_tokens``; None is a good number for the device.
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
        return _processor_has_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@lru_cache(maxsize=1)
def _processor_has_bfloat16() -> bool:
    """Whether such a product is faster than in float32: libraries also say yes where they emulate it, which is not."""
    seconds = {}
    with torch.autocast("cpu", enabled=False):  # which would make them the same
        for dtype in (torch.float32, torch.bfloat16):
            matrix, took = torch.ones(256, 256, dtype=dtype, device="cpu"), []
            for _ in range(8):
                started = time.perf_counter()
                matrix @ matrix
                took.append(time.perf_counter() - started)
            seconds[dtype] = min(took)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def accepted_options(model: SentenceTransformer) -> set[str]:
    """The keyword arguments that the modules before the heads take, ``task`` among them if one does."""
    return {option for name, module in encoder_modules(model).items() for option in passed_on(model, name, module)}


def passed_on(model: SentenceTransformer, name: str, module: nn.Module) -> set[str]:
    """The keyword arguments that the stock ``forward`` of a model hands to one of its modules."""
    return {*(model.module_kwargs or {}).get(name, ()), *getattr(module, "forward_kwargs", ())}


def listens_to_task(model: SentenceTransformer) -> bool:
    """Whether the encoder may treat a query and a document of the same text and prompt differently, before the heads.

    A first module that is not the library's is asked to turn texts into features with the task at hand, so it may.
    """
    if "task" in accepted_options(model):
        return True
    modules = list(encoder_modules(model).values())
    if not is_library_class(type(modules[0])):
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
