"""A model whose frozen encoder is answered from a cache, for everything that takes a SentenceTransformer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from torch import Tensor, nn

from st_asym.cache.embedding_cache import EmbeddingCache
from st_asym.cache.encoding import Precision, accepted_options, passed_on
from st_asym.cache.fingerprint import (
    check_precision,
    check_ways_to_run,
    encoder_fingerprint,
    was_fingerprint,
    way_of_its_own,
)
from st_asym.heads.anatomy import encoder_modules, layer_reader, taken_apart

# Methods that run as SentenceTransformer has them, so that a model with others would get other vectors.
_WAYS = ("encode_query", "encode_document", "_resolve_prompt", "_inference")


def encodes_in_its_own_way(model: SentenceTransformer) -> bool:
    """Whether a method that :class:`CachedSentenceTransformer` stands in for is not that of SentenceTransformer."""
    return way_of_its_own(model, _WAYS) is not None


class CachedSentenceTransformer(SentenceTransformer):
    """The same model, its frozen encoder answered from a cache.

    Texts are looked up where the model would tokenize them, and encoded where they are missing; ``forward`` begins at
    the heads. The stock trainer, its evaluators and data sets, ``encode``, ``encode_query``, ``encode_document`` and
    ``mteb.evaluate`` take it in place of the model and get the model's vectors. What it saves, checkpoints included,
    is the stock model. The encoder is answered as in evaluation, without dropout.

    The modules are shared with ``model``: training one trains the other. A model without heads is all encoder, and
    gives back what the cache holds.

    Several processes (``torchrun``, ``accelerate launch``) share the cache. Each encodes what its own batches miss, so
    that a text is encoded twice only where two of them meet it in the same step. To let the first encode everything,
    call :meth:`st_asym.EmbeddingCache.fill` under ``with arguments.main_process_first():`` before training, with a
    ``ddp_timeout`` that is long enough. The training arguments need ``ddp_find_unused_parameters=False``, as the loss
    runs the model once per column before it goes back, and anything but False for a Cached... loss with heads that are
    not shared, which runs one column last; ``accelerator_config={"split_batches": True}`` deals each batch out to the
    processes, which makes the run that of one process.

    Args:
        model: A ``SentenceTransformer`` with a frozen encoder, as of :func:`st_asym.asymmetric_model` or
            :func:`st_asym.freeze_encoder`.
        cache: Where its encoder's vectors are, or will be.
        precision: As for :meth:`st_asym.EmbeddingCache.fill`: which vectors to look up, and how to encode others.

    Raises:
        TypeError: ``model`` is not a ``SentenceTransformer``, or ``cache`` not an ``EmbeddingCache``.
        ValueError: The encoder has trainable parameters, or nothing comes before the heads, or the model has a way of
            its own to encode; or an unknown precision. Later, when a text is looked up: the encoder's weights or
            settings have changed.

    Example:
        >>> from st_asym import EmbeddingCache, asymmetric_model
        >>> model = asymmetric_model("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> cached = CachedSentenceTransformer(model, EmbeddingCache("vectors"))  # doctest: +SKIP
        >>> trainer = SentenceTransformerTrainer(cached, args, train_dataset, loss=loss)  # doctest: +SKIP
    """

    def __init__(self, model: SentenceTransformer, cache: EmbeddingCache, *, precision: Precision = "fp32") -> None:
        if not isinstance(model, SentenceTransformer):
            raise TypeError(f"The model must be a SentenceTransformer, not a {type(model).__name__}.")
        if not isinstance(cache, EmbeddingCache):
            raise TypeError(f"The cache must be an EmbeddingCache, not a {type(cache).__name__}: EmbeddingCache(path).")
        check_precision(precision)
        check_ways_to_run(model, _WAYS)
        _check_frozen(model)
        _share(model, self)
        self.cache = cache
        self.cache_precision: Precision = precision
        self.encoder_fingerprint = encoder_fingerprint(self)
        # Looked at in every step, where a walk through all modules costs as much as the heads.
        self._encoder_parameters = [p for module in encoder_modules(self).values() for p in module.parameters()]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Look up the encoder's vectors, encoding what is missing.

        Args:
            inputs: Strings.
            prompt: Put before each text.
            **kwargs: ``task``, and what else the encoder takes.

        Returns:
            ``sentence_embedding``, a tensor of shape (n, d) in the CPU's memory in the dtype of the heads, and what
            the stock method gives that is not the encoder's own.

        Raises:
            TypeError: An input is not a string. The message names its row.
            ValueError: The encoder has become trainable, or has changed.
        """
        if not inputs:
            return {}
        vectors = self.cache.embed(
            self,
            inputs,
            prompt=prompt,
            precision=self.cache_precision,
            fingerprint=self._checked_fingerprint(),
            **self._options_of_the_encoder(kwargs),
        )
        features: dict[str, Any] = {"sentence_embedding": torch.from_numpy(vectors).to(self._vector_dtype())}
        if isinstance(self[0], Transformer):
            features["modality"] = "text"
        return features

    def forward(self, input: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:  # noqa: A002 - the library's name
        """Run the heads on looked-up vectors, or the whole model on other features.

        Raises:
            ValueError: A loss reads the layers of the encoder.
        """
        if "input_ids" in input or "sentence_embedding" not in input:
            return super().forward(input, **kwargs)
        if layer_reader(self) is not None:
            raise ValueError(
                "AdaptiveLayerLoss and Matryoshka2dLoss read the layers of the encoder, which does not run on cached "
                "vectors: give the loss and the trainer the model itself."
            )
        encoder = encoder_modules(self)
        for name, module in self.named_children():
            if name not in encoder:
                names = kwargs.keys() if isinstance(module, Router) else passed_on(self, name, module)
                input = module(input, **{key: value for key, value in kwargs.items() if key in names})  # noqa: A001
        return input

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encode as the model does; token embeddings are not cached, and come from the whole model."""
        if kwargs.get("output_value", "sentence_embedding") != "sentence_embedding":
            return self.stock_model().encode(*args, **kwargs)
        return super().encode(*args, **kwargs)

    def train(self, mode: bool = True) -> CachedSentenceTransformer:
        """Set the mode of the heads. The encoder, which does not run in training, stays in evaluation mode."""
        self.training = mode
        encoder, heads = taken_apart(self)
        for module in heads:
            module.train(mode)
        for module in encoder:
            if module.training:
                module.eval()
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the heads; the encoder has none."""
        for module in taken_apart(self)[1]:
            module.zero_grad(set_to_none)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the stock model."""
        self.stock_model().save(*args, **kwargs)

    def stock_model(self) -> SentenceTransformer:
        """The same model without the cache, sharing modules."""
        model = SentenceTransformer.__new__(SentenceTransformer)
        _share(self, model)
        for name in ("cache", "cache_precision", "encoder_fingerprint", "_encoder_parameters"):
            del model.__dict__[name]
        return model

    @classmethod
    def _load_with_module_classes(
        cls, model_name_or_path: str, module_classes: Mapping[str, type[nn.Module]], **kwargs: Any
    ) -> Any:
        """What the trainer reads the weights of a checkpoint with, to resume or to end with the best."""
        return SentenceTransformer._load_with_module_classes(model_name_or_path, module_classes, **kwargs)

    def _push_to_hub_usage_tip(self, repo_id: str) -> str:
        """Name the class that the uploaded model loads with."""
        return self.stock_model()._push_to_hub_usage_tip(repo_id)

    def _checked_fingerprint(self) -> str:
        if self.training and any(parameter.requires_grad for parameter in self._encoder_parameters):
            _check_frozen(self)
        fingerprint = encoder_fingerprint(self)
        if fingerprint != self.encoder_fingerprint:
            if not was_fingerprint(self.encoder_fingerprint, self):
                raise ValueError(
                    "The encoder has changed since CachedSentenceTransformer(model, cache) was made: its weights, its "
                    "tokenizer, its adapter or a setting such as max_seq_length. Make a new one from the changed "
                    "model; its texts are encoded anew."
                )
            self.encoder_fingerprint = fingerprint
        return fingerprint

    def _options_of_the_encoder(self, options: dict[str, Any]) -> dict[str, Any]:
        """Without those that only heads take, and with the ``max_length`` of the trainer where ``encode`` takes it."""
        of_the_heads = set(self.get_model_kwargs()) - accepted_options(self) - {"task"}
        options = {name: value for name, value in options.items() if name not in of_the_heads}
        if (max_length := options.pop("max_length", None)) is not None:
            given = options.get("processing_kwargs") or {}
            text = {"max_length": max_length, **given.get("text", {})}
            options["processing_kwargs"] = {**given, "text": text}
        return options

    def _vector_dtype(self) -> torch.dtype:
        """What the encoder would hand to the heads."""
        parameters = (parameter for module in taken_apart(self)[1] for parameter in module.parameters())
        floats = (parameter.dtype for parameter in parameters if parameter.is_floating_point())
        return next(floats, None) or self.dtype or torch.float32


def _share(source: SentenceTransformer, target: SentenceTransformer) -> None:
    """Make ``target`` the same model, with its own lists of modules and hooks but the same modules in them.

    The constructor would cast the heads and forget the card. A ``forward`` of the source's own, which mixed precision
    leaves there, would run the source.
    """
    for name, value in vars(source).items():
        if name not in ("forward", "_original_forward"):
            target.__dict__[name] = value.copy() if isinstance(value, dict | OrderedDict | list) else value


def _check_frozen(model: SentenceTransformer) -> None:
    for name, module in encoder_modules(model).items():
        trainable = next((key for key, parameter in module.named_parameters() if parameter.requires_grad), None)
        if trainable is not None:
            raise ValueError(
                f"The encoder is trainable ({name}.{trainable} requires a gradient), so its vectors would not stay as "
                "they are in the cache: freeze it with st_asym.freeze_encoder(model), or, without heads, with "
                "model.requires_grad_(False)."
            )
