"""What is wrong with a folder, all of it at once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from st_asym.disk.writing import EVALUATION_FOLDER


class VerificationError(ValueError):
    """A saved model, or heads alone, that must not be used.

    Attributes:
        findings: What is wrong, where, and what to do, a sentence or two each.
    """

    def __init__(self, path: object, findings: Sequence[str]) -> None:
        self.findings = tuple(findings)
        count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
        super().__init__(f"{path} did not pass verification ({count}):\n" + "\n".join(f"- {one}" for one in findings))


class Findings:
    """Collects what is wrong; beyond some, counts alone."""

    _MOST = 50

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}
        self._more = 0

    def add(self, where: str, what: str) -> None:
        """Note what is wrong with a file of the folder, in words that may come from outside."""
        sentence = f"{shown(where)}: {what}"
        if sentence in self._sentences:
            return
        if len(self._sentences) < self._MOST:
            self._sentences[sentence] = None
        else:
            self._more += 1

    @property
    def sentences(self) -> list[str]:
        """What was found."""
        return [*self._sentences, *([f"and {self._more} more."] if self._more else [])]

    def check(self, path: object) -> None:
        """Raise what was found, if anything was."""
        if self._sentences:
            raise VerificationError(path, self.sentences)


def shown(value: object, most: int = 120) -> str:
    """A name or value from a file on one line, without control characters, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    plain = "".join(one if one.isprintable() else "?" for one in text[: most + 1])
    return plain if len(plain) <= most else plain[:most] + "..."


CHUNK = 1 << 20
MOST_JSON = 2 << 20

# Windows has neither of the first two, and no other system the last.
_OPEN = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_MOST_FILES = 10_000
_MOST_LEVELS = 8
_MOST_NESTED = 64
_MOST_DIGITS = 20
# Left by git, by downloads of the Hub's client and by evaluations; nothing is loaded from them.
_PASSED_OVER = frozenset({".git", ".cache", EVALUATION_FOLDER})


class Folder:
    """The plain files of a folder.

    A snapshot in the cache of ``huggingface_hub`` consists of links to the blobs beside it, which are files of it.

    Args:
        path: The folder.
        findings: What is no plain file goes there.

    Attributes:
        sizes: Path in the folder, with ``/``, to bytes.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """

    def __init__(self, path: str | os.PathLike[str], findings: Findings) -> None:
        self.path = Path(path).resolve()
        if not self.path.exists():
            raise FileNotFoundError(f"{path} does not exist: name the folder of a saved model.")
        if not self.path.is_dir():
            raise NotADirectoryError(f"{path} is a file: name the folder of a saved model.")
        self.findings = findings
        self.sizes: dict[str, int] = {}
        snapshot = self.path.parent.name == "snapshots" and self.path.parent.parent.name.startswith("models--")
        self._blobs = self.path.parent.parent / "blobs" if snapshot else None
        self._walk()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.sizes

    def within(self, folder: str) -> list[str]:
        """The files of a folder in it and below; all for ``""``."""
        return [name for name in self.sizes if not folder or name.startswith(f"{folder}/")]

    def open(self, name: str) -> BinaryIO:
        """Open a plain file, and nothing that has taken its place since."""
        path = self.path / name
        if self._blobs is not None and path.is_symlink():
            path = path.resolve()
        before = path.lstat()
        if stat.S_ISREG(before.st_mode):
            file = os.fdopen(os.open(path, _OPEN), "rb")
            # Where the system follows links, what was opened is compared with what lay there.
            if os.path.samestat(before, os.fstat(file.fileno())):
                return file
            file.close()
        raise OSError(f"{path} is no longer a plain file.")

    def digest(self, name: str) -> str:
        """SHA-256 of a file, as ``sha256sum`` and the Hub give it."""
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def json(self, name: str, kind: type = dict) -> Any:
        """Parse a small JSON file; None, and a finding, where it is missing or not of this kind."""
        if not self.has(name):
            self.findings.add(name, "is missing. Save or download the model again.")
            return None
        if self.sizes[name] > MOST_JSON:
            self.findings.add(
                name, f"is {self.sizes[name]:,} bytes long, and no configuration is: at most {MOST_JSON:,}."
            )
            return None
        with self.open(name) as file:
            content = file.read(MOST_JSON + 1)
        try:
            value = parsed(content)
        except ValueError as error:
            self.findings.add(
                name, f"is not JSON that can be trusted ({shown(str(error))}). Save or download it again."
            )
            return None
        if not isinstance(value, kind):
            expected = "an object" if kind is dict else "a list"
            self.findings.add(name, f"holds {type(value).__name__}, not {expected}. Save or download it again.")
            return None
        return value

    def _walk(self) -> None:
        below = [("", 0)]
        while below:
            folder, level = below.pop()
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if not folder and entry.name in _PASSED_OVER and entry.is_dir(follow_symlinks=False):
                        continue
                    if len(self.sizes) + len(below) >= _MOST_FILES or level >= _MOST_LEVELS:
                        self.findings.add(
                            folder or ".",
                            f"has more than {_MOST_FILES:,} files or {_MOST_LEVELS} levels: no model has.",
                        )
                        return
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        below.append((name, level + 1))
                    else:
                        self._note(name)

    def _note(self, name: str) -> None:
        path = self.path / name
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = path.resolve()
            if self._blobs is None or target.parent != self._blobs.resolve() or not target.is_file():
                self.findings.add(
                    name, f"is a link to {shown(str(path.readlink()))}. A saved model has files alone: copy it there."
                )
                return
            status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            self.findings.add(name, "is neither a file nor a folder. Remove it.")
            return
        self.sizes[name] = status.st_size


