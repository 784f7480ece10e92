"""One side of heads as an ONNX graph of any batch size."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_asym.heads.array_layer import EMBEDDING, Layer

if TYPE_CHECKING:
    from st_asym.heads.array_heads import Heads

# Opset 17 and version 8 of the format are what onnxruntime has read since 1.13.
_OPSET, _FORMAT = 17, 8
_INPUT = "embedding"
_SHORTEST = 1e-12
_MOST_APART = 1e-5


def write_graph(heads: Heads, side: Literal["query", "document"], path: Path) -> Path:
    """Write what :meth:`st_asym.Heads.query` or :meth:`st_asym.Heads.document` computes.

    Args:
        heads: The heads.
        side: Which of both.
        path: The file.

    Returns:
        The file.

    Raises:
        ImportError: onnx is not installed.
        ValueError: The graph gives something else than the heads.
    """
    if find_spec("onnx") is None:
        raise ImportError("Heads.to_onnx needs onnx: pip install 'st_asym[onnx]'.")
    import onnx
    from onnx.reference import ReferenceEvaluator

    layers = heads.layers(side)
    graph = _Graph()
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
    random = np.random.default_rng(0).standard_normal((4, heads.dimension)).astype(np.float32)
    vectors = random / np.linalg.norm(random, axis=1, keepdims=True)
    found: Any = ReferenceEvaluator(model).run(None, {_INPUT: vectors})
    apart = float(np.abs(found[0] - getattr(heads, side)(vectors)).max())
    if not apart <= _MOST_APART:
        raise ValueError(f"The graph of the {side} side differs from the heads by {apart:.1g}: {path} was not written.")
    onnx.save(model, path)
    return path


class _Graph:
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
