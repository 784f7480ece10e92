"""Ten thousand broken and hostile folders: each gives a clear error, or the right answer.

python examples/benchmarks/fuzz.py --mutations 10000 --seed 0 --output fuzz.json

A tiny model, its heads alone and a vector cache are changed by accident and by malice (``fuzz_mutations.py``), each in a
process of its own. Watched are its errors, its vectors, its memory, the files that it opens outside the folder, what it
runs, and whether it ends.
"""

from __future__ import annotations

import argparse
import collections
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
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from fuzz_mutations import CACHES, FOLDERS
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


@dataclass(frozen=True)
class Target:
    """A folder to change: how it is read, what may be done to it, and whether changes can be told at all."""

    name: str
    folder: Path
    mutations: dict[str, Any]
    read: Callable[[Path], str]
    sealed: bool = True


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

    def run(self, number: int, seed: int) -> dict[str, Any]:
        """Make one mutation, in a process of its own, and say what came of it."""
        target = self.targets[number % len(self.targets)]
        chance = random.Random(seed * 1_000_003 + number)  # noqa: S311 - no secret
        name = chance.choice(sorted(target.mutations))
        folder = self.work / str(number)
        shutil.copytree(target.folder, folder)
        target.mutations[name](folder, chance, self.canary)
        if target.name == "heads sealed anew":
            _seal(folder)
        before = _state(self.root, self.work)
        outcome, detail, more_bytes = self._apart(target, folder)
        if _state(self.root, self.work) != before:
            outcome, detail = "WROTE OUTSIDE", f"{outcome}: {detail}"
            shutil.rmtree(self.canary / "ran", ignore_errors=True)
        if outcome == UNTOLD and target.sealed:
            outcome = "WRONG vectors"
        if outcome == STOCK and target.sealed:
            outcome = "passed, and could not be loaded"
        shutil.rmtree(folder)
        shutil.rmtree(self.root / "kept", ignore_errors=True)
        return {
            "number": number,
            "target": target.name,
            "mutation": name,
            "outcome": outcome,
            "detail": detail,
            "bytes": more_bytes,
        }

    def _apart(self, target: Target, folder: Path) -> tuple[str, str, int]:
        """Read a folder in a forked process, with limits on its memory and time."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                os.write(write, json.dumps(self._watched(target, folder)).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return ("HANG" if number == signal.SIGALRM else "CRASH"), signal.Signals(number).name, 0
        if not answer:
            return "CRASH", f"exit code {os.WEXITSTATUS(status)}", 0
        outcome, detail, more_bytes = json.loads(answer)
        return str(outcome), str(detail), int(more_bytes)

    def _watched(self, target: Target, folder: Path) -> tuple[str, str, int]:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if target.mutations is not CACHES:
            # A cache maps its whole file, which takes addresses and no memory.
            limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (1 << 30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        seen: list[str] = []
        sys.addaudithook(_hook(seen, self.root, folder))
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome, detail = target.read(folder), ""
        except (VerificationError, CacheError, ValueError, OSError, KeyError) as error:
            outcome = REFUSED if str(error).strip() else "ERROR without a message"
            detail = f"{type(error).__name__}: {error}"
        except BaseException as error:  # what must not happen is what is looked for
            outcome, detail = f"ERROR {type(error).__name__}", str(error)
        more_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
        if seen:
            outcome, detail = "OUTSIDE", seen[0]
        elif more_bytes > MOST_BYTES:
            outcome = "MEMORY"
        return outcome, detail[:300], more_bytes

    def _compared(self, found: list[np.ndarray], expected: list[np.ndarray]) -> str:
        same = all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
        return RIGHT if same else UNTOLD


def table(rows: list[dict[str, Any]]) -> str:
    """Outcomes by folder, as Markdown."""
    outcomes = sorted({row["outcome"] for row in rows}, key=lambda one: (FINE.index(one) if one in FINE else 9, one))
    lines = ["| folder | mutations | " + " | ".join(outcomes) + " | most memory, MB |", "|---" * (len(outcomes) + 3) + "|"]
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
        found += [(str(Path(folder, name)), (s := os.lstat(Path(folder, name))).st_size, s.st_mtime_ns) for name in files]
        found += [(str(Path(folder, name)), 0, 0) for name in names]
    return sorted(found)


def _hook(seen: list[str], root: Path, folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes what runs, and what is opened or listed outside the folder and the installation."""
    installed = tuple({sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/null", "/dev/urandom", *_sources()})
    runs = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect", "exec")
    changes = ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.rmdir", "shutil.rmtree")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in runs[:-1]:
            seen.append(f"{event} {arguments!r:.200}")
        elif event in ("open", "os.listdir", "os.scandir", *changes) and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            inside = path == str(folder) or path.startswith(f"{folder}/")
            known = path.startswith(installed) and not path.startswith(str(root)) and event in ("open", "os.listdir")
            if not inside and not known and not (event == "os.scandir" and path.startswith(installed)):
                seen.append(f"{event} {path}")

    return hook


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
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder).resolve())
        if arguments.only is not None:
            print(json.dumps(fuzz.run(arguments.only, arguments.seed), indent=2))
            return
        rows = []
        for number in range(arguments.mutations):
            rows.append(fuzz.run(number, arguments.seed))
            if rows[-1]["outcome"] not in FINE:
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    print(f"{len(rows):,} mutations, seed {arguments.seed}, {time.monotonic() - start:.0f} s.")
    if arguments.output:
        facts = {"mutations": len(rows), "seed": arguments.seed, "seconds": round(time.monotonic() - start)}
        versions = {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
        content = {**facts, "versions": versions, **summary(rows)}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
