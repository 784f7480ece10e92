"""How fast the cache makes training, encoding and evaluation: one table, each line with its limit and what is asked.

    python examples/benchmarks/speed.py --output speed.json        # best on an idle machine
    python examples/benchmarks/speed.py --quick                    # minutes, to see that it runs

What is compared runs in turn, so that a machine that slows down slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from datasets import Dataset
from memory import resident
from packaged_encoder import packaged_encoder
from scoring import score
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from st_asym import (
    CachedSentenceTransformer,
    EmbeddingCache,
    asymmetric_model,
    encoder_fingerprint,
    record_keys,
    router_mapping,
)
from st_asym.data import RetrievalData, load_data

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
BATCH = 64
PORTION = 65_536
# Steps that are not counted at the start of each run.
WARM_UP = 5


@dataclass
class Line:
    """One row of the table, met if every value is on the right side of what is asked."""

    name: str
    values: list[float]
    asked: str
    limit: str = ""
    unit: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether each value is as asked; several requirements stand in the order of the values."""
        wanted = self.asked.split("; ")
        wanted = wanted * len(self.values) if len(wanted) == 1 else wanted
        return all(
            value >= float(want[2:]) if want.startswith(">=") else value <= float(want[2:])
            for want, value in zip(wanted, self.values, strict=True)
        )


