"""Any result as one HTML file that needs nothing from elsewhere: a comparison, a diagnosis, a fit or a training.

Each kind has a template, ``templates/*.html.j2``; here is what these show beside the result itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeAlias

from transformers import TrainerState

from st_asym.data.files import write_text
from st_asym.diagnosis import Diagnosis
from st_asym.evaluation.comparison import MAIN, Comparison, by_query
from st_asym.fitting.report import FitReport
from st_asym.report import plots, tables
from st_asym.report.card import template
from st_asym.report.plots import REQUIRES, Plot
from st_asym.retrieval.significance import Difference, p_value
from st_asym.trainer.monitor import METRICS, NO_LOSSES
from st_asym.trust.provenance import installed

Subject: TypeAlias = Comparison | Diagnosis | FitReport | TrainerState

_NAMES = "a Comparison, a Diagnosis, a FitReport or a TrainerState"
# More pictures of queries than this are drawn for all data sets together.
_MANY = 12
# Queries that are listed on either end.
_LISTED = 10

# What is in the log of a fit, and is no loss.
_FIGURES = {"accuracy": "nearest document is relevant", "query_std": "queries", "document_std": "documents"}

_NO_FIGURES = ("epoch", "step", "runtime", "per_second", "total_flos")
_SPREADS = ("query_std", "document_std")
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
    return template("page.html.j2").render(pages=pages, title=" and ".join(page["title"] for page in pages))


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
    write_text(path, as_html(*subjects), errors="replace")


def comparison_page(comparison: Comparison) -> dict[str, Any]:
    """Verdicts, tables, differences with their intervals, queries, and what it all rests on."""
    first, *others = comparison.rows
    verdict = "; ".join(f"{row.name}: {row.verdict or 'no verdict'}" for row in others if not row.baseline)
    groups, group_differences = _groups(comparison)
    settings = [[name.replace("_", " "), value] for name, value in comparison.settings.items()]
    return {
        "title": "Comparison",
        "lead": f"{verdict or f'{first.name}: {first.average[MAIN]:.4f}'}.",
        "body": "comparison.html.j2",
        "versions": comparison.versions,
        "of": comparison,
        "differences": _differences(comparison),
        "groups": groups,
        "group_differences": group_differences,
        "scatters": _scatters(comparison),
        "changes": _changes(comparison),
        "models": [
            [row.name, "" if seed is None else seed, digest]
            for row in comparison.rows
            for digest, seed in zip(row.digests, row.seeds or [None] * len(row.digests), strict=True)
        ],
        "data": [
            [name, facts["split"], f"{facts['queries']:,}", f"{facts['documents']:,}", facts["version"]]
            for name, facts in comparison.data.items()
        ],
        "settings": [*settings, ["created", comparison.created]],
    }


def _differences(comparison: Comparison) -> list[Plot]:
    first, *others = comparison.rows
    found: dict[str, dict[str, Difference]] = {}
    if len(comparison.data) > 1:
        found["average"] = {row.name: row.difference for row in others if row.difference is not None}
    for data in comparison.data:
        found[data] = {row.name: row.differences[data] for row in others if data in row.differences}
    return plots.difference_forest("Difference in nDCG@10", found, first.name)


def _groups(comparison: Comparison) -> tuple[list[list[str]], list[Plot]]:
    """Rows of queries on seen and on unseen documents apart, and their differences drawn."""
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
    return rows, plots.difference_forest(title, found, first)


def _scatters(comparison: Comparison) -> list[Plot]:
    """Of each system, by data set, or of many all together."""
    first, *others = comparison.rows
    names = list(comparison.data)
    pictures = []
    for row in others:
        for part in [names] if len(others) * len(names) > _MANY else [[name] for name in names]:
            before, after = (
                [float(score) for data in part for score in by_query(comparison.queries[data], one.name)]
                for one in (first, row)
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


def _changes(comparison: Comparison) -> list[tuple[list[str], list[list[str]], str]]:
    """The queries that gained and lost most, of each system on each data set: header, rows and caption."""
    first, *others = comparison.rows
    found = []
    for row in others:
        for data in comparison.data:
            ids, seen = comparison.queries[data]["ids"], comparison.queries[data]["seen"]
            before, after = (by_query(comparison.queries[data], one.name).tolist() for one in (first, row))
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
                found.append((header, rows, f"{data}: {row.name}"))
    return found


def diagnosis_page(diagnosis: Diagnosis) -> dict[str, Any]:
    """Findings, search, vectors, heads and examples."""
    found = [plots.cosines(diagnosis.histograms, "negative", "other pairs" if diagnosis.judged else "all pairs")]
    examples = []
    if (judged := diagnosis.judged) is not None:
        scatter = plots.by_query("nDCG@10 by query", judged.ndcg_before, judged.ndcg_after, ("encoder", "with heads"))
        found = [plots.cosines(diagnosis.histograms, "positive", "relevant pairs"), *found, scatter]
        examples = [("Largest gains in nDCG@10", judged.gains), ("Largest losses in nDCG@10", judged.losses)]
    spectra = [plots.spectra(diagnosis.query, "queries"), plots.spectra(diagnosis.document, "documents")]
    return {
        "title": "Diagnosis of the heads",
        "lead": diagnosis.first_line,
        "body": "diagnosis.html.j2",
        "versions": diagnosis.versions,
        "of": diagnosis,
        "parts": [
            ("Search", tables.search_table(diagnosis), found),
            ("Vectors", tables.vectors_table(diagnosis), spectra),
            ("Heads", tables.heads_table(diagnosis), plots.singular_values(diagnosis)),
        ],
        "examples": examples,
    }


def fit_page(report: FitReport) -> dict[str, Any]:
    """The decision, what it rests on, how heads were trained, and on what."""
    facts = report.as_dict()
    best = tables.best(facts)
    candidate = None if best is None else best["choice"]["candidate"]
    own = [entry for entry in facts["evidence"] if entry["choice"]["candidate"] == candidate]
    return {
        "title": "Fit",
        "lead": report.first_line,
        "body": "fit.html.j2",
        "versions": report.versions,
        "of": facts,
        "counts": [[name, f"{number:,}"] for name, number in report.counts.items()],
        "forest": plots.candidate_forest(facts),
        "choices": [
            [
                entry["choice"]["candidate"],
                tables.how_far(entry["choice"]),
                *(tables.half(entry[name]) for name in tables.HALVES),
                tables.difference(entry["gain"], entry["error"]),
                "kept" if entry == facts["chosen"] else "",
            ]
            for entry in facts["evidence"]
        ],
        "gains": plots.gain_curves(own, facts["chosen"]),
        "training": _training(facts),
        "trials": _trials(report),
        "seconds": [[part, f"{taken:.1f}"] for part, taken in report.seconds.items()],
    }


def _training(facts: tables.Report) -> list[Plot]:
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


def _trials(report: FitReport) -> list[list[str]]:
    """Header and rows: gains of the trials, and the settings in which they differ."""
    trials = [{**trial.get("settings", {}), **trial} for trial in report.trials]
    names = dict.fromkeys(name for trial in trials for name in trial if name != "settings")
    columns = [name for name in names if len(trials) == 1 or len({str(trial.get(name)) for trial in trials}) > 1]
    rows = [["trial", *(name.replace("_", " ") for name in columns)]]
    for number, trial in enumerate(trials, 1):
        values = (trial.get(name) for name in columns)
        rows.append([str(number), *("" if value is None else tables.shown(value) for value in values)])
    return rows


def training_page(state: TrainerState) -> dict[str, Any]:
    """Curves of everything that was logged, and the last figures."""
    log = [
        {name: value for name, value in entry.items() if isinstance(value, int | float)}
        for entry in state.log_history
        if "epoch" in entry
    ]
    # Training before evaluation, and a sum before its parts; a state that was read from a file is by the alphabet.
    found = {name for entry in log for name in entry}
    names = sorted(found, key=lambda name: (name.startswith("eval_"), not name.endswith("loss"), name))
    shown = (name for name in names if not name.endswith(_NO_FIGURES))
    figures = {name: [entry[name] for entry in log if name in entry] for name in shown}
    if not figures:
        raise ValueError(
            "The trainer's log is empty: there are no curves to draw. Train first, with logging_strategy='steps' or "
            "'epoch' in the training arguments."
        )
    lead = f"{state.global_step:,} of {state.max_steps:,} steps, {state.epoch or 0:.3g} epochs."
    if state.best_metric is not None:
        lead += f" Best checkpoint: {state.best_metric:.4g} at step {state.best_global_step or 0:,}."
    return {
        "title": "Training",
        "lead": lead,
        "body": "training.html.j2",
        "versions": installed(),
        "curves": _logged(log, names),
        "ends": [[name.replace("_", " "), f"{own[0]:.4g}", f"{own[-1]:.4g}"] for name, own in figures.items()],
    }


def _logged(log: list[dict[str, float]], names: list[str]) -> list[Plot]:
    steps = [entry for entry in log if "loss" in entry]
    trained = {name for entry in steps for name in entry if name not in (*NO_LOSSES, *METRICS)}

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


_PAGES: dict[type, Callable[[Any], dict[str, Any]]] = {
    Comparison: comparison_page,
    Diagnosis: diagnosis_page,
    FitReport: fit_page,
    TrainerState: training_page,
}
