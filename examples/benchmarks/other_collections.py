"""``fit`` and each candidate alone on collections by which nothing was chosen, from public repositories.

    cd FOLDER && git clone https://github.com/google-deepmind/xquad   # and those named at SOURCES
    python examples/benchmarks/other_collections.py --data FOLDER     # stopped, it goes on where it was
    python examples/benchmarks/other_collections.py --data FOLDER --collections tweets code

A collection whose repository is not in the folder is left out. Queries are split by the hash of their text, as
``from_pairs`` does; documents are cut at 1,200 characters, but for XQuAD and CMRC.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from journal import Journal
from nine_collections import PACKAGES, Bench, begun, parser_of, write

from st_asym.data import RetrievalData, from_pairs
from st_asym.data.collection import into_splits

MOST_CHARACTERS = 1_200
ROWS = ("untouched", "BM25", "fit")


def main() -> None:
    options = parser_of(__doc__, "other_collections", seeds=[0], sources=list(SOURCES)).parse_args()
    missing = [name for name in options.collections if not (options.data / SOURCES[name][0]).exists()]
    options.collections = [name for name in options.collections if name not in missing]
    if missing:
        print("Not there:", ", ".join(f"{name} ({SOURCES[name][0]})" for name in missing))
    encoder, cache = begun(options)
    journal = Journal(options.output.with_suffix(".jsonl"))
    for name in options.collections:
        path, read = SOURCES[name]
        bench = Bench(name, read(options.data / path).with_dev_split(), encoder, cache)
        print(name, {split: len(judged) for split, judged in bench.data.qrels.items()}, len(bench.data.corpus))
        for row, seeds, make in bench.rows(options.seeds):
            if row in ROWS or row.startswith("candidate"):
                bench.measure("collections", row, make, seeds, journal)
    write("collections", options, journal, (*PACKAGES, "bm25s"))


def squad(path: Path, most: int | None = None) -> RetrievalData:
    """Questions and the paragraphs that answer them."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [one for article in articles for one in article["paragraphs"]]
    return from_pairs((asked["question"], one["context"][:most]) for one in paragraphs for asked in one["qas"])


def faq(path: Path, language: str | None = None) -> RetrievalData:
    """Questions and answers of web pages."""
    rows = (row for row in table(path.read_text(encoding="utf-8"), "\t") if language in (None, row["lang"]))
    pairs = ((row["question"].strip(), row["answer"].strip()[:MOST_CHARACTERS]) for row in rows)
    return from_pairs((query, text) for query, text in pairs if query and text)


def tweets(path: Path) -> RetrievalData:
    """Posts and the verified claims that they repeat, among ten thousand."""
    with zipfile.ZipFile(path) as file:
        read = {name: file.read(name).decode() for name in file.namelist() if name.endswith((".tsv", ".qrels"))}
    claims = table(read["v3.0/verified_claims.docs.tsv"], "\t")
    corpus = {row[""]: f"{row['title']} {row['vclaim']}" for row in claims}
    queries, judged = dict[str, str](), dict[str, dict[str, int]]()
    for split in ("train", "dev"):
        texts = table(read[f"v3.0/{split}/tweets.queries.tsv"], "\t")
        queries |= {f"tweet {row['']}": row["tweet_content"] for row in texts}
        for line in read[f"v3.0/{split}/tweet-vclaim-pairs.qrels"].splitlines():
            query, _, document, _ = line.split("\t")
            judged.setdefault(f"tweet {query}", {})[document] = 1
    return into_splits(RetrievalData({query: queries[query] for query in judged}, corpus, {"train": judged}))


def climate(path: Path) -> RetrievalData:
    """Claims on the climate and the sentences of Wikipedia that support them, among those that do not."""
    queries, corpus, judged = dict[str, str](), dict[str, str](), dict[str, dict[str, int]]()
    for line in path.read_text(encoding="utf-8").splitlines():
        claim = json.loads(line)
        corpus |= {one["evidence_id"]: one["evidence"] for one in claim["evidences"]}
        found = {one["evidence_id"]: 1 for one in claim["evidences"] if one["evidence_label"] == "SUPPORTS"}
        if found:
            queries[f"claim {claim['claim_id']}"], judged[f"claim {claim['claim_id']}"] = claim["claim"], found
    return into_splits(RetrievalData(queries, corpus, {"train": judged}))


def code(path: Path) -> RetrievalData:
    """Questions on Stack Overflow and lines of Python."""
    return from_pairs((row["intent"], row["snippet"]) for row in json.loads(path.read_text(encoding="utf-8")))


def health(path: Path) -> RetrievalData:
    """Claims on COVID-19 and the findings of papers that support or refute them."""
    rows = [row for name in ("dev", "test") for row in table((path / f"healthver_{name}.csv").read_text("utf-8"))]
    return from_pairs((row["claim"], row["evidence"][:MOST_CHARACTERS]) for row in rows if row["label"] != "Neutral")


def intents(path: Path) -> RetrievalData:
    """Arabic questions to a bank and the names of 77 intents: every 10th of the rows."""
    rows = list(table(path.read_text(encoding="utf-8")))[::10]
    return from_pairs((row["text"], row["label"]) for row in rows)


def table(text: str, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 26)
    return csv.DictReader(io.StringIO(text), delimiter=delimiter)


FAQ = "COVID-QA/data/faqs/faq_200327.tsv"
# By name: the file below the folder, which begins with the repository, and how it is read. The repositories of GitHub:
# google-deepmind/xquad, ymcui/cmrc2018, deepset-ai/COVID-QA, sshaar/clef2020-factchecking-task2, zorazrw/
# multilingual-conala, tdiggelm/climate-fever-dataset, sarrouti/HealthVer, SinaLab/ArBanking77.
SOURCES: dict[str, tuple[str, Callable[[Path], RetrievalData]]] = {
    **{f"xquad-{lang}": (f"xquad/xquad.{lang}.json", squad) for lang in ("en", "de", "es", "ru", "zh", "ar", "hi")},
    "cmrc": ("cmrc2018/squad-style-data/cmrc2018_dev.json", squad),
    "covid-qa": ("COVID-QA/data/question-answering/200423_covidQA.json", partial(squad, most=MOST_CHARACTERS)),
    "faq": (FAQ, faq),
    "faq-de": (FAQ, partial(faq, language="de")),
    "faq-en": (FAQ, partial(faq, language="en")),
    "tweets": ("clef2020-factchecking-task2/data/v3.zip", tweets),
    "code": ("multilingual-conala/dataset/train/train.json", code),
    "climate": ("climate-fever-dataset/dataset/climate-fever.jsonl", climate),
    "health": ("HealthVer/data", health),
    "intents": ("ArBanking77/data/Banking77_Arabized_MSA_PAL_train.csv", intents),
}

if __name__ == "__main__":
    main()
