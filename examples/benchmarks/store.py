"""LMDB or SQLite for the vectors? Writes, random reads, size and opening, side by side.

python examples/benchmarks/store.py --output store.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from st_asym.cache.store import GROUP_BYTES, Floats, VectorStore

PORTION = 4096
GROUP = bytes(GROUP_BYTES)


class Lmdb:
    """The store of this library."""

    name = "LMDB"

    def __init__(self, directory: Path) -> None:
        self.store = VectorStore(directory)

    def put(self, keys: list[bytes], vectors: Floats) -> None:
        """Store and commit."""
        self.store.put(keys, vectors, "benchmark")

    def get(self, keys: list[bytes]) -> Floats:
        """Look up, checked."""
        found = self.store.get(keys)
        if found.vectors is None or found.missing:
            raise RuntimeError("A vector is missing.")
        return found.vectors


class Sqlite:
    """One table of keys and blobs with the same checksum, write-ahead log, as durable as LMDB."""

    name = "SQLite"
    columns = "(key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(directory / "vectors.sqlite")
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "mmap_size=1099511627776", "cache_size=-65536"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute(f"CREATE TABLE IF NOT EXISTS vectors {self.columns}")

    def put(self, keys: list[bytes], vectors: Floats) -> None:
        """Store and commit."""
        with self.db:
            rows = [(key, _checked(key, vector.tobytes())) for key, vector in zip(keys, vectors, strict=True)]
            self.db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", sorted(rows))

    def get(self, keys: list[bytes]) -> Floats:
        """Look up, checked."""
        rows: list[Floats] = []
        for key in keys:
            record = self.db.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()[0]
            if _checked(key, record[4:]) != record:
                raise RuntimeError("A vector is damaged.")
            rows.append(np.frombuffer(record, np.float32, offset=4))
        return np.stack(rows)


class SqliteRowid(Sqlite):
    """The same with a separate index, which keeps large blobs out of the tree of keys."""

    name = "SQLite, rowid"
    columns = "(key BLOB UNIQUE, vector BLOB)"


def measure(kind: Callable[[Path], Any], folder: Path, n: int, dimension: int, repeats: int) -> dict[str, float]:
    """Fill a new store with ``n`` vectors, open it again, and read random batches; medians, in SI units."""
    random = np.random.default_rng(0)
    keys = [GROUP + hashlib.blake2b(str(i).encode(), digest_size=20).digest() for i in range(n)]
    store = kind(folder)
    writing = 0.0
    for start in range(0, n, PORTION):
        vectors = random.standard_normal((min(PORTION, n - start), dimension), dtype=np.float32)
        with timed() as seconds:
            store.put(keys[start : start + PORTION], vectors)
        writing += seconds[0]
    del store

    opening = []
    for _ in range(5):
        with timed() as seconds:
            store = kind(folder)
            store.get(keys[:1])
        opening.append(seconds[0])
        if len(opening) < 5:
            del store
    result = {
        "writes_per_second": n / writing,
        "bytes": float(sum(file.stat().st_blocks * 512 for file in folder.iterdir())),
        "open_seconds": statistics.median(opening),
    }
    for size in (64, 1024):
        reading = []
        for _ in range(repeats):
            batch = [keys[i] for i in random.choice(n, size, replace=False)]
            with timed() as seconds:
                store.get(batch)
            reading.append(seconds[0])
        result[f"read_{size}_seconds"] = statistics.median(reading)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    results = {}
    for kind in (Lmdb, Sqlite, SqliteRowid):
        with tempfile.TemporaryDirectory() as folder:
            results[kind.name] = measure(kind, Path(folder), options.vectors, options.dimension, options.repeats)
    raw = options.vectors * options.dimension * 4
    print(f"{options.vectors:,} vectors of {options.dimension}, float32, medians of {options.repeats} batches (warm)\n")
    print(f"| {'store':13} | writes/s | size / raw | open, first read | read 64 | read 1,024 |")
    print("|---|---|---|---|---|---|")
    for name, r in results.items():
        cells = [f"{r['writes_per_second']:8,.0f}", f"{r['bytes'] / raw:10.2f}"]
        cells += [f"{r[key] * 1e3:.2f} ms" for key in ("open_seconds", "read_64_seconds", "read_1024_seconds")]
        print(f"| {name:13} | {' | '.join(cells)} |")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + os.linesep)


@contextmanager
def timed() -> Iterator[list[float]]:
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - start)


def _checked(key: bytes, payload: bytes) -> bytes:
    return zlib.crc32(payload, zlib.crc32(key)).to_bytes(4, "little") + payload


if __name__ == "__main__":
    main()
