"""Heads on arrays, with numpy alone: for whoever has vectors, and no encoder at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from st_asym.heads.array_layer import EMBEDDING, SIDES, Array, Floats, Layer, damaged, read_routes, write_routes

# Rows that go through the layers at once.
_ROWS = 1024
# As in torch.nn.functional.normalize.
_SHORTEST = 1e-12
# Of ONNX graphs. Opset 17 and version 8 of the format are what onnxruntime has read since 1.13.
_OPSET, _FORMAT = 17, 8
_INPUT = "embedding"
_MOST_APART = 1e-5


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
        query, document, made = read_routes(folder)
        dimension = (*query, *document)[0].weight.shape[1]
        heads = cls(dimension, query, document, made.get("encoder", {}).get("unit_vectors") is True, made)
        _check_chain(heads, folder)
        return heads

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
            write_routes(new, self.query_layers, self.document_layers)
            write_provenance(new, kind="heads", encoder=encoder, **facts)
        return output

    def to_onnx(self, path: str | os.PathLike[str], side: Literal["query", "document"]) -> Path:
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
        if not apart <= _MOST_APART:
            raise ValueError(
                f"The graph of the {side} side differs from the heads by {apart:.1g}: {path} was not written."
            )
        with new_file(path) as beside:
            onnx.save(model, beside)
        return Path(path)

    def layers(self, side: Literal["query", "document"]) -> tuple[Layer, ...]:
        """What one side goes through."""
        if side not in SIDES:
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
            part = rows[start : start + _ROWS].astype(np.float64)
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


def _check_chain(heads: Heads, folder: Path) -> None:
    """Whether layers take what the one before them gives, and both sides give vectors that can be compared."""
    ends = set()
    for layers in (heads.query_layers, heads.document_layers):
        size = heads.dimension
        for layer in layers:
            if layer.weight.shape[1] != size:
                raise damaged(folder, f"has a layer that takes {layer.weight.shape[1]} dimensions after one of {size}")
            size = len(layer.weight)
        ends.add(size)
    if len(ends) > 1:
        raise damaged(folder, f"gives queries and documents vectors of different dimensions, {sorted(ends)}")


def _graph(heads: Heads, side: Literal["query", "document"]) -> Any:
    """What one side computes, as an ONNX model."""
    import onnx

    layers = heads.layers(side)
    graph = _OnnxNodes()
    name = graph.unit(_INPUT) if heads.normalises else _INPUT
    for layer in layers:
        name = graph.dense(name, layer)
    graph.unit(name, EMBEDDING)
    size = len(layers[-1].weight) if layers else heads.dimension
    first, last = (
        onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, ["batch", width])
        for end, width in ((_INPUT, heads.dimension), (EMBEDDING, size))
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, side, [first], [last], graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_FORMAT,
        producer_name="st_asym",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _OnnxNodes:
    """Nodes and constants, each value named by its number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node; the name of what it gives."""
        from onnx import helper

        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """A tensor of float32; its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def unit(self, x: str, output: str | None = None) -> str:
        """Rows divided by their lengths."""
        lengths = self.add("ReduceL2", x, axes=[1], keepdims=1)
        return self.add("Div", x, self.add("Max", lengths, self.constant(_SHORTEST)), output=output)

    def dense(self, x: str, layer: Layer) -> str:
        """A layer."""
        found = self.add("MatMul", x, self.constant(layer.weight.T))
        if layer.bias is not None:
            found = self.add("Add", found, self.constant(layer.bias))
        found = self._activated(found, layer.activation)
        if layer.residual is False:
            return found
        straight = x if layer.residual is True else self.add("MatMul", x, self.constant(np.asarray(layer.residual).T))
        return self.add("Add", found, straight)

    def _activated(self, x: str, activation: str) -> str:
        if activation == "GELU":
            error = self.add("Erf", self.add("Mul", x, self.constant(2**-0.5)))
            half = self.add("Mul", x, self.constant(0.5))
            return self.add("Mul", half, self.add("Add", error, self.constant(1.0)))
        if activation == "SiLU":
            return self.add("Mul", x, self.add("Sigmoid", x))
        return self.add({"ReLU": "Relu", "Tanh": "Tanh", "Identity": "Identity"}[activation], x)
