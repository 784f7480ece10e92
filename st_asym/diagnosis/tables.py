"""The figures of a diagnosis as rows of text: the first row names the columns, the first column the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st_asym.diagnosis.result import Diagnosis, Judged, Spread

Rows = list[list[str]]

# Attribute of a Spread, its name, decimals, and what is even.
_SPREAD = (
    ("mean_norm", "norm of the mean", 3, "0"),
    ("std", "standard deviation x sqrt(d)", 3, "1"),
    ("mean_cosine", "mean cosine", 3, "0"),
    ("isoscore", "IsoScore*", 3, "1"),
    ("effective_rank", "effective rank", 1, "d"),
    ("uniformity", "uniformity", 3, "-4"),
    ("hubness", "hubness (skew of N_10)", 2, "0"),
    ("length", "length before Normalize", 3, ""),
)
_RELEVANCE = (
    ("alignment", "alignment of positives"),
    ("positive", "mean cosine, positives"),
    ("negative", "mean cosine, negatives"),
    ("margin", "margin"),
    ("hard_margin", "margin to the best negative"),
)


def vectors_table(diagnosis: Diagnosis) -> Rows:
    """How the vectors of each side fill their space, before and after."""
    query, document = diagnosis.query, diagnosis.document
    spreads: tuple[Spread, ...] = (query.before, query.after, document.before, document.after)
    rows = [
        ["vectors", "queries", "with heads", "documents", "with heads", "even"],
        ["count", f"{query.texts:,}", "", f"{document.texts:,}", "", ""],
        ["dimension d", *(str(spread.dimension) for spread in spreads), ""],
    ]
    for name, shown, decimals, even in _SPREAD:
        rows.append([shown, *(f"{getattr(spread, name):.{decimals}f}" for spread in spreads), even])
    return rows


def heads_table(diagnosis: Diagnosis) -> Rows:
    """What each head is, and how far from the identity."""
    heads = [side.head for side in diagnosis.sides.values()]
    ends = [(head.singular_values[-1], head.singular_values[0]) if head.singular_values else None for head in heads]
    return [
        ["heads", "query", "document"],
        ["kind", *(head.kind + (", shared" if head.shared else "") for head in heads)],
        ["layers", *(head.layers for head in heads)],
        ["parameters", *(f"{head.parameters:,}" for head in heads)],
        ["change of the vectors", *(f"{head.change:.3g}" for head in heads)],
        ["turn, mean of 1 - cos", *(f"{head.turn:.3g}" for head in heads)],
        ["linear map, distance from I", *(_number(head.map_distance) for head in heads)],
        ["change that it explains", *(_number(head.linear_share) for head in heads)],
        ["its singular values", *("" if end is None else f"{end[0]:.3f} to {end[1]:.3f}" for end in ends)],
    ]


def search_table(diagnosis: Diagnosis) -> Rows:
    """What queries find, before and after."""
    ranking = diagnosis.ranking
    rows = [
        ["search", "encoder", "with heads"],
        ["queries whose ten nearest changed", "", f"{ranking.changed:.1%}"],
        ["of the ten nearest, replaced", "", f"{ranking.replaced:.1%}"],
        ["queries whose nearest changed", "", f"{ranking.first_changed:.1%}"],
        ["hubness of documents found", f"{ranking.hubness_before:.2f}", f"{ranking.hubness_after:.2f}"],
    ]
    return rows if diagnosis.judged is None else rows + _relevance(diagnosis.judged)


def _relevance(judged: Judged) -> Rows:
    pairs = list(zip(judged.ndcg_before, judged.ndcg_after, strict=True))
    means = [sum(scores) / len(pairs) for scores in zip(*pairs, strict=True)]
    won, lost = sum(after > before for before, after in pairs), sum(after < before for before, after in pairs)
    rows = [
        [shown, *(_number(getattr(part, name)) for part in (judged.before, judged.after))] for name, shown in _RELEVANCE
    ]
    return [
        *rows,
        [f"nDCG@10 ({len(pairs):,} queries)", *(f"{mean:.4f}" for mean in means)],
        ["queries that gained / lost", "", f"{won:,} / {lost:,}"],
    ]


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"
