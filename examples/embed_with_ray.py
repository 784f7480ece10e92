"""Embed a corpus with Ray Data, on this machine or on many, into Parquet shards of key and vector.

    pip install -c constraints.txt ".[demo,ray]"
    python examples/embed_with_ray.py corpus.jsonl shards --workers 2 --cache vectors
    python examples/embed_with_ray.py corpus.parquet shards --address auto --workers 8 --gpus 1

Texts are dealt out to shards by a digest, so that equal ones meet and are encoded once, with the prompt that
``encode_document`` gives them. A shard appears under its name when it is whole. After an interruption the same command
goes on: it reads the corpus again, and encodes what the shards lack. ``--cache`` imports them into an EmbeddingCache;
elsewhere, ``EmbeddingCache(directory).import_parquet("shards")`` does. On several machines, st_asym must be installed
on each, and the corpus, the shards and an encoder on disk must have the same path on each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from packaged_encoder import packaged_encoder
from sentence_transformers import SentenceTransformer

from st_asym import EmbeddingCache, encoder_fingerprint
from st_asym.heads.anatomy import side_prompt

# What one task reads of a JSONL file.
RANGE_BYTES = 1 << 23


def main() -> None:
    options = parse_options()
    # One core more than the workers hold: reading waits for it.
    cores = options.workers * options.cpus + 1 if options.address == "local" else None
    ray.init(address=options.address, num_cpus=cores, include_dashboard=None if cores is None else False)
    try:
        started = time.perf_counter()
        counts = embed(
            options.corpus,
            options.folder,
            options.encoder or packaged_encoder(),
            column=options.column,
            shards=options.shards,
            workers=options.workers,
            cpus=options.cpus,
            gpus=options.gpus,
        )
        seconds = time.perf_counter() - started
        print(f"{counts['encoded']:,} of {counts['distinct']:,} distinct texts encoded in {seconds:.0f} s, ", end="")
        print(f"{counts['distinct'] - counts['encoded']:,} found in {options.folder}.")
    finally:
        ray.shutdown()
    if options.cache:
        cache = EmbeddingCache(options.cache)
        print(f"{cache.import_parquet(options.folder):,} vectors imported into {cache}, which holds {len(cache):,}.")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a .jsonl file, or a .parquet file or folder")
    parser.add_argument("folder", type=Path, help="where the shards are, or will be")
    parser.add_argument("--encoder", help="a Hub id or path; the packaged all-MiniLM-L6-v2 if not given")
    parser.add_argument("--column", default="text", help="what the texts are in (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="directory of an EmbeddingCache that receives the vectors")
    parser.add_argument("--address", default="local", help="a Ray cluster, or auto (default: this machine alone)")
    parser.add_argument("--workers", type=int, default=2, help="each holds the encoder (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=1, help="cores per worker (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per worker (default: %(default)s)")
    parser.add_argument(
        "--shards", type=int, default=64, help="a worker holds the texts of one in memory (default: %(default)s)"
    )
    return parser.parse_args()


def embed(
    corpus: Path,
    folder: Path,
    encoder: str,
    *,
    column: str = "text",
    shards: int = 64,
    workers: int = 2,
    cpus: int = 1,
    gpus: float = 0,
) -> dict[str, int]:
    """Write the shards, with a Ray that is running, by what the script is called with.

    Returns:
        How many distinct texts there are, and how many of them were encoded.

    Raises:
        FileNotFoundError: There is no such corpus.
        ValueError: The corpus lacks the column, or has something else than text in it; or the folder has files that
            are not shards of this encoder, or another number of them. Ray raises what an actor raised.
    """
    corpus, folder = corpus.resolve(), folder.resolve()
    texts = read_texts(corpus, column)
    model = SentenceTransformer(encoder)
    fingerprint = encoder_fingerprint(model)
    folder.mkdir(parents=True, exist_ok=True)
    expected = {shard_path(folder, fingerprint, shard, shards) for shard in range(shards)}
    for path in folder.glob("*.parquet"):
        if path not in expected:
            raise ValueError(
                f"{path} is not one of {shards} shards of the encoder {fingerprint[:12]}: use another folder, or the "
                "--encoder and --shards that this one was made with."
            )
    for path in folder.glob("_*.writing"):
        path.unlink()  # left by an interruption
    written = (
        texts.map_batches(deal, fn_args=(shards,), batch_format="pyarrow")
        .groupby("shard", num_partitions=shards)
        .map_groups(
            ShardWriter,
            fn_constructor_args=(encoder, fingerprint, folder, shards),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_format="pyarrow",
            num_cpus=cpus,
            num_gpus=gpus,
        )
    )
    rows = list(written.iter_rows())
    return {name: sum(row[name] for row in rows) for name in ("distinct", "encoded")}


def read_texts(corpus: Path, column: str) -> ray.data.Dataset:
    """The texts of a corpus, in the column ``text``."""
    if not corpus.exists():
        raise FileNotFoundError(f"There is no file or folder {corpus}.")
    if corpus.suffix == ".parquet":
        data = ray.data.read_parquet(str(corpus))
        check_column(corpus, column, data.schema().names)
        return data.select_columns([column]).rename_columns({column: "text"})
    if corpus.suffix != ".jsonl":
        raise ValueError(f"{corpus} must be a .jsonl file, or a .parquet file or folder.")
    check_column(corpus, column, next((list(row) for _, row in json_rows(corpus, 0, 1)), []))
    starts = range(0, corpus.stat().st_size, RANGE_BYTES)
    ranges = [{"start": start, "end": start + RANGE_BYTES} for start in starts]
    data = ray.data.from_items(ranges, override_num_blocks=max(1, len(ranges)))
    return data.map_batches(read_ranges, fn_args=(corpus, column), batch_size=1, batch_format="numpy")


def check_column(corpus: Path, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise ValueError(f"{corpus} has no column {column!r}, but {columns}: name one of them with --column.")


def read_ranges(batch: dict[str, Any], corpus: Path, column: str) -> Iterator[pa.Table]:
    """The texts of the lines that begin in ranges of a JSONL file.

    Ray's own readers guess at types, so that the text "007" becomes the number 7 and a date a time, and they do not
    share one file out.
    """
    for start, end in zip(batch["start"].tolist(), batch["end"].tolist(), strict=True):
        texts = []
        for offset, row in json_rows(corpus, start, end):
            text: Any = row.get(column)
            try:
                text.encode()  # lone surrogates, which JSON can spell, are taken by neither Arrow nor tokenizers
            except (AttributeError, UnicodeEncodeError):
                place = f"{column!r} in the line at byte {offset}"
                raise ValueError(f"{corpus} has {text!r:.80} for {place}, not a text.") from None
            texts.append(text)
        yield pa.table({"text": pa.array(texts, pa.large_string())})


def json_rows(path: Path, start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and content of the lines that begin in ``[start, end)``, but for blank ones."""
    with path.open("rb") as file:
        if start:
            # A line that begins before belongs to the range before.
            file.seek(start - 1)
            file.readline()
        while (offset := file.tell()) < end and (line := file.readline()):
            if line.strip():
                yield offset, json.loads(line)


