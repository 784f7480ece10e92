"""Train query and document heads on the documentation of the Python packages that are installed here.

    python examples/quickstart.py                                   # about three minutes on two cores, no network
    python examples/quickstart.py --data scifact.zip                # a BEIR folder or zip
    python examples/quickstart.py --data pairs.jsonl --encoder BAAI/bge-small-en-v1.5

Encodes each text once, trains from a random and from the identity start with the stock trainer, and compares both with
the untouched encoder on test queries. The folder given by ``--output`` receives the model, ``results.json`` and
``curve.png``; ``search.py`` then loads the model in a process of its own that cannot import st_asym.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
import matplotlib as mpl
import numpy as np
import torch
import transformers
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from scoring import Scores, score, summarise
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from st_asym import (
    CachedSentenceTransformer,
    EmbeddingCache,
    IsotropyLoss,
    asymmetric_model,
    column_prompts,
    router_mapping,
    watch,
)
from st_asym.data import RetrievalData, load_data

mpl.use("agg")
from matplotlib import pyplot as plt

UNTOUCHED = "untouched encoder"
TRAINING = ("epochs", "batch_size", "learning_rate", "isotropy_weight", "seeds")
STARTS: dict[str, Literal["random", "identity"]] = {"random start": "random", "identity start": "identity"}


def main() -> None:
    options = parse_options()
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    data = (load_data(options.data) if options.data else python_docs(options.pairs)).with_dev_split()
    for split in ("train", "dev", "test"):
        if not data.qrels.get(split) or not data.relevant(split):
            sys.exit(f"The data have no {split} queries with a relevant document: give at least about 30 pairs.")
    path = options.encoder or packaged_encoder()
    encoder = SentenceTransformer(path, local_files_only=Path(path).is_dir())
    cache = encode_once(encoder, data, options.cache)
    encoded = time.perf_counter()

    untouched = CachedSentenceTransformer(asymmetric_model(encoder), cache)
    untouched_dev = dev_evaluator(data)(untouched)["dev_cosine_ndcg@10"]
    scores: dict[str, list[Scores]] = {UNTOUCHED: [score(untouched, data)]}
    curves: dict[str, list[dict[str, Any]]] = {}
    for start, init in STARTS.items():
        scores[start] = []
        for seed in options.seeds:
            torch.manual_seed(seed)
            model = CachedSentenceTransformer(asymmetric_model(encoder, init=init), cache)
            curves[start] = train(model, data, options, seed)
            scores[start].append(score(model, data))
    trained = time.perf_counter()

    model.save_pretrained(str(options.output / "model"))
    save_index(options.output, untouched, model, data)
    rows = summarise(scores)
    seconds = {"read and encode": encoded - started, "train and evaluate": trained - encoded}
    report(options, data, rows, curves, seconds)
    draw(curves, untouched_dev, options.output / "curve.png")
    search = Path(__file__).with_name("search.py")
    subprocess.run([sys.executable, str(search), str(options.output)], check=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a BEIR folder or zip, or a .jsonl, .csv or .tsv of query and document"
    )
    parser.add_argument("--encoder", help="a Hub id or path; the packaged all-MiniLM-L6-v2 if not given")
    parser.add_argument("--pairs", type=int, default=4_000, help="how many docstrings to use (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="(default: %(default)s)")
    parser.add_argument("--isotropy-weight", type=float, default=0.3, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")
    return parser.parse_args()


def encode_once(encoder: SentenceTransformer, data: RetrievalData, folder: Path) -> EmbeddingCache:
    """Vectors of all judged queries and all documents, kept on disk: a second run finds them there."""
    cache = EmbeddingCache(folder)
    queries = {data.queries[query_id] for judged in data.qrels.values() for query_id in judged}
    documents = set(data.corpus.values())
    print(f"Encoding {len(queries):,} queries and {len(documents):,} documents, each once.")
    cache.fill(encoder, queries, prompt=encoder.prompts["query"], show_progress_bar=True)
    cache.fill(encoder, documents, prompt=encoder.prompts["document"], show_progress_bar=True)
    return cache


def train(
    model: CachedSentenceTransformer, data: RetrievalData, options: argparse.Namespace, seed: int
) -> list[dict[str, Any]]:
    """Train the heads with the stock trainer, keep the best epoch on the dev queries, and return the trainer's log."""
    pairs = data.pairs("train")
    mapping = router_mapping(pairs)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.output / "checkpoints"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        batch_sampler="no_duplicates",
        router_mapping=mapping,
        prompts=column_prompts(model, mapping) or None,
        eval_strategy="epoch",
        save_strategy="best",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_cosine_ndcg@10",
        logging_steps=5,
        logging_first_step=True,
        report_to="none",
        use_cpu=True,
        seed=seed,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        loss=IsotropyLoss(model, weight=options.isotropy_weight),
        evaluator=dev_evaluator(data),
    )
    watch(trainer)
    trainer.train()
    return trainer.state.log_history


