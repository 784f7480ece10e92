"""Works, marginal or fails, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from st_asym.evaluation.statistics import Difference

if TYPE_CHECKING:
    from st_asym.evaluation.comparison import Group

_STILL = "No query scores otherwise than before: the heads did not move. Raise the learning rate."

Verdict = Literal["works", "marginal", "fails"]


@dataclass(frozen=True)
class Bar:
    """What a system must reach to work.

    Attributes:
        at_least: Share of the first system's mean nDCG@10 that it must gain.
        significance: What its corrected p-value must be below.
    """

    at_least: float = 0.035
    significance: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what cannot be reached.

        Raises:
            ValueError: It names the value.
        """
        if not 0 <= self.at_least < float("inf"):
            raise ValueError(f"at_least must be a share of at least 0, such as 0.035, got {self.at_least}.")
        if not 0 < self.significance < 1:
            raise ValueError(f"significance must be between 0 and 1, such as 0.05, got {self.significance}.")


def judge(difference: Difference, bar: Bar) -> Verdict:
    """``"works"`` for a significant gain that is large, ``"fails"`` for a significant loss, else ``"marginal"``."""
    significant = difference.p_corrected < bar.significance
    if significant and difference.points < 0:
        return "fails"
    relative = difference.relative if difference.relative is not None else float("inf")
    return "works" if significant and relative >= bar.at_least else "marginal"


def next_steps(
    verdict: Verdict,
    difference: Difference,
    bar: Bar,
    *,
    moved: bool,
    differences: Mapping[str, Difference],
    groups: Mapping[str, Mapping[str, Group]],
) -> tuple[str, ...]:
    """What the evidence suggests, a sentence each.

    Args:
        verdict: What was said of the system.
        difference: On which it was said.
        bar: What it had to reach.
        moved: Whether the score of any query differs from the first system's.
        differences: The same for each data set.
        groups: Data set to ``"seen"`` and ``"unseen"`` documents, where the training data are known.
    """
    steps = [_overall(verdict, difference, bar) if moved else _STILL]
    if verdict != "fails":
        steps += [
            f"{data}: worse than the first system ({100 * own.points:+.2f}), whatever the average says. Use the first "
            "system there, or train on pairs of it too."
            for data, own in differences.items()
            if own.points < 0 and own.p_corrected < bar.significance
        ]
    steps += [
        f"{data}: worse where no relevant document was in training. Use more isotropy, fewer epochs, or the query side "
        "only."
        for data, group in groups.items()
        if "unseen" in group and _clearly_worse(group["unseen"].difference)
    ]
    return tuple(filter(None, steps))


def _overall(verdict: Verdict, difference: Difference, bar: Bar) -> str:
    if verdict == "works":
        return ""
    if verdict == "fails":
        return "It is worse than the first system: lower the learning rate or stop earlier, and look at the data."
    if difference.p_corrected < bar.significance:
        return f"It gains, but less than {bar.at_least:.1%}: train longer, on more pairs, or with both heads."
    return (
        f"The difference is not distinguishable from chance on {difference.queries:,} queries: evaluate on more of "
        "them, or train on more pairs."
    )


def _clearly_worse(difference: Difference | None) -> bool:
    return difference is not None and difference.high is not None and difference.high < 0
