"""What a saved model may consist of: harmless files, and stock modules, one behind the other in dimensions that fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from posixpath import join
from typing import Any

from st_asym.data.files import PROVENANCE_FILE, ROUTER_FILE
from st_asym.trust.folder import FLOATS, FindingError, Folder, parts, shown

ROUTES = ("query", "document")

# Read by people. Nothing is loaded from them, so they may change after a model was saved.
_DOCUMENTS = frozenset({".csv", ".gif", ".html", ".jpeg", ".jpg", ".md", ".pdf", ".png", ".svg"})
_DOCUMENT_NAMES = frozenset(
    {".gitattributes", ".gitignore"}
    | {f"{name}{suffix}" for name in ("CHANGELOG", "LICENSE", "NOTES", "NOTICE", "README") for suffix in ("", ".txt")}
)
_OWN_REPORTS = re.compile(r"st_asym_\w+\.json")
_DATA = frozenset({".jinja", ".json", ".model", ".safetensors", ".txt"})
_PICKLES = frozenset(
    {".bin", ".ckpt", ".dill", ".h5", ".joblib", ".keras", ".npy", ".npz", ".p", ".pickle", ".pkl", ".pt", ".pth"}
)
# Beside the models that the stock trainer saves, and in its checkpoints.
_OF_THE_TRAINER = re.compile(r"training_args\.bin|(?:optimizer|scheduler|scaler)\.pt|rng_state(?:_\d+)?\.pth")
_CODE = frozenset({".dll", ".dylib", ".js", ".py", ".pyc", ".pyd", ".pyo", ".pyw", ".sh", ".so"})
# A vocabulary may be long; its parsers have limits of their own on how deep it is nested.
_LARGE = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
_MOST_LARGE = 1 << 28
_MOST_SMALL = 1 << 24

# Keys under which a text is opened as a file or folder, with those that only tell where something came from.
_PATHS = re.compile(r".*(?:_files?|_path|_dir|_folder)|file_name|subfolder")
_ORIGINS = frozenset({"_name_or_path", "name_or_path", "special_tokens_map_file"})
# What transformers reads to find weights that lie in several files.
_INDEX = re.compile(r".*\.(?:safetensors|bin)\.index.*\.json")
# Keys under which a text with a slash is code on the Hub.
_KERNELS = re.compile(r".*_implementation(?:_internal)?")
_REFUSED = {
    "allow_all_kernels": "runs code of anybody from the Hub (allow_all_kernels). Remove the entry.",
    "attribute_map": "gives entries other names (attribute_map), which may hide anything. Remove the entry.",
    "auto_map": "names code of its own (auto_map). Where transformers has the class itself, remove the entry.",
    "transformers_weights": "names its weights (transformers_weights), which may be any file. Save the model again.",
}
# What the Transformer module reads of its own configuration; the last line is what older versions wrote.
_TRANSFORMER_FILE = re.compile(r"sentence_[\w-]+_config\.json", re.IGNORECASE)
_ARGUMENTS = ("model_kwargs", "processor_kwargs", "config_kwargs", "model_args", "tokenizer_args", "config_args")
_TRANSFORMER = frozenset(
    {"document_length", "modality_config", "module_output_name", "processing_kwargs", "query_expansion"}
    | {"query_length", "transformer_task", "unpad_inputs"}
    | {"do_lower_case", "max_seq_length", *_ARGUMENTS}
)
# A task that is none of these takes its class from the configuration.
_TASKS = ("any-to-any", "feature-extraction", "fill-mask", "sequence-classification", "text-generation")
_METHODS = re.compile(r"forward|get_\w+_features")
# Of the arguments of transformers those that neither name a file nor let anything run, with a number or a name.
_HARMLESS = frozenset(
    {"add_pooling_layer", "attn_implementation", "dtype", "low_cpu_mem_usage", "max_pixels", "min_pixels"}
    | {"model_max_length", "padding_side", "torch_dtype", "truncation_side", "use_cache", "use_fast"}
    | {"use_safetensors"}
)
# Of the library's modules those whose files are data alone.
_MODULES = frozenset(
    {"BoW", "CNN", "Dense", "Dropout", "LSTM", "LayerNorm", "Normalize", "Pooling", "Router", "StaticEmbedding"}
    | {"Transformer", "WeightedLayerPooling", "WordWeights"}
)
_HOMES = ("sentence_transformers.base.modules.", "sentence_transformers.sentence_transformer.modules.")
_FORMER_HOME = "sentence_transformers.models"
# Under the name of the class and under the one that torch.nn re-exports it by, which exports are written with.
_ACTIVATIONS = frozenset(
    {"torch.nn.Identity", "torch.nn.modules.linear.Identity"}
    | {
        f"{home}.{name}"
        for home in ("torch.nn", "torch.nn.modules.activation")
        for name in ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Tanh")
    }
)
_EMBEDDING = "sentence_embedding"
_MOST_LAYERS = 16


def is_document(name: str) -> bool:
    """Whether a file may change without changing a vector."""
    path = PurePosixPath(name)
    own = _OWN_REPORTS.fullmatch(name) is not None
    return own or path.name in _DOCUMENT_NAMES or path.suffix.lower() in _DOCUMENTS


def is_too_large(name: str, size: int) -> bool:
    """Whether a file other than weights is longer than any that a model has, so that it is not read at all."""
    path = PurePosixPath(name)
    return path.suffix.lower() != ".safetensors" and size > (_MOST_LARGE if path.name in _LARGE else _MOST_SMALL)


def check_files(folder: Folder) -> None:
    """Refuse files of kinds that run code, or that no saved model has, and files of absurd sizes."""
    for path, size in folder.sizes.items():
        name, kind = PurePosixPath(path).name, PurePosixPath(path).suffix.lower()
        if _OF_THE_TRAINER.fullmatch(name):
            what = "is the trainer's, and a pickle, which can run any code when it is loaded. "
            folder.add(path, what + "The model does not need it: remove it, or save the model with save_pretrained.")
        elif kind in _PICKLES:
            what = "may hold a pickle, which can run any code when it is loaded. Save the model as safetensors."
            folder.add(path, what)
        elif kind in _CODE:
            folder.add(path, "is code, and a saved model needs none. Remove it, or do not use the model.")
        elif name == "adapter_config.json":
            folder.add(path, "makes this an adapter, which loads another model. Merge it and save the whole.")
        elif not is_document(path) and kind not in _DATA:
            folder.add(path, "is no kind of file that a saved model has. Remove it.")
        elif is_too_large(path, size):
            folder.add(path, f"is {size:,} bytes long: no such file is. Remove it, or download it again.")


def check_configurations(folder: Folder) -> None:
    """Parse all small JSON files, wherever they lie, and refuse what names code, or a file that is not beside it."""
    for name in sorted(folder.sizes):
        path = PurePosixPath(name)
        if path.suffix.lower() != ".json" or path.name in _LARGE or is_document(name):
            continue
        with folder.noting():
            configuration = folder.json(name, object)
            entries = configuration if isinstance(configuration, dict) else {}
            if _INDEX.fullmatch(path.name) or "weight_map" in entries:
                _check_shards(folder, name, entries)
            if _TRANSFORMER_FILE.fullmatch(path.name):
                _check_transformer(folder, name, entries)
            if name != PROVENANCE_FILE:
                _check_entries(folder, name, configuration)


def _check_entries(folder: Folder, name: str, configuration: Any) -> None:
    """Refuse entries that name code, or files elsewhere, however deep they lie, of any module and architecture."""
    for _, key, value in parts(configuration):
        if key in _REFUSED and value:
            folder.add(name, _REFUSED[key])
        elif _KERNELS.fullmatch(key) and any(isinstance(one, str) and "/" in one for _, _, one in parts(value)):
            folder.add(name, f"{shown(key)} is code on the Hub, {shown(value)}. Name one of transformers, as sdpa.")
        elif not isinstance(value, str) or key in _ORIGINS or not _PATHS.fullmatch(key):
            continue
        elif _leads_away(value) or is_document(value):
            what = f"{shown(key)} leads out of the model's own files, to {shown(value)!r}. Name one beside it."
            folder.add(name, what)


def _check_transformer(folder: Folder, name: str, configuration: Mapping[str, Any]) -> None:
    """Refuse in the configuration of a ``Transformer`` what is not its own, and arguments that are not harmless."""
    wrong = sorted(set(configuration) - _TRANSFORMER)
    for key in _ARGUMENTS:
        arguments = configuration.get(key, {})
        if not isinstance(arguments, dict):
            wrong.append(key)
            continue
        wrong += [f"{key}.{one}" for one, value in arguments.items() if one not in _HARMLESS or not _is_plain(value)]
    if configuration.get("transformer_task", "feature-extraction") not in _TASKS:
        wrong.append("transformer_task")
    if not _are_modalities(configuration.get("modality_config", {})):
        wrong.append("modality_config")
    for key in wrong:
        what = f"has {shown(key)}, by which loading may read other files or run code. Remove the entry."
        folder.add(name, what)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, None, or a name such as that of a type."""
    return re.fullmatch(r"\w+", value) is not None if isinstance(value, str) else not isinstance(value, dict | list)


