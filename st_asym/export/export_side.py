"""``export_side``: one side of a model as a folder that servers read."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.util import pairwise_cos_sim
from torch import nn

from st_asym.cache import CachedSentenceTransformer
from st_asym.data.files import check_place, new_folder
from st_asym.export.onnx import MAX_DIFFERENCE, Array, check_onnx, graph_parts, write_onnx
from st_asym.export.servers import TEI, VLLM, not_served, rename_modules, write_settings
from st_asym.heads.anatomy import Side, evaluating, foreign_modules, side_modules, side_prompt
from st_asym.heads.model import load_encoder

logger = logging.getLogger(__name__)

Format = Literal["sentence-transformers", "onnx"]
_LOWEST_COSINE_INT8 = 0.95
# What vectors are compared on if nothing else is given: short and long, past the usual maximum length.
TEXTS = (
    "How do I reset the filter?",
    "Hold the button for five seconds until the light blinks twice, then let go; the counter starts again at zero.",
    "error E17",
    "In 1905, Einstein published four papers on the photoelectric effect, Brownian motion and special relativity.",
    "A protein kinase that phosphorylates serine residues regulates the cell cycle (p < 0.001, n = 42).",
    "Le contrat prend fin à la date indiquée à l'article 7, sauf accord écrit des deux parties.",
    "Der Zug nach Köln fährt heute von Gleis 3, etwa 10 Minuten später als geplant.",
    "def mean(values): return sum(values) / len(values)",
    "https://example.org/path?query=1&page=2",
    "東京の天気は晴れです。",
    "?",
    "The quick brown fox jumps over the lazy dog. " * 60,
)


class Agreement(NamedTuple):
    """How close two sets of vectors are: largest difference of a component, lowest cosine of two vectors."""

    difference: float
    cosine: float


@dataclass(frozen=True)
class Export:
    """What :func:`export_side` wrote.

    Attributes:
        path: The folder.
        agreement: Largest difference of a component, and lowest cosine, between vectors of the export and of the model.
        not_served: Which of Text Embeddings Inference and vLLM cannot run it, and why.
        size: Of all files, in bytes.

    Example:
        >>> export = export_side("fitted-model", "query", "query-model")  # doctest: +SKIP
        >>> export.agreement.difference < 1e-5, export.not_served  # doctest: +SKIP
        (True, {})
    """

    path: Path
    agreement: Agreement
    not_served: dict[str, str]
    size: int

    def __str__(self) -> str:
        """In one line."""
        found = self.agreement
        how = f"largest difference {found.difference:.1e}, lowest cosine {found.cosine:.6f}"
        servers = f"; not for {' and '.join(self.not_served)}" if self.not_served else ""
        return f"{self.path}: {self.size / 1e6:.1f} MB, {how}{servers}"


def export_side(
    model: SentenceTransformer | str | PathLike[str],
    side: Side,
    path: str | PathLike[str],
    *,
    format: Format = "sentence-transformers",  # noqa: A002 - as tools that export call it
    int8: bool = False,
    texts: Sequence[str] | None = None,
) -> Export:
    """Write one side of a model as an ordinary dense model, for servers that know no ``Router``.

    ``"sentence-transformers"`` writes ``[Transformer, Pooling, Dense..., Normalize]``: ``SentenceTransformer(path)``
    loads it, and its ``encode`` gives what ``encode_query`` or ``encode_document`` of ``model`` gives. A linear head
    becomes one ``Dense``; a side without a head is the encoder itself. Settings are in the files and under the names
    that Text Embeddings Inference and vLLM read (sentence-transformers 6 writes others, which the former does not, and
    no maximum length, which both look for). What they cannot run is logged as a warning. With a head that it cannot
    run, Text Embeddings Inference refuses to start; vLLM logs an error and serves the encoder's vectors.

    - Text Embeddings Inference knows ``Identity`` and ``Tanh``, so it cannot run a head with a hidden layer. Write
      ``"onnx"``, or refit with ``Settings(hidden_features=None, bias=False)``.
    - Neither normalises before a ``Dense``. Behind an encoder that normalises, only a head without bias gives the same
      direction without that, hence ``bias=False``.

    Neither server adds a prompt by itself: start Text Embeddings Inference with ``--default-prompt-name query`` (or
    ``document``), with vLLM put it in front of each text.

    ``"onnx"`` (extra ``onnx``) writes ``model.onnx``, from ``input_ids``, ``attention_mask`` and, where the encoder
    reads them, ``token_type_ids``, each int64 of shape ``(batch, tokens)``, to ``sentence_embedding``, float32 of shape
    ``(batch, d)``, with any head, and the tokenizer beside it. The CPU images of Text Embeddings Inference run it, and
    onnxruntime with a dozen lines (docs/serving.md).

    Vectors of the export are compared with those of ``model``, read back from disk, and nothing is left there if they
    differ by more than 1e-5 (``onnx``: 1e-4; ``int8``: a cosine below 0.95).

    Args:
        model: A model with or without heads, or the Hub id or path of one.
        side: ``"query"`` or ``"document"``.
        path: A folder that does not exist yet, or is empty.
        format: ``"sentence-transformers"`` or ``"onnx"``.
        int8: With ``"onnx"``, whether weights are stored and multiplied as 8-bit integers (dynamic quantisation, by
            channel): a quarter of the size, and faster on most CPUs, for vectors that are not quite the same.
        texts: What vectors are compared on; a dozen texts of several lengths and languages if None.

    Returns:
        Where it is, how close its vectors are, and which servers cannot run it.

    Raises:
        FileExistsError: ``path`` holds something.
        OSError: ``path`` cannot be written.
        ImportError: The extra ``onnx`` is not installed.
        ValueError: The side cannot be one dense model, or the export gives other vectors.

    Example:
        >>> export_side("fitted-model", "query", "query-model")  # doctest: +SKIP
        >>> SentenceTransformer("query-model").encode("error E17")  # doctest: +SKIP
    """
    output = _free(Path(path).resolve())
    _check_arguments(side, format, int8, texts)
    check_place(output)
    if isinstance(model, CachedSentenceTransformer):
        model = model.stock_model()
    elif not isinstance(model, SentenceTransformer):
        model = load_encoder(model)
    modules, prompt = side_modules(model, side), side_prompt(model, side)
    _check_modules(model, modules)
    modules[0] = _of_one_side(modules[0], side)
    texts = list(TEXTS if texts is None else texts)
    unread = {} if format == "onnx" else not_served(modules, prompt=prompt)
    with evaluating(model):
        expected = side_vectors(model, side, texts)
        part = _side_model(model, modules, side, prompt)
        with new_folder(output, _free) as new:
            if format == "onnx":
                vectors, tolerance = write_onnx(part, new, prompt=prompt, texts=texts, int8=int8), MAX_DIFFERENCE
            else:
                # What Text Embeddings Inference alone cannot run, it refuses by itself.
                _write(part, new, side, hidden=VLLM in unread)
                options: dict[str, Any] = {"device": model.device, "model_kwargs": {"dtype": model.dtype}}
                # Not kept: its files are mapped, and Windows puts no folder in its place while one is.
                vectors = side_vectors(SentenceTransformer(str(new), local_files_only=True, **options), None, texts)
                tolerance = max(1e-5, torch.finfo(model.dtype or torch.float32).eps)  # a step of half precision
            found = _agreement(vectors, expected, tolerance, int8=int8)
            gc.collect()
    _warn(unread, part, prompt, side)
    return Export(output, found, unread, sum(file.stat().st_size for file in output.rglob("*") if file.is_file()))


def _free(output: Path) -> Path:
    if output.exists() and (not output.is_dir() or output == Path.cwd() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder: name another path.")
    return output


def _check_arguments(side: Any, format: Any, int8: bool, texts: Any) -> None:  # noqa: A002
    if side not in ("query", "document"):
        raise ValueError(f"side must be 'query' or 'document', got {side!r}.")
    if format not in ("sentence-transformers", "onnx"):
        raise ValueError(f"format must be 'sentence-transformers' or 'onnx', got {format!r}.")
    if int8 and format != "onnx":
        raise ValueError("int8 is for format='onnx': a sentence-transformers model holds floating-point weights.")
    if texts is not None and (isinstance(texts, str) or not texts):
        raise ValueError("texts must be a list of at least one text to compare vectors on.")
    if format == "onnx":
        check_onnx()


def _check_modules(model: SentenceTransformer, modules: Sequence[nn.Module]) -> None:
    if foreign := foreign_modules(modules):
        raise ValueError(
            f"The model has modules that are not part of sentence-transformers ({', '.join(foreign)}), and servers "
            "know no others. Leave out what only training needs."
        )
    if model.truncate_dim is not None:
        raise ValueError(
            f"model.truncate_dim={model.truncate_dim} cuts vectors off after the last module, which no saved model "
            "holds: set it to None, or fit heads with out_features."
        )


def _of_one_side(encoder: Any, side: Side) -> Any:
    """An encoder that cuts every text off where this one cuts those of a side off; the weights are shared."""
    names = ("query_length", "document_length")
    if all(getattr(encoder, name, None) is None for name in names):
        return encoder
    alone = copy.copy(encoder)
    alone.processor = copy.deepcopy(encoder.processor)  # whose tokenizer holds max_seq_length
    if (length := getattr(encoder, f"{side}_length")) is not None:
        alone.max_seq_length = length
    alone.query_length = alone.document_length = None
    return alone


def _side_model(model: SentenceTransformer, modules: list[nn.Module], side: Side, prompt: str) -> SentenceTransformer:
    return SentenceTransformer(
        modules=modules,
        device=model.device,  # type: ignore[arg-type]  # annotated as str, handed to Module.to
        prompts={side: prompt} if prompt else None,
        default_prompt_name=side if prompt else None,
        similarity_fn_name=model.similarity_fn_name,
        model_card_data=SentenceTransformerModelCardData(local_files_only=True),
    ).eval()


def _write(part: SentenceTransformer, folder: Path, side: Side, *, hidden: bool) -> None:
    """Save a model as servers read it."""
    part.save_pretrained(str(folder))
    rename_modules(folder)
    write_settings(folder, part, hidden=hidden)
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\n## The {side} side\n\nThis model encodes {side} texts alone. Exported with st_asym.\n")


def side_vectors(model: SentenceTransformer, side: Side | None, texts: Sequence[str], *, batch_size: int = 32) -> Array:
    """What the model's ``encode_query`` or ``encode_document`` gives, or plain ``encode`` for no side, float32."""
    encodes: dict[Any, Any] = {"query": model.encode_query, "document": model.encode_document, None: model.encode}
    tensor = encodes[side](list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    vectors: Array = tensor.float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise ValueError(f"The model's {side or 'exported'} vectors are not finite: training diverged. Train again.")
    return vectors


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """The cosine of each two vectors, shape ``(n,)``; 1 of equal ones, also where both are zero."""
    return np.where((a == b).all(axis=1), 1, pairwise_cos_sim(a, b).numpy())


def _agreement(vectors: Array, expected: Array, tolerance: float, *, int8: bool) -> Agreement:
    """How close vectors of shape ``(n, d)`` are to the model's, where that is close enough; NaN never is."""
    if vectors.shape != expected.shape:
        raise ValueError(f"The export gives vectors of shape {vectors.shape}, the model of {expected.shape}.")
    found = Agreement(float(np.abs(vectors - expected).max()), float(cosines(vectors, expected).min()))
    if int8 and not found.cosine >= _LOWEST_COSINE_INT8:
        raise ValueError(
            f"With 8-bit weights a vector has a cosine of {found.cosine:.3f} with the model's (at least "
            f"{_LOWEST_COSINE_INT8} is asked for): nothing was written. Export without int8."
        )
    if not int8 and not found.difference <= tolerance:
        raise ValueError(
            f"The export gives other vectors than the model: they differ by up to {found.difference:.1e}, and "
            f"{tolerance:.1e} is allowed. Nothing was written. Either the encoder tells queries and documents apart by "
            "itself (query_expansion, a chat template that reads task), which an export cannot: use st-asym serve. Or "
            "something in it depends on more than its saved settings: save and load the model first, and export that."
        )
    return found


def _warn(unread: dict[str, str], part: SentenceTransformer, prompt: str, side: Side) -> None:
    """Say which servers cannot run the exported model, why, and what they would run."""
    remedies = []
    with contextlib.suppress(ValueError):
        graph_parts(part, prompt)
        remedies.append(f"Write format='onnx', which the CPU images of {TEI} run.")
    for reason in dict.fromkeys(unread.values()):
        servers = " and ".join(server for server, why in unread.items() if why == reason)
        linear = "For a head that they run, refit with Settings(hidden_features=None, bias=False)."
        refit = linear if "a Dense" in reason else ""
        logger.warning("%s", " ".join([f"{servers} cannot run this model: {reason}.", *remedies, refit]).rstrip())
    if prompt:
        started = "" if TEI in unread else f"start {TEI} with --default-prompt-name {side}; elsewhere "
        logger.warning("Queries and documents differ by their prompt: %sput %r in front of each text.", started, prompt)