def parsed(content: bytes) -> Any:
    """JSON without what parsers disagree on or choke on: doubled keys, NaN, huge numbers, deep nesting.

    Raises:
        ValueError: It has such a thing, or is not JSON.
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_deep(value):
        raise ValueError("it is nested too deeply")
    return value


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """All texts in a parsed JSON value, each with the last key above it."""
    below = [("", value)]
    while below:
        key, part = below.pop()
        if isinstance(part, str):
            yield key, part
        elif part and isinstance(part, dict):
            below.extend(part.items())
        elif isinstance(part, list):
            below.extend((key, one) for one in part if one and isinstance(one, str | dict | list))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"it has {name}, which JSON has not")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {digits[:20]}, which is too large")
    return value


def _is_deep(value: Any) -> bool:
    parts = [value]
    for _ in range(_MOST_NESTED):
        parts = [
            one
            for part in parts
            for one in (part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())
            if one and isinstance(one, dict | list)
        ]
        if not parts:
            return False
    return True


# Read by people. Nothing is loaded from them, so they may change after a model was saved.
_DOCUMENTS = frozenset({".csv", ".gif", ".html", ".jpeg", ".jpg", ".md", ".pdf", ".png", ".svg"})
_DOCUMENT_NAMES = frozenset(
    {".gitattributes", ".gitignore"}
    | {f"{name}{suffix}" for name in ("CHANGELOG", "LICENSE", "NOTES", "NOTICE", "README") for suffix in ("", ".txt")}
)
_OWN_REPORTS = re.compile(r"st_asym_\w+\.json")
_DATA = frozenset({".jinja", ".json", ".model", ".safetensors", ".txt"})
_PICKLES = frozenset(
    {".bin", ".ckpt", ".dill", ".h5", ".joblib", ".keras", ".npy", ".npz", ".p", ".pickle", ".pkl", ".pt", ".pth"}
)
# Beside the models that the stock trainer saves, and in its checkpoints.
_OF_THE_TRAINER = re.compile(r"training_args\.bin|(?:optimizer|scheduler|scaler)\.pt|rng_state(?:_\d+)?\.pth")
_CODE = frozenset({".dll", ".dylib", ".js", ".py", ".pyc", ".pyd", ".pyo", ".pyw", ".sh", ".so"})
# A vocabulary may be long; its parsers have limits of their own on how deep it is nested.
_LARGE = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
_MOST_LARGE = 1 << 28
_MOST_SMALL = 1 << 24

# Keys under which a text is opened as a file or folder, with those that only tell where something came from.
_PATHS = re.compile(r".*(?:_file|_path|_dir|_folder)|file_name|subfolder|pretrained_model_name_or_path")
_ORIGINS = frozenset({"_name_or_path", "name_or_path", "special_tokens_map_file"})


def is_document(name: str) -> bool:
    """Whether a file may change without changing a vector."""
    path = PurePosixPath(name)
    report = str(path.parent) == "." and _OWN_REPORTS.fullmatch(name)
    return path.name in _DOCUMENT_NAMES or path.suffix.lower() in _DOCUMENTS or bool(report)


def is_too_large(name: str, size: int) -> bool:
    """Whether a file other than weights is longer than any that a model has, so that it is not read at all."""
    path = PurePosixPath(name)
    most = _MOST_LARGE if path.name in _LARGE else _MOST_SMALL
    return path.suffix.lower() != ".safetensors" and size > most


def check_files(folder: Folder) -> None:
    """Refuse files of kinds that run code, or that no saved model has, and files of absurd sizes."""
    for name, size in folder.sizes.items():
        kind = PurePosixPath(name).suffix.lower()
        if _OF_THE_TRAINER.fullmatch(PurePosixPath(name).name):
            folder.findings.add(
                name,
                "is the trainer's, and a pickle, which can run any code when it is loaded. The model does not need it: "
                "remove it, or save the model with save_pretrained.",
            )
        elif kind in _PICKLES:
            folder.findings.add(
                name, "may hold a pickle, which can run any code when it is loaded. Save the model as safetensors."
            )
        elif kind in _CODE:
            folder.findings.add(name, "is code, and a saved model needs none. Remove it, or do not use the model.")
        elif PurePosixPath(name).name == "adapter_config.json":
            folder.findings.add(name, "makes this an adapter, which loads another model. Merge it and save the whole.")
        elif not is_document(name) and kind not in _DATA:
            folder.findings.add(name, "is no kind of file that a saved model has. Remove it.")
        elif is_too_large(name, size):
            folder.findings.add(name, f"is {size:,} bytes long: no such file is. Remove it, or download it again.")


def check_configuration(folder: Folder, name: str, configuration: Any) -> None:
    """Refuse a configuration that names code, or a file that is not beside it."""
    if _mentions(configuration, "auto_map"):
        folder.findings.add(
            name, "names code of its own (auto_map). Where transformers has the class itself, remove the entry."
        )
    for key, value in strings(configuration):
        if key not in _ORIGINS and _PATHS.fullmatch(key) and leads_away(value):
            folder.findings.add(name, f"{shown(key)} leads out of the folder, to {shown(value)!r}. Name a file in it.")


def leads_away(path: str) -> bool:
    """Whether a path is anything else than a file or folder directly in its folder."""
    return bool(re.search(r"[/\\:\x00]", path)) or path.startswith("~") or path in (".", "..")


def configurations(folder: Folder) -> Iterator[str]:
    """The small JSON files, all of which are parsed, wherever they lie."""
    for name in sorted(folder.sizes):
        path = PurePosixPath(name)
        if path.suffix.lower() == ".json" and path.name not in _LARGE and not is_document(name):
            yield name


def _mentions(value: Any, wanted: str) -> bool:
    below = [value]
    while below:
        part = below.pop()
        if isinstance(part, dict):
            if part.get(wanted):
                return True
            below.extend(one for one in part.values() if one)
        elif isinstance(part, list):
            below.extend(one for one in part if one)
    return False
