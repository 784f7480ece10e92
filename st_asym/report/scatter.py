"""nDCG@10 of each query with one model against another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from st_asym.report.page import Picture
from st_asym.report.plotting import Theme, picture, wrapped

# Queries that score the same are one point, this large for one query.
_AREA = 14


def by_query(
    title: str,
    before: Sequence[float],
    after: Sequence[float],
    labels: tuple[str, str],
    seen: Sequence[bool] | None = None,
) -> Picture:
    """A scatter plot, with queries that score the same in one point, the larger the more they are.

    Args:
        title: What is drawn.
        before: Score of each query with the model on the horizontal axis, shape ``(n,)``.
        after: The same with the other.
        labels: Names of the two.
        seen: Whether a relevant document of the query was in training, where that is known.
    """
    pairs = list(zip(before, after, strict=True))
    groups: list[tuple[str | None, Counter[tuple[float, float]]]] = [(None, _points(pairs))]
    if seen is not None:
        known = {
            shown: [pair for pair, own in zip(pairs, seen, strict=True) if own is kind]
            for kind, shown in ((True, "seen documents"), (False, "unseen documents"))
        }
        groups = [(shown, _points(own)) for shown, own in known.items() if own]

    def draw(axes: Any, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.text, linewidth=0.8)
        for number, (shown, points) in enumerate(groups):
            color = (theme.after, theme.before)[number]
            # The second group in outline: where both have queries, the first shows through.
            look = {"linewidths": 0, "alpha": 0.55} if number == 0 else {"facecolors": "none", "linewidths": 1.3}
            axes.scatter(
                *zip(*points, strict=True),
                s=[_AREA * count**0.7 for count in points.values()],
                marker="oD"[number],
                color=color if number == 0 else None,
                edgecolors=None if number == 0 else color,
                label=shown,
                clip_on=False,
                zorder=2 + number,
                **look,
            )
        names = wrapped(labels[0], 44, 2), wrapped(labels[1], 24, 2)
        axes.set(title=wrapped(title, 44, 2), xlabel=names[0], ylabel=names[1], xlim=(-0.08, 1.08), ylim=(-0.1, 1.1))

    up, down = sum(new > old for old, new in pairs), sum(new < old for old, new in pairs)
    counts = f"{up:,} queries gained, {down:,} lost, {len(pairs) - up - down:,} stayed as they were."
    caption = f"{counts} Above the line a query gained; the larger a point, the more queries."
    return picture(draw, f"Scatter plot of nDCG@10 by query, {labels[0]} against {labels[1]}: {counts}", caption)


def _points(pairs: Sequence[tuple[float, float]]) -> Counter[tuple[float, float]]:
    return Counter((round(old, 2), round(new, 2)) for old, new in pairs)
