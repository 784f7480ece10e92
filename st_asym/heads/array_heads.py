"""Heads on arrays, with numpy alone; saved ones are read as if a stranger had packed them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Side = Literal["query", "document"]

# Rows that go through the layers at once.
_ROWS = 1024
_SHORTEST = 1e-12  # as in torch.nn.functional.normalize
_EMBEDDING = "sentence_embedding"
_ROUTER, _CONFIG, _WEIGHTS, _MADE = "router_config.json", "config.json", "model.safetensors", "st_asym.json"
# What no sound file has: bytes of JSON, numbers on a side of a matrix, layers of a head.
_MOST_JSON, _MOST_FEATURES, _MOST_LAYERS = 1 << 20, 1 << 16, 16
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# Of ONNX graphs. Opset 17 and version 8 of the format are what onnxruntime has read since 1.13.
_OPSET, _FORMAT = 17, 8
_ONNX = {"ReLU": "Relu", "Tanh": "Tanh", "Identity": "Identity"}
_INPUT = "embedding"


def _gelu(x: Floats) -> Any:
    from scipy.special import erf  # numpy has none

    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def _silu(x: Floats) -> Any:
    with np.errstate(over="ignore"):  # the limit is right
        return x / (1.0 + np.exp(-x))


# Those of torch.nn by their names.
_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "Identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "GELU": _gelu,
    "SiLU": _silu,
    "Tanh": np.tanh,
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
        found = _ACTIVATIONS[self.activation](found)
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
    rows. There are 26 bits below the length of a row, and no sum of some of the products is larger than the product of
    both lengths, of 52 bits. Float32 has 24 bits of each number.
    """
    _, exponents = np.frexp(np.linalg.norm(np.asarray(rows, np.float64), axis=1, keepdims=True))
    unit = np.ldexp(1.0, exponents - 26)
    found: Floats = np.rint(rows / unit) * unit
    return found