def _are_modalities(value: Any) -> bool:
    """Whether each names a method by which a model encodes, and none of its others."""
    if not isinstance(value, dict):
        return False
    methods = [one.get("method") if isinstance(one, dict) else None for one in value.values()]
    return all(isinstance(method, str) and _METHODS.fullmatch(method) for method in methods)


@dataclass
class Saved:
    """The modules of a model in order: class names, the dimension of its encoder and of its vectors, and the heads.

    Of each route these are a digest of weights and configurations, None where it has no layers, and its input and
    output dimensions. ``digests`` is None where there are no heads. Heads alone have no class names and no encoder.
    """

    names: list[str] = field(default_factory=list)
    encoder_dimension: int | None = None
    dimension: int | None = None
    digests: dict[str, str | None] | None = None
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def stock_name(reference: Any) -> str | None:
    """The class that a dotted name stands for, if it is one of the library's own and needs nothing but data."""
    if not isinstance(reference, str):
        return None
    home, _, name = reference.rpartition(".")
    stock = home == _FORMER_HOME or f"{home}.".startswith(_HOMES)
    return name if stock and name in _MODULES and all(part.isidentifier() for part in home.split(".")) else None


def read_saved(folder: Folder, *, heads_alone: bool) -> Saved:
    """Read what a folder says it holds, with findings; nothing where it says nothing that can be followed."""
    saved = Saved()
    try:
        if heads_alone:
            _read_heads(folder, saved, "")
        else:
            _read_modules(folder, saved)
    except FindingError as error:
        folder.add(*error.args)
        return Saved()
    return saved


