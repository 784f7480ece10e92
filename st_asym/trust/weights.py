"""What is in a safetensors file, read a megabyte at a time: header, digest, and whether all values are finite."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from st_asym.trust.folder import CHUNK, MOST_JSON, Folder, parsed, shown

# Bytes of a value, and what numpy, which does not know bfloat16, reads it as; None where every value is finite.
_TYPES: dict[str, tuple[int, Any]] = {
    "F64": (8, np.float64),
    "F32": (4, np.float32),
    "F16": (2, np.float16),
    "BF16": (2, np.uint16),
    **{name: (size, None) for size, names in ((8, ("I64", "U64")), (4, ("I32", "U32"))) for name in names},
    **{name: (size, None) for size, names in ((2, ("I16", "U16")), (1, ("I8", "U8", "BOOL"))) for name in names},
}
# A value beyond it overflows in float32 where it is squared for the length of a vector.
_LARGEST = 1e15


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its type as the file names it, its shape, and where it begins and ends."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Weights:
    """A safetensors file: its digest and its tensors."""

    digest: str
    tensors: dict[str, Tensor]


def read_weights(folder: Folder, name: str) -> Weights | None:
    """Read a file; None, and a finding, where it is not whole. Values that are not finite are findings too."""
    digest = hashlib.sha256()
    with folder.open(name) as file:
        try:
            tensors = _header(file, folder.sizes[name], digest)
        except ValueError as error:
            folder.findings.add(
                name, f"is no whole safetensors file: {shown(str(error))}. Save or download the model again."
            )
            return None
        for key, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            left, sound = tensor.end - tensor.begin, True
            while left:
                chunk = file.read(min(left, CHUNK))
                if not chunk:
                    folder.findings.add(name, "became shorter while it was read.")
                    return None
                digest.update(chunk)
                sound = sound and _is_sound(chunk, tensor.dtype)
                left -= len(chunk)
            if not sound:
                folder.findings.add(
                    name,
                    f"tensor {shown(key)!r} has values that are not finite, or beyond {_LARGEST:.0e}: its vectors "
                    "would be NaN. Train again.",
                )
    return Weights(digest.hexdigest(), tensors)


def _header(file: BinaryIO, size: int, digest: Any) -> dict[str, Tensor]:
    """The tensors by name, in a layout without holes or overlaps that ends where the file does.

    Raises:
        ValueError: It is anything else.
    """
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        raise ValueError("it ends within its header")
    if length > MOST_JSON:
        raise ValueError(f"its header would be {length:,} bytes long, more than {MOST_JSON:,}")
    content = file.read(length)
    digest.update(first + content)
    if not content.startswith(b"{"):
        raise ValueError("its header is not JSON")
    header = parsed(content)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            raise ValueError(f"tensor {name!r} begins at {tensor.begin}, and the one before it ends at {end}")
        end = tensor.end
    if 8 + length + end != size:
        raise ValueError(f"its header describes {8 + length + end:,} bytes, and it has {size:,}")
    return tensors


def _tensor(name: str, entry: Any) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"tensor {name!r} is of type {shown(dtype, 20)}, which cannot be checked")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no sizes")
    if math.prod(shape) * _TYPES[dtype][0] != offsets[1] - offsets[0]:
        raise ValueError(f"tensor {name!r} of shape {shape} does not fit its {offsets[1] - offsets[0]:,} bytes")
    return Tensor(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 62 for one in value)


def _is_sound(chunk: bytes, dtype: str) -> bool:
    kind = _TYPES[dtype][1]
    if kind is None:
        return True
    values = np.frombuffer(chunk, kind)
    if dtype == "BF16":
        # The upper half of a float32.
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        # The limit itself is infinite in float16, which ends far below it.
        return bool(np.isfinite(values).all())
    # False for NaN.
    return bool((np.abs(values) <= _LARGEST).all())