@dataclass(frozen=True, eq=False)
class Heads:
    """Query and document heads that take vectors of an encoder and give vectors to search with, by numpy alone.

    Attributes:
        dimension: Of the vectors that they take.
        query_layers: What queries go through; empty where they are left as they are.
        document_layers: The same of documents; the same layers where both share one head.
        normalises: Whether vectors are brought to length 1 before the layers: heads of :func:`st_asym.fit_vectors`
            do, so that the length of what they get does not matter. Those of a model take what its encoder gives.
        made: What the heads were made of, as ``st_asym.json`` beside them says.

    Example:
        >>> import numpy as np
        >>> heads = Heads(2, query_layers=(Layer(np.array([[0.0, 1.0], [1.0, 0.0]])),))
        >>> heads.query(np.array([3.0, 4.0], dtype=np.float32))
        array([0.8, 0.6], dtype=float32)
        >>> heads.document(np.array([[3.0, 4.0]]))
        array([[0.6, 0.8]])
    """

    dimension: int
    query_layers: tuple[Layer, ...] = ()
    document_layers: tuple[Layer, ...] = ()
    normalises: bool = False
    made: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Heads:
        """Read heads that :func:`st_asym.save_heads`, :meth:`save` or :meth:`st_asym.HeadsResult.save` has saved.

        Nothing is unpickled or run. Sizes and digests are compared with what the folder says before weights are used.

        Args:
            path: The folder.

        Raises:
            FileNotFoundError: There are no heads.
            ValueError: A file is damaged, or has an activation other than ReLU, GELU, SiLU, Tanh and Identity, or
                anything else that numpy cannot stand in for. The message names the file.

        Example:
            >>> heads = Heads.load("heads")  # doctest: +SKIP
            >>> scores = heads.query(queries) @ heads.document(documents).T  # doctest: +SKIP
        """
        folder = Path(path)
        if not (folder / _ROUTER).is_file():
            raise FileNotFoundError(
                f"{folder} holds no heads (no {_ROUTER}): st_asym.save_heads(model, path) makes them."
            )
        made = _read_json(folder / _MADE) if (folder / _MADE).is_file() else {}
        if not all(isinstance(made.get(key, {}), dict) for key in ("files", "encoder", "model")):
            raise _damaged(folder / _MADE, "does not say what was saved")
        routes = _read_routes(folder, digests := made.get("files", {}))
        layers = {name: _read_layer(folder / name, digests) for route in routes.values() for name in route}
        query, document = (tuple(layers[name] for name in routes[side]) for side in ("query", "document"))
        dimension = (*query, *document)[0].weight.shape[1]
        for route in (query, document):
            for size, layer in zip([dimension, *(len(one.weight) for one in route)], route, strict=False):
                if (takes := layer.weight.shape[1]) != size:
                    raise _damaged(folder, f"has a layer that takes {takes} dimensions after one of {size}")
        ends = {len(route[-1].weight) if route else dimension for route in (query, document)}
        if len(ends) > 1:
            raise _damaged(folder, f"gives queries and documents vectors of different dimensions, {sorted(ends)}")
        return cls(dimension, query, document, made.get("encoder", {}).get("unit_vectors") is True, made)

    def query(self, vectors: Any) -> Array:
        """Vectors of queries to search with.

        They are the same to the bit in whatever portions they come, as accurate as float32, and those of the model to
        1e-6.

        Args:
            vectors: As the encoder gives them: floating point numbers of 16 to 64 bits, shape ``(n, dimension)``, or
                ``(dimension,)`` for one.

        Returns:
            Unit vectors of the same dtype, shape ``(n, d)`` or ``(d,)``.

        Raises:
            TypeError: They are no floating point numbers.
            ValueError: They have another shape, or one is not finite or has no direction. The message names the row.
        """
        return self._applied(vectors, self.query_layers)

    def document(self, vectors: Any) -> Array:
        """Vectors of documents to be found; arguments and errors as for :meth:`query`."""
        return self._applied(vectors, self.document_layers)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save them as :func:`st_asym.save_heads` does, in the place of earlier heads; what lies beside these stays.

        Raises:
            FileExistsError: There is something else than earlier heads.
            ValueError: Neither side has layers: there is nothing to save.
        """
        if not self.query_layers and not self.document_layers:
            raise ValueError("These heads have no layers and leave vectors as they are: there is nothing to save.")
        from st_asym.data.files import new_folder
        from st_asym.heads.saved import free_for_heads
        from st_asym.trust.provenance import keep_what_is_not_ours, write_provenance

        output = free_for_heads(Path(path))
        facts = {key: self.made[key] for key in ("data", "trained", "settings", "seed", "model") if key in self.made}
        encoder = {**self.made.get("encoder", {}), "dimension": self.dimension, "unit_vectors": self.normalises}
        with new_folder(output, free_for_heads, keep_what_is_not_ours) as new:
            new.mkdir()
            _router(self).save(str(new))
            write_provenance(new, kind="heads", encoder=encoder, **facts)
        return output

    def to_onnx(self, path: str | os.PathLike[str], side: Side) -> Path:
        """Write one side as an ONNX graph of any batch size, from ``embedding`` to ``sentence_embedding``, float32.

        What the graph gives is compared with :meth:`query` or :meth:`document`, to 1e-5.

        Raises:
            ImportError: onnx is not installed (the extra ``onnx``).
            ValueError: Another side; or the graph gives something else.

        Example:
            >>> heads.to_onnx("query.onnx", "query")  # doctest: +SKIP
        """
        if find_spec("onnx") is None:
            raise ImportError("Heads.to_onnx needs onnx: pip install 'st_asym[onnx]'.")
        import onnx
        from onnx.reference import ReferenceEvaluator

        from st_asym.data.files import new_file

        model = _graph(self, side)
        random = np.random.default_rng(0).standard_normal((4, self.dimension)).astype(np.float32)
        vectors = random / np.linalg.norm(random, axis=1, keepdims=True)
        found: Any = ReferenceEvaluator(model).run(None, {_INPUT: vectors})
        apart = float(np.abs(found[0] - getattr(self, side)(vectors)).max())
        if not apart <= 1e-5:
            raise ValueError(
                f"The graph of the {side} side differs from the heads by {apart:.1g}: {path} was not written."
            )
        with new_file(path) as beside:
            onnx.save(model, beside)
        return Path(path)

    def layers(self, side: Side) -> tuple[Layer, ...]:
        """What one side goes through."""
        if side not in ("query", "document"):
            raise ValueError(f"side must be 'query' or 'document', got {side!r}.")
        return self.query_layers if side == "query" else self.document_layers

    def _applied(self, vectors: Any, layers: Sequence[Layer]) -> Array:
        if hasattr(vectors, "detach"):  # a tensor, which numpy does not take while it needs a gradient
            vectors = vectors.detach().cpu()
        try:
            given = np.asarray(vectors)
        except (TypeError, ValueError) as error:
            raise TypeError(f"Vectors must be one array of float16, float32 or float64: {error}.") from error
        if given.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"Vectors must be float16, float32 or float64, not {given.dtype}.")
        if given.ndim not in (1, 2) or given.shape[-1] != self.dimension:
            raise ValueError(
                f"These heads take vectors of {self.dimension} dimensions, shape (n, {self.dimension}) or "
                f"({self.dimension},), not {given.shape}: they are of another encoder."
            )
        rows = given.reshape(-1, self.dimension)
        found = np.empty((len(rows), len(layers[-1].weight) if layers else self.dimension), given.dtype)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS].astype(np.float64, order="C")  # sums have the order of memory
            lengths = _lengths(part, start, "Vector")
            if self.normalises:
                part /= lengths
            for layer in layers:
                part = layer(part)
            found[start : start + len(part)] = part / _lengths(part, start, "What the heads make of vector")
        return found.reshape(*given.shape[:-1], found.shape[1])


def _lengths(part: Floats, start: int, what: str) -> Floats:
    """The lengths of rows, shape ``(n, 1)``, of which none is zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths: Floats = np.linalg.norm(part, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > _SHORTEST)))
    if len(bad):
        kind = "is zero, so that it has no direction" if np.isfinite(lengths[bad[0]]) else "is not finite"
        raise ValueError(f"{what} {start + int(bad[0]):,} {kind}.")
    return lengths


