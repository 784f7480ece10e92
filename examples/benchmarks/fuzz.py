"""Ten thousand broken and hostile folders: each gives a clear error, or the right answer.

python examples/benchmarks/fuzz.py --mutations 10000 --seed 0 --output fuzz.json

A tiny model, its heads alone and a vector cache are changed by accident and by malice (``fuzz_mutations.py``), and read
in forked processes. Watched are errors, vectors, memory, what is opened or changed outside the folder, what runs, and
whether it ends.
"""

from __future__ import annotations

import argparse
import collections
import gc
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from fuzz_mutations import CACHES, FOLDERS
from memory import resident
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizer

from st_asym import (
    CacheError,
    EmbeddingCache,
    VerificationError,
    asymmetric_model,
    attach_heads,
    save_heads,
    save_provenance,
    verify,
)

WORDS = ["answers", "document", "encoder", "frozen", "head", "learns", "query", "small", "text", "vector"]
TEXTS = [f"{one} {other} {third}" for one in WORDS for other in WORDS for third in WORDS[:3]]
PACKAGES = ("st_asym", "sentence-transformers", "transformers", "torch", "safetensors", "lmdb", "numpy")
SECONDS = 30
MOST_BYTES = 1 << 28

REFUSED, RIGHT, UNTOLD, STOCK = "refused", "right answer", "other weights, loads", "stock loading refused"
FINE = (REFUSED, RIGHT, UNTOLD, STOCK)
BATCH = 50
RUNS = frozenset({"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"})
LOOKS = ("open", "os.listdir", "os.scandir")
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.rmdir", "shutil.rmtree")


@dataclass(frozen=True)
class Target:
    """A folder to change: how it is read, what may be done to it, and whether changes can be told at all."""

    name: str
    folder: Path
    mutations: dict[str, Any]
    read: Callable[[Path], str]
    sealed: bool = True


@dataclass(frozen=True)
class Job:
    """One changed folder."""

    number: int
    target: Target
    mutation: str
    folder: Path

    def row(self, outcome: str, detail: str, more_bytes: int) -> dict[str, Any]:
        """The result as JSON knows it."""
        names = {"number": self.number, "target": self.target.name, "mutation": self.mutation}
        return {**names, "outcome": outcome, "detail": detail[:300], "bytes": more_bytes}


