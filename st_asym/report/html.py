"""Any result as one HTML file that needs nothing from elsewhere: a comparison, a diagnosis, a fit or a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from transformers import TrainerState

from st_asym.data.collection import counted
from st_asym.data.files import write_text
from st_asym.diagnosis import Diagnosis
from st_asym.diagnosis.findings import Example
from st_asym.evaluation.comparison import MAIN, Comparison, Row
from st_asym.fitting.report import FitReport
from st_asym.report import plots
from st_asym.report import tables as of_fit
from st_asym.report.card import template
from st_asym.report.plots import REQUIRES, Plot
from st_asym.report.tables import (
    heads_table,
    how_compared,
    long_tables,
    search_table,
    short_table,
    vectors_table,
)
from st_asym.retrieval.significance import Difference, p_value

Subject: TypeAlias = Comparison | Diagnosis | FitReport | TrainerState

_NAMES = "a Comparison, a Diagnosis, a FitReport or a TrainerState"
# More pictures of queries than this are drawn for all data sets together.
_MANY = 12
# Queries that are listed on either end.
_LISTED = 10
_SEEN = (
    "Seen: a relevant document of the query was a training positive. Unseen: none was. Trained on: so was the query "
    "itself."
)
_LOOK = "The texts are in the data set; st-asym diagnose shows them beside what was found."

# What is in the log of a fit, and is no loss.
_FIGURES = {"accuracy": "nearest document is relevant", "query_std": "queries", "document_std": "documents"}

_PACKAGES = ("st_asym", "sentence-transformers", "transformers", "torch")
# In the entries of a training step, but no part of its loss.
_NO_LOSSES = ("epoch", "step", "grad_norm", "learning_rate", "num_input_tokens_seen")
_NO_FIGURES = ("epoch", "step", "runtime", "per_second", "total_flos")
_SPREADS = ("query_std", "document_std")
_WATCHED = ("in_batch_accuracy", "positive_similarity", "negative_similarity", *_SPREADS)
_DASHED = "Dashed: evaluation."


def check_installed() -> None:
    """Refuse before hours of work whose report could not be written."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(REQUIRES)


def as_html(*subjects: Subject) -> str:
    """One HTML document for all of them, in light and dark; see :func:`save_html`."""
    if not subjects:
        raise TypeError(f"There is nothing to report on: give {_NAMES}.")
    pages = []
    for subject in subjects:
        page = next((page for kind, page in _PAGES.items() if isinstance(subject, kind)), None)
        if page is None:
            raise TypeError(f"A report is made of {_NAMES}, not of a {type(subject).__name__}.")
        pages.append(page(subject))
    return template("page.html.j2").render(pages=pages, title=" and ".join(page.title for page in pages))


def save_html(path: str | os.PathLike[str], *subjects: Subject) -> None:
    """Write one HTML file that opens anywhere, without a network. Needs the extra ``report``.

    Args:
        path: Where to write it; its folder is made if missing.
        *subjects: What :func:`st_asym.evaluate` or :func:`st_asym.diagnose` gives, the ``report`` of
            :func:`st_asym.fit`, the ``state`` of a trainer, best with the figures of :func:`st_asym.watch`, or several
            of them.

    Raises:
        TypeError: Nothing, or something else.
        ValueError: A trainer that has logged nothing.
        ModuleNotFoundError: matplotlib is missing.

    Example:
        >>> result = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model")  # doctest: +SKIP
        >>> save_html("report.html", result.report)  # doctest: +SKIP
        >>> state = TrainerState.load_from_json("runs/checkpoint-60/trainer_state.json")  # doctest: +SKIP
        >>> save_html("training.html", state)  # doctest: +SKIP
    """
    text = as_html(*subjects)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text, errors="replace")