def _read_modules(folder: Folder, saved: Saved) -> None:
    labels = set()
    for position, entry in enumerate(folder.json("modules.json", list)):
        saved.names.append(_entry(folder, position, entry))
        if entry["name"] in labels:
            folder.add("modules.json", f"has two modules of the name {shown(entry['name'])!r}: save it again.")
        labels.add(entry["name"])
        with folder.noting():
            _follow(folder, saved, saved.names[-1], entry["path"])
    names = saved.names
    if not names:
        raise FindingError("modules.json", "has no modules. Save or download the model again.")
    if "Router" in names and (names[0] == "Router" or names[names.index("Router") + 1 :] != ["Normalize"]):
        folder.add("modules.json", f"is {shown(names)}, and a model with heads is [encoder..., Router, Normalize].")


def _leads_away(path: str) -> bool:
    """Whether a path is anything else than a file or folder directly in its folder."""
    return bool(re.search(r"[/\\:\x00]", path)) or path.startswith("~") or path in (".", "..")


def _entry(folder: Folder, position: int, entry: Any) -> str:
    """The class of an entry of modules.json."""
    if not isinstance(entry, dict) or not {"name", "path", "type"} <= set(entry):
        what = "has no name, path or type. Save or download the model again."
    elif not isinstance(path := entry["path"], str) or not isinstance(entry["name"], str) or _leads_away(path):
        what = f"leads out of the folder, to {shown(path)!r}. Do not load it."
    elif (kind := stock_name(entry["type"])) is None:
        what = f"is a {shown(entry['type'])!r}, no stock module of sentence-transformers that is data alone. Loading "
        what += "it would need trust_remote_code: save the stock model, in which heads are Router and Dense."
    elif not path and position:
        what = "shares the folder of the first. Save the model again."
    elif path and kind != "Normalize" and not folder.within(path):
        what = f"should be in {path!r}, which is missing. Download it again."
    else:
        return kind
    raise FindingError("modules.json", f"module {position} {what}")