def _read_routes(folder: Path, digests: Mapping[str, Any]) -> dict[str, list[str]]:
    """Side to the folders of its layers, in order."""
    path = folder / _ROUTER
    router = _read_json(path, digests.get(_ROUTER))
    structure, types = router.get("structure"), router.get("types")
    if not isinstance(structure, dict) or set(structure) != {"query", "document"} or not isinstance(types, dict):
        raise _damaged(path, "has no routes for query and document alone")
    names = [name for route in structure.values() if isinstance(route, list) for name in route]
    if not names or not all(isinstance(route, list) and len(route) <= _MOST_LAYERS for route in structure.values()):
        raise _damaged(path, f"has no layers, or more than {_MOST_LAYERS} on a side")
    for name in names:
        if not isinstance(name, str) or not name.replace("_", "").isalnum() or not name.isascii():
            raise _damaged(path, f"names the layer {name!r:.80}, which is no folder in it")
        if str(types.get(name)).rpartition(".")[2] != "Dense":
            raise _damaged(path, f"has a layer {name} of type {types.get(name)!r:.80}, and heads consist of Dense")
    return structure


def _read_layer(folder: Path, digests: Mapping[str, Any]) -> Layer:
    path = folder / _CONFIG
    config = _read_json(path, digests.get(f"{folder.name}/{_CONFIG}"))
    columns, rows = config.get("in_features"), config.get("out_features")
    if not all(type(size) is int and 0 < size <= _MOST_FEATURES for size in (columns, rows)):
        raise _damaged(path, f"goes from {columns!r:.20} to {rows!r:.20} dimensions")
    if any(config.get(key) not in (None, _EMBEDDING) for key in ("module_input_name", "module_output_name")):
        raise _damaged(path, f"reads or writes something else than {_EMBEDDING}")
    home, _, activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")
    if activation not in _ACTIVATIONS or not f"{home}.".startswith("torch.nn."):
        what = f"has the activation {home}.{activation}"[:120]
        raise _damaged(path, f"{what}, and numpy knows {', '.join(_ACTIVATIONS)}")
    residual = config.get("use_residual", False) is True
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (rows, columns)}
    shapes |= {"linear.bias": (rows,)} if config.get("bias", True) else {}
    shapes |= {"residual.weight": (rows, columns)} if residual and rows != columns else {}
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
        raise _damaged(path, f"is no whole safetensors file ({error!s:.80})") from error
    if {name: tuple(entry["shape"]) for name, entry in entries.items()} != dict(shapes):
        raise _damaged(path, f"has other tensors than {_CONFIG} asks for, {dict(shapes)}")
    found = {}
    for name, entry in entries.items():
        if entry["dtype"] not in _DTYPES:
            raise _damaged(path, f"has a tensor {name} of type {entry['dtype']}, and weights are {', '.join(_DTYPES)}")
        values: Array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":  # which numpy does not know: the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        found[name] = values.reshape(shapes[name])
        if not np.isfinite(found[name]).all():
            raise _damaged(path, f"has a tensor {name} with values that are not finite")
    return found


