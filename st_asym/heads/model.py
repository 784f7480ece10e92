"""A frozen encoder with heads behind it, as a plain SentenceTransformer."""

from __future__ import annotations

import json
import logging
import textwrap
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.base.modules import Normalize, Router
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import Unpack

from st_asym.heads.anatomy import foreign_modules, gives_unit_vectors, model_file, prompts_of, taken_apart, whole_width
from st_asym.heads.projection import AsymmetricProjection, ProjectionOptions, require_tasks

logger = logging.getLogger(__name__)

DType: TypeAlias = Literal["float32", "float16", "bfloat16"]

# Tokenizer, configurations, card and report.
_BESIDE_TENSORS = 20_000_000


def asymmetric_model(
    encoder: SentenceTransformer | str | PathLike[str], **projection: Unpack[ProjectionOptions]
) -> SentenceTransformer:
    """Put query and document heads behind a frozen encoder.

    The result is a plain ``SentenceTransformer`` of stock modules, ``[*encoder, Router, Normalize]``, with cosine
    similarity and the encoder's own prompts, ``max_seq_length``, dtype and device. Before training it gives the
    encoder's vectors, normalised. An encoder with a ``truncate_dim`` gets heads that start as that truncation.

    The modules are shared with ``encoder``, not copied, and are frozen by :func:`freeze_encoder`.

    Args:
        encoder: A ``SentenceTransformer``, or the Hub id or path of one.
        **projection: ``out_features``, ``hidden_features``, ``activation``, ``init``, ``query``, ``document``,
            ``shared`` and ``bias`` of :func:`st_asym.AsymmetricProjection`.

    Returns:
        The model, with the heads as its only trainable parameters.

    Raises:
        TypeError: ``encoder`` is a sparse, multi-vector or cross encoder, or has a module that cannot be saved.
        ValueError: ``encoder`` already has a ``Router``, or does not say how many dimensions its vectors have, or the
            projection is impossible (see :func:`st_asym.AsymmetricProjection`).

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> encoder = SentenceTransformer(modules=[BoW(["frozen", "encoder", "head"])])
        >>> model = asymmetric_model(encoder)
        >>> [type(module).__name__ for module in model]
        ['BoW', 'Router', 'Normalize']
        >>> model.encode_query("frozen head").shape
        (3,)
    """
    encoder = load_encoder(encoder)
    model = behind_encoder(encoder, fresh_heads(encoder, projection))
    if encoder.dtype in (torch.bfloat16, torch.float16):
        logger.warning(
            "The heads are in %s like the encoder. An optimizer step below 1/%d of a weight is rounded away in that "
            "precision: load the encoder in float32 to train, and convert the trained model.",
            str(encoder.dtype).removeprefix("torch."),
            round(2 / torch.finfo(encoder.dtype).eps),
        )
    return model


def fresh_heads(encoder: SentenceTransformer, projection: ProjectionOptions) -> Router:
    """Untrained heads for this encoder; an error or a warning where the two cannot be combined or saved."""
    if any(isinstance(module, Router) for module in encoder.modules()):
        raise ValueError(
            "The encoder already has a Router, so its queries and documents take different ways before the heads. Pass "
            "the encoder inside it; to train existing heads further, use st_asym.freeze_encoder(model)."
        )
    in_features = whole_width(encoder)
    if in_features is None:
        raise ValueError(
            f"The encoder does not say how many dimensions its vectors have: none of its modules "
            f"({', '.join(type(module).__name__ for module in encoder)}) has get_embedding_dimension()."
        )
    _check_saveable(encoder)
    options: ProjectionOptions = {"out_features": encoder.get_embedding_dimension(), **projection}
    router = AsymmetricProjection(in_features, **options)
    _warn_about_encoder(encoder, keeps_documents=projection.get("document") is False)
    return router


def behind_encoder(encoder: SentenceTransformer, router: Router) -> SentenceTransformer:
    """The model of :func:`asymmetric_model`, of an encoder and finished heads."""
    names = [name for name, _ in encoder.named_children()]
    model = SentenceTransformer(
        modules=[*encoder.children(), router, Normalize()],
        device=encoder.device,  # type: ignore[arg-type]  # annotated as str, handed to Module.to
        prompts=prompts_of(encoder),
        default_prompt_name=encoder.default_prompt_name,
        trust_remote_code=encoder.trust_remote_code,
        backend=encoder.get_backend(),
        similarity_fn_name="cosine",
        # Whoever kept the encoder from asking the Hub wants the same of the model's card.
        model_card_data=SentenceTransformerModelCardData(local_files_only=encoder.model_card_data.local_files_only),
    )
    # Otherwise the library would guess the encoder's name from where its folder is.
    card, known = model.model_card_data, encoder.model_card_data
    card.base_model, card.base_model_revision = known.base_model, known.base_model_revision
    if encoder.module_kwargs:
        model.module_kwargs = {str(names.index(name)): value for name, value in encoder.module_kwargs.items()}
    return freeze_encoder(model)


