"""Hard negatives for the in-batch loss, mined on cached vectors, beside in-batch negatives alone and the whole corpus.

    python examples/hard_negatives.py                          # on docstrings, a few minutes on two cores
    python examples/hard_negatives.py --data scifact.zip       # a BEIR folder or zip, or a file of pairs

With ``fit`` the same is ``fit(..., settings=Settings(contrastive="in-batch", hard_negatives=4))``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import torch
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
    CorpusContrastiveLoss,
    EmbeddingCache,
    asymmetric_model,
    column_prompts,
    evaluate,
    mine_negatives,
    router_mapping,
)
from st_asym.data import RetrievalData, load_data

_TEMPERATURE = 0.05


def main() -> None:
    options = parse_options()
    data = load_data(options.data) if options.data else python_docs(options.pairs)
    encoder = SentenceTransformer(packaged_encoder())
    cache = EmbeddingCache(options.cache)
    untouched = CachedSentenceTransformer(asymmetric_model(encoder), cache)

    columns = {"in-batch": data.pairs("train"), "whole corpus": data.labelled_queries("train")}
    for count in options.negatives:
        columns[f"in-batch, {count} hard"] = mine_negatives(untouched, data, num_negatives=count)
    models = {"untouched encoder": encoder}
    for name, rows in columns.items():
        torch.manual_seed(0)
        model = CachedSentenceTransformer(asymmetric_model(encoder), cache)
        train(model, data, rows, options)
        models[name] = model.stock_model()
    print(evaluate(models, {"test": data}, cache=cache, train=data, results=None, baselines=()))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a BEIR folder or zip, or a .jsonl, .csv or .tsv of query and document"
    )
    parser.add_argument("--pairs", type=int, default=4_000, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--negatives", type=int, nargs="+", default=[1, 4], help="per pair (default: 1 4)")
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    return parser.parse_args()


def train(
    model: CachedSentenceTransformer, data: RetrievalData, rows: datasets.Dataset, options: argparse.Namespace
) -> None:
    """Train heads on rows of a query and its label, or of a query, its document and negatives."""
    mapping = router_mapping(rows)
    whole_corpus = "label" in rows.column_names
    arguments = SentenceTransformerTrainingArguments(
        output_dir="runs/hard_negatives",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=256,
        learning_rate=1e-3,
        batch_sampler="batch_sampler" if whole_corpus else "no_duplicates",
        router_mapping=mapping,
        prompts=column_prompts(model, mapping) or None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )
    loss = (
        CorpusContrastiveLoss(model, data.corpus, data.qrels["train"], temperature=_TEMPERATURE)
        if whole_corpus
        else MultipleNegativesRankingLoss(model, scale=1 / _TEMPERATURE)
    )
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()