def _follow(folder: Folder, saved: Saved, kind: str, path: str) -> None:
    """Go one module on, from the dimension before it to the one behind it."""
    if kind == "Router":
        saved.encoder_dimension = saved.dimension
        _read_heads(folder, saved, path)
    elif kind == "Dense":
        _, saved.dimension = _dense(folder, path, saved.dimension)
    elif kind not in ("Dropout", "LayerNorm", "Normalize"):
        before, saved.dimension = saved.dimension, None
        if kind in ("Transformer", "StaticEmbedding"):
            saved.dimension = _encoder(folder, kind, path)
        elif kind == "Pooling":
            saved.dimension = _pooling(folder, path, before)


def _encoder(folder: Folder, kind: str, path: str) -> int | None:
    """The dimension that the configuration or the one weight names, where they do."""
    own = [name for name in folder.within(path) if name.endswith(".safetensors") and name.rpartition("/")[0] == path]
    if not own:
        raise FindingError(path or "model.safetensors", "has no weights as safetensors. Save or download it again.")
    if kind == "StaticEmbedding":
        shapes = [shape for name in own for _, shape in folder.weights(name).tensors.values()]
        return shapes[0][1] if len(shapes) == 1 and len(shapes[0]) == 2 else None
    configuration = folder.json(join(path, "config.json"))
    size = configuration.get("hidden_size", configuration.get("d_model"))
    return size if type(size) is int else None


def _check_shards(folder: Folder, index: str, configuration: Mapping[str, Any]) -> None:
    """Refuse an index of weights that names anything else than safetensors beside it."""
    path, shards = index.rpartition("/")[0], configuration.get("weight_map")
    if not isinstance(shards, dict):
        raise FindingError(index, "has no weight_map. Save or download the model again.")
    for shard in sorted({str(shard) for shard in shards.values()}):
        if _leads_away(shard) or not shard.endswith(".safetensors") or join(path, shard) not in folder.sizes:
            folder.add(index, f"names {shown(shard)!r}, which is no safetensors file beside it.")


def _pooling(folder: Folder, path: str, before: int | None) -> int:
    name = join(path, "config.json")
    configuration = folder.json(name)
    size = configuration.get("embedding_dimension", configuration.get("word_embedding_dimension"))
    if not _is_dimension(size):
        raise FindingError(name, "has no embedding_dimension. Save or download the model again.")
    _check_fit(folder, path, before, size)
    modes = configuration.get("pooling_mode")
    if not isinstance(modes, str | list):
        modes = [key for key, value in configuration.items() if key.startswith("pooling_mode_") and value is True]
    return int(size) * (1 if isinstance(modes, str) else max(1, len(modes)))


def _dense(folder: Folder, path: str, before: int | None) -> tuple[int, int]:
    """Input and output dimensions of a ``Dense`` whose configuration and weights fit together, and what is before."""
    name, file = join(path, "config.json"), join(path, "model.safetensors")
    tensors, configuration = folder.weights(file).tensors, folder.json(name)
    columns, rows = (configuration.get(key) for key in ("in_features", "out_features"))
    if not _is_dimension(columns) or not _is_dimension(rows):
        raise FindingError(name, f"goes from {shown(columns)} to {shown(rows)}, which are no dimensions.")
    activation = configuration.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        what = f"has the activation {shown(activation)!r}, none of those of torch.nn that a head can have. "
        folder.add(name, what + "Save it again.")
    expected: dict[str, tuple[int, ...]] = {"linear.weight": (rows, columns)}
    if configuration.get("bias", True):
        expected["linear.bias"] = (rows,)
    if configuration.get("use_residual") and rows != columns:
        expected["residual.weight"] = (rows, columns)
    shapes = {key: shape for key, (_, shape) in tensors.items()}
    if shapes != expected:
        why = f"has other tensors, of shapes {shown(shapes)}, than {name} asks for, {shown(expected)}."
        raise FindingError(file, why)
    if any(dtype not in FLOATS for dtype, _ in tensors.values()):
        folder.add(file, "holds weights that are no floating point numbers. Save the model again.")
    _check_fit(folder, path, before, columns)
    return columns, rows


