"""Which files a saved model may have, and what configurations may say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from st_asym.untrusted.findings import shown
from st_asym.untrusted.folder import Folder, strings

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
