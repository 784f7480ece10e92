"""One layer of a head on arrays, and the files of saved heads: read as if a stranger had packed them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

EMBEDDING = "sentence_embedding"
SIDES: tuple[Literal["query"], Literal["document"]] = ("query", "document")
_ROUTER, _CONFIG, _WEIGHTS = "router_config.json", "config.json", "model.safetensors"
_DENSE = "sentence_transformers.base.modules.dense.Dense"
# What no sound file has: bytes of JSON, numbers on a side of a matrix, layers of a head.
_MOST_JSON, _MOST_FEATURES, _MOST_LAYERS = 1 << 20, 1 << 16, 16
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _gelu(x: Floats) -> Any:
    from scipy.special import erf  # numpy has none

    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def _silu(x: Floats) -> Any:
    with np.errstate(over="ignore"):  # the limit is right
        return x / (1.0 + np.exp(-x))


# Those of torch.nn by their names, with the module that saved models name them by.
ACTIVATIONS: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "Identity": ("torch.nn.modules.linear", lambda x: x),
    "ReLU": ("torch.nn.modules.activation", lambda x: np.maximum(x, 0.0)),
    "GELU": ("torch.nn.modules.activation", _gelu),
    "SiLU": ("torch.nn.modules.activation", _silu),
    "Tanh": ("torch.nn.modules.activation", np.tanh),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """One ``Dense`` of sentence-transformers: activation(W x + b), and x or R x added where it is residual.

    The weight W and the residual R have the shape ``(out, in)``, the bias ``(out,)``; the activation is named as in
    ``torch.nn``. ``residual=True`` is x itself.
    """

    weight: Array
    bias: Array | None = None
    activation: str = "Identity"
    residual: Array | bool = False

    def __call__(self, x: Floats) -> Floats:
        """Rows of shape ``(n, in)``, float64, to ``(n, out)``."""
        coarse = _fixed_point(x)
        found = coarse @ self._matrix.T
        if self.bias is not None:
            found += self.bias
        found = ACTIVATIONS[self.activation][1](found)
        if self.residual is False:
            return found
        return found + (x if self.residual is True else coarse @ self._shortcut.T)

    @cached_property
    def _matrix(self) -> Floats:
        return _fixed_point(self.weight)

    @cached_property
    def _shortcut(self) -> Floats:
        return _fixed_point(self.residual)  # type: ignore[arg-type]


def _fixed_point(rows: Array) -> Floats:
    """Each row rounded to whole multiples of a power of two, of so few bits that products of rows are exact in float64.

    Sums of products then have the same bits in whatever order a BLAS adds them up, which changes with the number of
    rows. Of 384 numbers there are 22 bits below the largest of the row; float32 has 24 of each number.
    """
    bits = (53 - (rows.shape[1] - 1).bit_length()) // 2
    _, exponents = np.frexp(np.abs(rows).max(axis=1, keepdims=True).astype(np.float64))
    unit = np.ldexp(1.0, exponents - bits)
    found: Floats = np.rint(rows / unit) * unit
    return found


Route = tuple[Layer, ...]


def read_routes(folder: Path) -> tuple[Route, Route, dict[str, Any]]:
    """The layers of queries and of documents, and what ``st_asym.json`` says of them.

    A file that is damaged, or says what numpy cannot stand in for, is a ValueError that names it.
    """
    from st_asym.data.files import PROVENANCE_FILE  # loads all of its room, which would double the import of Heads

    if not (folder / _ROUTER).is_file():
        raise FileNotFoundError(f"{folder} holds no heads (no {_ROUTER}): st_asym.save_heads(model, path) makes them.")
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

    from st_asym.data.files import write_json

    names: dict[int, str] = {}
    structure: dict[str, list[str]] = {}
    for side, layers in zip(SIDES, (query, document), strict=True):
        structure[side] = [names.setdefault(id(one), f"{side}_{i}_Dense") for i, one in enumerate(layers)]
        for name, layer in zip(structure[side], layers, strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_json(folder / name / _CONFIG, _configuration(layer))
            arrays = {"linear.weight": layer.weight, "linear.bias": layer.bias, "residual.weight": layer.residual}
            save_file(
                {key: value for key, value in arrays.items() if isinstance(value, np.ndarray)}, folder / name / _WEIGHTS
            )
    types = dict.fromkeys(names.values(), _DENSE)
    parameters = {"default_route": "document", "allow_empty_key": True}
    write_json(folder / _ROUTER, {"types": types, "structure": structure, "parameters": parameters})


def _configuration(layer: Layer) -> dict[str, Any]:
    """What ``Dense`` saves beside its weights."""
    rows, columns = layer.weight.shape
    return {
        "in_features": columns,
        "out_features": rows,
        "bias": layer.bias is not None,
        "activation_function": f"{ACTIVATIONS[layer.activation][0]}.{layer.activation}",
        "module_input_name": EMBEDDING,
        "module_output_name": EMBEDDING,
        **({} if layer.residual is False else {"use_residual": True}),
    }


def _routes(folder: Path, digests: Mapping[str, Any]) -> dict[str, list[str]]:
    """Side to the folders of its layers, in order."""
    path = folder / _ROUTER
    router = _read_json(path, digests.get(_ROUTER))
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
    columns, rows = config.get("in_features"), config.get("out_features")
    if not all(type(size) is int and 0 < size <= _MOST_FEATURES for size in (columns, rows)):
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
        values: Array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":  # which numpy does not know: the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        found[name] = values.reshape(shapes[name])
        if not np.isfinite(found[name]).all():
            raise damaged(path, f"has a tensor {name} with values that are not finite")
    return found


def _read(path: Path, most: int, digest: Any = None) -> bytes:
    """A file of at most so many bytes, which is what ``st_asym.json`` says it was."""
    if not path.is_file():
        raise damaged(path, "is missing")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise damaged(path, f"is longer than the {most:,} bytes that it can have")
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise damaged(path, "is not what was saved, by its digest in st_asym.json")
    return content


def _read_json(path: Path, digest: Any = None) -> Any:
    content = _read(path, _MOST_JSON, digest)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:  # a number may have more digits than Python reads
        raise damaged(path, "is not JSON") from error
    if not isinstance(found, dict):
        raise damaged(path, "holds no JSON object")
    return found


def damaged(path: Path, what: str) -> ValueError:
    """What is raised of a file, or folder, that cannot be used."""
    return ValueError(f"{path} {what}. Save or download the heads again.")
