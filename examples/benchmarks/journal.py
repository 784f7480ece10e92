"""Results that are kept one by one, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = ("block", "row", "collection", "seed")
Key = tuple[str, str, str, int]


class Journal:
    """A file of JSON lines, one for each finished (block, row, collection, seed).

    Args:
        path: Made if missing. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            path.write_text("".join(lines), encoding="utf-8")
        self.entries: dict[Key, dict[str, Any]] = {}
        for line in lines:
            entry = json.loads(line)
            self.entries[_key(entry)] = entry

    def __contains__(self, key: Key) -> bool:
        """Whether this was finished."""
        return key in self.entries

    def add(self, entry: dict[str, Any]) -> None:
        """Keep a result, on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.entries[_key(entry)] = entry

    def of(self, block: str, row: str, collection: str | None = None) -> list[dict[str, Any]]:
        """The results of a row, in the order of seeds."""
        found = [key for key in self.entries if key[:2] == (block, row) and collection in (None, key[2])]
        return [self.entries[key] for key in sorted(found)]


def _key(entry: Mapping[str, Any]) -> Key:
    block, row, collection, seed = (entry[name] for name in KEYS)
    return block, row, collection, seed
