"""The report that ``fit`` wrote beside a model, by this version or by 0.1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from st_asym.names import REPORT_FILE


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report as this version writes it; None where there is none.

    Args:
        folder: Of the model.

    Raises:
        KeyError, TypeError, ValueError: It is no report.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise TypeError(f"it is a {type(found).__name__}")
    return found if "candidates" in found else _of_0_1(found)


def _of_0_1(report: Mapping[str, Any]) -> dict[str, Any]:
    """0.1 tried one system with one start, and its choices are epochs and dials alone."""
    name = f"{report['system']}, {report['init']} start"

    def named(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, "choice": {"candidate": name, **entry["choice"]}}

    evidence = [named(entry) for entry in report["evidence"]]
    chosen = None if report["chosen"] is None else named(report["chosen"])
    best = chosen or max(evidence, key=lambda entry: entry["gain"], default=None)
    return {
        **report,
        "settings": {"system": report["system"], "init": report["init"], **report["settings"]},
        "expected_unseen": None,
        "candidates": [] if best is None else [{"name": name, "evidence": best, "cuts": None, "seconds": None}],
        "chosen": chosen,
        "chance": None,
        "evidence": evidence,
        "training": [],
    }
