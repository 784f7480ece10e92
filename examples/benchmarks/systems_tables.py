"""The tables of systems.py, from the journal of its runs."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from journal import Journal
from retrieval import p_value, spread

BENCHMARKS = ("scifact", "nfcorpus")
UNSEEN = "scifact, unseen documents"


def tables(journal: Journal) -> tuple[str, dict[str, Any]]:
    """All blocks that have results, as Markdown and as figures."""
    rows = {
        block: list(dict.fromkeys(key[1] for key in journal.entries if key[0] == block))
        for block in dict.fromkeys(key[0] for key in journal.entries)
    }
    text: list[str] = []
    figures: dict[str, Any] = {}
    for block, (title, write) in _BLOCKS.items():
        if block in rows:
            lines, figures[block] = write(journal, rows[block])
            text += [f"### {title}", "", *lines, ""]
    if "systems" in rows:
        lines, figures["compressed"] = _compressed(journal, rows["systems"])
        text += ["### Compressed vectors, nDCG@10", "", *lines, ""]
    return "\n".join(text), figures


def summary(
    entries: list[dict[str, Any]], collection: str, *, documents: Literal["all", "seen", "unseen"] = "all"
) -> dict[str, Any]:
    """Mean, standard deviation and difference to the untouched encoder, of one row and test collection.

    ``documents`` takes only the queries on documents that training saw, or only the others.
    """
    entries = [entry for entry in entries if collection in entry["scores"]]
    if not entries:
        return {}
    unseen = np.array(entries[0]["unseen"][collection], dtype=bool)
    which = {"all": unseen | ~unseen, "seen": ~unseen, "unseen": unseen}[documents]
    runs = [np.array(entry["scores"][collection])[which] for entry in entries]
    before = [np.array(entry["untouched"][collection])[which] for entry in entries]
    by_seed = [float(run.mean()) for run in runs]
    differences = np.mean([run - base for run, base in zip(runs, before, strict=True)], axis=0)
    return {
        "mean": round(float(np.mean(by_seed)), 4),
        "deviation": round(spread(by_seed), 4),
        "difference": round(float(differences.mean()), 4),
        "p": round(p_value(differences), 4),
        "queries": len(differences),
        "seeds": [entry["seed"] for entry in entries],
        "by seed": [round(value, 4) for value in by_seed],
        "seconds": round(float(np.mean([entry["seconds"] for entry in entries])), 1),
        "chosen": [entry["chosen"] for entry in entries if "chosen" in entry],
        "settings": [entry["settings"] for entry in entries if "settings" in entry],
    }


def _systems(journal: Journal, rows: list[str]) -> tuple[list[str], dict[str, Any]]:
    lines = [
        "| system | SciFact | to untouched (p) | unseen documents | to untouched (p) | NFCorpus | to untouched (p) "
        "| average | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for row in rows:
        own = {name: summary(journal.of("systems", row, name), name) for name in BENCHMARKS}
        own[UNSEEN] = summary(journal.of("systems", row, "scifact"), "scifact", documents="unseen")
        figures[row] = own
        cells = [
            f"{mean_and_deviation(own[name])} | {difference(own[name])}" for name in ("scifact", UNSEEN, "nfcorpus")
        ]
        means = [own[name].get("mean") for name in BENCHMARKS]
        average = "" if None in means else f"{np.mean([mean for mean in means if mean is not None]):.4f}"
        seconds = " / ".join(f"{own[name]['seconds']:.0f}" if own[name] else "-" for name in BENCHMARKS)
        seeds = " / ".join(str(len(own[name].get("seeds", []))) for name in BENCHMARKS)
        lines.append(f"| {row} | {' | '.join(cells)} | {average} | {seconds} | {seeds} |")
    return lines, figures


def _transfer(journal: Journal, rows: list[str]) -> tuple[list[str], dict[str, Any]]:
    lines = [
        "| trained on | tested on | nDCG@10 | to untouched (p) | kept | seconds | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for row in rows:
        for source in dict.fromkeys(entry["collection"] for entry in journal.of("transfer", row)):
            for tested in BENCHMARKS:
                found = summary(journal.of("transfer", row, source), tested)
                if not found:
                    continue
                name = row if source == "medquad" else f"{source}: {row}"
                figures[f"{name}, on {tested}"] = found
                lines.append(
                    f"| {name} | {tested} | {mean_and_deviation(found)} | {difference(found)} | {_kept(found)} | "
                    f"{found['seconds']:.0f} | {len(found['seeds'])} |"
                )
    return lines, figures


def _few(journal: Journal, rows: list[str]) -> tuple[list[str], dict[str, Any]]:
    lines = [
        "| labelled queries | collection | to untouched (p) | by draw | kept | seconds |",
        "|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for name in BENCHMARKS:
        for row in sorted(rows, key=lambda row: int(row.split()[0])):
            found = summary(journal.of("few labels", row, name), name)
            if found:
                figures[f"{name}, {row}"] = found
                untouched = found["mean"] - found["difference"]
                draws = ", ".join(f"{value - untouched:+.3f}" for value in found["by seed"])
                lines.append(
                    f"| {row} | {name} | {difference(found)} | {draws} | {_kept(found)} | {found['seconds']:.0f} |"
                )
    return lines, figures


def _small(journal: Journal, rows: list[str]) -> tuple[list[str], dict[str, Any]]:
    lines = [
        "| collection, draw | train queries | test queries | untouched | fit | difference (p) | relative | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for row in rows:
        for entry in journal.of("small", row):
            (name,) = entry["scores"]
            found = summary([entry], name)
            untouched = found["mean"] - found["difference"]
            figures[name] = {**found, "untouched": round(untouched, 4), "training queries": entry["queries"]}
            lines.append(
                f"| {name} | {entry['queries']} | {found['queries']} | {untouched:.4f} | {found['mean']:.4f} | "
                f"{difference(found)} | {found['difference'] / untouched:+.1%} | {found['seconds']:.0f} |"
            )
    return lines, figures


def _compressed(journal: Journal, rows: list[str]) -> tuple[list[str], dict[str, Any]]:
    figures: dict[str, Any] = {}
    lines: list[str] = []
    for row in rows:
        for name in BENCHMARKS:
            found = [entry["compressed"][name] for entry in journal.of("systems", row, name) if "compressed" in entry]
            if found:
                means = {kind: round(float(np.mean([one[kind] for one in found])), 4) for kind in found[0]}
                figures[f"{row}, {name}"] = {**means, "seeds": len(found)}
                lines.append(f"| {row} | {name} | {' | '.join(f'{v:.4f}' for v in means.values())} | {len(found)} |")
                heading = f"| system | collection | {' | '.join(means)} | seeds |"
    if lines:
        lines = [heading, "|---" * (heading.count("|") - 1) + "|", *lines]
    return lines, figures


def mean_and_deviation(found: dict[str, Any]) -> str:
    """``0.6451 ± 0.0012``, without a deviation for one seed."""
    if not found:
        return ""
    deviation = f" ± {found['deviation']:.4f}" if len(found["seeds"]) > 1 else ""
    return f"{found['mean']:.4f}{deviation}"


def difference(found: dict[str, Any]) -> str:
    """``+0.1576 (p < .001)``."""
    if not found or not found["difference"]:
        return "0" if found else ""
    p = "p < .001" if found["p"] < 0.001 else f"p = {found['p']:.3f}".replace("0.", ".", 1)
    return f"{found['difference']:+.4f} ({p})"


def _kept(found: dict[str, Any]) -> str:
    """In how many of the runs of ``fit`` trained heads were kept."""
    chosen = found["chosen"]
    return f"{sum(choice is not None for choice in chosen)} of {len(chosen)}" if chosen else ""


_BLOCKS = {
    "systems": ("Trained on the collection's own queries", _systems),
    "transfer": ("Trained on other data, and without labels", _transfer),
    "few labels": ("Few labelled queries", _few),
    "small": ("Small collections", _small),
}
