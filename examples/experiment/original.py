"""What the original experiment's status page says: its rows, its first batches, its bars, and what it foresaw next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from st_asym import Comparison

NAMES = {"asymmetric": "asymmetric", "iso_pred": "ISO15_PRED12", "respred": "ResPred", "fit": "fit"}
# Its averages of SciFact and NFCorpus with all-mpnet-base-v2; of its own system, before and after a repair.
AVERAGES = {"baseline": 0.4628, "ISO15_PRED12": 0.4759, "ResPred": 0.4416, "asymmetric": 0.1888, "repaired": 0.3235}
FIRST_LOSSES = (4.2020, 3.4631, 2.8512, 2.2231)
FIRST_ACCURACIES = (0.016, 0.297, 0.594, 0.719)
PAIRS = 10_000

JUDGED_ON = ("SciFact", "NFCorpus")
WORKS_ABOVE = 0.48
FAILS_BELOW = 0.465
_NEXT = {
    "works": "all pairs and five BEIR sets (--full).",
    "marginal": "temperature, isotropy weight, three-layer or wider heads, or a partly unfrozen encoder.",
    "fails": "look at the statistics of the vectors (st-asym diagnose), unfreeze layers, or accept the limit.",
}


def verdicts(comparison: Comparison) -> dict[str, str]:
    """A sentence or two on each system: the original's verdict, and whether the difference is more than noise.

    Args:
        comparison: Of SciFact and NFCorpus alone, the untouched encoder first.

    Returns:
        Name of the system to its verdict.
    """
    first, *rows = comparison.rows
    before = first.average["ndcg@10"]
    level = float(comparison.settings["significance"])
    said = {
        first.name: (
            f"{before:.4f}, {_judge(before)} by the original's bars (works above {WORKS_ABOVE}, fails below "
            f"{FAILS_BELOW}): what a system must beat is this row."
        )
    }
    for row in rows:
        average, gain = row.average["ndcg@10"], row.difference
        found = _judge(average)
        said[row.name] = f"{average:.4f}, {found}. The original's next step: {_NEXT[found]}"
        if gain is not None:
            side = "above" if gain.points > 0 else "below"
            noise = f"{side} it by more than noise" if gain.p_corrected < level else "not more than noise"
            said[row.name] += (
                f" To the untouched encoder {100 * gain.points:+.2f} points, p {gain.p_corrected:.4f}: {noise}."
            )
    return said


def first_batches(log: Sequence[Mapping[str, Any]]) -> str:
    """The first batches beside the original's, as a table in Markdown.

    Args:
        log: The trainer's ``state.log_history``, with an entry for each step.
    """
    lines = [
        "| batch | loss | contrastive | isotropy | accuracy | the original's loss | its accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    steps = [entry for entry in log if "loss" in entry]
    for batch, (entry, loss, accuracy) in enumerate(zip(steps, FIRST_LOSSES, FIRST_ACCURACIES, strict=False), start=1):
        parts = " | ".join(f"{entry[part]:.4f}" if part in entry else "" for part in ("contrastive", "isotropy"))
        now = f"{entry['loss']:.4f} | {parts} | {entry['in_batch_accuracy']:.1%}"
        lines.append(f"| {batch} | {now} | {loss:.4f} | {accuracy:.1%} |")
    return "\n".join(lines)


def _judge(average: float) -> str:
    return "works" if average > WORKS_ABOVE else "fails" if average < FAILS_BELOW else "marginal"
