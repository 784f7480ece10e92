"""The last layers of the encoder trained together with the heads, beside heads alone, on a small slice.

    python examples/unfreeze_layers.py                         # on docstrings, a few minutes on two cores
    python examples/unfreeze_layers.py --layers 2 --pairs 2000

First the heads train on cached vectors, in seconds. Then they train on with the last layers, which takes the encoder at
every step, and again for every text when all is done.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import datasets
import torch
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from scoring import print_differences, score, summarise
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_asym import (
    CachedSentenceTransformer,
    EmbeddingCache,
    asymmetric_model,
    column_prompts,
    freeze_encoder,
    router_mapping,
    unfreeze_last_layers,
)
from st_asym.data import load_data


def main() -> None:
    options = parse_options()
    data = load_data(options.data) if options.data else python_docs(options.pairs)
    pairs = data.pairs("train")
    torch.manual_seed(0)
    model = asymmetric_model(SentenceTransformer(packaged_encoder()))
    cached = CachedSentenceTransformer(model, EmbeddingCache(options.cache))
    scores = {"untouched encoder": [score(cached, data)]}

    train(cached, pairs, epochs=20, learning_rate=1e-3)
    scores["heads alone"] = [score(cached, data)]

    unfreeze_last_layers(model, options.layers)
    started = time.perf_counter()
    # In the names of the loss's parameters, model.0 is the first module of the model: the transformer.
    rates = {r"^model\.0\.": options.encoder_learning_rate}
    train(model, pairs, epochs=options.epochs, learning_rate=options.learning_rate, learning_rate_mapping=rates)
    seconds = time.perf_counter() - started
    scores[f"heads, then with the last {options.layers} layer(s)"] = [score(freeze_encoder(model), data)]

    print_differences(summarise(scores))
    print(f"\n{len(pairs):,} training pairs; {seconds:.0f} s with layers of the encoder")
    model.save_pretrained(str(options.output))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a BEIR folder or zip, or a JSONL of query and positive")
    parser.add_argument("--pairs", type=int, default=600, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="how many train (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="with the layers (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the heads then (default: %(default)s)")
    parser.add_argument("--encoder-learning-rate", type=float, default=2e-5, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/unfreeze_layers"), help="(default: %(default)s)")
    return parser.parse_args()


def train(
    model: SentenceTransformer,
    pairs: datasets.Dataset,
    *,
    epochs: int,
    learning_rate: float,
    learning_rate_mapping: dict[str, float] | None = None,
) -> None:
    """Train what is not frozen with the stock trainer."""
    mapping = router_mapping(pairs)
    arguments = SentenceTransformerTrainingArguments(
        output_dir="runs/unfreeze_layers_checkpoints",
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=learning_rate,
        learning_rate_mapping=learning_rate_mapping,
        warmup_steps=0.1,
        batch_sampler="no_duplicates",
        router_mapping=mapping,
        prompts=column_prompts(model, mapping) or None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()
