"""Training without a gate: the stock trainer, a loss, and the heads that it ends with."""

from __future__ import annotations

import tempfile
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch import nn

from st_asym import column_prompts, router_mapping


def stock_training(
    model: SentenceTransformer,
    loss: nn.Module,
    rows: Dataset,
    *,
    seed: int,
    in_batch: bool = False,
    **arguments: Any,
) -> None:
    """Train in place, as ``fit`` does, without looking at any other query."""
    mapping = router_mapping(rows)
    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                batch_sampler="no_duplicates" if in_batch else "batch_sampler",
                router_mapping=mapping,
                prompts=column_prompts(model, mapping) or None,
                optim="adamw_torch_fused",
                max_grad_norm=0.0,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
                **arguments,
            ),
            train_dataset=rows,
            loss=loss,
        ).train()
