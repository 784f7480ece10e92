from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from st_asym.fitting import FitReport, Settings
from st_asym.fitting.gate import Choice, Evidence, Gain
from st_asym.fitting.report import Tried


def report(chosen: Evidence | None, *others: Evidence, expected_unseen: float = 0.25) -> FitReport:
    found = FitReport(Settings(), seed=3, expected_unseen=expected_unseen, chosen=chosen)
    found.evidence = [entry for entry in (chosen, *others) if entry is not None]
    found.candidates = [Tried(entry.choice.candidate, entry, 4, 1.5) for entry in found.evidence]
    return found


def evidence(gain: float, error: float = 0.01) -> Evidence:
    return Evidence(Choice("both sides", 7, 0.6), Gain(40, 0.5, gain, error), Gain(0, 0, 0, 0), gain, error, gain)


def test_the_first_line_says_what_came_of_it() -> None:
    assert report(evidence(0.1)).first_line == (
        "Trained heads are kept: nDCG@10 of held-out queries +0.100 ± 0.010 to the untouched encoder."
    )
    both = Evidence(Choice("b", 7, 0.6), Gain(35, 0.3, 0.528, 0.05), Gain(732, 0.9, 0.001, 0.004), 0.396, 0.03, 0.396)
    assert report(both).first_line == (
        "Trained heads are kept: nDCG@10 of held-out queries +0.396 ± 0.030, that is +0.528 on documents seen in "
        "training and +0.001 on others, 25% of the traffic to expect, to the untouched encoder."
    )
    assert report(None, evidence(-0.1)).first_line.startswith("The model is the untouched encoder: no trained heads")
    assert report(None).first_line == "The model is the untouched encoder: there was nothing to train."
    text = str(report(evidence(0.1), evidence(0.05)))
    assert text.startswith(report(evidence(0.1)).first_line)
    assert "both sides, epoch 7, dial 0.6 (kept)" in text
    assert "seen documents    0.500 -> 0.600 (+0.100 ± 0.010, 40 queries)" in text
    assert "both sides: +0.050 ± 0.010 (seen +0.050; 4 cut(s))" in text
    assert "it was judged on fewer" not in text
    fewer = report(evidence(0.1), evidence(0.05))
    fewer.candidates[1] = replace(fewer.candidates[1], cuts=1)
    assert "What has fewer cuts was clearly behind after these, or stopped: it was judged on fewer." in str(fewer)


def test_a_gain_that_is_only_likely_is_called_so() -> None:
    certain = report(evidence(0.1))
    assert "likely" not in str(certain)
    likely = replace(certain, likely=True, chance=0.163)
    line = str(likely).splitlines()[1]
    assert line.startswith("The gain is likely, not certain: if no choice were worth anything")
    assert "the best would look as good in 16% of cases." in line


def test_the_file_is_valid_json_also_where_an_error_is_infinite(tmp_path: Path) -> None:
    found = report(evidence(0.1), evidence(0.0, math.inf))
    found.save(tmp_path / "report.json")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert saved["first_line"] == found.first_line
    assert saved["settings"] == Settings().as_dict()
    assert saved["chosen"]["choice"] == {"candidate": "both sides", "epoch": 7, "dial": 0.6}
    assert saved["evidence"][1]["error"] is None
    assert saved["candidates"][1]["name"] == "both sides"
    assert saved["seed"] == 3
    assert {"st_asym", "torch", "sentence-transformers"} <= set(saved["versions"])


def test_seconds_are_counted_by_name() -> None:
    found = report(None)
    with found.timed("read"):
        pass
    assert set(found.seconds) == {"read"}
    assert "read: 0.0 s" in str(found)
