from __future__ import annotations

import json
import math
from pathlib import Path

from st_asym.fitting import FitReport, Settings
from st_asym.fitting.gate import Choice, Evidence, Gain


def report(chosen: Evidence | None, *others: Evidence) -> FitReport:
    found = FitReport(system="asymmetric", init="identity", collection=None, settings=Settings(), seed=3)
    found.chosen, found.evidence = chosen, [entry for entry in (chosen, *others) if entry is not None]
    return found


def evidence(gain: float, error: float = 0.01) -> Evidence:
    return Evidence(Choice(7, 0.6), Gain(40, 0.5, gain, error), Gain(1, 0.4, gain, math.inf), gain, error)


def test_the_first_line_says_what_came_of_it() -> None:
    assert report(evidence(0.1)).first_line == (
        "Trained heads are kept: nDCG@10 of held-out queries +0.100 ± 0.010 to the untouched encoder."
    )
    both = Evidence(Choice(7, 0.6), Gain(35, 0.3, 0.528, 0.05), Gain(732, 0.9, 0.001, 0.004), 0.264, 0.03)
    assert report(both).first_line == (
        "Trained heads are kept: nDCG@10 of held-out queries +0.264 ± 0.030, that is +0.528 on documents seen in "
        "training (35 queries) and +0.001 on others (732), to the untouched encoder."
    )
    assert report(None, evidence(-0.1)).first_line.startswith("The model is the untouched encoder: no trained heads")
    assert report(None).first_line == "The model is the untouched encoder: there was nothing to train."
    text = str(report(evidence(0.1)))
    assert text.startswith(report(evidence(0.1)).first_line)
    assert "Epoch 7, dial 0.6" in text
    assert "seen documents    0.500 -> 0.600 (+0.100 ± 0.010, 40 queries)" in text


def test_the_file_is_valid_json_also_where_an_error_is_infinite(tmp_path: Path) -> None:
    found = report(evidence(0.1), evidence(0.0, math.inf))
    found.save(tmp_path / "report.json")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert saved["first_line"] == found.first_line
    assert saved["settings"] == Settings().as_dict()
    assert saved["chosen"]["choice"] == {"epoch": 7, "dial": 0.6}
    assert saved["chosen"]["unseen"]["error"] is None
    assert saved["seed"] == 3
    assert {"st_asym", "torch", "sentence-transformers"} <= set(saved["versions"])


def test_seconds_are_counted_by_name() -> None:
    found = report(None)
    with found.timed("read"):
        pass
    assert set(found.seconds) == {"read"}
    assert "read: 0.0 s" in str(found)
