"""What training on cached pairs adds to the resident memory of a process that has its libraries, but no encoder yet.

python examples/benchmarks/memory.py --pairs 88000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from datasets import Dataset
from packaged_encoder import packaged_encoder
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from st_asym import (
    CachedSentenceTransformer,
    EmbeddingCache,
    asymmetric_model,
    encoder_fingerprint,
    record_keys,
    router_mapping,
)

# 1,120 bytes a pair, as 80 thousand titles, questions and sentences with their abstracts and answers have.
PORTION, LENGTHS = 4096, (1020, 100)


def resident(*kinds: str) -> dict[str, int]:
    """Bytes of memory of this process, by the names that Linux has for them: all and at most, its own, mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return {name: int(fields[name].split()[0]) * 1024 for name in kinds or ("VmRSS", "RssAnon", "RssFile")}


class Peak(TrainerCallback):
    """The most memory at the end of any step, by kind."""

    def __init__(self) -> None:
        self.bytes = resident()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Look, and keep the larger."""
        self.bytes = max(self.bytes, resident(), key=lambda now: now["VmRSS"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=88_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.prepare:
            prepare(folder, options.pairs)
        elif options.folder:
            print(json.dumps(train(folder, options.batch_size)))
        else:
            command = [sys.executable, __file__, "--pairs", str(options.pairs), "--folder", str(folder)]
            command += ["--batch-size", str(options.batch_size)]
            subprocess.run([*command, "--prepare"], check=True, capture_output=True)
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            print(result.stdout.splitlines()[-1])


def prepare(folder: Path, pairs: int) -> None:
    """Put pairs of texts as long as abstracts, and vectors for them, on disk."""
    encoder = SentenceTransformer(packaged_encoder(), device="cpu")
    cache, random = EmbeddingCache(folder / "cache"), np.random.default_rng(0)
    for first in range(0, 2 * pairs, PORTION):
        texts = [text(i) for i in range(first, min(first + PORTION, 2 * pairs))]
        vectors = random.standard_normal((len(texts), 384), dtype=np.float32)
        cache.store.put(record_keys(encoder_fingerprint(encoder), texts), vectors, "benchmark")
    columns = {"query": [text(i) for i in range(pairs)], "document": [text(pairs + i) for i in range(pairs)]}
    Dataset.from_dict(columns).save_to_disk(folder / "pairs")


def text(number: int) -> str:
    return f"{number} ".ljust(LENGTHS[number % 2], "x")


def train(folder: Path, batch_size: int) -> dict[str, Any]:
    """One epoch; megabytes over the process as it was before it had an encoder."""
    before = resident()
    model = asymmetric_model(SentenceTransformer(packaged_encoder(), device="cpu"))
    with_encoder = resident()
    cached = CachedSentenceTransformer(model, EmbeddingCache(folder / "cache"))
    pairs = Dataset.load_from_disk(folder / "pairs")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "run"),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        router_mapping=router_mapping(pairs),
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    peak = Peak()
    loss = MultipleNegativesRankingLoss(cached)
    trainer = SentenceTransformerTrainer(cached, arguments, train_dataset=pairs, loss=loss, callbacks=[peak])
    trainer.train()
    return {
        "pairs": len(pairs),
        "steps": trainer.state.global_step,
        "megabytes at peak": {name: (peak.bytes[name] - before[name]) / 1e6 for name in before},
        "megabytes of encoder and heads": {name: (with_encoder[name] - before[name]) / 1e6 for name in before},
    }


if __name__ == "__main__":
    main()