class Bench:
    """What the lines share: texts, the encoder, sizes, and a folder that is gone at the end."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.quick: bool = options.quick
        self.repeats: int = 3 if options.quick else 5
        self.data = subset(load_data(options.data), 200) if options.quick else load_data(options.data)
        self.encoder = SentenceTransformer(packaged_encoder(), device="cpu")
        self.documents = list(self.data.corpus.values())
        self.queries = list(self.data.queries.values())
        self.cached_step = self.stock_step = self.fill_seconds = float("nan")

    def pairs(self, count: int) -> Dataset:
        """``count`` pairs of distinct real texts, whether or not they belong together."""
        queries = [f"{self.queries[i % len(self.queries)]} ({i})" for i in range(count)]
        documents = [f"{self.documents[i % len(self.documents)]} ({i})" for i in range(count)]
        return Dataset.from_dict({"query": queries, "document": documents})

    def cache(self, name: str, **options: Any) -> EmbeddingCache:
        """A cache in the folder that is gone at the end."""
        return EmbeddingCache(self.folder / name, **options)


def cached_step(bench: Bench) -> list[Line]:
    """The stock trainer on cached vectors against a bare loop: same vectors, heads, loss, batches and optimizer."""
    steps = 30 if bench.quick else 150
    pairs = bench.pairs(steps * BATCH)
    cache, model = bench.cache("step"), asymmetric_model(bench.encoder)
    # How long a step takes does not depend on what is in the vectors.
    random = np.random.default_rng(0)
    vectors = []
    for column in pairs.column_names:
        values = random.standard_normal((len(pairs), 384), dtype=np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        cache.store.put(record_keys(encoder_fingerprint(model), pairs[column]), values, "benchmark")
        vectors.append(torch.from_numpy(values))
    cached = CachedSentenceTransformer(model, cache)

    names = ("trainer", "trainer, batches made before", "bare loop", "bare loop, torch's default AdamW")
    runs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(bench.repeats):
        runs["trainer"].append(trainer_step(bench, cached, pairs, steps))
        runs["trainer, batches made before"].append(trainer_step(bench, cached, pairs, steps, collator=Ready(vectors)))
        runs["bare loop"].append(bare_step(cached, vectors, steps, fused=True))
        runs["bare loop, torch's default AdamW"].append(bare_step(cached, vectors, steps, fused=None))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    bench.cached_step = medians["trainer"]
    ratio = medians["trainer"] / medians["bare loop"]
    name = f"seconds per step of {BATCH} cached pairs / the same in a bare torch loop"
    return [Line(name, [ratio], "<=1.3", "1", detail={"seconds per step": medians, "repeats": bench.repeats})]


def stock_step(bench: Bench) -> list[Line]:
    """The stock trainer, whose frozen encoder runs in every step, on real texts: a claim or question, and an abstract.

    The encoder is frozen as the library's users do it, by ``requires_grad_(False)``. The trainer then puts it into
    training mode, where dropout is on; with ``freeze_encoder``, which is in the detail, it stays in evaluation mode.
    """
    steps = 2 if bench.quick else 6
    pairs = bench.pairs(steps * BATCH)
    asymmetric_model(bench.encoder).save_pretrained(str(bench.folder / "stock"))
    stock = SentenceTransformer(str(bench.folder / "stock"), device="cpu")
    for module in list(stock.children())[:-2]:
        module.requires_grad_(False)
    bench.stock_step = trainer_step(bench, stock, pairs, steps, warm_up=1)
    in_evaluation_mode = trainer_step(bench, asymmetric_model(bench.encoder), pairs, steps, warm_up=1)
    detail = {
        "seconds per stock step": bench.stock_step,
        "seconds with the encoder in evaluation mode": in_evaluation_mode,
        "repeats": f"{steps - 1} steps: each takes seconds",
    }
    ratio = bench.stock_step / bench.cached_step
    return [Line("stock trainer with frozen encoder / cached step", [ratio], ">=700", detail=detail)]


def three_epochs(bench: Bench) -> list[Line]:
    """Encoding once and three epochs on vectors, against three epochs of stock steps."""
    steps = 2 if bench.quick else 10
    pairs = bench.pairs(steps * BATCH)
    cached = CachedSentenceTransformer(asymmetric_model(bench.encoder), bench.cache("epochs"))
    start = time.perf_counter()
    for column in pairs.column_names:
        cached.cache.fill(cached, pairs[column], task=column)
    filled = time.perf_counter() - start
    trainer_step(bench, cached, pairs, 3 * steps)
    seconds = time.perf_counter() - start
    stock = 3 * steps * bench.stock_step
    detail = {
        "seconds": {"stock (from the steps of the line above)": stock, "cached": seconds, "of which filling": filled},
        "repeats": "1: it takes minutes",
        "pairs": len(pairs),
    }
    name = "3 epochs end to end with an empty cache, distinct texts, stock / cached (fp32 fill)"
    return [Line(name, [stock / seconds], ">=8.5", "8.9", detail=detail)]


def fill_rates(bench: Bench) -> list[Line]:
    """Texts a second of ``fill`` against the stock ``encode``, and what bfloat16 does to the ranking."""
    count = 32 if bench.quick else 384
    chosen = np.random.default_rng(0).choice(len(bench.documents), min(count, len(bench.documents)), replace=False)
    texts = [bench.documents[i] for i in chosen]
    runs: dict[str, list[float]] = {"stock": [], "fp32": [], "bf16": []}
    for repeat in range(bench.repeats):
        runs["stock"].append(seconds(lambda: bench.encoder.encode(texts, show_progress_bar=False)))
        for precision in ("fp32", "bf16"):
            cache = bench.cache(f"rate-{precision}-{repeat}")
            runs[precision].append(
                seconds(lambda cache=cache, p=precision: cache.fill(bench.encoder, texts, precision=p))  # type: ignore[misc]
            )
    rates = {name: len(texts) / statistics.median(values) for name, values in runs.items()}
    fp32, bf16 = (rates[precision] / rates["stock"] for precision in ("fp32", "bf16"))
    detail = {"texts a second": rates, "repeats": bench.repeats, "texts": len(texts)}
    return [
        Line("fill rate, bf16 / stock fp32 `encode`", [bf16], ">=1.9", "2.5", detail=detail),
        Line("fill rate, fp32 / stock `encode`", [fp32], ">=1.0", "1", detail=detail),
    ]


def saved_model(bench: Bench) -> list[Line]:
    """Encoding with the saved stock model against the bare encoder, queries and documents."""
    count = 32 if bench.quick else 192
    asymmetric_model(bench.encoder).save_pretrained(str(bench.folder / "model"))
    saved = SentenceTransformer(str(bench.folder / "model"), device="cpu")
    ratios, rates = [], {}
    for side, texts in (("query", (bench.queries * 4)[: 4 * count]), ("document", bench.documents[:count])):
        runs: dict[str, list[float]] = {"saved": [], "bare": []}
        for _ in range(bench.repeats):
            for name, model in (("bare", bench.encoder), ("saved", saved)):
                encode = getattr(model, f"encode_{side}")
                runs[name].append(seconds(lambda e=encode, t=texts: e(t, show_progress_bar=False)))  # type: ignore[misc]
        rates[side] = {name: len(texts) / statistics.median(values) for name, values in runs.items()}
        ratios.append(rates[side]["saved"] / rates[side]["bare"])
    detail = {"texts a second": rates, "repeats": bench.repeats}
    name = "`encode_query`; `encode_document` of the saved model / bare encoder"
    return [Line(name, ratios, ">=0.98", "1", detail=detail)]


def second_head(bench: Bench) -> list[Line]:
    """An evaluation with other heads on an encoder whose vectors are there, and nDCG@10 by precision."""
    cache = bench.cache("evaluation")
    values: dict[str, float] = {}
    first = seconds(lambda: values.update(fp32=evaluate(bench, cache, "fp32", 0)))
    second = statistics.median(seconds(lambda: evaluate(bench, cache, "fp32", 1)) for _ in range(bench.repeats))
    values["bf16"] = evaluate(bench, cache, "bf16", 0)
    detail = {"seconds": {"first": first, "second": second}, "repeats": f"{bench.repeats}; 1 of the first"}
    loss = abs(values["bf16"] - values["fp32"])
    name = f"{bench.options.data.stem} evaluated with the first head, cache empty / with a second"
    return [
        Line(name, [first / second], ">=50", detail=detail),
        Line("nDCG@10 with bf16 vectors, distance to fp32", [loss], "<=0.001", "0", detail={"nDCG@10": values}),
    ]


def evaluate(bench: Bench, cache: EmbeddingCache, precision: Any, seed: int) -> float:
    """nDCG@10 of the untouched encoder (seed 0), or of other heads."""
    torch.manual_seed(seed)
    model = asymmetric_model(bench.encoder, init="random" if seed else "identity")
    return float(score(CachedSentenceTransformer(model, cache, precision=precision), bench.data).ndcg_at_10.mean())


def many_vectors(bench: Bench) -> list[Line]:
    """Opening a large store in a new process, looking up random texts, and what that does to its memory."""
    count = min(20_000, bench.options.vectors) if bench.quick else bench.options.vectors
    fingerprint, dtype = encoder_fingerprint(bench.encoder), bench.options.vectors_dtype
    store = bench.cache("many", dtype=dtype).store
    start = time.perf_counter()
    keys: list[bytes] = []
    for first in range(0, count, PORTION):
        keys += record_keys(fingerprint, [f"text {i}" for i in range(first, min(first + PORTION, count))])
    # In order, which a tree takes fastest: the subject here is reading.
    keys.sort()
    block = np.random.default_rng(0).standard_normal((PORTION, 384), dtype=np.float32)
    for first in range(0, count, PORTION):
        part = keys[first : first + PORTION]
        store.put(part, block[: len(part)], "benchmark")
    written = time.perf_counter() - start
    del keys
    size = store.size()
    command = [sys.executable, __file__, "--look-up", str(bench.folder / "many"), str(count)]
    # The last line: libraries may print before it.
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    detail = {**found, "vectors": count, "dtype": dtype, "bytes": size, "seconds to write": written}
    values = [found["open"], statistics.median(found["look-ups"]) * 1e3, found["growth"] / 1e6]
    name = f"{count:,} vectors of 384, {dtype}: open, s; 1,024 random texts, ms; resident memory after 200 look-ups, MB"
    return [Line(name, values, "<=1; <=20; <=100", detail=detail)]


def look_up(directory: str, count: int) -> None:
    """In a process of its own: open, look up, and print seconds and bytes as JSON."""
    encoder = SentenceTransformer(packaged_encoder(), device="cpu")
    encoder_fingerprint(encoder)
    random = np.random.default_rng(1)
    batches = [[f"text {i}" for i in random.choice(count, 1024)] for _ in range(200)]
    start = time.perf_counter()
    cache = EmbeddingCache(directory)
    len(cache)
    opened = time.perf_counter() - start
    cache.get(encoder, batches[0])
    before = resident()
    times = [seconds(lambda batch=batch: cache.get(encoder, batch)) for batch in batches]  # type: ignore[misc]
    after = resident()
    growth = {name: after[name] - before[name] for name in after}
    print(json.dumps({"open": opened, "look-ups": times, "growth": growth["VmRSS"], "growth by kind": growth}))


class Ready:
    """A collator that gives the same vectors for any rows: what is left of a step is the trainer and the heads."""

    valid_label_columns: tuple[str, ...] = ()

    def __init__(self, columns: list[torch.Tensor]) -> None:
        self.columns = [column[:BATCH] for column in columns]

    def __call__(self, _: list[Any]) -> dict[str, Any]:
        """A batch as the library's own collator makes it."""
        batch: dict[str, Any] = {}
        for name, vectors in zip(("query", "document"), self.columns, strict=True):
            batch |= {f"{name}_sentence_embedding": vectors.clone(), f"{name}_task": name}
        return batch


