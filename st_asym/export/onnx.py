"""A model as one ONNX graph, from tokens to the vector, with its tokenizer beside it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import disable_logging
from torch import Tensor, nn

from st_asym.data.files import read_json, write_json
from st_asym.export.servers import own_tokens, write_settings

Array = np.ndarray[Any, np.dtype[np.float32]]

MAX_DIFFERENCE = 1e-4
# What the graph reads, and what tokenizers call it.
_INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_OUTPUT = "sentence_embedding"
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
# A file of the format cannot be larger than 2 GiB; beyond, weights go into one beside it.
_ONE_FILE = 1_800_000_000


def check_onnx() -> None:
    """Refuse early, with an ImportError, where a package is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f"format='onnx' needs {', '.join(missing)}: pip install 'st_asym[onnx]'.")


def write_onnx(model: SentenceTransformer, folder: Path, *, prompt: str, texts: Sequence[str], int8: bool) -> Array:
    """Write a model of one side, and encode texts with what was written, by onnxruntime and tokenizers alone.

    ``model`` is of modules from a ``Transformer`` on, without a ``Router``; ``folder`` is made here; ``prompt`` is put
    before the texts. The vectors have the shape ``(len(texts), d)``, float32.
    """
    transformer, tokenizer = graph_parts(model, prompt)
    folder.mkdir()
    _write_graph(model, folder / "model.onnx", int8=int8)
    tokenizer.save_pretrained(str(folder))
    config = copy.deepcopy(transformer.config)
    # Servers know an encoder by the name of its class.
    config.architectures = config.architectures or [type(transformer.auto_model).__name__]
    config.save_pretrained(str(folder))
    write_settings(folder, model)
    prompts = {"prompts": dict(model.prompts), "default_prompt_name": model.default_prompt_name}
    write_json(folder / "config_sentence_transformers.json", prompts)
    padding = {"direction": tokenizer.padding_side, "pad_id": tokenizer.pad_token_id, "pad_token": tokenizer.pad_token}
    encode = graph_encoder(folder, **padding)
    texts = [prompt + text for text in texts]
    # One batch of all lengths, and one of a single text.
    return np.concatenate([encode(part) for part in (texts[:1], texts[1:]) if part])


def graph_parts(model: SentenceTransformer, prompt: str) -> tuple[Transformer, Any]:
    """The encoder and its tokenizer; a ValueError where no graph can stand for the model."""
    first, *rest = model
    tokenizer = getattr(first, "tokenizer", None)
    if not isinstance(first, Transformer) or not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"format='onnx' needs an encoder that begins with a Transformer and its fast tokenizer, not with a "
            f"{type(first).__name__}."
        )
    if reason := own_tokens(first):
        raise ValueError(f"format='onnx' cannot run this model: {reason}. Serve it with st-asym serve.")
    if model.dtype != torch.float32:
        raise ValueError(f"format='onnx' needs a model in float32, not in {model.dtype}: load it so (int8 is smaller).")
    if prompt and any(isinstance(module, Pooling) and not module.include_prompt for module in rest):
        raise ValueError("The encoder's pooling leaves the prompt's tokens out, which a graph of tokens cannot know.")
    return first, tokenizer


class _Graph(nn.Module):
    """The modules of a model as a function of tensors."""

    def __init__(self, model: SentenceTransformer, names: Sequence[str]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(model.children())
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tokens, shape ``(batch, tokens)``, to vectors, shape ``(batch, d)``."""
        features: dict[str, Tensor] = dict(zip(self.names, inputs, strict=True))
        for stage in self.stages:
            features = stage(features)
        return features[_OUTPUT]


def _write_graph(model: SentenceTransformer, path: Path, *, int8: bool) -> None:
    # Two rows of different lengths, so that nothing about batch or length is taken for fixed.
    example = model.preprocess(["a text of several words", "text"])
    names = [name for name in _INPUTS if name in example]
    inputs = tuple(example[name].to(model.device) for name in names)
    free = torch.export.Dim.DYNAMIC
    large = sum(p.numel() * p.element_size() for p in model.parameters()) > _ONE_FILE
    # Without what the exporter and the quantiser say about themselves.
    with disable_logging(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _Graph(model, names).eval(),
                inputs,
                str(path),
                input_names=names,
                output_names=[_OUTPUT],
                dynamic_shapes=(tuple({0: free, 1: free} for _ in names),),
                external_data=large,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            said = str(error).strip() or type(error).__name__
            raise ValueError(f"torch.onnx cannot export this encoder: {said.splitlines()[0]}") from error
        if int8:
            _quantise(path)


def _quantise(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = onnx.load(path)
    del whole.graph.value_info[:]  # shapes that torch 2.6 gives weights which it has transposed since
    for file in path.parent.glob("*"):
        file.unlink()
    # Signed weights saturate on processors without VNNI, where the graph may be run wherever it was made.
    quantize_dynamic(whole, str(path), weight_type=QuantType.QUInt8, per_channel=True)


def graph_encoder(folder: Path, **padding: Any) -> Callable[[Sequence[str]], Array]:
    """Texts to vectors, float32 of shape ``(n, d)``, as a user would: by the files, onnxruntime and tokenizers alone.

    ``padding`` is that of ``tokenizers.Tokenizer.enable_padding``; prompts are the caller's.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = read_json(folder / "sentence_bert_config.json")
    if "max_seq_length" in settings:
        tokenizer.enable_truncation(settings["max_seq_length"])
    tokenizer.enable_padding(**padding)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def encode(texts: Sequence[str]) -> Array:
        rows = tokenizer.encode_batch(list(texts))
        names = [entry.name for entry in session.get_inputs()]
        inputs = {name: np.array([getattr(row, _INPUTS[name]) for row in rows], dtype=np.int64) for name in names}
        vectors: Array = session.run([_OUTPUT], inputs)[0]
        return vectors

    return encode
