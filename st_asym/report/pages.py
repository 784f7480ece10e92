"""What a comparison, a diagnosis, a fit and a training show on their page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from transformers import TrainerState

from st_asym.data.collection import counted
from st_asym.diagnosis import Diagnosis
from st_asym.diagnosis.relevance import Example
from st_asym.evaluation.comparison import MAIN, Comparison, Row
from st_asym.fitting.report import FitReport
from st_asym.heads.anatomy import Side
from st_asym.report import facts as of_fit
from st_asym.report.parts import Box, Note, Page, Picture, Section, Table
from st_asym.report.plots import (
    SPREAD,
    Interval,
    Theme,
    by_query,
    candidate_forest,
    curves,
    difference_forest,
    gain_curves,
    picture,
)
from st_asym.report.tables import (
    heads_table,
    how_compared,
    long_tables,
    p_value,
    search_table,
    short_table,
    vectors_table,
)
from st_asym.retrieval.significance import Difference

# More pictures of queries than this are drawn for all data sets together.
_MANY = 12
# Queries that are listed on either end.
_LISTED = 10
_SEEN = (
    "Seen: a relevant document of the query was a training positive. Unseen: none was. Trained on: so was the query "
    "itself."
)
_LOOK = "The texts are in the data set; st-asym diagnose shows them beside what was found."

_WHEN = (("before", "encoder", "--"), ("after", "with heads", "-"))

# What is in the log of a fit, and is no loss.
_FIGURES = {"accuracy": "nearest document is relevant", "query_std": "queries", "document_std": "documents"}

_PACKAGES = ("st_asym", "sentence-transformers", "transformers", "torch")
# In the entries of a training step, but no part of its loss.
_NO_LOSSES = ("epoch", "step", "grad_norm", "learning_rate", "num_input_tokens_seen")
_NO_FIGURES = ("epoch", "step", "runtime", "per_second", "total_flos")
_SPREADS = ("query_std", "document_std")
_WATCHED = ("in_batch_accuracy", "positive_similarity", "negative_similarity", *_SPREADS)
_DASHED = "Dashed: evaluation."


def comparison_page(comparison: Comparison) -> Page:
    """Verdicts, tables, differences with their intervals, queries, and what it all rests on."""
    first, *others = comparison.rows
    verdicts = [*(Note(one, trouble=True) for one in comparison.cautions), *map(_verdict, others)]
    tables = [Table(header, rows) for header, rows in (short_table(comparison), *long_tables(comparison))]
    notes = [Note(note) for note in comparison.notes if note not in comparison.cautions]
    sections = [
        Section("Verdicts", notes=verdicts),
        Section(
            "Scores",
            how_compared(comparison, first.name) if others else "",
            tables=tables,
            pictures=_differences(comparison),
        ),
        Section("Seen and unseen documents", _SEEN, tables=_groups(comparison), pictures=_of_groups(comparison)),
        Section("Query by query", pictures=_scatters(comparison)),
        Section("Largest gains and losses", _LOOK, tables=_changes(comparison)),
        Section("What was compared", notes=notes, tables=_basis(comparison)),
    ]
    verdict = "; ".join(f"{row.name}: {row.verdict or 'no verdict'}" for row in others if not row.baseline)
    lead = verdict or f"{first.name}: {first.average[MAIN]:.4f}"
    return Page("Comparison", f"{lead}.", sections, dict(comparison.versions))


def _verdict(row: Row) -> Note:
    words = [f"{row.name}:"]
    if row.difference is not None:
        words.append(f"{Interval.of(row.difference)} points of nDCG@10 on {row.difference.queries:,} queries.")
    label = f"{(row.verdict or ('baseline' if row.baseline else 'no verdict')).capitalize()}."
    return Note(" ".join([*words, *row.next_steps]), row.verdict == "fails", label)


def _differences(comparison: Comparison) -> list[Picture]:
    first, *others = comparison.rows
    found: dict[str, dict[str, Difference]] = {}
    if len(comparison.data) > 1:
        found["average"] = {row.name: row.difference for row in others if row.difference is not None}
    for data in comparison.data:
        found[data] = {row.name: row.differences[data] for row in others if data in row.differences}
    return [difference_forest("Difference in nDCG@10", found, first.name).picture] if others else []


def _groups(comparison: Comparison) -> list[Table]:
    rows = []
    for row in comparison.rows:
        for data, groups in row.groups.items():
            for kind, group in groups.items():
                own = group.difference
                beside = ["", ""] if own is None else [str(Interval.of(own)), p_value(own.p_corrected)]
                rows.append([f"{row.name}: {data}, {kind}", f"{group.queries:,}", f"{group.score:.4f}", *beside])
    return [Table(["", "queries", "nDCG@10", "points, 95 %", "p"], rows)] if rows else []


def _of_groups(comparison: Comparison) -> list[Picture]:
    first, *others = comparison.rows
    found: dict[str, dict[str, Difference]] = {}
    for row in others:
        for data, groups in row.groups.items():
            for kind, group in groups.items():
                if group.difference is not None:
                    found.setdefault(f"{data}, {kind}", {})[row.name] = group.difference
    title = "Difference on seen and unseen documents"
    return [difference_forest(title, found, first.name).picture] if found else []


def _scores(comparison: Comparison, row: Row, data: str) -> list[float]:
    """nDCG@10 of each query, the mean over the models of the row."""
    scores = comparison.queries[data]["scores"][row.name][MAIN]
    return [float(value) for value in np.mean(scores, axis=0)]


def _scatters(comparison: Comparison) -> list[Picture]:
    others, names = comparison.rows[1:], list(comparison.data)
    together = len(others) * len(names) > _MANY
    return [
        _scatter(comparison, row, part) for row in others for part in ([names] if together else [[n] for n in names])
    ]


def _scatter(comparison: Comparison, row: Row, names: Sequence[str]) -> Picture:
    first = comparison.rows[0]
    before, after = ([score for data in names for score in _scores(comparison, one, data)] for one in (first, row))
    known = [comparison.queries[data] for data in names]
    seen = None
    if all(one["seen"] is not None for one in known):
        seen = [query_id in ids for one in known for ids in [set(one["seen"])] for query_id in one["ids"]]
    title = "nDCG@10 by query"
    if len(comparison.data) > 1:
        title += f", {names[0] if len(names) == 1 else 'all data sets'}"
    return by_query(title, before, after, (first.name, row.name), seen)


def _changes(comparison: Comparison) -> list[Table]:
    """The queries that gained and lost most, of each system on each data set."""
    first, *others = comparison.rows
    tables = []
    for row in others:
        for data in comparison.data:
            ids, seen = comparison.queries[data]["ids"], comparison.queries[data]["seen"]
            before, after = _scores(comparison, first, data), _scores(comparison, row, data)
            order = sorted(range(len(ids)), key=lambda place: before[place] - after[place])
            ends = [place for place in order[:_LISTED] if after[place] > before[place]]
            ends += [place for place in order[-_LISTED:] if after[place] < before[place]]
            known = set(seen or ())
            rows = [
                [ids[place], f"{before[place]:.3f}", f"{after[place]:.3f}", f"{after[place] - before[place]:+.3f}"]
                + ([] if seen is None else ["seen" if ids[place] in known else "unseen"])
                for place in ends
            ]
            header = ["query", first.name, row.name, "difference", *([] if seen is None else ["documents"])]
            if rows:
                tables.append(Table(header, rows, f"{data}: {row.name}", folded=True))
    return tables


def _basis(comparison: Comparison) -> list[Table]:
    """Models by their digests, data by their versions, and the settings."""
    models = [
        [row.name, "" if seed is None else str(seed), digest]
        for row in comparison.rows
        for digest, seed in zip(row.digests, row.seeds or [None] * len(row.digests), strict=True)
    ]
    data = [
        [name, str(facts["split"]), f"{facts['queries']:,}", f"{facts['documents']:,}", str(facts["version"])]
        for name, facts in comparison.data.items()
    ]
    settings = [[name.replace("_", " "), str(value)] for name, value in comparison.settings.items()]
    return [
        Table(["model", "seed", "digest of weights and settings"], models),
        Table(["data set", "split", "queries", "documents", "version"], data),
        Table(["setting", "value"], [*settings, ["created", comparison.created]]),
    ]


def diagnosis_page(diagnosis: Diagnosis) -> Page:
    """Findings, search, vectors, heads and examples."""
    findings = [Note(finding.text, finding.trouble) for finding in diagnosis.findings]
    search, vectors, heads = (make(diagnosis) for make in (search_table, vectors_table, heads_table))
    histograms = [_histogram(diagnosis, "negative", "other pairs" if diagnosis.judged else "all pairs")]
    spectra = [_spectrum(diagnosis, "query", "queries"), _spectrum(diagnosis, "document", "documents")]
    examples = []
    if (judged := diagnosis.judged) is not None:
        scatter = by_query("nDCG@10 by query", judged.ndcg_before, judged.ndcg_after, ("encoder", "with heads"))
        histograms = [_histogram(diagnosis, "positive", "relevant pairs"), *histograms, scatter]
        examples = [
            Section("Largest gains in nDCG@10", cards=[_card(one) for one in judged.gains]),
            Section("Largest losses in nDCG@10", cards=[_card(one) for one in judged.losses]),
        ]
    sections = [
        Section("Findings", notes=findings or [Note("Nothing is out of range.")]),
        Section("Search", tables=[Table(search[0], search[1:])], pictures=histograms),
        Section("Vectors", tables=[Table(vectors[0], vectors[1:])], pictures=spectra),
        Section("Heads", tables=[Table(heads[0], heads[1:])], pictures=_singular_values(diagnosis)),
        *examples,
    ]
    return Page("Diagnosis of the heads", diagnosis.first_line, sections, dict(diagnosis.versions))


def _histogram(diagnosis: Diagnosis, kind: str, shown: str) -> Picture:
    counts = {when: getattr(diagnosis.histograms, f"{kind}_{when}") for when, *_ in _WHEN}
    width = next(width for width, enough in ((1, 2_000), (2, 500), (4, 0)) if sum(counts["after"]) >= enough)
    counts = {when: [sum(own[p : p + width]) for p in range(0, len(own), width)] for when, own in counts.items()}
    used = [place for own in counts.values() for place, count in enumerate(own) if count]
    edges = diagnosis.histograms.edges[::width]

    def draw(axes: Any, theme: Theme) -> None:
        for when, name, style in _WHEN:
            total = max(1, sum(counts[when]))
            shares = [count / total for count in counts[when]]
            axes.stairs(shares, edges, color=getattr(theme, when), linestyle=style, linewidth=1.8, label=name)
        if used:
            axes.set_xlim(edges[min(used)] - 0.02, edges[max(used) + 1] + 0.02)
        axes.set(title=f"Cosine of a query with a document: {shown}", xlabel="cosine", ylabel="share of pairs")
        axes.title.set_fontsize(11)

    return picture(draw, f"Histogram of the cosines of {shown}, before and after the heads.")


def _spectrum(diagnosis: Diagnosis, side: Side, shown: str) -> Picture:
    def draw(axes: Any, theme: Theme) -> None:
        for when, name, style in _WHEN:
            shares = [share for share in getattr(diagnosis.sides[side], when).spectrum if share > 1e-9]
            places = range(1, len(shares) + 1)
            axes.plot(places, shares, color=getattr(theme, when), linestyle=style, linewidth=1.8, label=name)
        axes.set(title=f"Spectrum of the {shown}", xlabel="principal axis", ylabel="share of variance", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")

    return picture(draw, f"Share of the variance of the {shown} along each axis.", "The flatter, the more even.")


def _singular_values(diagnosis: Diagnosis) -> list[Picture]:
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


def _card(example: Example) -> Box:
    return Box(
        f"{example.before:.2f} → {example.after:.2f}: {example.query}",
        [("relevant", example.relevant), ("first before", example.first_before), ("first now", example.first_after)],
    )


def fit_page(report: FitReport) -> Page:
    """The decision, what it rests on, how heads were trained, and on what."""
    facts = report.as_dict()
    best, forest = of_fit.best(facts), candidate_forest(facts)
    held_out = list(dict.fromkeys(report.held_out))
    if report.refitted:
        held_out.append("The kept heads were then made of all queries, those held out included.")
    if report.labels != "judged":
        held_out.append(f"There were no labels: queries are the documents' own {report.labels}.")
    data = Table(["texts", "number"], [[name, f"{number:,}"] for name, number in report.counts.items()])
    tried = [Table(*of_fit.candidate_table(facts), " ".join(of_fit.how_to_read(facts)))]
    candidate = None if best is None else best["choice"]["candidate"]
    own = [entry for entry in facts["evidence"] if entry["choice"]["candidate"] == candidate]
    how = "" if best is None else f"{candidate}: means over the cuts on which it was rehearsed."
    settings = Table(["setting", "value"], of_fit.settings_rows(facts))
    seconds = Table(["part", "seconds"], [[part, f"{taken:.1f}"] for part, taken in report.seconds.items()])
    sections = [
        Section("Data", " ".join(held_out), notes=[Note(note) for note in report.notes], tables=[data]),
        Section(
            "Candidates",
            " ".join(of_fit.why(facts)),
            tables=tried if facts["candidates"] else [],
            pictures=[] if forest is None else [forest.picture],
        ),
        Section("Held-out queries", tables=_choices(facts), pictures=gain_curves(own, facts["chosen"])),
        Section("Training", how, pictures=_training(facts)),
        Section("Settings", tables=[settings, *_trials(report)]),
        Section("Time", tables=[seconds]),
    ]
    return Page("Fit", report.first_line, sections, dict(report.versions))


def _choices(facts: of_fit.Report) -> list[Table]:
    """All that was judged."""
    rows = []
    for entry in facts["evidence"]:
        gains = [
            *(of_fit.half(entry[name]) for name in of_fit.HALVES),
            of_fit.difference(entry["gain"], entry["error"]),
        ]
        kept = "kept" if entry == facts["chosen"] else ""
        rows.append([entry["choice"]["candidate"], of_fit.how_far(entry["choice"]), *gains, kept])
    caption = f"Difference in nDCG@10 to the untouched encoder of {counted(len(rows), 'choice')}, ± standard error"
    header = ["candidate", "how far", *of_fit.HALVES.values(), "together", ""]
    return [Table(header, rows, caption, folded=True)] if rows else []


def _training(facts: of_fit.Report) -> list[Picture]:
    """Losses, and what they do not show, by epoch; and the losses of the last training."""
    log, last = facts["log"], facts["training"]
    kept = None if facts["chosen"] is None else facts["chosen"]["choice"]["epoch"]
    spread = {name: _FIGURES[name] for name in _SPREADS}
    return [
        *curves("Loss", log, _losses(log), "", kept),
        *curves("Accuracy on held-out queries", log, {"accuracy": _FIGURES["accuracy"]}, "", kept),
        *curves("Standard deviation of the vectors", log, spread, SPREAD, kept),
        *curves("Loss of the last training", last, _losses(last), "On all training queries."),
    ]


def _losses(log: Sequence[Mapping[str, float]]) -> dict[str, str]:
    return {name: name for entry in log for name in entry if name != "epoch" and name not in _FIGURES}


def _trials(report: FitReport) -> list[Table]:
    """Gains of the trials, and the settings in which they differ."""
    trials = [{**trial.get("settings", {}), **trial} for trial in report.trials]
    names = dict.fromkeys(name for trial in trials for name in trial if name != "settings")
    columns = [name for name in names if len(trials) == 1 or len({str(trial.get(name)) for trial in trials}) > 1]
    rows = []
    for number, trial in enumerate(trials, 1):
        values = (trial.get(name) for name in columns)
        rows.append([str(number), *("" if value is None else of_fit.shown(value) for value in values)])
    caption = f"{counted(len(rows), 'trial')}, with what they differ in."
    return [Table(["trial", *(name.replace("_", " ") for name in columns)], rows, caption)] if rows else []


def training_page(state: TrainerState) -> Page:
    """Curves of everything that was logged, and the last figures.

    Raises:
        ValueError: Nothing was logged with a number of epochs.
    """
    log = [
        {name: value for name, value in entry.items() if isinstance(value, int | float)}
        for entry in state.log_history
        if "epoch" in entry
    ]
    # A state that was read from a file has its figures by the alphabet.
    names = sorted({name for entry in log for name in entry}, key=_place)
    if all(name.endswith(_NO_FIGURES) for name in names):
        raise ValueError(
            "The trainer's log is empty: there are no curves to draw. Train first, with logging_strategy='steps' or "
            "'epoch' in the training arguments."
        )
    ends = []
    for name in names:
        values = [entry[name] for entry in log if name in entry]
        if not name.endswith(_NO_FIGURES):
            ends.append([name.replace("_", " "), f"{values[0]:.4g}", f"{values[-1]:.4g}"])
    lead = f"{state.global_step:,} of {state.max_steps:,} steps, {state.epoch or 0:.3g} epochs."
    if state.best_metric is not None:
        lead += f" Best checkpoint: {state.best_metric:.4g} at step {state.best_global_step or 0:,}."
    sections = [
        Section("Curves", pictures=_logged(log, names)),
        Section("First and last", tables=[Table(["figure", "first", "last"], ends)]),
    ]
    return Page("Training", lead, sections, {name: version(name) for name in _PACKAGES})


def _place(name: str) -> tuple[bool, bool, str]:
    """Training before evaluation, and a sum before its parts."""
    return name.startswith("eval_"), not name.endswith("loss"), name


def _logged(log: list[dict[str, float]], names: list[str]) -> list[Picture]:
    steps = [entry for entry in log if "loss" in entry]
    trained = {name for entry in steps for name in entry if name not in (*_NO_LOSSES, *_WATCHED)}

    def is_loss(name: str) -> bool:
        own = name.removeprefix("eval_")
        return name in trained or (own != name and (own in trained or own.endswith("_loss")))

    def ending(*endings: str) -> dict[str, str]:
        return {name: name.replace("_", " ") for name in names if name.endswith(endings)}

    return [
        *curves("Loss", log, {name: name.replace("_", " ") for name in names if is_loss(name)}, _DASHED),
        *curves("In-batch accuracy", log, ending("in_batch_accuracy"), _DASHED),
        *curves("Cosine of pairs", log, ending("positive_similarity", "negative_similarity"), _DASHED),
        *curves("Standard deviation of the vectors", log, ending(*_SPREADS), SPREAD),
        *curves("nDCG@10", log, ending("ndcg@10"), "Of the trainer's evaluators."),
        *curves("Learning rate", steps, {"learning_rate": "learning rate"}),
    ]
