"""The files of saved heads, read as if a stranger had packed them, and written as sentence-transformers does."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from st_asym.disk.writing import PROVENANCE_FILE
from st_asym.heads.array_layer import ACTIVATIONS, EMBEDDING, Array, Layer

SIDES: tuple[Literal["query"], Literal["document"]] = ("query", "document")
ROUTER = "router_config.json"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_DENSE = "sentence_transformers.base.modules.dense.Dense"
# What no sound file has: bytes of JSON, numbers on a side of a matrix, layers of a head.
_MOST_JSON, _MOST_FEATURES, _MOST_LAYERS = 1 << 20, 1 << 16, 16
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Route = tuple[Layer, ...]


def read_routes(folder: Path) -> tuple[Route, Route, dict[str, Any]]:
    """The layers of queries and of documents, and what ``st_asym.json`` says of them.

    Raises:
        FileNotFoundError: There are no heads.
        ValueError: A file is damaged, or numpy cannot stand in for what it says. The message names the file.
    """
    if not (folder / ROUTER).is_file():
        raise FileNotFoundError(f"{folder} holds no heads (no {ROUTER}): st_asym.save_heads(model, path) makes them.")
    path = folder / PROVENANCE_FILE
    made = _read_json(path) if path.is_file() else {}
    digests = made.get("files", {})
    if not all(isinstance(made.get(key, {}), dict) for key in ("files", "encoder", "model")):
        raise damaged(path, "does not say what was saved")
    routes = _routes(folder, digests)
    layers = {name: _read_layer(folder / name, digests) for name in {*routes["query"], *routes["document"]}}
    query, document = (tuple(layers[name] for name in routes[side]) for side in SIDES)
    return query, document, made


def write_routes(folder: Path, query: Route, document: Route) -> None:
    """Write what :func:`read_routes` reads, but for ``st_asym.json``; a layer of both sides once."""
    from safetensors.numpy import save_file

    names: dict[int, str] = {}
    structure: dict[str, list[str]] = {}
    for side, layers in zip(SIDES, (query, document), strict=True):
        structure[side] = [names.setdefault(id(one), f"{side}_{i}_Dense") for i, one in enumerate(layers)]
        for name, layer in zip(structure[side], layers, strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            _write_json(folder / name / _CONFIG, layer.config)
            save_file(layer.tensors, folder / name / _WEIGHTS)
    types = dict.fromkeys(names.values(), _DENSE)
    parameters = {"default_route": "document", "allow_empty_key": True}
    _write_json(folder / ROUTER, {"types": types, "structure": structure, "parameters": parameters})


def _routes(folder: Path, digests: Mapping[str, Any]) -> dict[str, list[str]]:
    """Side to the folders of its layers, in order."""
    path = folder / ROUTER
    router = _read_json(path, digests.get(ROUTER))
    structure, types = router.get("structure"), router.get("types")
    if not isinstance(structure, dict) or set(structure) != set(SIDES) or not isinstance(types, dict):
        raise damaged(path, "has no routes for query and document alone")
    names = [name for route in structure.values() if isinstance(route, list) for name in route]
    if not names or not all(isinstance(route, list) and len(route) <= _MOST_LAYERS for route in structure.values()):
        raise damaged(path, f"has no layers, or more than {_MOST_LAYERS} on a side")
    for name in names:
        if not isinstance(name, str) or not name.replace("_", "").isalnum() or not name.isascii():
            raise damaged(path, f"names the layer {name!r:.80}, which is no folder in it")
        if str(types.get(name)).rpartition(".")[2] != "Dense":
            raise damaged(path, f"has a layer {name} of type {types.get(name)!r:.80}, and heads consist of Dense")
    return structure


def _read_layer(folder: Path, digests: Mapping[str, Any]) -> Layer:
    path = folder / _CONFIG
    config = _read_json(path, digests.get(f"{folder.name}/{_CONFIG}"))
    columns: Any = config.get("in_features")
    rows: Any = config.get("out_features")
    for size in (columns, rows):
        if type(size) is not int or not 0 < size <= _MOST_FEATURES:
            raise damaged(path, f"goes from {columns!r:.20} to {rows!r:.20} dimensions")
    if any(config.get(key) not in (None, EMBEDDING) for key in ("module_input_name", "module_output_name")):
        raise damaged(path, f"reads or writes something else than {EMBEDDING}")
    home, _, activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")
    if activation not in ACTIVATIONS or not f"{home}.".startswith("torch.nn."):
        raise damaged(
            path, f"has the activation {home}.{activation}"[:120] + f", and numpy knows {', '.join(ACTIVATIONS)}"
        )
    residual = config.get("use_residual", False) is True
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (rows, columns)}
    if config.get("bias", True):
        shapes["linear.bias"] = (rows,)
    if residual and rows != columns:
        shapes["residual.weight"] = (rows, columns)
    tensors = _read_weights(folder / _WEIGHTS, shapes, digests.get(f"{folder.name}/{_WEIGHTS}"))
    return Layer(
        tensors["linear.weight"], tensors.get("linear.bias"), activation, tensors.get("residual.weight", residual)
    )


def _read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], digest: Any) -> dict[str, Array]:
    """Tensors of these shapes and no others, all of them finite."""
    from safetensors import SafetensorError, deserialize

    # Checked before it is read: what a file says of its own size may be anything.
    most = 8 * sum(math.prod(shape) for shape in shapes.values()) + _MOST_JSON
    content = _read(path, most, digest)
    try:
        entries = dict(deserialize(content))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise damaged(path, f"is no whole safetensors file ({error!s:.80})") from error
    if {name: tuple(entry["shape"]) for name, entry in entries.items()} != dict(shapes):
        raise damaged(path, f"has other tensors than {_CONFIG} asks for, {dict(shapes)}")
    found = {}
    for name, entry in entries.items():
        if entry["dtype"] not in _DTYPES:
            raise damaged(path, f"has a tensor {name} of type {entry['dtype']}, and weights are {', '.join(_DTYPES)}")
        found[name] = _array(entry).reshape(shapes[name])
        if not np.isfinite(found[name]).all():
            raise damaged(path, f"has a tensor {name} with values that are not finite")
    return found


def _array(entry: Mapping[str, Any]) -> Array:
    found: Array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
    # Numpy has no bfloat16, which is the upper half of a float32.
    return (found.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else found


def _read(path: Path, most: int, digest: Any = None) -> bytes:
    """A file of at most so many bytes, which is what ``st_asym.json`` says it was."""
    if not path.is_file():
        raise damaged(path, "is missing")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise damaged(path, f"is longer than the {most:,} bytes that it can have")
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise damaged(path, f"is not what was saved, by its digest in {PROVENANCE_FILE}")
    return content


def _read_json(path: Path, digest: Any = None) -> dict[str, Any]:
    try:
        found = json.loads(_read(path, _MOST_JSON, digest))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, "is not JSON") from error
    if not isinstance(found, dict):
        raise damaged(path, "holds no JSON object")
    return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def damaged(path: Path, what: str) -> ValueError:
    """What is raised of a file, or folder, that cannot be used."""
    return ValueError(f"{path} {what}. Save or download the heads again.")
