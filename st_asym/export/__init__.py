"""One side of a model for servers that know no Router: a plain dense model, or one ONNX graph."""

from st_asym.export.export_side import Export, export_side

__all__ = ["Export", "export_side"]