class Stamps(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def trainer_step(
    bench: Bench,
    model: SentenceTransformer,
    pairs: Dataset,
    steps: int,
    *,
    warm_up: int = WARM_UP,
    collator: Callable[[list[Any]], dict[str, Any]] | None = None,
) -> float:
    """Median seconds per step of the stock trainer."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(bench.folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        router_mapping=router_mapping(pairs),
        optim="adamw_torch_fused",
        # The norm is taken in either case; this saves writing to all gradients.
        max_grad_norm=0.0,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    stamps = Stamps()
    loss = MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=pairs,
        loss=loss,
        callbacks=[stamps],
        data_collator=collator,  # type: ignore[arg-type]  # annotated with the class of the default one
    )
    trainer.train()
    warm_up = min(warm_up, len(stamps.times) - 2)
    return float(np.median(np.diff(stamps.times)[warm_up:]))


def bare_step(model: SentenceTransformer, vectors: list[torch.Tensor], steps: int, *, fused: bool | None) -> float:
    """Median seconds per step of a loop over vectors in memory."""
    loss = MultipleNegativesRankingLoss(model)
    heads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(heads, lr=1e-4, weight_decay=0.0, fused=fused)
    model.train()
    order = torch.randperm(len(vectors[0]))
    times = []
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        columns = [
            {"sentence_embedding": column[rows], "task": task}
            for column, task in zip(vectors, ("query", "document"), strict=True)
        ]
        loss(columns, None).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return float(np.median(np.diff(times)[WARM_UP:]))


def seconds(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def subset(data: RetrievalData, documents: int) -> RetrievalData:
    """A few documents, and the test queries that are about them."""
    corpus = dict(list(data.corpus.items())[:documents])
    judged = {query: {d: r for d, r in found.items() if d in corpus} for query, found in data.qrels["test"].items()}
    test = {query: found for query, found in judged.items() if found}
    return RetrievalData({query: data.queries[query] for query in test}, corpus, {"test": test})


# In this order: a line may use what one before it has measured.
LINES = {
    "step": cached_step,
    "stock": stock_step,
    "epochs": three_epochs,
    "fill": fill_rates,
    "saved": saved_model,
    "evaluation": second_head,
    "vectors": many_vectors,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "scifact.zip", help="a BEIR folder or zip")
    parser.add_argument("--vectors", type=int, default=10_000_000, help="in the large store (default: %(default)s)")
    parser.add_argument("--vectors-dtype", choices=("float32", "float16"), default="float16", help="(8 GB in float16)")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES), help="(default: all)")
    parser.add_argument("--folder", type=Path, help="where the stores lie while it runs (default: the system's)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs: no figure counts")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--look-up", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look_up:
        look_up(options.look_up[0], int(options.look_up[1]))
        return
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(options, Path(folder))
        for name in options.lines:
            lines += LINES[name](bench)
            print(f"{name} done", file=sys.stderr, flush=True)
            write(lines, options)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}{', quick' if options.quick else ''}\n")
    print("| line | measured | asked | limit | met |\n|---|---|---|---|---|")
    for line in lines:
        measured = "; ".join(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in line.values)
        print(f"| {line.name} | {measured} | {line.asked} | {line.limit} | {'yes' if line.met else 'no'} |")


def write(lines: list[Line], options: argparse.Namespace) -> None:
    """After each line, so that a run that is stopped leaves what it has."""
    if options.output:
        packages = ("sentence-transformers", "transformers", "torch", "numpy", "lmdb")
        figures = {
            "lines": [{**asdict(line), "met": line.met} for line in lines],
            "quick": options.quick,
            "load": os.getloadavg(),
            "cores": os.cpu_count(),
            "versions": {name: version(name) for name in packages},
        }
        options.output.write_text(json.dumps(figures, indent=2) + os.linesep, encoding="utf-8")


if __name__ == "__main__":
    main()