def _read(path: Path, most: int, digest: Any = None) -> bytes:
    """A file of at most so many bytes, which is what ``st_asym.json`` says it was."""
    if not path.is_file():
        raise _damaged(path, "is missing")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _damaged(path, f"is longer than the {most:,} bytes that it can have")
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(path, f"is not what was saved, by its digest in {_MADE}")
    return content


def _read_json(path: Path, digest: Any = None) -> Any:
    content = _read(path, _MOST_JSON, digest)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:  # a number may have more digits than Python reads
        raise _damaged(path, "is not JSON") from error
    if not isinstance(found, dict):
        raise _damaged(path, "holds no JSON object")
    return found


def _damaged(path: Path, what: str) -> ValueError:
    """What is raised of a file, or folder, that cannot be used."""
    return ValueError(f"{path} {what}. Save or download the heads again.")


def _router(heads: Heads) -> Any:
    """The heads as a ``Router`` of ``Dense``."""
    import torch
    from sentence_transformers.base.modules import Dense, Router

    made: dict[int, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for layer in (*heads.query_layers, *heads.document_layers):
            rows, columns = layer.weight.shape
            activation, residual = getattr(torch.nn, layer.activation)(), layer.residual is not False
            dense = Dense(columns, rows, layer.bias is not None, activation, use_residual=residual)
            arrays = {"linear.weight": layer.weight, "linear.bias": layer.bias, "residual.weight": layer.residual}
            state = {name: torch.tensor(value) for name, value in arrays.items() if isinstance(value, np.ndarray)}
            dense.load_state_dict(state, assign=True)
            made[id(layer)] = dense
    query, document = ([made[id(layer)] for layer in layers] for layers in (heads.query_layers, heads.document_layers))
    return Router.for_query_document(query, document)


def _graph(heads: Heads, side: Side) -> Any:
    """What one side computes, as an ONNX model."""
    from onnx import TensorProto, checker, helper, numpy_helper

    layers = heads.layers(side)
    nodes: list[Any] = []
    constants: list[Any] = []

    def add(kind: str, *inputs: Any, output: str | None = None, **attributes: Any) -> str:
        """Add a node, with constants for what is no name of a value; the name of what it gives."""
        names = []
        for one in inputs:
            if not isinstance(one, str):
                constants.append(numpy_helper.from_array(np.asarray(one, np.float32), f"constant_{len(constants)}"))
            names.append(one if isinstance(one, str) else constants[-1].name)
        nodes.append(helper.make_node(kind, names, [output or f"value_{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def unit(x: str, output: str | None = None) -> str:
        return add("Div", x, add("Max", add("ReduceL2", x, axes=[1], keepdims=1), _SHORTEST), output=output)

    name = unit(_INPUT) if heads.normalises else _INPUT
    for layer in layers:
        found = add("MatMul", name, layer.weight.T)
        found = found if layer.bias is None else add("Add", found, layer.bias)
        found = _activated(add, found, layer.activation)
        straight = name if isinstance(layer.residual, bool) else add("MatMul", name, layer.residual.T)
        name = found if layer.residual is False else add("Add", found, straight)
    unit(name, _EMBEDDING)
    size = len(layers[-1].weight) if layers else heads.dimension
    first = helper.make_tensor_value_info(_INPUT, TensorProto.FLOAT, ["batch", heads.dimension])
    last = helper.make_tensor_value_info(_EMBEDDING, TensorProto.FLOAT, ["batch", size])
    model = helper.make_model(
        helper.make_graph(nodes, side, [first], [last], constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_FORMAT,
        producer_name="st_asym",
    )
    checker.check_model(model, full_check=True)
    return model


def _activated(add: Callable[..., str], x: str, activation: str) -> str:
    if activation == "GELU":
        return add("Mul", add("Mul", x, 0.5), add("Add", add("Erf", add("Mul", x, 2**-0.5)), 1.0))
    return add("Mul", x, add("Sigmoid", x)) if activation == "SiLU" else add(_ONNX[activation], x)