# What a page consists of


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; a folded one, which needs a caption, is opened by the reader."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Note:
    """A sentence or two that stand out, as trouble or as news, after a word for what they are."""

    text: str
    trouble: bool = False
    label: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading, left out where nothing is in it; cards are examples, each with its heading."""

    title: str
    text: str = ""
    notes: Sequence[Note] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Plot] = ()
    cards: Sequence[tuple[str, Mapping[str, str]]] = ()


@dataclass(frozen=True)
class Page:
    """One report: what is reported on, what came of it in one sentence, sections, and versions for its foot."""

    title: str
    lead: str
    sections: Sequence[Section]
    versions: Mapping[str, str] = field(default_factory=dict)


def comparison_page(comparison: Comparison) -> Page:
    """Verdicts, tables, differences with their intervals, queries, and what it all rests on."""
    first, *others = comparison.rows
    verdicts = [*(Note(one, trouble=True) for one in comparison.cautions), *map(_verdict, others)]
    tables = [Table(header, rows) for header, rows in (short_table(comparison), *long_tables(comparison))]
    notes = [Note(note) for note in comparison.notes if note not in comparison.cautions]
    how = how_compared(comparison, first.name) if others else ""
    sections = [
        Section("Verdicts", notes=verdicts),
        Section("Scores", how, tables=tables, pictures=_differences(comparison)),
        _groups(comparison),
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
        words.append(f"{row.difference.interval} points of nDCG@10 on {row.difference.queries:,} queries.")
    label = f"{(row.verdict or ('baseline' if row.baseline else 'no verdict')).capitalize()}."
    return Note(" ".join([*words, *row.next_steps]), row.verdict == "fails", label)


def _differences(comparison: Comparison) -> list[Plot]:
    first, *others = comparison.rows
    found: dict[str, dict[str, Difference]] = {}
    if len(comparison.data) > 1:
        found["average"] = {row.name: row.difference for row in others if row.difference is not None}
    for data in comparison.data:
        found[data] = {row.name: row.differences[data] for row in others if data in row.differences}
    return [plots.difference_forest("Difference in nDCG@10", found, first.name)] if others else []


def _groups(comparison: Comparison) -> Section:
    """Queries on seen and on unseen documents apart."""
    rows = []
    found: dict[str, dict[str, Difference]] = {}
    for row in comparison.rows:
        groups = {f"{data}, {kind}": group for data, own in row.groups.items() for kind, group in own.items()}
        for name, group in groups.items():
            beside = ["", ""]
            if group.difference is not None:
                beside = [str(group.difference.interval), p_value(group.difference.p_corrected)]
                found.setdefault(name, {})[row.name] = group.difference
            rows.append([f"{row.name}: {name}", f"{group.queries:,}", f"{group.score:.4f}", *beside])
    title, first = "Difference on seen and unseen documents", comparison.rows[0].name
    return Section(
        "Seen and unseen documents",
        _SEEN,
        tables=[Table(["", "queries", "nDCG@10", "points, 95 %", "p"], rows)] if rows else [],
        pictures=[plots.difference_forest(title, found, first)] if found else [],
    )


def _scores(comparison: Comparison, row: Row, data: str) -> list[float]:
    """nDCG@10 of each query, the mean over the models of the row."""
    scores = comparison.queries[data]["scores"][row.name][MAIN]
    return [float(value) for value in np.mean(scores, axis=0)]


def _scatters(comparison: Comparison) -> list[Plot]:
    """Of each system, by data set, or of many all together."""
    first, *others = comparison.rows
    names = list(comparison.data)
    pictures = []
    for row in others:
        for part in [names] if len(others) * len(names) > _MANY else [[name] for name in names]:
            before, after = (
                [score for data in part for score in _scores(comparison, one, data)] for one in (first, row)
            )
            known = [comparison.queries[data] for data in part]
            seen = None
            if all(one["seen"] is not None for one in known):
                seen = [query_id in ids for one in known for ids in [set(one["seen"])] for query_id in one["ids"]]
            title = "nDCG@10 by query"
            if len(names) > 1:
                title += f", {part[0] if len(part) == 1 else 'all data sets'}"
            pictures.append(plots.by_query(title, before, after, (first.name, row.name), seen))
    return pictures


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
    search, vectors, heads = (
        [Table(header, rows)]
        for header, *rows in (make(diagnosis) for make in (search_table, vectors_table, heads_table))
    )
    pictures = [plots.cosines(diagnosis.histograms, "negative", "other pairs" if diagnosis.judged else "all pairs")]
    examples = []
    if (judged := diagnosis.judged) is not None:
        scatter = plots.by_query("nDCG@10 by query", judged.ndcg_before, judged.ndcg_after, ("encoder", "with heads"))
        pictures = [plots.cosines(diagnosis.histograms, "positive", "relevant pairs"), *pictures, scatter]
        examples = [
            Section("Largest gains in nDCG@10", cards=_cards(judged.gains)),
            Section("Largest losses in nDCG@10", cards=_cards(judged.losses)),
        ]
    spectra = [plots.spectra(diagnosis.query, "queries"), plots.spectra(diagnosis.document, "documents")]
    sections = [
        Section("Findings", notes=findings or [Note("Nothing is out of range.")]),
        Section("Search", tables=search, pictures=pictures),
        Section("Vectors", tables=vectors, pictures=spectra),
        Section("Heads", tables=heads, pictures=plots.singular_values(diagnosis)),
        *examples,
    ]
    return Page("Diagnosis of the heads", diagnosis.first_line, sections, dict(diagnosis.versions))


def _cards(examples: Sequence[Example]) -> list[tuple[str, Mapping[str, str]]]:
    return [
        (
            f"{one.before:.2f} → {one.after:.2f}: {one.query}",
            {"relevant": one.relevant, "first before": one.first_before, "first now": one.first_after},
        )
        for one in examples
    ]


def fit_page(report: FitReport) -> Page:
    """The decision, what it rests on, how heads were trained, and on what."""
    facts = report.as_dict()
    best, forest = of_fit.best(facts), plots.candidate_forest(facts)
    tried = [Table(*of_fit.candidate_table(facts), " ".join(of_fit.how_to_read(facts)))] if facts["candidates"] else []
    held_out = list(dict.fromkeys(report.held_out))
    if report.refitted:
        held_out.append("The kept heads were then made of all queries, those held out included.")
    if report.labels != "judged":
        held_out.append(f"There were no labels: queries are the documents' own {report.labels}.")
    data = Table(["texts", "number"], [[name, f"{number:,}"] for name, number in report.counts.items()])
    candidate = None if best is None else best["choice"]["candidate"]
    own = [entry for entry in facts["evidence"] if entry["choice"]["candidate"] == candidate]
    how = "" if best is None else f"{candidate}: means over the cuts on which it was rehearsed."
    settings = Table(["setting", "value"], of_fit.settings_rows(facts))
    seconds = Table(["part", "seconds"], [[part, f"{taken:.1f}"] for part, taken in report.seconds.items()])
    sections = [
        Section("Data", " ".join(held_out), notes=[Note(note) for note in report.notes], tables=[data]),
        Section("Candidates", " ".join(of_fit.why(facts)), tables=tried, pictures=[] if forest is None else [forest]),
        Section("Held-out queries", tables=_choices(facts), pictures=plots.gain_curves(own, facts["chosen"])),
        Section("Training", how, pictures=_training(facts)),
        Section("Settings", tables=[settings, *_trials(report)]),
        Section("Time", tables=[seconds]),
    ]
    return Page("Fit", report.first_line, sections, dict(report.versions))


def _choices(facts: of_fit.Report) -> list[Table]:
    """All that was judged."""
    rows = []
    for entry in facts["evidence"]:
        row = [entry["choice"]["candidate"], of_fit.how_far(entry["choice"])]
        row += [of_fit.half(entry[name]) for name in of_fit.HALVES]
        row += [of_fit.difference(entry["gain"], entry["error"]), "kept" if entry == facts["chosen"] else ""]
        rows.append(row)
    caption = f"Difference in nDCG@10 to the untouched encoder of {counted(len(rows), 'choice')}, ± standard error"
    header = ["candidate", "how far", *of_fit.HALVES.values(), "together", ""]
    return [Table(header, rows, caption, folded=True)] if rows else []


def _training(facts: of_fit.Report) -> list[Plot]:
    """Losses, and what they do not show, by epoch; and the losses of the last training."""
    log, last = facts["log"], facts["training"]
    kept = None if facts["chosen"] is None else facts["chosen"]["choice"]["epoch"]
    spread = {name: _FIGURES[name] for name in _SPREADS}
    return [
        *plots.curves("Loss", log, _losses(log), "", kept),
        *plots.curves("Accuracy on held-out queries", log, {"accuracy": _FIGURES["accuracy"]}, "", kept),
        *plots.curves("Standard deviation of the vectors", log, spread, plots.SPREAD, kept),
        *plots.curves("Loss of the last training", last, _losses(last), "On all training queries."),
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
    """Curves of everything that was logged, and the last figures."""
    log = [
        {name: value for name, value in entry.items() if isinstance(value, int | float)}
        for entry in state.log_history
        if "epoch" in entry
    ]
    # Training before evaluation, and a sum before its parts; a state that was read from a file is by the alphabet.
    found = {name for entry in log for name in entry}
    names = sorted(found, key=lambda name: (name.startswith("eval_"), not name.endswith("loss"), name))
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


def _logged(log: list[dict[str, float]], names: list[str]) -> list[Plot]:
    steps = [entry for entry in log if "loss" in entry]
    trained = {name for entry in steps for name in entry if name not in (*_NO_LOSSES, *_WATCHED)}

    def is_loss(name: str) -> bool:
        own = name.removeprefix("eval_")
        return name in trained or (own != name and (own in trained or own.endswith("_loss")))

    def ending(*endings: str) -> dict[str, str]:
        return {name: name.replace("_", " ") for name in names if name.endswith(endings)}

    return [
        *plots.curves("Loss", log, {name: name.replace("_", " ") for name in names if is_loss(name)}, _DASHED),
        *plots.curves("In-batch accuracy", log, ending("in_batch_accuracy"), _DASHED),
        *plots.curves("Cosine of pairs", log, ending("positive_similarity", "negative_similarity"), _DASHED),
        *plots.curves("Standard deviation of the vectors", log, ending(*_SPREADS), plots.SPREAD),
        *plots.curves("nDCG@10", log, ending("ndcg@10"), "Of the trainer's evaluators."),
        *plots.curves("Learning rate", steps, {"learning_rate": "learning rate"}),
    ]


_PAGES: dict[type, Callable[[Any], Page]] = {
    Comparison: comparison_page,
    Diagnosis: diagnosis_page,
    FitReport: fit_page,
    TrainerState: training_page,
}