def saved_size(model: SentenceTransformer) -> int:
    """About how many bytes a saved model takes: its tensors, and something for tokenizer and configurations."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + _BESIDE_TENSORS


def freeze_encoder(model: SentenceTransformer) -> SentenceTransformer:
    """Freeze every module before the heads, in place; the model is returned.

    Their parameters take no gradients, and they stay in evaluation mode while the heads train, so that dropout does not
    change the encoder's vectors. The heads refuse columns without a task while they train, as those of
    :func:`st_asym.AsymmetricProjection` do. :func:`asymmetric_model` does this; a model loaded from disk needs it
    before its heads are trained further.

    Args:
        model: A ``SentenceTransformer`` with a ``Router`` among its modules.

    Raises:
        ValueError: ``model`` has no ``Router``, or nothing before it.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = freeze_encoder(SentenceTransformer("path/to/a/saved/model"))  # doctest: +SKIP
    """
    encoder, heads = taken_apart(model)
    if not encoder or not heads:
        raise ValueError(
            "freeze_encoder needs a model with heads behind an encoder, [encoder..., Router, Normalize]; this one is "
            f"[{', '.join(type(module).__name__ for module in model)}]."
        )
    router: Any = heads[0]
    require_tasks(router)
    for module in encoder:
        module.requires_grad_(False)
        module.eval()
        if _stay_in_evaluation_mode not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_stay_in_evaluation_mode)
    return model


def unfreeze_last_layers(model: SentenceTransformer, n: int) -> SentenceTransformer:
    r"""Let the last ``n`` layers of the transformer train with the heads, in place; the model is returned.

    These layers run with their own dropout while the model trains; embeddings and the layers before them stay frozen,
    in evaluation mode. :func:`st_asym.freeze_encoder` freezes the layers again, as they are then.

    The encoder runs for every text of every step, as its vectors no longer stay as they are:
    :class:`st_asym.CachedSentenceTransformer` refuses such a model until it is frozen again, and what the cache holds
    is of the encoder before. The modules are those of the encoder that :func:`st_asym.asymmetric_model` was given:
    training them changes it too. Give the encoder a small learning rate and the heads theirs, with
    ``learning_rate_mapping`` in the training arguments.

    Args:
        model: As of :func:`st_asym.asymmetric_model`: an encoder with a ``Transformer`` module, and heads behind it.
        n: How many layers.

    Raises:
        ValueError: ``model`` has no heads, or not one stack of layers; or ``n`` is not between 1 and their number.

    Example:
        >>> model = asymmetric_model("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> unfreeze_last_layers(model, 1)  # doctest: +SKIP
        >>> arguments = SentenceTransformerTrainingArguments(  # doctest: +SKIP
        ...     "runs", learning_rate=1e-3, learning_rate_mapping={r"^model\.0\.": 2e-5})
    """
    freeze_encoder(model)
    layers = _layers(model)
    if not 1 <= n <= len(layers):
        raise ValueError(
            f"n must be from 1 to {len(layers)}, the number of layers of this encoder, got {n}. To train the heads "
            "alone, use st_asym.freeze_encoder(model)."
        )
    for layer in list(layers)[-n:]:
        layer.requires_grad_(True)
    return model


def load_encoder(
    encoder: SentenceTransformer | str | PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: DType | None = None,
) -> SentenceTransformer:
    """Load an encoder, or a model with heads, by Hub id or path, and refuse what is not of one dense vector per text.

    One that is loaded already is given back. ``revision`` is a branch, tag or commit of a Hub id. An OSError says what
    to do where there is no such model.
    """
    if isinstance(encoder, SentenceTransformer):
        return encoder
    if not isinstance(encoder, str | PathLike):
        raise TypeError(
            f"The encoder must be a SentenceTransformer, a Hub id or a path, not a {type(encoder).__name__}: heads are "
            "trained on one dense vector per text."
        )
    name = fspath(encoder)
    if not name.strip():
        raise ValueError(f"The encoder is {name!r}: give a Hub id or a path.")
    if revision is not None and Path(name).is_dir():
        raise ValueError(f"{name} is a folder, and only a Hub id has revisions, such as {revision!r}: leave it out.")
    try:
        # A folder's name is no Hub id, and the model card would ask the Hub for it.
        model = SentenceTransformer(
            name, local_files_only=Path(name).is_dir(), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, HFValidationError) as error:
        if Path(name).exists():
            raise
        raise OSError(_not_there(name, revision, error)) from error
    saved_as = _saved_model_type(name, model, revision)
    if saved_as != "SentenceTransformer":
        raise TypeError(
            f"{name} holds a {saved_as}, which the library converts to a mean-pooled encoder that was never trained: "
            "heads need an encoder of one dense vector per text. Name a SentenceTransformer."
        )
    return model if dtype is None else model.to(getattr(torch, dtype))


def _stay_in_evaluation_mode(module: nn.Module, _args: Any) -> None:
    """Undo what ``model.train()`` did to the frozen parts of a module, so that they run without dropout."""
    if not module.training:
        return
    trainable = [parameter.requires_grad for parameter in module.parameters()]
    if not any(trainable):
        module.eval()
    elif not all(trainable):
        for child in module.children():
            _stay_in_evaluation_mode(child, _args)


def _not_there(name: str, revision: str | None, error: Exception) -> str:
    """What to do where a model cannot be read."""
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        return f"There is no folder {name}: give the path of one that holds a model, or the model's Hub id."
    known = name if revision is None else f"{name} at revision {revision}"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{known} is no folder here and is not whole in the cache of the Hub ({constants.HF_HUB_CACHE}), and "
            "HF_HUB_OFFLINE forbids to ask the Hub: unset it, or give the path of a folder that holds the model."
        )
    reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder="...").rstrip(".")
    return (
        f"{known} is no folder here and cannot be read from the Hub ({reason}). Check the name, and log in with "
        "hf auth login where it is private. Without a connection, give the path of a folder that holds the model, or "
        f"fill the cache where there is one (hf download {name}), copy it here and set HF_HUB_OFFLINE=1."
    )


def _saved_model_type(name: str, model: SentenceTransformer, revision: str | None) -> str:
    """What ``name`` was saved as: the library loads sparse, multi-vector and cross encoders too, with a warning."""
    settings = model_file(name, "config_sentence_transformers.json", revision)
    if settings is not None:
        return str(json.loads(settings.read_text(encoding="utf-8")).get("model_type", "SentenceTransformer"))
    classifier = any("ForSequenceClassification" in name for name in getattr(model.config, "architectures", None) or [])
    known = model_file(name, "modules.json", revision) is not None
    return "CrossEncoder" if classifier and not known else "SentenceTransformer"


def _check_saveable(model: SentenceTransformer) -> None:
    """Refuse a module that cannot be saved, before anything is trained."""
    for position, module in enumerate(model.children()):
        if not callable(getattr(module, "save", None)):
            raise TypeError(
                f"Module {position} of the encoder, a {type(module).__name__}, has no method save, so that no model "
                "with it could be saved: give it save(path) and a classmethod load(path), as "
                "sentence_transformers.base.modules.Module has them, or leave it out."
            )


def _warn_about_encoder(encoder: SentenceTransformer, *, keeps_documents: bool) -> None:
    """Say what of the encoder's behaviour the model cannot keep."""
    if foreign := foreign_modules(encoder):
        logger.warning(
            "The encoder has modules that are not part of sentence-transformers (%s). The saved model needs them, and "
            "trust_remote_code=True, wherever it is loaded.",
            ", ".join(foreign),
        )
    if encoder.similarity_fn_name != "cosine" and not gives_unit_vectors(encoder):
        logger.warning(
            "The encoder compares vectors of any length by %s; the model with heads compares directions, by cosine, "
            "and ranks differently even before training.%s",
            encoder.similarity_fn_name,
            " Search an index of the encoder's vectors by cosine, too." if keeps_documents else "",
        )


def _layers(model: SentenceTransformer) -> nn.ModuleList:
    """The transformer's stack of layers: the one outermost list that is as long as its configuration says."""
    stacks: dict[str, nn.ModuleList] = {}
    transformer = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if transformer is not None:
        lists = {name: one for name, one in transformer.named_modules() if isinstance(one, nn.ModuleList)}
        inner = {name for name in lists for other in lists if name.startswith(f"{other}.")}
        count = getattr(transformer.config.get_text_config(), "num_hidden_layers", None)
        stacks = {name: one for name, one in lists.items() if name not in inner and len(one) == count}
    if len(stacks) != 1:
        raise ValueError(
            "unfreeze_last_layers needs an encoder with one stack of layers in PyTorch, as BERT, MPNet, DistilBERT, "
            f"RoBERTa and ModernBERT have; in this one, [{', '.join(type(module).__name__ for module in model)}], it "
            f"finds {', '.join(stacks) or 'none'}. Set requires_grad of the parameters to train yourself."
        )
    return next(iter(stacks.values()))
