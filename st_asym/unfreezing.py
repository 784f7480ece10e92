"""The last layers of the encoder trained together with the heads."""

from __future__ import annotations

from collections.abc import Iterator

from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel

from st_asym.model import freeze_encoder


def unfreeze_last_layers(model: SentenceTransformer, n: int) -> SentenceTransformer:
    r"""Let the last ``n`` layers of the transformer train with the heads, in place; all before them stays frozen.

    These layers run with their own dropout while the model trains; embeddings and the layers before stay in evaluation
    mode. :func:`st_asym.freeze_encoder` freezes the layers again, as they are then.

    The encoder runs for every text of every step, as its vectors no longer stay as they are:
    :class:`st_asym.CachedSentenceTransformer` refuses such a model until it is frozen again, and what the cache holds
    is of the encoder before. The modules are those of the encoder that :func:`st_asym.asymmetric_model` was given:
    training them changes it too. Give the encoder a small learning rate and the heads theirs, with
    ``learning_rate_mapping`` in the training arguments.

    Args:
        model: As of :func:`st_asym.asymmetric_model`: an encoder with a ``Transformer`` module, and heads behind it.
        n: How many layers.

    Returns:
        The same model.

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


def _layers(model: SentenceTransformer) -> nn.ModuleList:
    """The transformer's stack of layers: the one outermost list that is as long as its configuration says."""
    transformers = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    stacks = [
        (name, stack)
        for transformer in transformers[:1]
        for name, stack in _outermost_lists(transformer)
        if len(stack) == getattr(transformer.config.get_text_config(), "num_hidden_layers", None)
    ]
    if len(stacks) != 1:
        found = ", ".join(name for name, _ in stacks) or "none"
        raise ValueError(
            "unfreeze_last_layers needs an encoder with one stack of layers in PyTorch, as BERT, MPNet, DistilBERT, "
            f"RoBERTa and ModernBERT have; in this one, [{', '.join(type(module).__name__ for module in model)}], it "
            f"finds {found}. Set requires_grad of the parameters to train yourself."
        )
    return stacks[0][1]


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules by name, without those inside another."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield prefix + name, child
        else:
            yield from _outermost_lists(child, f"{prefix}{name}.")
