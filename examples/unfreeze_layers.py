"""The last layers of the encoder trained together with the heads, beside heads alone, on a small slice.

    python examples/unfreeze_layers.py                         # on docstrings, a few minutes on two cores
    python examples/unfreeze_layers.py --layers 2 --pairs 2000

Heads alone train on cached vectors, in seconds. With layers of the encoder every step runs it, and a corpus that was
indexed before has to be encoded again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import datasets
from packaged_encoder import packaged_encoder
from python_docs import python_docs
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
    evaluate,
    freeze_encoder,
    router_mapping,
    unfreeze_last_layers,
)
from st_asym.data import load_data


def main() -> None:
    options = parse_options()
    data = load_data(options.data) if options.data else python_docs(options.pairs)
    pairs = data.pairs("train")
    encoder = SentenceTransformer(packaged_encoder())
    cache = EmbeddingCache(options.cache)
    cached = CachedSentenceTransformer(asymmetric_model(encoder), cache)
    cached.encode_query(pairs["query"])  # into the cache, as are the documents, before a clock runs
    cached.encode_document(pairs["document"])

    seconds = [train(cached, pairs, options, {})]
    model = unfreeze_last_layers(asymmetric_model(SentenceTransformer(packaged_encoder())), options.layers)
    # In the names of the loss's parameters, model.0 is the first module of the model: the transformer.
    seconds += [train(model, pairs, options, {r"^model\.0\.": options.encoder_learning_rate})]

    models = {"untouched encoder": encoder, "heads alone": cached.stock_model()}
    models[f"heads and last {options.layers} layer(s)"] = freeze_encoder(model)
    print(evaluate(models, {"test": data}, cache=cache, train=data, results=None, baselines=()))
    print(f"\n{len(pairs):,} pairs; heads alone {seconds[0]:.1f} s, with layers of the encoder {seconds[1]:.1f} s")
    model.save_pretrained(str(options.output))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a BEIR folder or zip, or a .jsonl, .csv or .tsv of query and document"
    )
    parser.add_argument("--pairs", type=int, default=600, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="how many train (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the heads (default: %(default)s)")
    parser.add_argument("--encoder-learning-rate", type=float, default=2e-5, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/unfreeze_layers"), help="(default: %(default)s)")
    return parser.parse_args()


def train(
    model: SentenceTransformer, pairs: datasets.Dataset, options: argparse.Namespace, rates: dict[str, float]
) -> float:
    """Train what is not frozen with the stock trainer, parameters whose names ``rates`` match at theirs; seconds."""
    mapping = router_mapping(pairs)
    arguments = SentenceTransformerTrainingArguments(
        output_dir="runs/unfreeze_layers_checkpoints",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=64,
        learning_rate=options.learning_rate,
        learning_rate_mapping=rates,
        warmup_steps=0.1,
        batch_sampler="no_duplicates",
        router_mapping=mapping,
        prompts=column_prompts(model, mapping) or None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )
    started = time.perf_counter()
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()
    return time.perf_counter() - started


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()
