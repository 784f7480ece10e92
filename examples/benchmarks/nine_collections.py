"""``fit`` with its defaults on nine collections, open and closed, beside each of its candidates and other ways.

    pip install bm25s nudge-ft
    python examples/benchmarks/nine_collections.py                      # stopped, it goes on where it was
    python examples/benchmarks/nine_collections.py --collections scifact docstrings --seeds 0

Rows: the untouched encoder; BM25; NUDGE-N (Zeighami et al. 2024, https://arxiv.org/abs/2409.02343); each candidate of
``fit`` trained to its end on all training queries, without a gate; ``fit``; and the untouched encoder and ``fit`` with
BM25 added to the cosine, standardised over the corpus, with a weight chosen on dev. Test queries are looked at for the
table alone. Vectors are encoded before, into the cache, and their seconds do not count. (The name is not
``collections``: a file of that name beside a script replaces Python's own module.)
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import torch
import transformers
from journal import Journal
from packaged_encoder import packaged_encoder
from python_docs import python_docs
from sentence_transformers import SentenceTransformer

from st_asym import CachedSentenceTransformer, EmbeddingCache, Settings, fit
from st_asym.data import Qrels, RetrievalData, from_pairs, load_data
from st_asym.data.collection import own_documents
from st_asym.data.document import copies
from st_asym.data.holdout import seen_unseen
from st_asym.evaluation.baselines import WEIGHTS
from st_asym.fitting.candidates import Candidate, behind_vectors, candidates
from st_asym.fitting.gate import Choice
from st_asym.fitting.loop import train_on_vectors
from st_asym.fitting.vectors import read_vectors
from st_asym.retrieval import Judgments, Scores
from st_asym.retrieval.search import Bm25Index, standardised
from st_asym.retrieval.significance import difference

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PACKAGES = ("st_asym", "sentence-transformers", "torch", "numpy")
HALVES = ("all", "seen", "unseen")
ENCODING: dict[str, Any] = {"batch_size": 1024, "show_progress_bar": False, "normalize_embeddings": True}


def main() -> None:
    options = parser_of(__doc__, "nine_collections", seeds=[0, 1, 2]).parse_args()
    encoder, cache = begun(options)
    journal = Journal(options.output.with_suffix(".jsonl"))
    for name in options.collections:
        bench = Bench(name, SOURCES[name](options.data), encoder, cache)
        for row, seeds, make in bench.rows(options.seeds):
            bench.measure("collections", row, make, seeds, journal)
    write("collections", options, journal, (*PACKAGES, "bm25s", "nudge-ft"))


def parser_of(
    description: str | None, output: str, seeds: Sequence[int], sources: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The options that all benchmarks of ``fit`` have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of the zips and of pairs/")
    names = list(sources or SOURCES)
    parser.add_argument("--collections", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help=f"(default: {' '.join(map(str, seeds))})")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/vectors"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(f"runs/{output}.json"), help="(default: %(default)s)")
    return parser


def share(text: str) -> float:
    """A share that leaves something, as an option."""
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return float(text)


def begun(options: argparse.Namespace) -> tuple[SentenceTransformer, EmbeddingCache]:
    """The encoder, frozen, and its vectors; from here on, no progress bars."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    encoder = SentenceTransformer(packaged_encoder(), device="cpu").requires_grad_(False).eval()
    return encoder, EmbeddingCache(options.cache)


# ---- The collections ----


def with_dev_in_train(data: RetrievalData) -> RetrievalData:
    """The same collection without a dev split, its queries among those of train."""
    return replace(data, qrels={"train": data.qrels["train"] | data.qrels.get("dev", {}), "test": data.qrels["test"]})


