"""One layer of a head on arrays, whose sums have the same bits however many rows there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

EMBEDDING = "sentence_embedding"


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf  # numpy has none

    found: Floats = 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))
    return found


def _silu(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # the limit is right
        found: Floats = x / (1.0 + np.exp(-x))
    return found


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

    Attributes:
        weight: W, shape ``(out, in)``.
        bias: b, shape ``(out,)``, or None.
        activation: Its name in ``torch.nn``.
        residual: Whether x is added, or R, shape ``(out, in)``, where that changes the dimension.
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

    @property
    def config(self) -> dict[str, Any]:
        """What ``Dense`` saves beside its weights."""
        home = ACTIVATIONS[self.activation][0]
        rows, columns = self.weight.shape
        return {
            "in_features": columns,
            "out_features": rows,
            "bias": self.bias is not None,
            "activation_function": f"{home}.{self.activation}",
            "module_input_name": EMBEDDING,
            "module_output_name": EMBEDDING,
            **({} if self.residual is False else {"use_residual": True}),
        }

    @property
    def tensors(self) -> dict[str, Array]:
        """The weights, by the names that ``Dense`` gives them."""
        found = {"linear.weight": self.weight}
        if self.bias is not None:
            found["linear.bias"] = self.bias
        if not isinstance(self.residual, bool):
            found["residual.weight"] = self.residual
        return found


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
