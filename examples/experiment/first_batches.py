"""Which learning rate, input length and loss give the first batches of the original's log?

    python examples/experiment/first_batches.py --encoder all-mpnet-base-v2 --seeds 0 1 2 3 4

Two random heads are trained on batches of 64 pairs of MS MARCO small, with each combination of what the original's page
leaves open, and compared with its four losses and accuracies, if these were of each batch, or of every second, third,
fifth or tenth. The nearest combinations are printed; the ten nearest are in the ``results.json`` of ``--output``.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from experiment.original import FIRST_ACCURACIES, FIRST_LOSSES, PAIRS
from experiment.run import experiment_of, parser_of, training_data, training_pairs
from st_asym import AsymmetricProjection

BATCH, LOGGED = 64, len(FIRST_LOSSES)
LEARNING_RATES = (3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 1e-2)
EVERY = (1, 2, 3, 5, 10)
KEPT, SHOWN = 10, 2
# None: dot products, as the original had them at first.
TEMPERATURES = (0.05, 0.07, 0.08, 0.1, None)


@dataclass(frozen=True)
class Way:
    """What the original's page leaves open."""

    learning_rate: float
    temperature: float | None
    unit_length: bool

    def __str__(self) -> str:
        """In words."""
        loss = "dot product" if self.temperature is None else f"cosine at {self.temperature:g}"
        length = "1" if self.unit_length else "the square root of the dimension"
        return f"learning rate {self.learning_rate:g}, {loss}, inputs of length {length}"


def main(arguments: list[str] | None = None) -> None:
    options = parser_of(__doc__).parse_args(arguments)
    experiment = experiment_of(options)
    pairs, _ = training_pairs(training_data(options), PAIRS)
    model = experiment.cached(experiment.encoder)
    queries, documents = (
        normalize(encode(pairs[column], convert_to_tensor=True).float().cpu())
        for encode, column in ((model.encode_query, "query"), (model.encode_document, "document"))
    )
    ways = itertools.starmap(Way, itertools.product(LEARNING_RATES, TEMPERATURES, (True, False)))
    steps = min(len(pairs) // BATCH, (LOGGED - 1) * max(EVERY) + 1)
    rows = []
    for way in ways:
        # Losses and accuracies by step, shape (seeds, 2, steps).
        curves = torch.stack([first_steps(way, queries, documents, seed, steps) for seed in options.seeds])
        rows += [compared(way, every, curves[..., ::every][..., :LOGGED]) for every in EVERY]
    rows.sort(key=lambda row: row["off"])
    rows = [row for every in EVERY for row in [row for row in rows if row["every"] == every][:KEPT]]
    print(table(rows), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**experiment.facts, "rows": rows}, indent=1)
    (options.output / "results.json").write_text(text + "\n", encoding="utf-8")


def compared(way: Way, every: int, curves: Tensor) -> dict[str, Any]:
    """Curves of several seeds, shape ``(seeds, 2, lines)``, beside the original's; ``off`` is of losses, at most."""
    spreads = curves[:, 1].std(dim=0, correction=min(1, len(curves) - 1))
    losses, accuracies, spread = ([round(v, 4) for v in part.tolist()] for part in (*curves.mean(dim=0), spreads))
    off = max(abs(ours - theirs) for ours, theirs in zip(losses, FIRST_LOSSES, strict=False))
    found = {"losses": losses, "accuracies": accuracies, "spread of accuracies": spread, "off": off}
    return {"way": str(way), **asdict(way), "every": every, **found}


def first_steps(way: Way, queries: Tensor, documents: Tensor, seed: int, steps: int) -> Tensor:
    """Loss and accuracy of each batch before its step, shape ``(2, steps)``."""
    torch.manual_seed(seed)
    dimension = queries.shape[1]
    heads = AsymmetricProjection(dimension, init="random")
    optimizer = torch.optim.AdamW(heads.parameters(), lr=way.learning_rate)
    order = torch.randperm(len(queries))
    length = 1.0 if way.unit_length else math.sqrt(dimension)
    found = []
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        sides = {"query": length * queries[rows], "document": length * documents[rows]}
        vectors = [heads({"sentence_embedding": v}, task=side)["sentence_embedding"] for side, v in sides.items()]
        if way.temperature is not None:
            vectors = [normalize(one) for one in vectors]
        similarities = vectors[0] @ vectors[1].T / (way.temperature or 1.0)
        own = torch.arange(BATCH)
        loss = cross_entropy(similarities, own)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append((loss.item(), (similarities.argmax(dim=1) == own).float().mean().item()))
    return torch.tensor(found).T


def table(rows: list[dict[str, Any]]) -> str:
    """The two nearest for each number of batches between two lines, in Markdown."""
    lines = ["| every | way | losses | accuracies | a loss is off by at most |", "|---|---|---|---|---|"]
    lines.append(f"| | the original | {figures(FIRST_LOSSES, '.4f')} | {figures(FIRST_ACCURACIES, '.1%')} | |")
    for every in EVERY:
        for row in [row for row in rows if row["every"] == every][:SHOWN]:
            losses, accuracies = figures(row["losses"], ".4f"), figures(row["accuracies"], ".1%")
            lines.append(f"| {every} | {row['way']} | {losses} | {accuracies} | {row['off']:.3f} |")
    return "\n".join(lines)


def figures(values: Iterable[float], form: str) -> str:
    """Numbers with commas between them."""
    return ", ".join(format(value, form) for value in values)


if __name__ == "__main__":
    main()
