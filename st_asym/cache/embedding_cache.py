"""Text to vector, on disk, for any number of encoders: each runs once per distinct text."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_asym.cache.encoding import Precision, Request, check_how, encode_into
from st_asym.cache.fingerprint import encoder_fingerprint, group_of, listed
from st_asym.cache.lmdb_file import CacheError
from st_asym.cache.parquet import read_parquet, write_parquet
from st_asym.cache.store import PORTION, TURNS, Floats, StoredType, VectorStore

logger = logging.getLogger(__name__)


class EmbeddingCache:
    """Vectors of texts on disk, for any number of encoders side by side.

    A vector is found under a digest of the encoder (see :func:`st_asym.encoder_fingerprint`), the prompt, the text, the
    precision it was asked for, and whatever else was passed to the encoder with it: what changes a vector changes its
    place. Vectors are those of the encoder alone, before any heads.

    Any number of processes may read and write; writers take turns. What was committed survives a kill at any moment. A
    record that the disk has damaged is encoded anew, with a warning. A directory without write permission can be read.

    Args:
        directory: Where the vectors lie, made if missing. Not on a network file system.
        dtype: ``"float32"`` or ``"float16"`` (half the size, values rounded to three digits); None for what the
            directory has, ``"float32"`` in a new one.
        max_bytes: Size that the file must not exceed, None for no limit.

    Raises:
        CacheError: The directory holds something else, another format, or a damaged file, or cannot be made.
        ValueError: ``dtype`` differs from what the directory has, or ``max_bytes`` is too small to hold anything.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> cache = EmbeddingCache("vectors")  # doctest: +SKIP
        >>> encoder = SentenceTransformer("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> cache.fill(encoder, ["a text", "another", "a text"])  # doctest: +SKIP
        2
        >>> cache.get(encoder, ["another", "a text"]).shape  # doctest: +SKIP
        (2, 384)
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, dtype: StoredType | None = None, max_bytes: int | None = None
    ) -> None:
        self.store = VectorStore(directory, dtype=dtype, max_bytes=max_bytes)

    def fill(
        self,
        model: SentenceTransformer,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        task: str | None = None,
        precision: Precision = "fp32",
        batch_tokens: int | None = None,
        devices: Sequence[str] | None = None,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> int:
        """Encode the distinct texts that are missing, longest first, committed about once a second.

        Killed at any moment, the next call goes on from the last commit.

        Args:
            model: The encoder, or a model with heads behind it, which are left out.
            texts: Strings, repeated or not.
            prompt: Put before each text. None is no prompt, also for a model with a default prompt; what
                ``encode_query`` uses is ``model.prompts["query"]``.
            task: ``"query"`` or ``"document"``, which matters only to the few encoders that treat them differently
                before the heads.
            precision: ``"bf16"`` runs the encoder in bfloat16 where the processor has it, and otherwise as
                ``"fp32"``. The two are kept apart.
            batch_tokens: Tokens per batch, padding included; None for a good value for the device.
            devices: Several devices, such as ``["cuda:0", "cuda:1"]`` or ``["cpu", "cpu"]``, for the library's
                multi-process pool; None for the device of the model.
            show_progress_bar: None shows it where the logger of this module is at ``INFO``.
            **options: ``processing_kwargs``, and what else the modules of the encoder take; part of what is looked up.

        Returns:
            How many texts were encoded.

        Raises:
            TypeError: ``texts`` is one text or a table, a text is not a string, there is no such option, or one is of
                another kind. The message names the row, or the options that there are.
            ValueError: The encoder cannot encode a text, or keeps what cannot be seen, see
                :func:`st_asym.encoder_fingerprint`. The message names the row, or where.
            CacheError: The directory is read-only, damaged, or full, or the disk is.
        """
        asked = Request(model, listed(texts), prompt, task, precision, options)
        keys = asked.keys()
        check_how(batch_tokens, devices)
        if show_progress_bar is None:
            show_progress_bar = logger.isEnabledFor(logging.INFO)
        how = {"batch_tokens": batch_tokens, "devices": devices, "show_progress_bar": show_progress_bar}
        encoded = 0
        for _ in range(TURNS):
            missing: dict[bytes, int] = {}
            for start in range(0, len(keys), PORTION):
                for row in self._look_up(keys[start : start + PORTION])[1]:
                    missing.setdefault(keys[start + row], start + row)
            if not missing:
                return encoded
            replaced = self.store.replaced
            encoded += self._encode(asked, missing, **how)
            if self.store.replaced == replaced:
                if asked.keys(rows=[0]) != keys[:1]:
                    self._check_kept(asked.keys())
                return encoded
            keys = asked.keys()  # what was committed before is lost
        raise self.store.cleared_error()

    def get(
        self,
        model: SentenceTransformer,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        task: str | None = None,
        precision: Precision = "fp32",
        **options: Any,
    ) -> Floats:
        """Look vectors up, without encoding. The arguments are those that the texts were filled with, see :meth:`fill`.

        Returns:
            A float32 array of shape (n, d), in the order of the texts; (0, 0) for no texts.

        Raises:
            KeyError: A text is missing, or its record damaged. The message names the first such row.
            TypeError, ValueError: As :meth:`fill`.
            CacheError: The file is damaged.
        """
        texts = listed(texts)
        vectors, missing = self._look_up(Request(model, texts, prompt, task, precision, options).keys())
        if missing:
            raise KeyError(
                f"{len(missing)} of {len(texts)} texts are not in the cache, the first in row {missing[0]}: "
                f"{texts[missing[0]]!r:.80}. EmbeddingCache.fill(model, texts) with the same prompt, task and "
                "precision puts them there."
            )
        return vectors

    def embed(
        self,
        model: SentenceTransformer,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        task: str | None = None,
        precision: Precision = "fp32",
        fingerprint: str | None = None,
        **options: Any,
    ) -> Floats:
        """Look vectors up, encoding what is missing: :meth:`fill`, then :meth:`get`, at the cost of one look-up.

        ``fingerprint`` is for callers who have just asked for :func:`st_asym.encoder_fingerprint`; the other arguments
        are those of :meth:`fill`.

        Raises:
            RuntimeError: A text is missing in a worker process of a data loader, where the encoder must not run.
            TypeError, ValueError, CacheError: As :meth:`fill`.
        """
        asked = Request(model, listed(texts), prompt, task, precision, options)
        keys = asked.keys(fingerprint)
        vectors, rows = self._look_up(keys)
        if rows:
            self._encode(asked, {keys[row]: row for row in reversed(rows)})
            again = asked.keys()
            vectors, rows = self._look_up(again)
            if again != keys:
                self._check_kept(again)
        if rows:
            raise CacheError(
                f"{self.store.directory} lost the vector of {asked.texts[rows[0]]!r:.80} right after it was written: "
                "another process removes vectors there, or the disk does not keep what is written. Use a directory of "
                "its own, on another disk if that does not help."
            )
        return vectors

    def remove(self, model: SentenceTransformer) -> int:
        """Delete all vectors of one encoder, whatever their prompts and precision.

        Returns:
            How many were deleted. The file keeps its size; the space is used again.
        """
        return self.store.remove(group_of(encoder_fingerprint(model)))

    def stats(self) -> dict[str, Any]:
        """What the cache holds.

        Returns:
            ``{"directory", "dtype", "bytes", "max_bytes", "vectors", "encoders": [{"fingerprint", "name",
            "dimension", "vectors"}]}``, with the first 24 digits of each fingerprint.
        """
        encoders = [{"fingerprint": group.hex(), **facts} for group, facts in self.store.groups().items()]
        return {
            "directory": str(self.store.directory),
            "dtype": str(self.store.dtype),
            "bytes": self.store.size(),
            "max_bytes": self.store.max_bytes,
            "vectors": sum(encoder["vectors"] for encoder in encoders),
            "encoders": encoders,
        }

    def export_parquet(self, path: str | os.PathLike[str], model: SentenceTransformer) -> int:
        """Write all vectors of one encoder to a Parquet file with the columns ``key`` and ``vector``.

        Returns:
            How many were written; damaged ones are left out.

        Raises:
            ValueError: The cache has no vectors of this encoder.
        """
        group = group_of(encoder_fingerprint(model))
        facts = self.store.groups().get(group)
        if facts is None:
            raise ValueError(f"{self.store.directory} has no vectors of this encoder: EmbeddingCache.fill makes them.")
        return write_parquet(self.store, group, facts, path)

    def import_parquet(self, path: str | os.PathLike[str]) -> int:
        """Read vectors from a Parquet file, or a folder of them, with the columns ``key`` and ``vector``.

        The keys are those of :func:`record_keys`. Vectors with the same keys are replaced. In a folder, names that
        begin with ``_`` or ``.`` and those that do not end in ``.parquet`` are passed over.

        Returns:
            How many were read.

        Raises:
            FileNotFoundError: There is no such file or folder, or no Parquet file in it.
            ValueError: A file is cut off or damaged, a column is missing, a key has another size, or a vector is not
                finite or of another dimension than the others. The message names the file; nothing was imported.
            CacheError: As :meth:`fill`. Importing again goes on from any point.
        """
        return read_parquet(self.store, path)

    def __len__(self) -> int:
        """The number of vectors of all encoders."""
        return len(self.store)

    def __repr__(self) -> str:
        """How to open it again."""
        return f"EmbeddingCache({str(self.store.directory)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the directory itself."""
        return functools.partial(type(self), max_bytes=self.store.max_bytes), (self.store.directory,)

    def _encode(self, asked: Request, missing: dict[bytes, int], **how: Any) -> int:
        if self.store.read_only:
            raise CacheError(f"{len(missing)} texts are missing in {self.store.directory}, which cannot be written to.")
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                f"{len(missing)} texts are not in the cache, and the encoder does not run in the workers of a data "
                "loader: call EmbeddingCache.fill(model, texts) before training, or use dataloader_num_workers=0."
            )
        return encode_into(self.store, asked, missing, **how)

    def _check_kept(self, keys: Sequence[bytes]) -> None:
        """Refuse an encoder whose keys, asked for after it ran, are not those that its vectors were written under."""
        if any(self._look_up(keys[start : start + PORTION])[1] for start in range(0, len(keys), PORTION)):
            raise ValueError(
                "The encoder's weights or settings changed while it ran, as those of an nn.Embedding with max_norm do, "
                "so its vectors cannot be kept: encode with the model itself, or take out what changes them."
            )

    def _look_up(self, keys: Sequence[bytes]) -> tuple[Floats, list[int]]:
        """Vectors (n, d), or (0, 0) where there are none; and the rows that are missing, which are undefined there."""
        found = self.store.get(keys)
        if found.damaged:
            logger.warning(
                "%d of %d vectors in %s do not fit their checksums: they are left out, and encoded anew when needed.",
                len(found.damaged),
                len(keys),
                self.store.directory,
            )
        return found.vectors, found.missing


def open_cache(cache: EmbeddingCache | str | os.PathLike[str] | None) -> EmbeddingCache:
    """A cache as it is, that of a directory, or the one in the cache folder of ``huggingface_hub``."""
    from huggingface_hub import cached_assets_path  # a part of it that nothing else loads

    if isinstance(cache, EmbeddingCache):
        return cache
    try:
        place = cached_assets_path("st_asym", subfolder="vectors") if cache is None else cache
    except OSError as error:
        raise CacheError(
            f"The cache folder of huggingface_hub, where vectors are kept, cannot be written ({error}): name another "
            "with cache=, on the command line --cache, or set HF_HOME."
        ) from error
    return EmbeddingCache(place)