def pairs(name: str, count: int) -> Callable[[Path], RetrievalData]:
    """So many pairs, drawn at random, documents cut at 1,200 characters."""

    def read(folder: Path) -> RetrievalData:
        with gzip.open(folder / "pairs" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        random.Random(0).shuffle(rows)  # noqa: S311 - which rows, not a secret
        return from_pairs((row["query"], row["positive"][:1200]) for row in rows[:count]).with_dev_split()

    return read


SOURCES: dict[str, Callable[[Path], RetrievalData]] = {
    "scifact": lambda folder: load_data(folder / "scifact.zip"),
    "nfcorpus": lambda folder: load_data(folder / "nfcorpus.zip"),
    "feedbackqa": lambda folder: with_dev_in_train(load_data(folder / "feedbackqa.zip")),
    "arguana": lambda folder: load_data(folder / "arguana.zip"),
    "msmarco_small": lambda folder: load_data(folder / "msmarco_small.zip"),
    "docstrings": lambda _: python_docs(4_000).with_dev_split(),
    "medquad": pairs("medquad", 4_000),
    "scitldr": pairs("scitldr", 3_000),
    "acl_anthology": pairs("acl_anthology", 6_000),
}


# ---- The rows ----

Similarities = Any  # of shape (queries, documents)
Made = tuple[Callable[[str], Similarities], dict[str, Any]]
Make = Callable[[int], Made]


@dataclass
class Bench:
    """One collection, and all ways to search it. A way gives the similarities of the queries of a split."""

    name: str
    data: RetrievalData
    encoder: SentenceTransformer
    cache: EmbeddingCache
    fits: dict[int, Made] = field(default_factory=dict)

    def rows(self, seeds: Sequence[int]) -> list[tuple[str, Sequence[int], Make]]:
        """Name, seeds, and how it is made."""
        tried = candidates(Settings(), len(self.data.qrels["train"]))
        return [
            ("untouched", seeds[:1], self.untouched),
            ("BM25", seeds[:1], self.bm25),
            ("NUDGE-N", seeds[:1], self.nudge),
            *((f"candidate: {one.name}", seeds[:1], partial(self.candidate, one)) for one in tried),
            ("fit", seeds, self.fitted),
            ("untouched + BM25", seeds[:1], partial(self.fused, self.untouched)),
            ("fit + BM25", seeds, partial(self.fused, self.fitted)),
        ]

    def measure(self, block: str, row: str, make: Make, seeds: Sequence[int], journal: Journal) -> None:
        """Add to a journal what it lacks of a row."""
        for seed in seeds:
            if (block, row, self.name, seed) not in journal:
                entry = self.measured(row, make, seed)
                journal.add({**entry, "block": block, "row": row, "collection": self.name, "seed": seed})
                shown = (self.name, row, seed, entry["all"], f"{entry['seconds']} s")
                print(time.strftime("%H:%M:%S"), *shown, flush=True)

    def measured(self, row: str, make: Make, seed: int) -> dict[str, Any]:
        """nDCG@10 of the test queries, on all, seen and unseen documents."""
        started = time.perf_counter()
        similarities, facts = make(seed)
        seconds = facts.get("seconds", time.perf_counter() - started)
        scores = self.ndcg(similarities("test"), "test")
        base = scores if row == "untouched" else self.ndcg(self.untouched(0)[0]("test"), "test")
        found: dict[str, Any] = {**facts, "seconds": round(seconds, 1)}
        for half, which in zip(HALVES, (np.ones(len(scores), dtype=bool), self.seen, ~self.seen), strict=True):
            if which.any():
                found[half] = round(float(scores[which].mean()), 4)
                found[f"{half}, to untouched"] = round(float((scores - base)[which].mean()), 4)
                found[f"{half}, p"] = round(difference([base[which]], [scores[which]]).p, 4)
                found[f"{half}, queries"] = int(which.sum())
        return found

    @cached_property
    def seen(self) -> Any:
        """Which test queries ask for a training positive."""
        seen, _ = seen_unseen(self.data.qrels["train"], self.judged("test"), corpus=self.data.corpus)
        return np.isin(list(self.judged("test")), seen)

    @cached_property
    def words(self) -> Bm25Index:
        """The documents as BM25 searches them."""
        return Bm25Index(list(self.data.corpus.values()))

    def judged(self, split: str) -> Qrels:
        """The queries of a split with a relevant document."""
        relevant = self.data.relevant(split)
        return {key: judged for key, judged in self.data.qrels[split].items() if key in relevant}

    def texts(self, split: str) -> list[str]:
        """The same queries."""
        return [self.data.queries[key] for key in self.judged(split)]

    def ndcg(self, similarities: Similarities, split: str) -> Scores:
        """Of each query; where queries are documents, their own is no result."""
        judged = self.judged(split)
        rows = {key: row for row, key in enumerate(self.data.corpus)}
        found = torch.as_tensor(similarities).clone()
        own = set(own_documents(self.data.corpus, judged))
        for query, key in enumerate(judged):
            if key in own:
                found[query, rows[key]] = -torch.inf
        return Judgments(judged, rows).ndcg(found.topk(10).indices)

    def cached(self, model: SentenceTransformer) -> CachedSentenceTransformer:
        """The model, its encoder answered from the cache."""
        return CachedSentenceTransformer(model.requires_grad_(False), self.cache)

    def documents(self, model: SentenceTransformer) -> Any:
        """A model's unit vectors of the corpus."""
        return self.cached(model).encode_document(list(self.data.corpus.values()), **ENCODING)

    def cosines(self, model: SentenceTransformer, documents: Any) -> Callable[[str], Similarities]:
        """Of a model's vectors of queries and these of the corpus."""
        cached = self.cached(model)
        return lambda split: cached.encode_query(self.texts(split), **ENCODING) @ documents.T

    def untouched(self, _seed: int) -> Made:
        """The encoder as it is."""
        return self.cosines(self.encoder, self.documents(self.encoder)), {}

    def bm25(self, _seed: int) -> Made:
        """``bm25s`` with English stop words, its other defaults."""
        return (lambda split: self.words.similarities(self.texts(split))), {}

    def nudge(self, _seed: int, *, method: str = "NUDGEN", dev: RetrievalData | None = None) -> Made:
        """The documents moved by the package's own settings; how far, by the dev queries or a fifth of the others."""
        import nudge

        data = dev or self.data.with_dev_split()
        cached = self.cached(self.encoder)
        place = {key: row for row, key in enumerate(data.corpus)}
        answers = [
            {
                "q_embs": cached.encode_query([data.queries[q] for q in data.relevant(split)], **ENCODING),
                "q_ans_indx": [[place[d] for d in sorted(found)] for found in data.relevant(split).values()],
            }
            for split in ("train", "dev")
        ]
        moved = getattr(nudge, method)(torch.device("cpu")).finetune_embeddings(self.documents(self.encoder), *answers)
        return self.cosines(self.encoder, np.asarray(moved, dtype=np.float32)), {}

    def candidate(self, candidate: Candidate, seed: int) -> Made:
        """Heads of one candidate, trained to their end on all training queries."""
        started = time.perf_counter()
        copied = copies(self.data.with_all_split().qrels["all"], self.data.corpus)
        vectors = read_vectors(self.encoder, self.data, self.cache, copied, seed=seed)
        choice = Choice(candidate.name, candidate.settings.epochs or 1)
        heads, _ = train_on_vectors(candidate, choice, vectors, self.data.qrels["train"])
        model = behind_vectors(heads).eval()
        seconds = time.perf_counter() - started

        @torch.no_grad()
        def similarities(split: str) -> Similarities:
            sides = {"query": vectors.of_queries(self.judged(split)), "document": vectors.documents}
            features: dict[str, dict[str, Any]] = {
                side: {"sentence_embedding": own, "task": side} for side, own in sides.items()
            }
            found = {side: model(own)["sentence_embedding"] for side, own in features.items()}
            return (found["query"] @ found["document"].T).numpy()

        return similarities, {"seconds": seconds}

    def fitted(self, seed: int, **settings: Any) -> Made:
        """``fit`` with its defaults or other settings, once for each seed."""
        if seed in self.fits and not settings:
            return self.fits[seed]
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = fit(
                self.encoder,
                self.data,
                output_dir=Path(folder, "model"),
                settings=Settings(**settings),
                cache=self.cache,
                seed=seed,
                show_progress_bar=False,
            )
        facts = {"seconds": time.perf_counter() - started, "first line": result.report.first_line}
        if result.report.chosen is not None:
            choice = result.report.chosen.choice
            facts |= {"candidate": choice.candidate, "epoch": choice.epoch, "dial": choice.dial}
        made = self.cosines(result.model, self.documents(result.model)), facts
        if not settings:
            self.fits[seed] = made
        return made

    def fused(self, make: Make, seed: int) -> Made:
        """Cosine and standardised BM25, the weight by the dev queries, or by the training queries and the encoder."""
        dense, facts = make(seed)
        sparse, _ = self.bm25(seed)
        judge, split = (dense, "dev") if "dev" in self.data.qrels else (self.untouched(seed)[0], "train")

        def together(part: Callable[[str], Similarities], split: str, weight: float) -> Similarities:
            return part(split) + weight * standardised(sparse(split))

        best = max(WEIGHTS, key=lambda weight: self.ndcg(together(judge, split, weight), split).mean())
        return (lambda split: together(dense, split, best)), {**facts, "weight": best}


# ---- The table ----


def write(block: str, options: argparse.Namespace, journal: Journal, packages: Sequence[str]) -> None:
    """Print the table, and write all figures with the versions that made them."""
    lines = ["| collection | row | all | seen | unseen | to untouched (p), all | unseen | seconds |", "|---" * 8 + "|"]
    figures: dict[str, Any] = {}
    for name in options.collections:
        for row in dict.fromkeys(key[1] for key in journal.entries if key[2] == name):
            entries = journal.of(block, row, name)
            figures.setdefault(name, {})[row] = entries
            cells = [mean(entries, half) for half in HALVES] + [change(entries, half) for half in ("all", "unseen")]
            lines.append(f"| {name} | {row} | {' | '.join(cells)} | {mean(entries, 'seconds', 1)} |")
    print("\n".join(["", *lines]))
    write_figures(options, {"collections": figures}, packages)


def write_figures(options: argparse.Namespace, figures: dict[str, Any], packages: Sequence[str]) -> None:
    """As JSON, with what they were measured on and by."""
    facts = {"encoder": "all-MiniLM-L6-v2", "threads": options.threads, "versions": {p: version(p) for p in packages}}
    options.output.write_text(json.dumps({**facts, **figures}, indent=1) + "\n", encoding="utf-8")


def mean(entries: Sequence[dict[str, Any]], key: str, digits: int = 4) -> str:
    values = [entry[key] for entry in entries if key in entry]
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def change(entries: Sequence[dict[str, Any]], half: str) -> str:
    values = [entry[f"{half}, to untouched"] for entry in entries if half in entry]
    return f"{np.mean(values):+.4f} ({np.median([e[f'{half}, p'] for e in entries]):.3f})" if values else ""


if __name__ == "__main__":
    main()