def dev_evaluator(data: RetrievalData) -> InformationRetrievalEvaluator:
    relevant = data.relevant("dev")
    queries: dict[str, Any] = {query_id: data.queries[query_id] for query_id in relevant}
    corpus: dict[str, Any] = dict(data.corpus)
    return InformationRetrievalEvaluator(
        queries,
        corpus,
        relevant,
        name="dev",
        ndcg_at_k=[10],
        mrr_at_k=[10],
        map_at_k=[100],
        accuracy_at_k=[1],
        precision_recall_at_k=[100],
        batch_size=1024,
        write_csv=False,
        show_progress_bar=False,
    )


def report(
    options: argparse.Namespace,
    data: RetrievalData,
    rows: list[dict[str, Any]],
    curves: dict[str, list[dict[str, Any]]],
    seconds: dict[str, float],
) -> None:
    """Print the table, and write it with everything that made it."""
    queries = {split: len(judged) for split, judged in data.qrels.items()}
    print(f"\n{queries['train']:,} training, {queries['dev']:,} dev and {queries['test']:,} test queries, ", end="")
    print(f"{len(data.corpus):,} documents; test split, {len(options.seeds)} seed(s)\n")
    print("| system | nDCG@10 | recall@100 | difference in nDCG@10, 95 % interval |\n|---|---|---|---|")
    for row in rows:
        change = f"{row['difference']:+.3f} [{row['95 %'][0]:+.3f}, {row['95 %'][1]:+.3f}]" if "95 %" in row else ""
        spread = np.std(row["ndcg@10 by seed"], ddof=1) if len(row["ndcg@10 by seed"]) > 1 else None
        value = f"{row['ndcg@10']:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
        print(f"| {row['system']} | {value} | {row['recall@100']:.3f} | {change} |")
    print("\n" + ", ".join(f"{name}: {value:.0f} s" for name, value in seconds.items()))
    packages = ("st_asym", "sentence-transformers", "transformers", "torch", "numpy")
    results = {
        "data": options.data.name if options.data else f"docstrings, {options.pairs} pairs",
        "encoder": options.encoder or "all-MiniLM-L6-v2",
        "settings": {
            key: value for key, value in vars(options).items() if key not in {"data", "encoder", "cache", "output"}
        },
        "queries": queries,
        "documents": len(data.corpus),
        "rows": rows,
        "seconds": seconds,
        "versions": {package: version(package) for package in packages},
        "dev ndcg@10 by epoch": {name: dev_curve(log) for name, log in curves.items()},
    }
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def dev_curve(log: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(entry["epoch"], entry["eval_dev_cosine_ndcg@10"]) for entry in log if "eval_dev_cosine_ndcg@10" in entry]


def draw(curves: dict[str, list[dict[str, Any]]], untouched: float, path: Path) -> None:
    """Loss and in-batch accuracy by step, and dev nDCG@10 by epoch beside the untouched encoder."""
    figure, (loss_axes, accuracy_axes, dev_axes) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, log in curves.items():
        steps = [entry for entry in log if "loss" in entry]
        epochs = [entry["epoch"] for entry in steps]
        loss_axes.plot(epochs, [entry["contrastive"] for entry in steps], label=name)
        accuracy_axes.plot(epochs, [entry["in_batch_accuracy"] for entry in steps], label=name)
        dev_axes.plot(*zip(*dev_curve(log), strict=True), marker="o", label=name)
    dev_axes.axhline(untouched, color="grey", linestyle="--", label=UNTOUCHED)
    titles = ("contrastive loss", "in-batch accuracy", "dev nDCG@10")
    for axes, title in zip((loss_axes, accuracy_axes, dev_axes), titles, strict=True):
        axes.set(title=title, xlabel="epoch")
        axes.legend()
    figure.savefig(path, dpi=120)
    print(f"\nTraining curve: {path}")


def save_index(folder: Path, before: SentenceTransformer, after: SentenceTransformer, data: RetrievalData) -> None:
    """What search.py compares: texts, and their vectors by the untouched encoder and by the trained model."""
    queries = [data.queries[query_id] for query_id in data.relevant("test")]
    documents = list(data.corpus.values())
    np.savez(
        folder / "index.npz",
        queries_before=before.encode_query(queries, batch_size=1024),
        documents_before=before.encode_document(documents, batch_size=1024),
        documents_after=after.encode_document(documents, batch_size=1024),
    )
    (folder / "texts.json").write_text(json.dumps({"queries": queries, "documents": documents}), encoding="utf-8")


if __name__ == "__main__":
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    main()
