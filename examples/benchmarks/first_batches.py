"""The first four batches of randomly started heads, beside the log of the experiment that st_asym grew out of.

    python examples/benchmarks/first_batches.py --output examples/benchmarks/first_batches.json

The experiment: all-mpnet-base-v2 with heads of 768 -> 1536 -> 768 on MS MARCO; here all-MiniLM-L6-v2 with heads of
384 -> 768 -> 384 on docstrings. Both: batches of 64 pairs, contrastive loss on the batch, random start.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from st_asym import IsotropyLoss, asymmetric_model, router_mapping, watch

ORIGINAL_LOSS = (4.2020, 3.4631, 2.8512, 2.2231)
ORIGINAL_ACCURACY = (0.016, 0.297, 0.594, 0.719)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the log as JSON")
    options = parser.parse_args()

    pairs = python_docs(pairs=512).pairs("train")
    torch.manual_seed(0)
    model = asymmetric_model(packaged_encoder(), init="random")
    arguments = SentenceTransformerTrainingArguments(
        output_dir="runs/first_batches",
        max_steps=len(ORIGINAL_LOSS),
        per_device_train_batch_size=64,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        router_mapping=router_mapping(pairs),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=IsotropyLoss(model))
    watch(trainer)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]

    print("\n| batch | contrastive | isotropy | accuracy | the experiment's loss | its accuracy |")
    print("|---|---|---|---|---|---|")
    for batch, (entry, loss, accuracy) in enumerate(zip(log, ORIGINAL_LOSS, ORIGINAL_ACCURACY, strict=True), start=1):
        now = f"{entry['contrastive']:.4f} | {entry['isotropy']:.4f} | {entry['in_batch_accuracy']:.1%}"
        print(f"| {batch} | {now} | {loss:.4f} | {accuracy:.1%} |")
    if options.output:
        options.output.write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
