"""Whether a new model replaces the one in service, by queries that neither was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from st_asym.data.collection import counted
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.scores import MAIN
from st_asym.evaluation.seen import FEW
from st_asym.retrieval.significance import Difference, Floats, difference


@dataclass(frozen=True)
class Replacement:
    """Whether ``new`` replaces ``old``: ``print(replacement)`` is a sentence.

    Attributes:
        old: The name of the model in service.
        new: The name of the one that may replace it.
        replaces: The answer.
        reason: For it, in words.
        gain: In mean nDCG@10 from the old to the new one, None where no queries are left.
        halves: The same for ``"seen"`` and ``"unseen"`` queries, where the comparison knows them.
    """

    old: str
    new: str
    replaces: bool
    reason: str
    gain: Difference | None = None
    halves: dict[str, Difference] | None = None

    def __str__(self) -> str:
        """``Replace last by next: nDCG@10 +1.20 points [+0.31, +2.10], p = 0.009, on 412 queries ...``."""
        return f"{f'Replace {self.old} by {self.new}' if self.replaces else f'Keep {self.old}'}: {self.reason}"


def replacement(
    comparison: Comparison,
    old: str,
    new: str,
    *,
    unknown: Sequence[str] = (),
    significance: float = 0.05,
    seed: int = 0,
) -> Replacement:
    """Decide between two models of a comparison.

    The new one replaces the old one if its mean nDCG@10 is higher, on the queries that no model of the comparison was
    trained on, and if it is not significantly lower on those of them whose documents were trained on, or on the others
    (where the comparison was given ``train``). The difference need not be significant: both models passed their own
    tests against the encoder, the new one has seen more, and a week has few queries. Without a new query, or a
    difference, the old one stays; so it does where it is not known what was trained on.

    Args:
        comparison: Of :func:`st_asym.evaluate`; data sets count the same.
        old: The name of the model in service.
        new: The name of the one that may replace it.
        unknown: Models that were trained on queries of which there are no digests.
        significance: What a p-value must be below for a loss to count on a half.
        seed: Of the tests' random draws.

    Raises:
        KeyError: The comparison has no model of such a name.

    Example:
        >>> comparison = evaluate({"last": "current", "next": "next"}, "week.csv", split="all")  # doctest: +SKIP
        >>> replacement(comparison, "last", "next").replaces  # doctest: +SKIP
        True
    """
    old, new = (comparison[name].name for name in (old, new))  # or an error says which there are
    if unknown:
        reason = f"it is not known which queries {' and '.join(unknown)} learnt from."
        return Replacement(old, new, replaces=False, reason=reason)
    gain = _gain(comparison, old, new, None, seed)
    if gain is None:
        return Replacement(old, new, replaces=False, reason=f"it or {new} was trained on every query.")
    both = {half: _gain(comparison, old, new, half, seed) for half in ("seen", "unseen")}
    halves = {half: own for half, own in both.items() if own is not None}
    lost = [half for half, own in halves.items() if own.points < 0 and own.p < significance]
    reason = f"nDCG@10 {gain}, on {counted(gain.queries, 'query', 'queries')} that neither was trained on"
    reason += "".join(f"; {halves[half]}, on {half} documents, which is beyond noise" for half in lost)
    reason += f". Fewer than {FEW} say little." if gain.queries < FEW else "."
    return Replacement(old, new, gain.points > 0 and not lost, reason, gain, halves)


def _gain(comparison: Comparison, old: str, new: str, half: str | None, seed: int) -> Difference | None:
    """The difference on queries that were not trained on, all or those of a half; None where there are none."""
    before: list[Floats] = []
    after: list[Floats] = []
    for known in comparison.queries.values():
        trained = set(known["trained on"])
        places = {key: row for row, key in enumerate(known["ids"]) if key not in trained}
        if half is not None:
            seen = set(known["seen"]) if known["seen"] is not None else None
            places = {key: row for key, row in places.items() if seen is not None and (key in seen) == (half == "seen")}
        if places:
            scores = [np.mean(known["scores"][name][MAIN], axis=0)[list(places.values())] for name in (old, new)]
            before.append(scores[0])
            after.append(scores[1])
    return difference(before, after, seed) if before else None