class Fuzz:
    """The folders that are changed, and what reading them must give.

    Args:
        root: An empty folder for them.
    """

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.root, self.canary, self.work = root, root / "canary", root / "work"
        self.canary.mkdir()
        self.work.mkdir()
        (self.canary / "secret.json").write_text('{"secret": 1}')
        (self.canary / "secret.safetensors").write_bytes(bytes(100))
        self.encoder = _encoder(root)
        model = asymmetric_model(self.encoder)
        for parameter in model[-2].parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.eval()
        self.expected = _vectors(model)
        self.cached = self.encoder.encode(TEXTS)
        folders = {name: root / name for name in ("model", "model without provenance", "heads", "heads sealed anew")}
        model.save_pretrained(str(folders["model without provenance"]))
        shutil.copytree(folders["model without provenance"], folders["model"])
        save_provenance(folders["model"], model, data=None, seed=0)
        save_heads(model, folders["heads"])
        shutil.copytree(folders["heads"], folders["heads sealed anew"])
        EmbeddingCache(root / "cache").fill(self.encoder, TEXTS, show_progress_bar=False)
        # Opening made a hole at the end of the file, which a copy would have to write.
        with (root / "cache" / "data.mdb").open("r+b") as file:
            file.truncate((len(file.read().rstrip(b"\0")) // 4096 + 1) * 4096)
        self.targets = [
            Target("model", folders["model"], FOLDERS, self.read_model),
            Target(
                "model without provenance", folders["model without provenance"], FOLDERS, self.read_model, sealed=False
            ),
            Target("heads", folders["heads"], FOLDERS, self.read_heads),
            Target("heads sealed anew", folders["heads sealed anew"], FOLDERS, self.read_heads, sealed=False),
            Target("cache", root / "cache", CACHES, self.read_cache),
        ]
        for target in self.targets:
            # Loads what is loaded at the first use, so that it is not taken for something that a folder asked for.
            if (found := target.read(target.folder)) != RIGHT:
                raise RuntimeError(f"The unchanged {target.name} gives {found!r}.")
        # A collection in a forked process would copy all objects of all modules.
        gc.collect()
        gc.freeze()
        gc.disable()

    def read_model(self, folder: Path) -> str:
        """Verify, then load as anybody would."""
        verify(folder)
        try:
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            return self._compared(_vectors(model), self.expected)
        except MemoryError:
            raise
        except Exception as error:  # whatever the library says of a folder that is in order as far as files tell
            return STOCK if str(error) else f"no message: {error!r}"

    def read_heads(self, folder: Path) -> str:
        """Attach them to their encoder."""
        return self._compared(_vectors(attach_heads(self.encoder, folder)), self.expected)

    def read_cache(self, folder: Path) -> str:
        """Look everything up, encode what is missing, look at all records, and come back."""
        cache = EmbeddingCache(folder)
        cache.stats()
        for _ in range(2):
            found = cache.embed(self.encoder, TEXTS)
            if not np.allclose(found, self.cached, atol=1e-5):
                return "WRONG vectors"
        for group in cache.store.groups():
            for _, vectors in cache.store.records(group):
                if vectors.shape[1] == self.cached.shape[1] and not np.isfinite(vectors).all():
                    return "WRONG records"
        return RIGHT

    def run(self, numbers: Sequence[int], seed: int) -> list[dict[str, Any]]:
        """Make mutations, read each in a forked process, and say what came of it."""
        jobs = [self._changed(number, seed) for number in numbers]
        rows: list[dict[str, Any]] = []
        # The first that ends its process is followed by a new one.
        while len(rows) < len(jobs):
            rows += self._apart(jobs[len(rows) :])
        for folder in (self.work, self.root / "kept"):
            shutil.rmtree(folder, ignore_errors=True)
        self.work.mkdir()
        return rows

    def _changed(self, number: int, seed: int) -> Job:
        target = self.targets[number % len(self.targets)]
        chance = random.Random(seed * 1_000_003 + number)  # noqa: S311 - no secret
        name = chance.choice(sorted(target.mutations))
        folder = self.work / str(number)
        shutil.copytree(target.folder, folder)
        target.mutations[name](folder, chance, self.canary)
        if target.name == "heads sealed anew":
            _seal(folder)
        return Job(number, target, name, folder)

    def _apart(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Read folders in one forked process, up to the end or to what ends it."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                watch = Watch(self.root, self.work)
                for job in jobs:
                    os.write(write, json.dumps(watch.result(job)).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            rows = [json.loads(line) for line in pipe]
        _, status = os.waitpid(child, 0)
        if len(rows) < len(jobs):
            signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            outcome = "HANG" if signalled == signal.SIGALRM else "CRASH"
            detail = str(status) if signalled is None else signal.Signals(signalled).name
            rows.append(jobs[len(rows)].row(outcome, detail, 0))
        return rows

    def _compared(self, found: list[np.ndarray], expected: list[np.ndarray]) -> str:
        if not all(np.isfinite(one).all() for one in found):
            return "vectors that are not finite"
        same = all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
        return RIGHT if same else UNTOLD


class Watch:
    """Reads folders in this process, and sees what it does outside them, what it runs, and how much memory it takes."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root, self.work = root, work
        self.folder: str | None = None
        self.seen: list[str] = []
        self.installed = tuple(
            {sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/null", "/dev/urandom", *_sources()}
        )
        self.searched = {os.path.realpath(path) for path in sys.path}
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._note)

    def result(self, job: Job) -> dict[str, Any]:
        """What reading a folder gives."""
        before = _state(self.root, self.work)
        # A cache maps its whole file, which takes addresses and no memory.
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        limit = resource.RLIM_INFINITY if job.target.mutations is CACHES else used + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        start = _reset_peak()
        signal.alarm(SECONDS)
        self.folder = str(job.folder)
        try:
            outcome, detail = job.target.read(job.folder), ""
        except (VerificationError, CacheError, ValueError, OSError, KeyError) as error:
            outcome = REFUSED if str(error).strip() else "ERROR without a message"
            detail = f"{type(error).__name__}: {error}"
        except BaseException as error:  # what must not happen is what is looked for
            outcome, detail = f"ERROR {type(error).__name__}", str(error)
        self.folder = None
        signal.alarm(0)
        more_bytes = resident("VmHWM")["VmHWM"] - start
        if outcome in (UNTOLD, STOCK) and job.target.sealed:
            outcome = "WRONG vectors" if outcome == UNTOLD else "passed, and could not be loaded"
        if self.seen:
            outcome, detail = "OUTSIDE", self.seen.pop()
            self.seen.clear()
        elif more_bytes > MOST_BYTES:
            outcome = "MEMORY"
        if _state(self.root, self.work) != before:
            outcome, detail = "WROTE OUTSIDE", f"{outcome}: {detail}"
            shutil.rmtree(self.root / "canary" / "ran", ignore_errors=True)
        return job.row(outcome, detail, more_bytes)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in RUNS:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event in (*LOOKS, *CHANGES) and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            inside = path == self.folder or path.startswith(f"{self.folder}/")
            # Imports list the folders of sys.path anew when something is added there.
            installed = path.startswith(self.installed) or (event == "os.listdir" and path in self.searched)
            own = event in LOOKS and installed and not path.startswith(str(self.root))
            if not inside and not own:
                self.seen.append(f"{event} {path}")


def table(rows: list[dict[str, Any]]) -> str:
    """Outcomes by folder, as Markdown."""
    outcomes = sorted({row["outcome"] for row in rows}, key=lambda one: (FINE.index(one) if one in FINE else 9, one))
    lines = [
        "| folder | mutations | " + " | ".join(outcomes) + " | most memory, MB |",
        "|---" * (len(outcomes) + 3) + "|",
    ]
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        counts = collections.Counter(row["outcome"] for row in own)
        most = max(row["bytes"] for row in own) / 1e6
        cells = [f"{counts[outcome]:,}" for outcome in outcomes]
        lines.append(f"| {target} | {len(own):,} | " + " | ".join(cells) + f" | {most:.0f} |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by folder and kind of mutation, and every row that is not as it should be."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        of_kind = counts.setdefault(row["target"], {}).setdefault(row["mutation"], {})
        of_kind[row["outcome"]] = of_kind.get(row["outcome"], 0) + 1
    return {
        "counts": {target: dict(sorted(kinds.items())) for target, kinds in counts.items()},
        "most_bytes": {row["target"]: max(r["bytes"] for r in rows if r["target"] == row["target"]) for row in rows},
        "failures": [row for row in rows if row["outcome"] not in FINE],
    }


def _encoder(root: Path) -> SentenceTransformer:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(root / "bert")
    BertTokenizer(vocab=vocabulary).save_pretrained(root / "bert")
    transformer = Transformer(str(root / "bert"), max_seq_length=16)
    return SentenceTransformer(modules=[transformer, Pooling(16, "mean"), Normalize()], device="cpu").eval()


def _vectors(model: SentenceTransformer) -> list[np.ndarray]:
    return [model.encode_query(TEXTS[:2]), model.encode_document(TEXTS[:2])]


def _seal(folder: Path) -> None:
    """Write the digests of what is there now, as whoever made the folder could."""
    path = folder / "st_asym.json"
    if not path.is_file() or not (folder / "router_config.json").is_file() or path.stat().st_size > 1 << 24:
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        router = json.loads((folder / "router_config.json").read_text(encoding="utf-8"))
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
        digests = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in names
            if name != path.name and (folder / name).stat().st_size < 1 << 24
        }
        record["files"] = digests
        for route, layers in router["structure"].items():
            parts = [[digests[f"{one}/config.json"], digests[f"{one}/model.safetensors"]] for one in layers]
            record["heads"][route] = hashlib.sha256(json.dumps(parts).encode()).hexdigest() if parts else None
        path.write_text(json.dumps(record), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _state(root: Path, work: Path) -> list[tuple[str, int, int]]:
    """What lies outside the folder that is read, with sizes and times."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if Path(folder, name) != work]
        found += [
            (str(Path(folder, name)), (s := os.lstat(Path(folder, name))).st_size, s.st_mtime_ns) for name in files
        ]
        found += [(str(Path(folder, name)), 0, 0) for name in names]
    return sorted(found)


def _reset_peak() -> int:
    """Bytes of memory in use now, from where its peak is counted."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmHWM")["VmHWM"]


def _sources() -> list[str]:
    import st_asym

    return [str(Path(path).resolve()) for path in st_asym.__path__]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one mutation, to look at it")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    start = time.monotonic()
    # Each commit of a cache waits for the disk, where there is one.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:  # noqa: S108
        fuzz = Fuzz(Path(folder).resolve())
        if arguments.only is not None:
            print(json.dumps(fuzz.run([arguments.only], arguments.seed), indent=2))
            return
        rows = []
        for number in range(0, arguments.mutations, BATCH):
            found = fuzz.run(range(number, min(number + BATCH, arguments.mutations)), arguments.seed)
            for row in found:
                if row["outcome"] not in FINE:
                    print(json.dumps(row), flush=True)
            rows += found
    print(table(rows))
    print(f"{len(rows):,} mutations, seed {arguments.seed}, {time.monotonic() - start:.0f} s.")
    if arguments.output:
        facts = {"mutations": len(rows), "seed": arguments.seed, "seconds": round(time.monotonic() - start)}
        versions = {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
        content = {**facts, "versions": versions, **summary(rows)}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
