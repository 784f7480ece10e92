"""What accidents and strangers do to a folder: each function changes one folder, by a random generator."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[Path, random.Random, Path], None]

FOLDERS: dict[str, Mutation] = {}
CACHES: dict[str, Mutation] = {}
PAGE = 4096


class _Canary:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _of(*registers: dict[str, Mutation]) -> Callable[[Mutation], Mutation]:
    def register(mutation: Mutation) -> Mutation:
        for one in registers:
            one[mutation.__name__.strip("_").replace("_", " ")] = mutation
        return mutation

    return register


def _files(folder: Path, ending: str = "") -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{ending}") if path.is_file() and not path.is_symlink())


def _any_file(folder: Path, chance: random.Random) -> Path:
    return chance.choice(_files(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_dir())


def _write_at(path: Path, at: int, part: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(part)


def _used(path: Path) -> int:
    """Bytes without the hole at the end of an LMDB file."""
    content = path.read_bytes() if path.name == "data.mdb" else b""
    return len(content.rstrip(b"\0")) or max(1, path.stat().st_size)


@_of(FOLDERS, CACHES)
def truncated(folder: Path, chance: random.Random, _: Path) -> None:
    path = _any_file(folder, chance)
    os.truncate(path, chance.randrange(_used(path)))


@_of(FOLDERS, CACHES)
def bits_flipped(folder: Path, chance: random.Random, _: Path) -> None:
    path = _any_file(folder, chance)
    content = bytearray(path.read_bytes() or b"\0")
    for _turn in range(chance.choice((1, 1, 2, 8))):
        content[chance.randrange(min(len(content), _used(path)))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@_of(FOLDERS, CACHES)
def block_overwritten(folder: Path, chance: random.Random, _: Path) -> None:
    path = _any_file(folder, chance)
    start, size = chance.randrange(_used(path)), chance.choice((4, 64, 4096))
    _write_at(path, start, chance.choice((chance.randbytes(size), bytes(size), b"\xff" * size)))


@_of(FOLDERS, CACHES)
def emptied(folder: Path, chance: random.Random, _: Path) -> None:
    _any_file(folder, chance).write_bytes(b"")


@_of(FOLDERS, CACHES)
def file_missing(folder: Path, chance: random.Random, _: Path) -> None:
    _any_file(folder, chance).unlink()


@_of(FOLDERS, CACHES)
def files_exchanged(folder: Path, chance: random.Random, _: Path) -> None:
    one, other = chance.choices(_files(folder), k=2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@_of(FOLDERS, CACHES)
def link(folder: Path, chance: random.Random, canary: Path) -> None:
    path = _any_file(folder, chance)
    kept = canary.parent / "kept" / folder.name / path.name
    if chance.random() < 0.5:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kept)
    targets = [canary / "secret.json", kept, Path("/dev/zero"), Path("/etc/passwd"), folder / "nowhere", folder]
    path.unlink()
    path.symlink_to(chance.choice(targets))


@_of(FOLDERS, CACHES)
def linked_folder(folder: Path, chance: random.Random, canary: Path) -> None:
    below = _folders(folder)
    if not below:
        (folder / "more").symlink_to(canary)
        return
    path = chance.choice(below)
    shutil.rmtree(path)
    path.symlink_to(canary)


@_of(FOLDERS, CACHES)
def pipe_or_folder_for_a_file(folder: Path, chance: random.Random, _: Path) -> None:
    path = _any_file(folder, chance)
    path.unlink()
    if chance.random() < 0.5:
        os.mkfifo(path)
    else:
        path.mkdir()


@_of(FOLDERS, CACHES)
def pickle_for_a_file(folder: Path, chance: random.Random, canary: Path) -> None:
    _any_file(folder, chance).write_bytes(pickle.dumps(_Canary(canary / "ran")))


@_of(FOLDERS)
def extra_pickle(folder: Path, chance: random.Random, canary: Path) -> None:
    names = ("pytorch_model.bin", "model.pkl", "training_args.bin", "weights.pt", "x.PTH", "a.npy", "b.h5")
    name = chance.choice(names)
    place = chance.choice([folder, *_folders(folder)])
    (place / name).write_bytes(pickle.dumps(_Canary(canary / "ran")))
    weights = place / "model.safetensors"
    if chance.random() < 0.5 and weights.exists():
        weights.unlink()


@_of(FOLDERS)
def extra_file(folder: Path, chance: random.Random, canary: Path) -> None:
    run = f"import os\nos.mkdir({str(canary / 'ran')!r})\n"
    contents = {
        "modeling.py": run,
        "__init__.py": run,
        "sitecustomize.py": run,
        "setup.sh": f"mkdir {canary / 'ran'}\n",
        "added_tokens.json": '{"head": 3}',
        "special_tokens_map.json": '{"unk_token": "query"}',
        "adapter_config.json": json.dumps({"base_model_name_or_path": str(canary), "peft_type": "LORA"}),
        "model.safetensors.index.json": '{"weight_map": {"a": "../canary/secret.safetensors"}}',
        "chat_template.jinja": "{{ ''.__class__ }}",
        "vocab.txt": "[UNK]\n",
        "plot.png": "not a picture",
        "LICENSE": "Apache",
        ".cache/x/y.bin": "left by a download",
        "st_asym_notes.json": "[" * 100_000,
        "config.yaml": "a: 1",
    }
    name = chance.choice(sorted(contents))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(contents[name])


@_of(FOLDERS)
def huge_file(folder: Path, chance: random.Random, _: Path) -> None:
    names = [path.name for path in _files(folder)] + ["new.json", "new.safetensors", "new.md", "tokenizer.json"]
    path = folder / chance.choice(names)
    with path.open("ab"):
        os.truncate(path, chance.choice((1 << 25, 1 << 33, 1 << 40)))


@_of(FOLDERS)
def many_folders(folder: Path, chance: random.Random, _: Path) -> None:
    path = folder.joinpath(*map(str, range(chance.choice((5, 30)))))
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")


@_of(FOLDERS)
def json_bomb(folder: Path, chance: random.Random, _: Path) -> None:
    path = chance.choice(_files(folder, ".json"))
    bombs = [
        "[" * 1_000_000,
        "[" * 90 + "]" * 90,
        '{"a":' * 200_000 + "1" + "}" * 200_000,
        '{"hidden_size": ' + "9" * 100_000 + "}",
        '{"hidden_size": 1e999}',
        '{"hidden_size": NaN}',
        '{"a": 1, "a": 2}',
        "[" + "{}," * 1_300_000 + "{}]",
        "[" + "0," * 3_000_000 + "0]",
        '"' + "x" * 3_900_000 + '"',
        "null",
        "[]",
        "{}",
    ]
    path.write_text(chance.choice(bombs))


@_of(FOLDERS)
def json_encoding(folder: Path, chance: random.Random, _: Path) -> None:
    path = chance.choice(_files(folder, ".json"))
    content = path.read_bytes()
    other = content.decode().encode("utf-16")
    path.write_bytes(chance.choice((b"\xef\xbb\xbf" + content, other, content[:-3] + b"\xff\xfe", b"\0" * 1000)))


@_of(FOLDERS)
def json_value(folder: Path, chance: random.Random, canary: Path) -> None:
    """A value somewhere in a configuration becomes one that nobody expects there."""
    path = chance.choice([path for path in _files(folder, ".json") if path.name != "tokenizer.json"])
    value = json.loads(path.read_text(encoding="utf-8"))
    places: list[tuple[Any, Any]] = []
    below = [value]
    while below:
        part = below.pop()
        for key, one in list(part.items() if isinstance(part, dict) else enumerate(part)):
            places.append((part, key))
            if isinstance(one, dict | list):
                below.append(one)
    if not places:
        return
    holder, key = chance.choice(places)
    hostile = ["../../canary/secret", str(canary / "secret.json"), "posix.system", "torch.hub.load", 1e308, -1, 0, None]
    hostile += [[], {}, "x" * 100_000, "\0", True, 1 << 62, ["../canary"], "\u202ereversed"]
    hostile += ["sentence_transformers.models"]
    action = chance.random()
    if action < 0.2:
        del holder[key]
    elif action < 0.4 and isinstance(holder, dict):
        extra = ("auto_map", "tokenizer_file", "trust_remote_code", "subfolder", "_name_or_path", "vocab_file", "x")
        holder[chance.choice(extra)] = chance.choice(hostile)
    else:
        holder[key] = chance.choice(hostile)
    path.write_text(json.dumps(value))


@_of(FOLDERS)
def path_out_of_the_folder(folder: Path, chance: random.Random, canary: Path) -> None:
    where = chance.choice(("../canary", str(canary), "a/../../canary", "..", "~", "C:\\canary", "1_Pooling/../.."))
    modules = folder / "modules.json"
    router = chance.choice(list(folder.rglob("router_config.json")))
    if modules.exists() and chance.random() < 0.5:
        entries = json.loads(modules.read_text())
        chance.choice(entries)["path"] = where
        modules.write_text(json.dumps(entries))
    else:
        router.write_text(router.read_text().replace("query_0_Dense", where.replace("\\", "\\\\")))


@_of(FOLDERS)
def foreign_class(folder: Path, chance: random.Random, _: Path) -> None:
    classes = ["os.system", "posix.system", "custom.Head", "sentence_transformers.util.import_from_string"]
    classes += ["sentence_transformers.SentenceTransformer", "torch.nn.Linear"]
    classes += ["sentence_transformers.models.CLIPModel"]
    path = chance.choice([path for path in _files(folder, ".json") if path.name in _CLASSES])
    text = path.read_text()
    found = [line.split('"')[3] for line in text.splitlines() if '": "' in line and "." in line.split('"')[3]]
    path.write_text(text.replace(chance.choice(found), chance.choice(classes)) if found else text + " ")


@_of(FOLDERS)
def routes_swapped(folder: Path, chance: random.Random, _: Path) -> None:
    path = next(folder.rglob("router_config.json"))
    if chance.random() < 0.5:
        router = json.loads(path.read_text())
        structure = router["structure"]
        router["structure"] = {"query": structure["document"], "document": structure["query"]}
        path.write_text(json.dumps(router))
    else:
        for query in sorted(path.parent.glob("query_*")):
            document = path.parent / query.name.replace("query", "document")
            query.rename(path.parent / "aside")
            document.rename(query)
            (path.parent / "aside").rename(document)


@_of(FOLDERS)
def modules_reordered(folder: Path, chance: random.Random, _: Path) -> None:
    path = folder / "modules.json"
    if path.exists():
        entries = json.loads(path.read_text())
        if chance.random() < 0.5:
            entries.pop(chance.randrange(len(entries)))
        else:
            chance.shuffle(entries)
        path.write_text(json.dumps(entries))
    else:
        path.write_text("[]")


@_of(FOLDERS)
def other_similarity(folder: Path, chance: random.Random, _: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    if path.exists():
        path.write_text(path.read_text().replace('"cosine"', chance.choice(('"dot"', "null", '"os.system"', "3"))))
    else:
        path.write_text("{}")


@_of(FOLDERS)
def weights_not_finite(folder: Path, chance: random.Random, _: Path) -> None:
    path = chance.choice(_files(folder, ".safetensors"))
    start = _header(path)[1]
    at = start + 4 * chance.randrange((path.stat().st_size - start) // 4)
    _write_at(path, at, struct.pack("<f", chance.choice((float("nan"), float("inf"), float("-inf")))))


@_of(FOLDERS)
def tensors_exchanged(folder: Path, chance: random.Random, _: Path) -> None:
    """Two tensors, of one file or of two, with the bytes of each other."""
    one, other = chance.choices(_files(folder, ".safetensors"), k=2)
    places = []
    for path in (one, other):
        header, start = _header(path)
        entry = chance.choice(list(header.values()))
        places.append((path, start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]))
    size = min(places[0][2], places[1][2])
    parts = [path.read_bytes()[at : at + size] for path, at, _ in places]
    for (path, at, _), part in zip(places, reversed(parts), strict=True):
        _write_at(path, at, part)


@_of(FOLDERS)
def header_changed(folder: Path, chance: random.Random, _: Path) -> None:
    """Shapes, types, offsets and names that do not fit, in a header that is well formed otherwise."""
    path = chance.choice(_files(folder, ".safetensors"))
    header, start = _header(path)
    data = path.read_bytes()[start:]
    name = chance.choice(list(header))
    entry = header[name]
    change = chance.randrange(8)
    if change == 0:
        entry["shape"] = list(reversed(entry["shape"])) if len(entry["shape"]) > 1 else [1, *entry["shape"]]
    elif change == 1:
        entry["shape"] = [chance.choice((-1, 0, 1 << 40, 1.5, "7")), *entry["shape"][1:]]
    elif change == 2:
        entry["dtype"] = chance.choice(("F16", "I32", "BF16", "F8_E4M3", "OBJECT", 3))
    elif change == 3:
        entry["data_offsets"] = [chance.choice((-8, 0, 4, 1 << 50)), chance.choice((4, 1 << 50, -1))]
    elif change == 4:
        header[chance.choice(("linear.bias2", "../x", "__metadata__"))] = header.pop(name)
    elif change == 5:
        header["__metadata__"] = chance.choice(({"a": 1}, "text", {"format": "pt", "x": "y" * 100_000}))
    elif change == 6:
        header["copy"] = dict(entry)
    else:
        del header[name]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@_of(FOLDERS)
def huge_header(folder: Path, chance: random.Random, _: Path) -> None:
    path = chance.choice(_files(folder, ".safetensors"))
    size = chance.choice((1 << 63, (1 << 64) - 1, 1 << 40, 100_000_000, 50_000_000, 0))
    _write_at(path, 0, struct.pack("<Q", size))
    if size in (100_000_000, 50_000_000):
        bomb = chance.choice((b" ", b"[", b'{"a":'))
        with path.open("wb") as file:
            file.write(struct.pack("<Q", size) + b"{" + bomb * (1 << 20))
            file.truncate(8 + size)


@_of(CACHES)
def page_exchanged(folder: Path, chance: random.Random, _: Path) -> None:
    path = folder / "data.mdb"
    pages = _used(path) // PAGE + 1
    one, other = chance.randrange(pages) * PAGE, chance.randrange(pages) * PAGE
    content = bytearray(path.read_bytes())
    first, second = content[one : one + PAGE], content[other : other + PAGE]
    content[one : one + PAGE], content[other : other + PAGE] = second, first
    path.write_bytes(content)


@_of(CACHES)
def page_head_changed(folder: Path, chance: random.Random, _: Path) -> None:
    """Page number, flags, and where its free space begins and ends; of the first two pages the trees as well."""
    path = folder / "data.mdb"
    page = chance.randrange(_used(path) // PAGE + 1)
    at = page * PAGE + chance.randrange(0, 160 if page < 2 else 64, 2)
    _write_number(path, at, chance)


@_of(CACHES)
def node_changed(folder: Path, chance: random.Random, _: Path) -> None:
    """Sizes, flags and page numbers of the records of a page."""
    path = folder / "data.mdb"
    page = chance.randrange(2, max(3, _used(path) // PAGE + 1))
    content = path.read_bytes()[page * PAGE : (page + 1) * PAGE]
    nodes = max(1, (int.from_bytes(content[12:14], "little") - 16) // 2)
    offset = int.from_bytes(content[16 + 2 * chance.randrange(min(nodes, 2000)) :][:2], "little")
    _write_number(path, page * PAGE + min(offset, PAGE - 64) + chance.randrange(0, 64, 2), chance)


@_of(CACHES)
def records_exchanged(folder: Path, chance: random.Random, _: Path) -> None:
    """Stretches of a page, vectors and checksums among them, in the place of others."""
    path = folder / "data.mdb"
    size, used = chance.choice((64, 68, 104, 200)), _used(path)
    start, target = (chance.randrange(max(1, used - size)) for _turn in range(2))
    _write_at(path, target, path.read_bytes()[start : start + size])


@_of(CACHES)
def huge_store(folder: Path, chance: random.Random, _: Path) -> None:
    os.truncate(folder / chance.choice(("data.mdb", "lock.mdb")), chance.choice((1 << 30, 1 << 36, 1 << 42)))


@_of(CACHES)
def lock_file_of_garbage(folder: Path, chance: random.Random, _: Path) -> None:
    (folder / "lock.mdb").write_bytes(chance.randbytes(chance.choice((1, 100, 8192))))


@_of(CACHES)
def more_files(folder: Path, chance: random.Random, canary: Path) -> None:
    (folder / chance.choice(("x.bin", "data.mdb.old", "a.py"))).write_bytes(pickle.dumps(_Canary(canary / "ran")))


_CLASSES = ("modules.json", "router_config.json", "config.json", "config_sentence_transformers.json")


def _header(path: Path) -> tuple[dict[str, Any], int]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return header, 8 + size


def _write_number(path: Path, at: int, chance: random.Random) -> None:
    size = chance.choice((2, 4, 8))
    value = chance.choice((0, 1, 2, 3, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, 1 << 40, (1 << 64) - 1, chance.getrandbits(64)))
    _write_at(path, at, (value % (1 << (8 * size))).to_bytes(size, "little"))
