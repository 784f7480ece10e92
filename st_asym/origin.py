"""Where an encoder or data are from, as far as it may be told to others."""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_HUB_CACHE = re.compile(r"(?:.*[/\\])?models--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")


def public_name(source: object) -> str:
    """What may be told of where something came from: the name of a file or folder without those above it, or a kind.

    Of an address the name alone, without what may be a key before or behind it.

    Example:
        >>> public_name("/home/me/data/scifact.zip"), public_name("https://me:key@host/pairs.csv?token=key")
        ('scifact.zip', 'pairs.csv')
    """
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    text = os.fspath(source)
    if _HUB_ID.fullmatch(text) and not text.startswith(".") and not Path(text).exists():
        return text
    if "://" in text:
        text = urlsplit(text).path
    return PureWindowsPath(text).name or "."


def hub_snapshot(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Hub id and revision of a folder in the cache of ``huggingface_hub``; None for any other.

    Example:
        >>> hub_snapshot("/cache/hub/models--user--model/snapshots/" + 10 * "abcd")
        ('user/model', 'abcdabcdabcdabcdabcdabcdabcdabcdabcdabcd')
    """
    found = _HUB_CACHE.fullmatch(os.fspath(path))
    return (found[1].replace("--", "/", 1), found[2]) if found else None
