"""Vectors in and out as Parquet, for corpora that are embedded on other machines."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from st_asym.cache.store import GROUP_BYTES, KEY_BYTES, VectorStore

# Vectors that are in memory at a time.
_PORTION = 4096


def write_parquet(store: VectorStore, group: bytes, facts: dict[str, Any], path: str | os.PathLike[str]) -> int:
    """Write a group with these ``facts`` of :meth:`VectorStore.groups`, and say how many vectors it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.float16() if store.dtype == np.float16 else pa.float32()
    key_type, vector_type = pa.binary(KEY_BYTES), pa.list_(values, facts["dimension"])
    schema = pa.schema([("key", key_type), ("vector", vector_type)], metadata={"encoder": facts["name"]})
    written = 0
    with pq.ParquetWriter(path, schema) as writer:
        for keys, vectors in store.records(group, _PORTION):
            flat = pa.array(vectors.astype(store.dtype).reshape(-1), values)
            column = pa.FixedSizeListArray.from_arrays(flat, type=vector_type)
            writer.write_batch(pa.record_batch([pa.array(keys, key_type), column], schema=schema))
            written += len(keys)
    return written


def read_parquet(store: VectorStore, path: str | os.PathLike[str]) -> int:
    """Put the vectors of a file, or of a folder of files, into a store, and say how many they were."""
    import pyarrow.dataset as ds

    data = ds.dataset(path, format="parquet")
    if missing := {"key", "vector"}.difference(data.schema.names):
        raise ValueError(
            f"{path} has the columns {data.schema.names}, but not {sorted(missing)[0]!r}: it must come from "
            "EmbeddingCache.export_parquet, or have the keys of st_asym.record_keys."
        )
    name = (data.schema.metadata or {}).get(b"encoder", b"imported").decode()
    read = 0
    for batch in data.to_batches(columns=["key", "vector"], batch_size=_PORTION):
        if batch.num_rows:
            _put(store, path, batch.column("key").to_pylist(), batch.column("vector"), name)
            read += batch.num_rows
    return read


def _put(store: VectorStore, path: Any, keys: list[Any], column: Any, name: str) -> None:
    """Check one batch, and store it by encoder."""
    import pyarrow.compute as pc

    if any(not isinstance(key, bytes) or len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"{path} has keys that are not {KEY_BYTES} bytes long: they must come from record_keys.")
    if column.null_count or len(pc.unique(pc.list_value_length(column))) != 1:
        raise ValueError(f"{path} has rows without a vector, or vectors of different dimensions.")
    vectors = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(keys), -1)
    if not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(f"{path} has vectors that are empty, or have values that are not finite.")
    groups: dict[bytes, dict[bytes, int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key[:GROUP_BYTES], {})[key] = row
    for rows in groups.values():
        store.put(list(rows), vectors[list(rows.values())], name)
