"""The modules that a saved model says it has: stock classes, one behind the other, in dimensions that fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from st_asym.trust.folder import Findings, Folder, leads_away, shown
from st_asym.trust.weights import Weights

ROUTES = ("query", "document")

# Of the library's modules those whose files are data alone.
_MODULES = frozenset(
    {
        "BoW",
        "CNN",
        "Dense",
        "Dropout",
        "LSTM",
        "LayerNorm",
        "Normalize",
        "Pooling",
        "Router",
        "StaticEmbedding",
        "Transformer",
        "WeightedLayerPooling",
        "WordWeights",
    }
)
_HOMES = ("sentence_transformers.base.modules.", "sentence_transformers.sentence_transformer.modules.")
_FORMER_HOME = "sentence_transformers.models"
# Under the name of the class and under the one that torch.nn re-exports it by, which exports are written with.
_ACTIVATIONS = frozenset(
    {
        "torch.nn.Identity",
        "torch.nn.modules.linear.Identity",
        *(
            f"{home}.{name}"
            for home in ("torch.nn", "torch.nn.modules.activation")
            for name in ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Tanh")
        ),
    }
)
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_EMBEDDING = "sentence_embedding"


@dataclass
class SavedRoutes:
    """What the routes of a saved model consist of.

    Attributes:
        routes: For each, the folders of its layers in order.
        digests: For each, what its weights and configurations are; None where it has none.
        sizes: For each, its input and output dimensions.
    """

    routes: dict[str, list[str]] = field(default_factory=dict)
    digests: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass
class Chain:
    """The modules of a model in order: class names, the dimension of its encoder and of its vectors, and the heads."""

    names: list[str]
    encoder_dimension: int | None = None
    dimension: int | None = None
    heads: SavedRoutes | None = None


def stock_name(reference: Any) -> str | None:
    """The class that a dotted name stands for, if it is one of the library's own and needs nothing but data."""
    if not isinstance(reference, str):
        return None
    home, _, name = reference.rpartition(".")
    stock = home == _FORMER_HOME or any(f"{home}.".startswith(prefix) for prefix in _HOMES)
    return name if stock and name in _MODULES and all(part.isidentifier() for part in home.split(".")) else None


def read_chain(folder: Folder, weights: Mapping[str, Weights]) -> Chain | None:
    """Read ``modules.json`` and what it names; None where it says nothing that can be followed."""
    entries = folder.json("modules.json", list)
    if entries is None:
        return None
    chain, names = Chain([]), set()
    for position, entry in enumerate(entries):
        kind = _entry(folder, position, entry)
        if kind is None:
            return None
        if entry["name"] in names:
            folder.findings.add("modules.json", f"has two modules of the name {shown(entry['name'])!r}: save it again.")
        names.add(entry["name"])
        chain.names.append(kind)
        _follow(folder, weights, chain, kind, entry["path"])
    if not entries:
        folder.findings.add("modules.json", "has no modules. Save or download the model again.")
        return None
    _check_order(folder, chain)
    return chain


def read_heads(folder: Folder, weights: Mapping[str, Weights], path: str) -> SavedRoutes | None:
    """Read a saved ``Router`` of two routes; None, and findings, where it is anything else."""
    name = f"{path}/router_config.json" if path else "router_config.json"
    router = folder.json(name)
    if router is None:
        return None
    types, structure, parameters = (router.get(key) for key in ("types", "structure", "parameters"))
    if not isinstance(types, dict) or not isinstance(structure, dict) or not isinstance(parameters, dict):
        folder.findings.add(name, "lacks types, structure or parameters. Save or download the model again.")
        return None
    if set(structure) != set(ROUTES):
        folder.findings.add(name, f"has the routes {shown(sorted(structure))}, not query and document.")
        return None
    if not _are_layers(folder.findings, name, types, structure):
        return None
    if set(parameters) - {"default_route", "allow_empty_key", "route_mappings"} or parameters.get("route_mappings"):
        folder.findings.add(name, "sends tasks other ways than by their names (route_mappings). Save the model again.")
    if parameters.get("default_route") not in (None, *ROUTES):
        folder.findings.add(name, f"has the default route {shown(parameters['default_route'])}, which is not there.")
    heads = SavedRoutes()
    for route in ROUTES:
        heads.routes[route] = [f"{path}/{layer}" if path else layer for layer in structure[route]]
        _read_route(folder, weights, heads, route)
    _check_names(folder.findings, name, structure)
    return heads


