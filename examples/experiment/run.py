"""The original experiment in one command: train, evaluate, compare with the untouched encoder, and judge.

    python examples/experiment/run.py --smoke                                  # MiniLM, minutes on two cores
    python examples/experiment/run.py --systems asymmetric iso_pred respred fit --init random identity --seeds 0 1 2
    python examples/experiment/run.py --encoder all-mpnet-base-v2 --full       # the original's encoder, five BEIR sets

``--output`` receives ``log.txt``, ``table.md``, ``results.json``, and ``comparison.json`` with every score of every
query.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import torch
import transformers
from packaged_encoder import packaged_encoder
from sentence_transformers import SentenceTransformer

from experiment.mpnet import NAME as MPNET
from experiment.mpnet import mpnet_encoder
from experiment.original import AVERAGES, JUDGED_ON, NAMES, PAIRS, first_batches, verdicts
from experiment.systems import Init, get_system
from experiment.training_run import chosen_model, start_from_pairs, train
from st_asym import CachedSentenceTransformer, Comparison, EmbeddingCache, evaluate, fit
from st_asym.data import RetrievalData, load_data
from st_asym.retrieval.significance import Difference

logger = logging.getLogger("experiment")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
# Names of MTEB's tasks, and of the files that are read instead where they are in the data folder.
SETS = {"SciFact": "scifact", "NFCorpus": "nfcorpus", "ArguAna": "arguana", "FiQA2018": "fiqa", "SCIDOCS": "scidocs"}
UNTOUCHED = "untouched encoder"
DEV_PAIRS = 2_000


@dataclass
class Experiment:
    """What all runs share: the encoder, its vectors, and the folder of the results."""

    encoder: SentenceTransformer
    cache: EmbeddingCache
    output: Path
    precision: Any = "fp32"
    facts: dict[str, Any] = field(default_factory=dict)

    def cached(self, model: SentenceTransformer) -> CachedSentenceTransformer:
        """The model, its encoder answered from the cache."""
        return CachedSentenceTransformer(model, self.cache, precision=self.precision)

    def compare(
        self, models: dict[str, Any], tasks: dict[str, Any], train: RetrievalData, *, bm25: bool = False
    ) -> Comparison:
        """Beside the untouched encoder, and with rows of BM25; earlier results are read from the output folder."""
        cached: dict[str, Any] = {UNTOUCHED: self.cached(self.encoder)}
        cached |= {name: {seed: self.cached(one) for seed, one in own.items()} for name, own in models.items()}
        options: dict[str, Any] = {"results": self.output / "scores", "baselines": ("bm25", "hybrid") if bm25 else ()}
        return evaluate(cached, tasks, cache=self.cache, train=train, **options)


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--bm25", action="store_true", help="rows of BM25, and of each system with BM25 added")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    log_to(options.output / "log.txt")
    started = time.perf_counter()
    experiment = experiment_of(options)
    data = training_data(options)
    pairs = training_pairs(data, None if options.full else PAIRS)
    logger.info("%d pairs to train on, %d to validate on.", len(pairs[0]), len(pairs[1]))
    tasks = reachable(experiment, tasks_of(options), data)
    models: dict[str, dict[int, SentenceTransformer]] = {}
    for system in options.systems:
        for init in ["its own"] if system == "fit" else options.init:
            name = NAMES[system] if system == "fit" else f"{NAMES[system]}, {init} start"
            for seed in options.seeds:
                logger.info("%s, seed %d", name, seed)
                folder = experiment.output / f"{system}-{init.replace(' ', '_')}" / str(seed)
                torch.manual_seed(seed)
                trained = (
                    fitted(experiment, data, folder, seed)
                    if system == "fit"
                    else run_system(experiment, system, init, pairs, folder, seed, options.learning_rate)
                )
                models.setdefault(name, {})[seed] = trained
    report(experiment, models, tasks, data, started, bm25=options.bm25)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options that the questions have as well."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=NAMES, default=["asymmetric"], help="(default: asymmetric)")
    parser.add_argument(
        "--init", nargs="+", choices=("random", "identity", "pairs"), default=["random"], help="(default: random)"
    )
    parser.add_argument("--encoder", help=f"a Hub id or path, or {MPNET}, from PyPI (default: the packaged MiniLM)")
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of the collections")
    parser.add_argument("--train", default="msmarco_small", help="a collection there, or a path (default: %(default)s)")
    parser.add_argument("--on", nargs="+", choices=SETS, help=f"(default: {' '.join(JUDGED_ON)}; with --full all)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help=f"at most {PAIRS:,} pairs, as without --full")
    size.add_argument("--full", action="store_true", help="all pairs, and five BEIR sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--learning-rate", type=float, help="(default: 1e-3 for random heads, else 3e-4)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the encoder")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--output", type=Path, default=Path("runs/experiment") / stamp, help="a folder without a run")
    return parser


def experiment_of(options: argparse.Namespace) -> Experiment:
    """The encoder, frozen, and the cache."""
    name = mpnet_encoder() if options.encoder == MPNET else options.encoder or packaged_encoder()
    encoder = SentenceTransformer(name).requires_grad_(False).eval()
    facts = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    return Experiment(encoder, EmbeddingCache(options.cache), options.output, options.precision, {"options": facts})


def training_data(options: argparse.Namespace) -> RetrievalData:
    """What is trained on."""
    return load_data(source_of(options.data, options.train) or options.train)


def training_pairs(data: RetrievalData, most: int | None) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The training pairs, at most so many, and those to validate on, cut from them where there is no dev split."""
    data = data.with_dev_split()
    train, dev = (data.pairs(split).shuffle(seed=0) for split in ("train", "dev"))
    return train.select(range(min(most or len(train), len(train)))), dev.select(range(min(DEV_PAIRS, len(dev))))


