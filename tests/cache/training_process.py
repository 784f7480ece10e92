"""Training on cached vectors, and as a script, in one of two processes; see test_training.py."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from cache_helpers import tiny_bert
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import TrainerCallback

from st_asym import CachedSentenceTransformer, EmbeddingCache, IsotropyLoss, asymmetric_model, router_mapping, watch
from st_asym.evaluation.checkpoints import last_checkpoint

STEPS, BATCH = 50, 16


class Die(TrainerCallback):
    """End the process at a step as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def pairs(rows: int = STEPS * BATCH) -> Dataset:
    words = ["bad cab", "deaf ace", "fed bee", "dead fad", "face off", "beef cafe"]
    letters = [chr(97 + i) for i in range(26)]
    texts = [f"{words[i % 6]} {letters[i % 26]}{letters[i // 26 % 26]}{letters[i // 676 % 26]}" for i in range(rows)]
    return Dataset.from_dict({"anchor": texts, "positive": [f"about {text}" for text in texts]})


def train(folder: Path, name: str, dtype: torch.dtype, kind: Any, *, fill: bool = False, **options: Any) -> None:
    """Train for 50 steps and save weights, losses, and how many texts this process encoded.

    ``kind`` is that of the isotropy loss, or ``"gradients"`` for a loss that caches these.
    """
    data, die = pairs(), options.pop("die", None)
    model = asymmetric_model(tiny_bert(folder / "bert").to(dtype))
    cached = CachedSentenceTransformer(model, EmbeddingCache(folder / f"cache-{name}"))
    encoded: list[int] = []
    model[1].register_forward_hook(lambda *call: encoded.append(len(call[-1]["sentence_embedding"])))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / name),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-2 if options else 1e-3,
        router_mapping=router_mapping(data),
        accelerator_config={"split_batches": True},
        ddp_find_unused_parameters=kind == "gradients",
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        seed=3,
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )
    if fill:
        with arguments.main_process_first():
            for column in data.column_names:
                cached.cache.fill(cached, data[column], task=column)
    if kind == "gradients":
        loss: Any = CachedMultipleNegativesRankingLoss(cached, mini_batch_size=3, gather_across_devices=True)
    else:
        inner = MultipleNegativesRankingLoss(cached, gather_across_devices=True)
        loss = IsotropyLoss(cached, inner, weight=0.3, kind=kind)
    trainer = SentenceTransformerTrainer(cached, arguments, train_dataset=data, loss=loss)
    watch(trainer)
    if die is not None:
        trainer.add_callback(Die(die))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / name))
    result = {
        "weights": torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "encoded": sum(encoded),
    }
    torch.save(result, folder / f"{name}-{arguments.process_index}.pt")


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    train(directory, "two-64", torch.float64, "covariance")
    train(directory, "two-32", torch.float32, "sigreg", fill=True)
    train(directory, "two-gradients", torch.float64, "gradients")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # The threads of gloo now and then abort a process that ends in the ordinary way.
    sys.stdout.flush()
    os._exit(0)
