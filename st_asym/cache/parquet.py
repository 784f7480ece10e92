"""Vectors in and out as Parquet, for corpora that are embedded on other machines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from st_asym.cache.store import GROUP_BYTES, KEY_BYTES, PORTION, Floats, VectorStore
from st_asym.data.files import new_file

_LISTS = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")


def write_parquet(store: VectorStore, group: bytes, facts: dict[str, Any], path: str | os.PathLike[str]) -> int:
    """Write a group with these ``facts`` of :meth:`VectorStore.groups`, and say how many vectors it has."""
    values = pa.float16() if store.dtype == np.float16 else pa.float32()
    key_type, vector_type = pa.binary(KEY_BYTES), pa.list_(values, facts["dimension"])
    schema = pa.schema([("key", key_type), ("vector", vector_type)], metadata={"encoder": facts["name"]})
    written = 0
    # A dictionary of floats that hardly repeat costs three quarters of the time.
    with (
        new_file(path) as beside,
        pq.ParquetWriter(beside, schema, write_page_checksum=True, use_dictionary=False) as writer,
    ):
        for keys, vectors in store.records(group):
            flat = pa.array(vectors.astype(store.dtype).reshape(-1), values)
            column = pa.FixedSizeListArray.from_arrays(flat, type=vector_type)
            writer.write_batch(pa.record_batch([pa.array(keys, key_type), column], schema=schema))
            written += len(keys)
    return written


def read_parquet(store: VectorStore, path: str | os.PathLike[str]) -> int:
    """Put the vectors of a file, or of a folder of files, into a store, and say how many they were.

    All files are read twice: a bad one among them must show before the first vector is stored.
    """
    files = _files(Path(path))
    dimensions = {group: facts["dimension"] for group, facts in store.groups().items()}
    for file in files:
        for _, keys, vectors in _portions(file):
            known = dimensions.setdefault(keys[0][:GROUP_BYTES], vectors.shape[1])
            if known != vectors.shape[1]:
                raise ValueError(
                    f"{file} has vectors of {vectors.shape[1]} dimensions for an encoder whose other vectors, in "
                    f"{store.directory} or in the files before, have {known}. Nothing was imported."
                )
    read = 0
    for file in files:
        for name, keys, vectors in _portions(file):
            store.put(keys, vectors, name)
            read += len(keys)
    return read


def _files(path: Path) -> list[Path]:
    """A file, or the Parquet files of a folder but for those that other tools hide while they write them."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    files = [
        file
        for file in sorted(path.rglob("*.parquet"))
        if not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
    ]
    if not files:
        raise FileNotFoundError(f"{path} has no file whose name ends in .parquet.")
    return files


def _portions(path: Path) -> Iterator[tuple[str, list[bytes], Floats]]:
    """Name of the encoder, keys and vectors (n, d) of a file, portion by portion and group by group, each checked."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_columns(path, file.schema_arrow)
            name = (file.schema_arrow.metadata or {}).get(b"encoder", b"imported").decode()
            for batch in file.iter_batches(PORTION, columns=["key", "vector"]):
                keys = batch.column("key").to_pylist()
                vectors = _checked(path, keys, batch.column("vector")) if keys else np.empty((0, 0), np.float32)
                for group in sorted({key[:GROUP_BYTES] for key in keys}):
                    rows = [row for row, key in enumerate(keys) if key.startswith(group)]
                    yield name, [keys[row] for row in rows], vectors[rows]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not a whole Parquet file: {error} Nothing was imported: write the file again, or leave it out."
        ) from error


def _check_columns(path: Path, schema: Any) -> None:
    if missing := {"key", "vector"}.difference(schema.names):
        raise ValueError(
            f"{path} has the columns {schema.names}, but not {sorted(missing)[0]!r}: it must come from "
            "EmbeddingCache.export_parquet, or have the keys of st_asym.record_keys."
        )
    kind = schema.field("vector").type
    is_list = any(getattr(pa.types, f"is_{name}")(kind) for name in _LISTS)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise ValueError(f"{path} has a column 'vector' of type {kind}: it must be a list of floats.")


def _checked(path: Path, keys: list[Any], column: Any) -> Floats:
    """The vectors (n, d) of one batch."""
    if any(not isinstance(key, bytes) or len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"{path} has keys that are not {KEY_BYTES} bytes long: they must come from record_keys.")
    if column.null_count or len(pc.unique(pc.list_value_length(column))) != 1:
        raise ValueError(f"{path} has rows without a vector, or vectors of different dimensions.")
    vectors = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(keys), -1)
    if not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(f"{path} has vectors that are empty, or have values that are not finite.")
    return vectors