def source_of(folder: Path, name: str) -> Path | None:
    """A collection in the data folder: a zip or a folder."""
    return next((path for path in (folder / f"{name}.zip", folder / name) if path.exists()), None)


def tasks_of(options: argparse.Namespace) -> dict[str, Any]:
    """What to evaluate on: files where they are at hand, else the names under which MTEB reads them from the Hub."""
    names = options.on or (list(SETS) if options.full else list(JUDGED_ON))
    return {name: source_of(options.data, SETS[name]) or name for name in names}


def reachable(experiment: Experiment, tasks: dict[str, Any], data: RetrievalData) -> dict[str, Any]:
    """The tasks that can be read; of the others the log and the results say why not."""
    found = {}
    for name, source in tasks.items():
        try:
            experiment.compare({}, {name: source}, data)
            found[name] = source
        except OSError as error:
            logger.warning("%s was not run: %s", name, error)
            experiment.facts.setdefault("not run", {})[name] = str(error)
    if not found:
        raise SystemExit("None of the data sets could be read.")
    return found


def run_system(
    experiment: Experiment,
    name: str,
    init: str,
    pairs: tuple[datasets.Dataset, datasets.Dataset],
    folder: Path,
    seed: int,
    learning_rate: float | None,
) -> SentenceTransformer:
    """Train one of the original's systems, and take its best checkpoint, else the latest."""
    system = get_system(name)
    start: Init = "random" if init == "random" else "identity"
    model = experiment.cached(system.build(experiment.encoder, start))
    if init == "pairs":
        start_from_pairs(model, pairs[0])
    arguments = system.arguments(start)
    arguments["learning_rate"] = learning_rate or arguments["learning_rate"]
    log = train(model, system.loss(model), *pairs, folder, seed=seed, **arguments)
    if name == "asymmetric" and init == "random":
        experiment.facts.setdefault("first batches", first_batches(log))
    return chosen_model(experiment.encoder, folder, system)


def fitted(experiment: Experiment, data: RetrievalData, folder: Path, seed: int) -> SentenceTransformer:
    """What the experiment has become."""
    result = fit(
        experiment.encoder,
        data,
        output_dir=folder,
        cache=experiment.cache,
        precision=experiment.precision,
        seed=seed,
        show_progress_bar=False,
    )
    logger.info("%s", result.report.first_line)
    return result.model


def report(
    experiment: Experiment,
    models: dict[str, Any],
    tasks: dict[str, Any],
    data: RetrievalData,
    started: float,
    *,
    bm25: bool,
) -> None:
    """The table, the verdict, the first batches and the JSON."""
    comparison = experiment.compare(models, tasks, data, bm25=bm25)
    text = [comparison.to_markdown()]
    if set(JUDGED_ON) <= set(tasks):
        judged = experiment.compare(models, {name: tasks[name] for name in JUDGED_ON}, data)
        experiment.facts["verdicts"] = verdicts(judged)
        text += ["\n".join(f"- {name}: {said}" for name, said in experiment.facts["verdicts"].items()), ""]
    else:
        text += [f"No verdict: it is by {' and '.join(JUDGED_ON)}.", ""]
    if "first batches" in experiment.facts:
        text += [experiment.facts["first batches"], ""]
    text += [f"Not run: {name}. {why}" for name, why in experiment.facts.get("not run", {}).items()]
    experiment.facts |= {"rows": rows_of(comparison), "original": AVERAGES, "versions": comparison.versions}
    experiment.facts["seconds"] = round(time.perf_counter() - started, 1)
    logger.info(
        "\n%s\n%.0f seconds. Results: %s", "\n".join(text).strip(), experiment.facts["seconds"], experiment.output
    )
    (experiment.output / "table.md").write_text("\n".join(text), encoding="utf-8")
    (experiment.output / "results.json").write_text(json.dumps(experiment.facts, indent=1) + "\n", encoding="utf-8")
    comparison.to_json(experiment.output / "comparison.json")


def rows_of(comparison: Comparison) -> dict[str, Any]:
    """nDCG@10 of each row, also apart by whether training asks for a query's documents; differences to the untouched.

    ``comparison`` begins with the untouched encoder.
    """

    def gain(difference: Difference | None) -> dict[str, float]:
        return {"points": difference.points, "p": difference.p_corrected} if difference else {}

    return {
        row.name: {
            "average": row.average["ndcg@10"],
            **{data: scores["ndcg@10"] for data, scores in row.scores.items()},
            "spread": row.spread,
            **gain(row.difference),
            "groups": {
                data: {
                    name: {"queries": part.queries, "ndcg@10": part.score, **gain(part.difference)}
                    for name, part in groups.items()
                }
                for data, groups in row.groups.items()
            },
        }
        for row in comparison.rows
    }


def log_to(path: Path) -> None:
    """What is logged goes to the terminal as it is, and to a file with the time."""
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    file, terminal = logging.FileHandler(path, encoding="utf-8"), logging.StreamHandler(sys.stdout)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    logger.addHandler(terminal)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