def _is_dimension(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 24


def _read_heads(folder: Folder, saved: Saved, path: str) -> None:
    """Read a saved ``Router`` of two routes."""
    name = join(path, ROUTER_FILE)
    router = folder.json(name)
    types, structure, parameters = (router.get(key) for key in ("types", "structure", "parameters"))
    if not isinstance(types, dict) or not isinstance(structure, dict) or not isinstance(parameters, dict):
        raise FindingError(name, "lacks types, structure or parameters. Save or download the model again.")
    if set(structure) != set(ROUTES):
        raise FindingError(name, f"has no routes for query and document alone, but {shown(sorted(structure))}.")
    _check_layers(name, types, structure)
    _check_routing(folder, name, structure, parameters)
    saved.digests = {}
    for route in ROUTES:
        with folder.noting():
            saved.digests[route] = _read_route(folder, saved, route, [join(path, layer) for layer in structure[route]])
    _check_sides(folder, saved, path or name)


def _check_layers(name: str, types: Mapping[str, Any], structure: Mapping[str, Any]) -> None:
    """Refuse a ``Router`` whose layers are not to be read."""
    for layer, kind in types.items():
        if not layer or _leads_away(layer):
            raise FindingError(name, f"leads out of the folder, to {shown(layer)!r}. Do not load it.")
        if stock_name(kind) != "Dense":
            what = f"layer {shown(layer)!r} is a {shown(kind)!r}, and heads consist of Dense of the library."
            raise FindingError(name, what)
    for route, layers in structure.items():
        if not isinstance(layers, list) or not all(isinstance(layer, str) and layer in types for layer in layers):
            what = f"route {route!r} names a layer that is no folder in it. Save or download the model again."
            raise FindingError(name, what)
    if not any(structure.values()) or max(map(len, structure.values())) > _MOST_LAYERS:
        raise FindingError(name, f"has no layers on either route, or more than {_MOST_LAYERS} on one.")


def _check_routing(
    folder: Folder, name: str, structure: Mapping[str, list[str]], parameters: Mapping[str, Any]
) -> None:
    """Whether a ``Router`` sends the texts of each side to its own layers."""
    if set(parameters) - {"default_route", "allow_empty_key", "route_mappings"} or parameters.get("route_mappings"):
        folder.add(name, "sends tasks other ways than by their names (route_mappings). Save the model again.")
    if parameters.get("default_route") not in (None, *ROUTES):
        folder.add(name, f"has the default route {shown(parameters['default_route'])}, which is not there.")
    # Layers are named by the route that they were made for: that is seen without any record of them.
    query, document = ({layer.partition("_")[0] for layer in structure[route]} for route in ROUTES)
    if query == {"document"} != document:
        folder.add(name, "sends queries through the head of documents: the routes are swapped. Download it again.")
    elif document == {"query"} != query:
        folder.add(name, "sends documents through the head of queries: the routes are swapped. Download it again.")


def _read_route(folder: Folder, saved: Saved, route: str, layers: Sequence[str]) -> str | None:
    """Follow the layers of a route; their digest, None where it has none."""
    digests: list[tuple[str, str]] = []
    for path in layers:
        first, before = saved.sizes.get(route, (None, None))
        takes, gives = _dense(folder, path, before)
        saved.sizes[route] = (first or takes, gives)
        name = join(path, "config.json")
        configuration = folder.json(name)
        keys = [configuration.get(key) for key in ("module_input_name", "module_output_name")]
        if any(key not in (None, _EMBEDDING) for key in keys):
            folder.add(path, f"reads or writes something else than {_EMBEDDING}, {shown(keys)}. Save it again.")
        digests.append((folder.digest(name), folder.digest(join(path, "model.safetensors"))))
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest() if layers else None


def _check_fit(folder: Folder, path: str, before: int | None, takes: int) -> None:
    if before is not None and before != takes:
        folder.add(path, f"takes vectors of {takes} dimensions, and what comes before it gives {before}.")


def _check_sides(folder: Folder, saved: Saved, path: str) -> None:
    """Heads take the encoder's vectors, and both sides give vectors that can be compared."""
    given = saved.encoder_dimension or next((takes for takes, _ in saved.sizes.values()), None)
    for route, (takes, _) in saved.sizes.items():
        if takes != given:
            other = "the encoder gives" if saved.encoder_dimension else "the other takes"
            what = f"the {route} head takes vectors of {takes} dimensions, and {other} {given}: "
            folder.add(path, what + "it is another encoder's.")
    outputs = {route: saved.sizes.get(route, (given, given))[1] for route in ROUTES}
    known = {size for size in outputs.values() if size is not None}
    if len(known) > 1:
        folder.add(path, f"gives queries and documents vectors of different dimensions, {shown(outputs)}.")
    saved.dimension = known.pop() if len(known) == 1 else None
