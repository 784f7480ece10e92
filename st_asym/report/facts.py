"""What a saved model and its fit say of themselves, in figures and in sentences, and the templates that say it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router

from st_asym.cache import encoder_fingerprint
from st_asym.data.collection import counted
from st_asym.data.files import REPORT_FILE

if TYPE_CHECKING:
    from jinja2 import Template

# ``as_dict()`` of a :class:`st_asym.FitReport`.
Report: TypeAlias = Mapping[str, Any]

REQUIRES = 'HTML reports need jinja2 and matplotlib: pip install "st_asym[report]".'
HALVES = {"seen": "seen documents", "unseen": "unseen documents"}
# So many candidates are drawn, and listed in a card; the page lists all.
MOST = 10
# All that heads in closed form are made by.
_OF_CLOSED_FORM = ("sides", "init", "whitening", "hidden_features", "bias")
_LABELS = {"init": "heads start as"}


def template(name: str, functions: dict[str, Any] | None = None) -> Template:
    """A template of this package, and what it may call, also as filters; what is put into one in HTML is escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(REQUIRES) from error

    environment = Environment(
        loader=PackageLoader("st_asym.report", "templates"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(functions or {})
    return environment.get_template(name, globals=functions)


class Facts(NamedTuple):
    """What a model says of itself."""

    dimension: int | None
    max_tokens: int | None  # of a text; what is beyond is cut off. None where it does not say
    similarity: str
    dtype: str
    prompts: dict[str, str]  # side to what is put before its texts
    heads: dict[str, str]  # side to the widths of its head, "384 → 768 → 384, ReLU"; empty for a side without one
    plain: str | None  # the side that plain encode takes; None where the model has no sides
    trained: int  # how many weights the heads have
    fingerprint: str  # of the encoder

    @classmethod
    def of(cls, model: SentenceTransformer) -> Facts:
        """Look at a model with or without heads."""
        router = next((module for module in model.children() if isinstance(module, Router)), None)
        routes: Any = {} if router is None else router.sub_modules
        length: float | None = model.max_seq_length  # encoders without a limit give none, or an infinite one
        return cls(
            dimension=model.get_embedding_dimension(),
            max_tokens=int(length) if length is not None and math.isfinite(length) else None,
            similarity=str(model.similarity_fn_name),
            dtype=str(model.dtype).removeprefix("torch."),
            prompts={name: prompt for name, prompt in model.prompts.items() if prompt},
            heads={side: _widths(route) for side, route in routes.items()},
            plain=None if router is None else router.default_route,
            trained=0 if router is None else sum(parameter.numel() for parameter in router.parameters()),
            fingerprint=encoder_fingerprint(model),
        )


def _widths(route: Any) -> str:
    """The layers of one route."""
    layers = [module for module in route if isinstance(module, Dense)]
    if not layers:
        return ""
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    names = [type(layer.activation_function).__name__ for layer in layers]
    used = dict.fromkeys(name for name in names if name != "Identity")
    return ", ".join([" → ".join(map(str, widths)), *used]) + ("" if used else ", linear")


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report in the folder of a model, as this version writes it; None where there is none."""
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


def best(report: Report) -> Mapping[str, Any] | None:
    """What held-out queries say about what was kept, or about the best of what was tried; None without any."""
    found: Mapping[str, Any] | None = report["chosen"]
    return found or next((one["evidence"] for one in report["candidates"]), None)


def how_far(choice: Mapping[str, Any]) -> str:
    """How far heads are trained and turned back."""
    return f"epoch {choice['epoch']}, dial {choice['dial']:g}" if choice["epoch"] else "in closed form"


def difference(mean: float, error: float | None, digits: int = 3) -> str:
    """``+0.071 ± 0.010``; 0.1 knew no standard error of a single query."""
    return f"{mean:+.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def half(found: Mapping[str, Any], digits: int = 3) -> str:
    """The gain of the queries on seen, or on unseen documents."""
    return difference(found["mean"], found["error"], digits) if found["queries"] else "no queries"


def is_kept(report: Report, candidate: str) -> bool:
    """Whether the heads that were kept are of this candidate."""
    return report["chosen"] is not None and bool(report["chosen"]["choice"]["candidate"] == candidate)


def candidate_table(report: Report, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what was tried, each at its best, on held-out queries."""
    header = ["candidate", "at its best", *HALVES.values(), "together", "cuts", "seconds", ""]
    cuts = max((one["cuts"] or 0 for one in report["candidates"]), default=0)
    rows = []
    for one in report["candidates"][:most]:
        found = one["evidence"]
        row = [one["name"], how_far(found["choice"]), *(half(found[name]) for name in HALVES)]
        row.append(difference(found["gain"], found["error"]))
        row.append("" if one["cuts"] is None else f"{one['cuts']} of {cuts}")
        row.append("" if one["seconds"] is None else f"{one['seconds']:.1f}")
        rows.append([*row, "kept" if is_kept(report, one["name"]) else ""])
    return header, rows


def how_to_read(report: Report) -> list[str]:
    """What the figures of the table are, in sentences."""
    lines = ["Differences in nDCG@10 to the untouched encoder on held-out queries, ± one standard error."]
    share, shown = report["expected_unseen"], best(report)
    if share is not None and shown is not None:
        missing = [name for key, name in HALVES.items() if not shown[key]["queries"]]
        together = f"Together: in proportion of the traffic to expect, {share:.0%} of which asks for unseen documents."
        lines.append(f"No query on {missing[0]} was held out: the others count alone." if missing else together)
    if len({one["cuts"] for one in report["candidates"]}) > 1:
        lines.append("What has fewer cuts than others was clearly behind after these, or was stopped.")
    return lines


def why(report: Report) -> list[str]:
    """Why this choice was kept, or none, in sentences; of 0.1, which did not say, what was kept."""
    chance, chosen = report["chance"], report["chosen"]
    lines = []
    if chosen is not None:
        lines.append(f"Kept: {chosen['choice']['candidate']}, {how_far(chosen['choice'])}.")
    if chance is None:
        return lines
    if chance >= 1:
        return ["None was kept: none gains without a loss beyond noise on seen or on unseen documents."]
    what = "of what was rehearsed on all cuts and loses beyond noise neither on seen nor on unseen documents"
    lines.append(
        f"It has the largest gain {what}." if chosen else f"None was kept: the largest gain {what} may be chance."
    )
    tried = counted(len(report["evidence"]), "choice")
    return [*lines, f"If none were worth anything, the best of {tried} would look as good in {chance:.2%} of cases."]


def settings_rows(report: Report) -> list[list[str]]:
    """Name and value: how the kept heads were made, or what was given, where none were kept."""
    chosen, settings = report["chosen"], dict(report["settings"])
    if chosen is not None and not chosen["choice"]["epoch"]:
        settings = {name: settings[name] for name in _OF_CLOSED_FORM}
    if settings["init"] not in (None, "pairs"):
        settings.pop("whitening", None)
    unset = "left to fit" if chosen is None else "not used"
    rows = [["collection", report["collection"] or "not given"]]
    if report["expected_unseen"] is not None:
        rows.append(["share of traffic on unseen documents", f"{report['expected_unseen']:.0%}"])
    rows.append(["seed", str(report["seed"])])
    for name, value in settings.items():
        empty = "none: one linear layer" if name == "hidden_features" else unset
        rows.append([_LABELS.get(name, name.replace("_", " ")), empty if value is None else shown(value)])
    return rows


def shown(value: Any) -> str:
    """A setting or a figure of it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
