"""Two questions of the original experiment, by the same data, seeds and number of parameters.

    python examples/experiment/questions.py --question asymmetry --seeds 0 1 2 3 4
    python examples/experiment/questions.py --question isotropy --train scifact --on SciFact

``asymmetry``: two heads, one shared head, or a head for queries alone, each of as many parameters. ``isotropy``: which
term beside the contrastive loss, in float32, int8, binary (also less the corpus mean) and 128 dimensions. Heads start
as the identity; the other options are those of ``run.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    GlobalOrthogonalRegularizationLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from experiment.forms import FORMS, ndcg_by_form
from experiment.losses import difference_isotropy
from experiment.original import PAIRS
from experiment.run import (
    UNTOUCHED,
    Experiment,
    experiment_of,
    log_to,
    logger,
    parser_of,
    tasks_of,
    training_data,
    training_pairs,
)
from experiment.training_run import chosen_model, train
from st_asym import IsotropyLoss, asymmetric_model
from st_asym.data import RetrievalData, load_data
from st_asym.retrieval.significance import difference

Loss = Callable[[SentenceTransformer], nn.Module]


class LossWithTerm(nn.Module):
    """The library's contrastive loss, and beside it the parts that ``term`` makes of the same vectors."""

    def __init__(self, model: SentenceTransformer, term: Callable[[list[Tensor]], dict[str, Tensor]]) -> None:
        super().__init__()
        self.model = model
        self.contrastive: Any = MultipleNegativesRankingLoss(model)
        self.term = term

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The parts of both."""
        vectors = [self.model(column)["sentence_embedding"] for column in columns]
        return {"contrastive": self.contrastive.compute_loss_from_embeddings(vectors, labels), **self.term(vectors)}


def orthogonality(model: SentenceTransformer) -> nn.Module:
    """With the library's global orthogonal regularisation."""
    return LossWithTerm(model, GlobalOrthogonalRegularizationLoss(model).compute_loss_from_embeddings)


def pair_differences(model: SentenceTransformer) -> nn.Module:
    """With the isotropy of the differences within pairs."""
    return LossWithTerm(model, lambda vectors: {"isotropy": difference_isotropy(*vectors[:2])})


@dataclass(frozen=True)
class Way:
    """A row: heads and a loss. ``widths`` is the hidden layer in multiples of the input."""

    loss: Loss = MultipleNegativesRankingLoss
    widths: int = 2
    shared: bool = False
    document: bool = True


# Twice the width on one head is as many parameters as two heads have, but for one bias of the output.
ASYMMETRY = {
    "two heads": Way(),
    "one shared head": Way(widths=4, shared=True),
    "query side alone": Way(widths=4, document=False),
}
ISOTROPY = {
    "none": Way(),
    "covariance": Way(IsotropyLoss),
    "SIGReg": Way(lambda model: IsotropyLoss(model, kind="sigreg")),
    "uniformity": Way(lambda model: IsotropyLoss(model, kind="uniformity")),
    "GOR": Way(orthogonality),
    "pair differences": Way(pair_differences),
}
QUESTIONS: dict[str, Mapping[str, Way]] = {"asymmetry": ASYMMETRY, "isotropy": ISOTROPY}


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--question", choices=QUESTIONS, required=True)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    log_to(options.output / "log.txt")
    experiment = experiment_of(options)
    pairs = training_pairs(training_data(options), None if options.full else PAIRS)
    sets = {name: load_data(path) for name, path in tasks_of(options).items() if isinstance(path, Path)}
    before = scores(experiment, experiment.encoder, sets)
    found: dict[str, list[dict[str, dict[str, list[float]]]]] = {UNTOUCHED: [before]}
    for name, way in QUESTIONS[options.question].items():
        for seed in options.seeds:
            logger.info("%s, seed %d", name, seed)
            folder = options.output / name.replace(" ", "_") / str(seed)
            model = trained(experiment, way, pairs, folder, seed, options.learning_rate or 3e-4)
            found.setdefault(name, []).append(scores(experiment, model, sets))
    forms = FORMS if options.question == "isotropy" else FORMS[:1]
    base = "none" if options.question == "isotropy" else "one shared head"
    rows = {
        name: {data: {form: summary(runs, found[base], data, form) for form in forms} for data in sets}
        for name, runs in found.items()
    }
    text = "\n\n".join(table(rows, data, base) for data in sets)
    if missing := [name for name in tasks_of(options) if name not in sets]:
        text += f"\n\nNot run, as they are not in the data folder: {', '.join(missing)}."
    logger.info("\n%s", text)
    content = {
        **experiment.facts,
        "question": options.question,
        "compared with": base,
        "rows": rows,
        "not run": missing,
    }
    (options.output / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.output / "table.md").write_text(text + "\n", encoding="utf-8")


def trained(
    experiment: Experiment, way: Way, pairs: tuple[Dataset, Dataset], folder: Path, seed: int, learning_rate: float
) -> SentenceTransformer:
    """Heads from the identity, on the pairs that all rows have, in batches of 64 for three epochs."""
    torch.manual_seed(seed)
    width = way.widths * (experiment.encoder.get_embedding_dimension() or 0)
    heads = asymmetric_model(experiment.encoder, hidden_features=width, shared=way.shared, document=way.document)
    model = experiment.cached(heads)
    arguments = {"learning_rate": learning_rate, "per_device_train_batch_size": 64, "num_train_epochs": 3}
    train(model, way.loss(model), *pairs, folder, seed=seed, **arguments)
    return chosen_model(experiment.encoder, folder)


def scores(
    experiment: Experiment, model: SentenceTransformer, sets: Mapping[str, RetrievalData]
) -> dict[str, dict[str, list[float]]]:
    """Data set to form to nDCG@10 of each test query."""
    return {name: ndcg_by_form(experiment.cached(model), data) for name, data in sets.items()}


def summary(runs: list[Any], base: list[Any], data: str, form: str) -> dict[str, float]:
    """Mean and spread over seeds, and the difference to another row with its p-value, paired by query."""
    own, other = (np.mean([run[data][form] for run in rows], axis=0) for rows in (runs, base))
    by_seed = [float(np.mean(run[data][form])) for run in runs]
    gain = difference([other], [own])
    spread = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else 0.0
    return {"mean": float(np.mean(by_seed)), "spread": spread, "points": gain.points, "p": gain.p}


def table(rows: Mapping[str, Any], data: str, base: str) -> str:
    """One data set in Markdown: each form's nDCG@10, and in points what it is off from the same form of ``base``."""
    forms = list(next(iter(rows.values()))[data])
    lines = [f"| {data}, to {base} | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
    for name, found in rows.items():
        cells = [
            f"{one['mean']:.4f}" + ("" if name == base else f" ({100 * one['points']:+.2f}, p {one['p']:.3f})")
            for one in found[data].values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