def deal(batch: pa.Table, shards: int) -> pa.Table:
    """The distinct texts of a batch, each with the number of its shard; the processes that read import no torch."""
    texts = list(dict.fromkeys(batch.column("text").to_pylist()))
    if other := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"The column has {other[0]!r:.80}, not a text: convert such rows, or leave them out.")
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    numbers = [int.from_bytes(digest, "big") % shards for digest in digests]
    return pa.table({"shard": pa.array(numbers, pa.int64()), "text": pa.array(texts, pa.large_string())})


def shard_path(folder: Path, fingerprint: str, shard: int, shards: int) -> Path:
    return folder / f"{fingerprint[:12]}-{shard:05}-of-{shards:05}.parquet"


class ShardWriter:
    """An actor that holds the encoder, and brings one shard after another up to date."""

    def __init__(self, encoder: str, fingerprint: str, folder: Path, shards: int) -> None:
        self.encoder = SentenceTransformer(encoder)
        if encoder_fingerprint(self.encoder) != fingerprint:
            raise ValueError(f"{encoder} on {os.uname().nodename} is not the encoder that the driver has.")
        self.prompt = side_prompt(self.encoder, "document") or None
        self.paths = [shard_path(folder, fingerprint, shard, shards) for shard in range(shards)]

    def __call__(self, group: pa.Table) -> dict[str, list[int]]:
        """Encode the texts that the shard lacks."""
        path = self.paths[group.column("shard")[0].as_py()]
        texts = set(group.column("text").to_pylist())
        with tempfile.TemporaryDirectory() as scratch:
            # It encodes what is missing, longest first, and writes what it holds as Parquet.
            cache = EmbeddingCache(scratch)
            if path.exists():
                cache.import_parquet(path)
            encoded = cache.fill(self.encoder, texts, prompt=self.prompt, task="document")
            if encoded:
                # Ray's own write_parquet writes in place, and Ray may run a task twice at once, when it takes a slow
                # machine for a dead one.
                beside = path.with_name(f"_{uuid.uuid4().hex}.writing")
                cache.export_parquet(beside, self.encoder)
                with beside.open("rb") as file:
                    os.fsync(file.fileno())
                beside.replace(path)
        return {"distinct": [len(texts)], "encoded": [encoded]}


if __name__ == "__main__":
    main()
