"""Under what a vector is kept: a digest of encoder, prompt and text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from st_asym.cache.described import described
from st_asym.cache.store import GROUP_BYTES, KEY_BYTES


def record_keys(
    encoder: str,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    task: str | None = None,
    precision: str = "fp32",
    **options: Any,
) -> list[bytes]:
    """The keys of texts in a cache: the same on every machine, for vectors that are computed elsewhere.

    Args:
        encoder: What :func:`st_asym.encoder_fingerprint` gives.
        texts: Strings.
        prompt: As the text was encoded with; ``""`` and None are the same.
        task: Only for encoders that treat queries and documents differently before the heads; otherwise None.
        precision: As asked for.
        **options: What else was passed to the encoder; None is the same as leaving an option out.

    Returns:
        32 bytes per text, of which the first twelve are the encoder's.

    Raises:
        TypeError: ``texts`` is one text or a table, or a text is not a string. The message names its row.
        ValueError: An unknown precision, or an option that cannot be told from others.

    Example:
        >>> keys = record_keys("0123456789abcdef" * 4, ["a text", "another"])
        >>> [len(key) for key in keys]
        [32, 32]
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}.")
    rest = {name: value for name, value in options.items() if value is not None}
    setting = json.dumps([encoder, prompt or "", task, precision, rest], sort_keys=True, default=described).encode()
    base = hashlib.blake2b(setting + b"\0", digest_size=KEY_BYTES - GROUP_BYTES)
    group = group_of(encoder)
    keys = []
    for row, text in enumerate(listed(texts)):
        if not isinstance(text, str):
            raise TypeError(
                f"Row {row} is {text!r:.80}, a {type(text).__name__}: the cache holds vectors of strings. Convert it, "
                "or leave the row out."
            )
        digest = base.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        keys.append(group + digest.digest())
    return keys


def group_of(encoder: str) -> bytes:
    """What the keys of an encoder with this fingerprint begin with."""
    return bytes.fromhex(encoder)[:GROUP_BYTES]


def listed(texts: Iterable[str]) -> list[str]:
    """Texts as a list, and not the letters of one, the ids of a mapping or the column names of a table.

    Raises:
        TypeError: They are one of these.
    """
    kind = type(texts).__name__
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is one {kind}, {texts!r:.80}, and its letters would be encoded: pass [text].")
    if isinstance(texts, Mapping):
        raise TypeError(f"texts is a {kind}, and its keys would be encoded: pass list(texts.values()).")
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise TypeError(f"texts is a {kind} with columns: pass one of them as a list, such as list(table['text']).")
    try:
        return list(texts)
    except TypeError:
        raise TypeError(f"texts must be a list of strings, not a {kind}.") from None