def route_digest(parts: list[tuple[str, str]]) -> str | None:
    """One digest of the layers of a route, from those of their configurations and weights; None without layers."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest() if parts else None


def _entry(folder: Folder, position: int, entry: Any) -> str | None:
    """The class of an entry of modules.json, with whatever is wrong with it as a finding."""
    where = f"module {position}"
    if not isinstance(entry, dict) or not {"name", "path", "type"} <= set(entry):
        folder.findings.add("modules.json", f"{where} has no name, path or type. Save or download the model again.")
        return None
    path, kind = entry["path"], stock_name(entry["type"])
    if not isinstance(entry["name"], str) or not isinstance(path, str) or (path and leads_away(path)):
        folder.findings.add("modules.json", f"{where} leads out of the folder, to {shown(path)!r}. Do not load it.")
        return None
    if kind is None:
        folder.findings.add(
            "modules.json",
            f"{where} is a {shown(entry['type'])!r}, no stock module of sentence-transformers that is data alone. "
            "Loading it would need trust_remote_code: save the stock model, in which heads are Router and Dense.",
        )
        return None
    if not path and position:
        folder.findings.add("modules.json", f"{where} shares the folder of the first. Save the model again.")
        return None
    if path and kind != "Normalize" and not folder.within(path):
        folder.findings.add("modules.json", f"{where} should be in {path!r}, which is missing. Download it again.")
        return None
    return kind


def _follow(folder: Folder, weights: Mapping[str, Weights], chain: Chain, kind: str, path: str) -> None:
    """Go one module on, from the dimension before it to the one behind it."""
    if kind == "Router":
        chain.heads = read_heads(folder, weights, path)
        chain.encoder_dimension = chain.dimension
        if chain.heads is not None:
            _check_sides(folder, chain, path)
    elif kind == "Dense":
        layer = _dense(folder, weights, path)
        if layer is not None:
            _check_fit(folder, path, chain.dimension, layer[0])
            chain.dimension = layer[1]
    elif kind in ("Transformer", "StaticEmbedding"):
        chain.dimension = _encoder(folder, weights, kind, path)
    elif kind == "Pooling":
        chain.dimension = _pooling(folder, path, chain.dimension)
    elif kind not in ("Dropout", "LayerNorm", "Normalize"):
        chain.dimension = None


def _encoder(folder: Folder, weights: Mapping[str, Weights], kind: str, path: str) -> int | None:
    """The dimension that the configuration or the one weight names, where they do."""
    files = [name for name in folder.within(path) if name.endswith(".safetensors")]
    own = [name for name in files if name.rpartition("/")[0] == path]
    if not own:
        folder.findings.add(path or "model.safetensors", "has no weights as safetensors. Save or download it again.")
        return None
    if kind == "StaticEmbedding":
        shapes = [tensor.shape for name in own if name in weights for tensor in weights[name].tensors.values()]
        return shapes[0][1] if len(shapes) == 1 and len(shapes[0]) == 2 else None
    prefix = f"{path}/" if path else ""
    _check_shards(folder, prefix)
    configuration = folder.json(f"{prefix}config.json")
    size = None if configuration is None else configuration.get("hidden_size", configuration.get("d_model"))
    return size if type(size) is int else None


def _check_shards(folder: Folder, prefix: str) -> None:
    index = f"{prefix}model.safetensors.index.json"
    if not folder.has(index) or (found := folder.json(index)) is None:
        return
    shards = found.get("weight_map")
    if not isinstance(shards, dict):
        folder.findings.add(index, "has no weight_map. Save or download the model again.")
        return
    for shard in sorted({str(shard) for shard in shards.values()}):
        if leads_away(shard) or not shard.endswith(".safetensors") or not folder.has(prefix + shard):
            folder.findings.add(index, f"names {shown(shard)!r}, which is no safetensors file beside it.")


def _pooling(folder: Folder, path: str, before: int | None) -> int | None:
    configuration = folder.json(f"{path}/config.json")
    if configuration is None:
        return None
    size = configuration.get("embedding_dimension", configuration.get("word_embedding_dimension"))
    if not _is_dimension(size):
        folder.findings.add(f"{path}/config.json", "has no embedding_dimension. Save or download the model again.")
        return None
    _check_fit(folder, path, before, size)
    modes = configuration.get("pooling_mode")
    if not isinstance(modes, str | list):
        modes = [key for key, value in configuration.items() if key.startswith("pooling_mode_") and value is True]
    return int(size) * (1 if isinstance(modes, str) else max(1, len(modes)))


def _dense(folder: Folder, weights: Mapping[str, Weights], path: str) -> tuple[int, int] | None:
    """Input and output dimensions of a ``Dense``; None where its configuration and weights do not fit together."""
    name, file = f"{path}/config.json", f"{path}/model.safetensors"
    configuration = folder.json(name)
    if not folder.has(file):
        folder.findings.add(file, "is missing. Save or download the model again.")
    if configuration is None or file not in weights:
        return None
    columns, rows = (configuration.get(key) for key in ("in_features", "out_features"))
    if not _is_dimension(columns) or not _is_dimension(rows):
        folder.findings.add(name, f"goes from {shown(columns)} to {shown(rows)}, which are no dimensions.")
        return None
    activation = configuration.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        folder.findings.add(
            name,
            f"has the activation {shown(activation)!r}, none of those of torch.nn that a head can have. Save it again.",
        )
    expected = _dense_shapes(configuration, rows, columns)
    shapes = {key: tensor.shape for key, tensor in weights[file].tensors.items()}
    if shapes != expected:
        folder.findings.add(file, f"has tensors of shapes {shown(shapes)}, and {name} asks for {shown(expected)}.")
        return None
    if any(tensor.dtype not in _FLOATS for tensor in weights[file].tensors.values()):
        folder.findings.add(file, "holds weights that are no floating point numbers. Save the model again.")
    return columns, rows


def _dense_shapes(configuration: Mapping[str, Any], rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (rows, columns)}
    if configuration.get("bias", True):
        shapes["linear.bias"] = (rows,)
    if configuration.get("use_residual") and rows != columns:
        shapes["residual.weight"] = (rows, columns)
    return shapes


def _is_dimension(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 24


def _read_route(folder: Folder, weights: Mapping[str, Weights], heads: SavedRoutes, route: str) -> None:
    parts: list[tuple[str, str]] = []
    sizes: list[tuple[int, int]] = []
    for path in heads.routes[route]:
        layer = _dense(folder, weights, path)
        if layer is None:
            return
        configuration = folder.json(f"{path}/config.json")
        keys = [configuration.get(key) for key in ("module_input_name", "module_output_name")]
        if any(key not in (None, _EMBEDDING) for key in keys):
            folder.findings.add(path, f"reads and writes {shown(keys)}, not {_EMBEDDING}. Save the model again.")
        if sizes:
            _check_fit(folder, path, sizes[-1][1], layer[0])
        sizes.append(layer)
        parts.append((folder.digest(f"{path}/config.json"), weights[f"{path}/model.safetensors"].digest))
    heads.digests[route] = route_digest(parts)
    if sizes:
        heads.sizes[route] = (sizes[0][0], sizes[-1][1])


def _are_layers(findings: Findings, name: str, types: Mapping[str, Any], structure: Mapping[str, Any]) -> bool:
    for layer, kind in types.items():
        if not layer or leads_away(layer):
            findings.add(name, f"leads out of the folder, to {shown(layer)!r}. Do not load it.")
            return False
        if stock_name(kind) != "Dense":
            findings.add(name, f"layer {shown(layer)!r} is a {shown(kind)!r}: heads consist of the library's Dense.")
            return False
    for route, layers in structure.items():
        if not isinstance(layers, list) or not all(isinstance(layer, str) and layer in types for layer in layers):
            findings.add(name, f"route {route!r} names layers that are not there. Save or download the model again.")
            return False
    if not any(structure.values()):
        findings.add(name, "has no layers on either route. Save the encoder alone.")
        return False
    return True


def _check_names(findings: Findings, name: str, structure: Mapping[str, list[str]]) -> None:
    """Layers are named by the route that they were made for: that is seen without any record of them."""
    made_for = {route: {layer.partition("_")[0] for layer in structure[route]} for route in ROUTES}
    if made_for["query"] == {"document"} and made_for["document"] != {"document"}:
        findings.add(name, "sends queries through the head of documents: the routes are swapped. Download it again.")
    elif made_for["document"] == {"query"} and made_for["query"] != {"query"}:
        findings.add(name, "sends documents through the head of queries: the routes are swapped. Download it again.")


def _check_fit(folder: Folder, path: str, before: int | None, takes: int) -> None:
    if before is not None and before != takes:
        folder.findings.add(path, f"takes vectors of {takes} dimensions, and what comes before it gives {before}.")


def _check_sides(folder: Folder, chain: Chain, path: str) -> None:
    """Heads take the encoder's vectors, and both sides give vectors that can be compared."""
    assert chain.heads is not None  # noqa: S101 - for the types alone
    outputs = {}
    for route in ROUTES:
        sizes = chain.heads.sizes.get(route)
        if sizes is not None and chain.encoder_dimension is not None and sizes[0] != chain.encoder_dimension:
            folder.findings.add(
                path,
                f"the {route} head takes vectors of {sizes[0]} dimensions, and the encoder gives "
                f"{chain.encoder_dimension}: it is another encoder's.",
            )
        outputs[route] = sizes[1] if sizes is not None else chain.encoder_dimension
    known = {size for size in outputs.values() if size is not None}
    if len(known) > 1:
        folder.findings.add(path, f"gives queries and documents vectors of different dimensions, {shown(outputs)}.")
    chain.dimension = known.pop() if len(known) == 1 else None


def _check_order(folder: Folder, chain: Chain) -> None:
    names = chain.names
    if "Router" not in names:
        return
    if names[0] == "Router" or names[names.index("Router") + 1 :] != ["Normalize"]:
        folder.findings.add(
            "modules.json", f"is {shown(names)}, and a model with heads is [encoder..., Router, Normalize]."
        )
