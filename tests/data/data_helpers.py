"""Pairs and folders that tests of reading share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from st_asym.data import RetrievalData

Write = Callable[[str, "str | bytes"], Path]
PAIRS = [("error E17", "Replace the filter."), ("error E18", "Restart the pump."), ("error E17", "Call us.")]
EXPECTED = {"error E17": {"Replace the filter.": 1, "Call us.": 1}, "error E18": {"Restart the pump.": 1}}


def by_text(data: RetrievalData, split: str = "train") -> dict[str, dict[str, int]]:
    return {data.queries[q]: {data.corpus[d]: g for d, g in ds.items()} for q, ds in data.qrels[split].items()}


def beir(folder: Path, **qrels: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": f"Part {i}", "text": f"About part {i}."} for i in range(4)]
    queries = [{"_id": f"q{i}", "text": f"part number {i}"} for i in range(4)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    for split, rows in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder
