"""Heads on arrays, with numpy alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # it loads torch
    from st_asym.heads.anatomy import Side

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

# Rows that go through the layers at once.
_ROWS = 1024
_SHORTEST = 1e-12  # as in torch.nn.functional.normalize
_EMBEDDING = "sentence_embedding"
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

        What is read of the folder is checked as by :func:`st_asym.verify`; other files may lie beside it.

        Raises:
            FileNotFoundError: There are no heads.
            VerificationError: They are damaged. It is a ``ValueError`` that names the files.
            ValueError: A layer has an activation other than ReLU, GELU, SiLU, Tanh and Identity.

        Example:
            >>> heads = Heads.load("heads")  # doctest: +SKIP
            >>> scores = heads.query(queries) @ heads.document(documents).T  # doctest: +SKIP
        """
        from st_asym.data.files import ROUTER_FILE
        from st_asym.trust.verify import read_heads

        if not Path(path, ROUTER_FILE).is_file():
            raise FileNotFoundError(
                f"{path} holds no heads (no {ROUTER_FILE}): st_asym.save_heads(model, path) makes them."
            )
        routes, found = read_heads(path)
        layers = {name: _read_layer(Path(path, name)) for route in routes.values() for name in route}
        query, document = (tuple(layers[name] for name in routes[side]) for side in ("query", "document"))
        made = {} if found is None else found.as_dict()
        normalises = made.get("encoder", {}).get("unit_vectors") is True
        return cls((*query, *document)[0].weight.shape[1], query, document, normalises, made)

    def query(self, vectors: Any) -> Array:
        """Vectors of queries to search with.

        They are the same to the bit in whatever portions they come, as accurate as float32, and those of the model to
        1e-6.

        Args:
            vectors: As the encoder gives them: floating point numbers of 16 to 64 bits, shape ``(n, dimension)``, or
                ``(dimension,)`` for one.

        Returns:
            Unit vectors of the same dtype (float32 of bfloat16 tensors), shape ``(n, d)`` or ``(d,)``.

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
        from st_asym.heads.saved import write_heads

        facts = {key: self.made[key] for key in ("data", "trained", "settings", "seed", "model") if key in self.made}
        encoder = {**self.made.get("encoder", {}), "dimension": self.dimension, "unit_vectors": self.normalises}
        return write_heads(Path(path), _as_router(self), encoder, **facts)

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

        if side not in ("query", "document"):
            raise ValueError(f"side must be 'query' or 'document', got {side!r}.")
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

    def _applied(self, vectors: Any, layers: Sequence[Layer]) -> Array:
        given = _as_array(vectors)
        if given.ndim not in (1, 2) or given.shape[-1] != self.dimension:
            raise ValueError(
                f"These heads take vectors of {self.dimension} dimensions, shape (n, {self.dimension}) or "
                f"({self.dimension},), not {given.shape}: they are of another encoder."
            )
        rows = given.reshape(-1, self.dimension)
        found = np.empty((len(rows), len(layers[-1].weight) if layers else self.dimension), given.dtype)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS].astype(np.float64, order="C")  # sums have the order of memory
            lengths = _lengths(part, start, "Vector", 0.0 if self.normalises else _SHORTEST)
            if self.normalises:
                part /= lengths
            for layer in layers:
                part = layer(part)
            found[start : start + len(part)] = part / _lengths(part, start, "What the heads make of vector", _SHORTEST)
        return found.reshape(*given.shape[:-1], found.shape[1])


def _as_array(vectors: Any) -> Array:
    """Floating point numbers as numpy has them."""
    if hasattr(vectors, "detach"):  # a tensor, which numpy does not take while it needs a gradient
        vectors = vectors.detach().cpu()
        if str(vectors.dtype) == "torch.bfloat16":  # which numpy has not
            vectors = vectors.float()
    try:
        given = np.asarray(vectors)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Vectors must be one array of float16, float32 or float64: {error}.") from error
    if given.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        raise TypeError(f"Vectors must be float16, float32 or float64, not {given.dtype}.")
    return given


def _lengths(part: Floats, start: int, what: str, shortest: float) -> Floats:
    """The lengths of rows, shape ``(n, 1)``, of which each is above the shortest."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths: Floats = np.linalg.norm(part, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > shortest)))
    if len(bad):
        kind = "is zero, so that it has no direction" if np.isfinite(lengths[bad[0]]) else "is not finite"
        raise ValueError(f"{what} {start + int(bad[0]):,} {kind}.")
    return lengths


def _read_layer(folder: Path) -> Layer:
    """A layer in a folder that is verified."""
    from safetensors import deserialize

    from st_asym.trust.folder import floats

    config = json.loads((folder / "config.json").read_bytes())
    activation = config.get("activation_function", "torch.nn.Tanh").rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        names = ", ".join(_ACTIVATIONS)
        raise ValueError(f"{folder / 'config.json'} has the activation {activation}, and numpy knows {names}.")
    tensors: dict[str, Array] = {}
    for name, entry in deserialize((folder / "model.safetensors").read_bytes()):  # type: ignore[no-untyped-call]
        tensors[name] = floats(entry["data"], entry["dtype"]).reshape(entry["shape"])
    residual = tensors.get("residual.weight", bool(config.get("use_residual")))
    return Layer(tensors["linear.weight"], tensors.get("linear.bias"), activation, residual)


def _as_router(heads: Heads) -> Any:
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

    layers = heads.query_layers if side == "query" else heads.document_layers
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
