"""A diagnosis as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from st_asym.diagnosis.diagnose import Diagnosis
from st_asym.diagnosis.relevance import Example
from st_asym.heads.anatomy import Side
from st_asym.report.page import Card, Note, Page, Picture, Section, Table
from st_asym.report.plots import Theme, by_query, picture
from st_asym.report.tables import heads_table, search_table, vectors_table

_SIDES: dict[Side, str] = {"query": "queries", "document": "documents"}


def diagnosis_page(diagnosis: Diagnosis) -> Page:
    """Findings, search, vectors, heads and examples."""
    notes = [Note(finding.text, finding.trouble) for finding in diagnosis.findings]
    sections = [
        Section("Findings", notes=notes or [Note("Nothing is out of range.")]),
        Section("Search", tables=[_table(search_table(diagnosis))], pictures=_search(diagnosis)),
        Section("Vectors", tables=[_table(vectors_table(diagnosis))], pictures=_spectra(diagnosis)),
        Section("Heads", tables=[_table(heads_table(diagnosis))], pictures=_heads(diagnosis)),
    ]
    if diagnosis.judged is not None:
        sections += [
            Section("Largest gains in nDCG@10", cards=_cards(diagnosis.judged.gains)),
            Section("Largest losses in nDCG@10", cards=_cards(diagnosis.judged.losses)),
        ]
    shown = [section for section in sections if section.notes or section.tables or section.cards]
    return Page("Diagnosis of the heads", diagnosis.first_line, shown, dict(diagnosis.versions))


def _table(rows: Sequence[Sequence[str]]) -> Table:
    return Table(rows[0], rows[1:])


def _search(diagnosis: Diagnosis) -> list[Picture]:
    pictures = [_histogram(diagnosis, "negative", "other pairs" if diagnosis.judged else "all pairs")]
    if diagnosis.judged is not None:
        pictures.insert(0, _histogram(diagnosis, "positive", "relevant pairs"))
        judged = diagnosis.judged
        pictures.append(by_query("nDCG@10 by query", judged.ndcg_before, judged.ndcg_after, ("encoder", "with heads")))
    return pictures


def _histogram(diagnosis: Diagnosis, kind: str, shown: str) -> Picture:
    counts = {when: getattr(diagnosis.histograms, f"{kind}_{when}") for when in ("before", "after")}
    width = next(width for width, enough in ((1, 2_000), (2, 500), (4, 0)) if sum(counts["after"]) >= enough)
    counts = {when: [sum(own[p : p + width]) for p in range(0, len(own), width)] for when, own in counts.items()}
    used = [place for own in counts.values() for place, count in enumerate(own) if count]
    edges = diagnosis.histograms.edges[::width]

    def draw(axes: Any, theme: Theme) -> None:
        for when, name, style in (("before", "encoder", "--"), ("after", "with heads", "-")):
            total = max(1, sum(counts[when]))
            shares = [count / total for count in counts[when]]
            axes.stairs(shares, edges, color=getattr(theme, when), linestyle=style, linewidth=1.8, label=name)
        if used:
            axes.set_xlim(edges[min(used)] - 0.02, edges[max(used) + 1] + 0.02)
        axes.set(title=f"Cosine of a query with a document: {shown}", xlabel="cosine", ylabel="share of pairs")
        axes.title.set_fontsize(11)

    return picture(draw, f"Histogram of the cosines of {shown}, before and after the heads.")


def _spectra(diagnosis: Diagnosis) -> list[Picture]:
    return [_spectrum(diagnosis, side, shown) for side, shown in _SIDES.items()]


def _spectrum(diagnosis: Diagnosis, side: Side, shown: str) -> Picture:
    own = diagnosis.sides[side]

    def draw(axes: Any, theme: Theme) -> None:
        for when, name, style in (("before", "encoder", "--"), ("after", "with heads", "-")):
            shares = [share for share in getattr(own, when).spectrum if share > 1e-9]
            places = range(1, len(shares) + 1)
            axes.plot(places, shares, color=getattr(theme, when), linestyle=style, linewidth=1.8, label=name)
        axes.set(title=f"Spectrum of the {shown}", xlabel="principal axis", ylabel="share of variance", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")

    return picture(draw, f"Share of the variance of the {shown} along each axis.", "The flatter, the more even.")


def _heads(diagnosis: Diagnosis) -> list[Picture]:
    heads = {side: own.head for side, own in diagnosis.sides.items() if own.head.kind != "none"}
    if not any(head.singular_values for head in heads.values()):
        return []

    def draw(axes: Any, theme: Theme) -> None:
        for (side, head), color, style in zip(heads.items(), theme.lines, ("-", "--"), strict=False):
            places = range(1, len(head.singular_values) + 1)
            axes.plot(places, head.singular_values, color=color, linestyle=style, linewidth=1.8, label=side)
        axes.axhline(1.0, color=theme.text, linewidth=0.8)
        axes.set(title="Singular values of the heads' linear maps", xlabel="rank", ylabel="singular value")
        axes.set_ylim(bottom=0)

    return [picture(draw, "Singular values of the linear map of each head.", "The identity has 1 everywhere.")]


def _cards(examples: Sequence[Example]) -> list[Card]:
    return [
        Card(
            f"{example.before:.2f} → {example.after:.2f}: {example.query}",
            [
                ("relevant", example.relevant),
                ("first before", example.first_before),
                ("first now", example.first_after),
            ],
        )
        for example in examples
    ]
