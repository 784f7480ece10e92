"""Kill a process that fills a cache, again and again, and count what is lost or wrong.

python examples/benchmarks/sigkill.py --kills 200
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from st_asym import EmbeddingCache, encoder_fingerprint, record_keys
from st_asym.cache import encoding as filling

WORDS = [f"w{number}" for number in range(500)]
# Texts that are reported as committed at a time, and texts per commit.
REPORTED, COMMITTED = 48, 8


def tiny_encoder(dimension: int = 96) -> SentenceTransformer:
    """A mean of word vectors, the same in every process."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    weights = torch.randn(len(WORDS) + 1, dimension, generator=torch.Generator().manual_seed(0))
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def text(number: int) -> str:
    """Text ``number``, of one to forty words."""
    return f"{number} " + " ".join(WORDS[(number * 31 + i * i) % len(WORDS)] for i in range(1 + number % 40))


def fill_forever(directory: Path, journal: Path, start: int) -> None:
    """Fill text after text, and write down after each portion that it is committed."""
    filling._COMMIT_SECONDS = 0.0
    filling._MOST_TEXTS = COMMITTED
    model, cache = tiny_encoder(), EmbeddingCache(directory)
    with journal.open("ab", buffering=0) as file:
        for first in count(start, REPORTED):
            cache.fill(model, [text(number) for number in range(first, first + REPORTED)])
            file.write(f"{first + REPORTED}\n".encode())


def reported(journal: Path) -> int:
    """Texts that were committed, by the journal; a line may be cut off by the kill."""
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return max([int(line) for line in lines], default=0)


def check(directory: Path, model: SentenceTransformer, committed: int) -> dict[str, int]:
    """Look up every committed text, and those that may have been committed since."""
    cache = EmbeddingCache(directory)
    texts = [text(number) for number in range(committed + REPORTED)]
    expected = model.encode(texts)
    found = cache.store.get(record_keys(encoder_fingerprint(model), texts))
    present = np.setdiff1d(np.arange(len(texts)), found.missing)
    wrong = 0
    if found.vectors is not None:
        wrong = int((np.abs(found.vectors[present] - expected[present]).max(axis=1) > 1e-6).sum())
    return {
        "lost": sum(row < committed for row in found.missing),
        "wrong": wrong + len(found.damaged),
        "miscounted": abs(len(cache) - len(present)),
    }


def run(kills: int, directory: Path, seed: int = 0) -> dict[str, int]:
    """Kill ``kills`` times, at random moments, and add up what every check found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sentence_transformers", "st_asym", __name__])
    chance = random.Random(seed)  # noqa: S311 - no secret
    model, journal = tiny_encoder(), directory / "journal"
    directory.mkdir(parents=True, exist_ok=True)
    totals = {"kills": 0, "while_filling": 0, "lost": 0, "wrong": 0, "miscounted": 0}
    for _ in range(kills):
        before = reported(journal)
        child = context.Process(target=fill_forever, args=(directory / "cache", journal, before))
        child.start()
        # Most kills come while it fills, some while it starts and opens the store.
        if chance.random() < 0.9:
            deadline = time.monotonic() + 60
            while reported(journal) == before and child.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
            totals["while_filling"] += reported(journal) > before
        time.sleep(chance.uniform(0.0, 0.06))
        child.kill()
        child.join()
        if child.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"The process ended by itself, with exit code {child.exitcode}: nothing was killed.")
        totals["kills"] += 1
        committed = reported(journal)
        for name, number in check(directory / "cache", model, committed).items():
            totals[name] += number
    totals["committed"] = reported(journal)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        totals = run(options.kills, Path(folder), options.seed)
    print(", ".join(f"{name.replace('_', ' ')} {number}" for name, number in totals.items()))
    if options.output:
        options.output.write_text(json.dumps(totals, indent=2) + os.linesep)


if __name__ == "__main__":
    main()
