"""Query and document heads that start as the exact identity, built from stock modules."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypedDict

import torch
from sentence_transformers.base.modules import Dense, Module, Router
from torch import Tensor, nn

# f(x) - f(-x) = x holds for the first three, which is what the identity start rests on. All are `torch.nn` classes
# that take no arguments, the only kind that `Dense` restores from disk without `trust_remote_code`.
_MIRRORED: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    **_MIRRORED,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}

HiddenFeatures = int | Sequence[int] | Literal["2x"] | None


class ProjectionOptions(TypedDict, total=False):
    """The keyword arguments of :func:`AsymmetricProjection`, for functions that pass them on."""

    out_features: int | None
    hidden_features: HiddenFeatures
    activation: str
    init: Literal["identity", "random"]
    query: bool
    document: bool
    shared: bool
    bias: bool


def AsymmetricProjection(  # noqa: N802 - it stands where a module class would, and returns a stock module
    in_features: int,
    out_features: int | None = None,
    *,
    hidden_features: HiddenFeatures = "2x",
    activation: str = "relu",
    init: Literal["identity", "random"] = "identity",
    query: bool = True,
    document: bool = True,
    shared: bool = False,
    bias: bool = True,
) -> Router:
    """Build one head for queries and one for documents, to be placed between an encoder and a ``Normalize``.

    The result is a stock :class:`~sentence_transformers.base.modules.Router` of stock
    :class:`~sentence_transformers.base.modules.Dense` modules: it saves, loads and uploads without st_asym. Each head
    maps ``sentence_embedding`` of shape ``(batch, in_features)`` to ``(batch, out_features)`` in the dtype of its
    weights, float32 until moved.

    With ``init="identity"`` a head returns its input, exactly for ``relu`` and up to rounding for ``gelu`` and
    ``silu``: the first layer holds ``[I; -I]`` and the last ``[I, -I]``, and ``f(x) - f(-x) = x`` for these
    activations. This is the looks-linear initialisation of Balduzzi et al. 2017, "The Shattered Gradients Problem"
    (https://arxiv.org/abs/1702.08591), with the identity in place of an orthogonal matrix. Hidden units beyond
    ``2 * in_features`` get torch's default input weights and zero output weights. With ``out_features < in_features``
    the start is the truncation to the first dimensions, which is what Matryoshka encoders expect.

    While it trains, a head that is called without a task raises: a column that the ``router_mapping`` of the training
    arguments does not name would otherwise train the document head, silently. (In evaluation, where the stock default
    applies, :func:`st_asym.watch` checks the columns.)

    Args:
        in_features: Dimension of the encoder's vectors.
        out_features: Dimension of the projected vectors, ``in_features`` if None.
        hidden_features: Width of the hidden layer, ``"2x"`` for twice ``in_features``; several widths for a deeper
            head; None for one linear layer.
        activation: ``"relu"``, ``"gelu"`` or ``"silu"``; with ``init="random"`` also ``"elu"``, ``"leaky_relu"``,
            ``"mish"``, ``"sigmoid"`` and ``"tanh"``.
        init: ``"identity"``, or ``"random"`` for torch's default initialisation.
        query: Whether queries get a head. False leaves query vectors as the encoder gives them.
        document: Whether documents get a head. False keeps an existing vector index valid.
        shared: One head for both sides, saved once.
        bias: Whether layers have one. Without, a linear head is one matrix, which servers can run behind an encoder
            that normalises (see :func:`st_asym.export_side`).

    Returns:
        A ``Router`` with the routes ``query`` and ``document``; without a task it takes the document route.

    Raises:
        ValueError: No head at all, a size below one, an unknown activation or start, sides of different dimensions,
            or a shape that cannot start as the identity. The message names a call that works.

    Example:
        >>> from st_asym import AsymmetricProjection
        >>> projection = AsymmetricProjection(768)
        >>> sum(parameter.numel() for parameter in projection.parameters())
        4723200
        >>> vectors = torch.randn(4, 768)
        >>> torch.equal(projection({"sentence_embedding": vectors}, task="query")["sentence_embedding"], vectors)
        True
    """
    in_features = _size(in_features, "in_features")
    out_features = in_features if out_features is None else _size(out_features, "out_features")
    if hidden_features is None or isinstance(hidden_features, list | tuple):
        widths: Sequence[Any] = hidden_features or ()
    else:
        widths = [2 * in_features if hidden_features == "2x" else hidden_features]
    sizes = [in_features, *(_size(width, "hidden_features") for width in widths), out_features]
    _check_sides(in_features, out_features, query=query, document=document, shared=shared)
    if activation not in _ACTIVATIONS:
        raise ValueError(f"Unknown activation {activation!r}: choose one of {', '.join(map(repr, _ACTIVATIONS))}.")
    if init == "identity":
        _check_identity(sizes, activation)
    elif init != "random":
        raise ValueError(f"init must be 'identity' or 'random', got {init!r}.")

    query_head = _head(sizes, activation, init, bias=bias) if query else []
    document_head = query_head if shared else _head(sizes, activation, init, bias=bias) if document else []
    return require_tasks(Router.for_query_document(query_head, document_head))


def require_tasks(router: Router) -> Router:
    """Make a ``Router`` refuse, while it trains, a column that comes without a task; in place, and once."""
    if _require_task_in_training not in router._forward_pre_hooks.values():
        router.register_forward_pre_hook(_require_task_in_training, with_kwargs=True)
    return router


def _head(sizes: Sequence[int], activation: str, init: str, *, bias: bool) -> list[Module]:
    """A list of ``Dense`` layers of these sizes, the last one linear."""
    function = _ACTIVATIONS[activation]
    layers = [Dense(before, after, bias=bias, activation_function=function()) for before, after in pairwise(sizes)]
    layers[-1].activation_function = nn.Identity()
    if init == "identity":
        _start_as_identity(layers)
    return list(layers)


@torch.no_grad()
def _start_as_identity(layers: Sequence[Dense]) -> None:
    """Write mirrored identity weights into ``layers``, so that together they return their input.

    Every layer but the last writes x and -x next to each other; every layer but the first reads x back from the
    activated pair, as f(x) - f(-x).
    """
    identity = torch.eye(layers[0].in_features)
    for position, layer in enumerate(layers):
        read = identity if position == 0 else torch.cat([identity, -identity], dim=1)
        block = read[: layer.out_features] if position == len(layers) - 1 else torch.cat([read, -read])
        rows, columns = block.shape
        layer.linear.weight[:rows] = 0.0
        layer.linear.weight[:rows, :columns] = block
        if layer.bias:
            layer.linear.bias[:rows] = 0.0


def _size(value: Any, name: str) -> int:
    """A size as int, whatever kind of whole number it came as."""
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return size


def _check_sides(in_features: int, out_features: int, *, query: bool, document: bool, shared: bool) -> None:
    if not query and not document:
        raise ValueError("query=False and document=False leave nothing to train: keep at least one head.")
    if query and document:
        return
    side = "query" if not query else "document"
    if shared:
        raise ValueError(f"shared=True is one head for both sides, so it does not go with {side}=False: drop one.")
    if out_features != in_features:
        raise ValueError(
            f"{side}=False leaves that side at {in_features} dimensions while the other side gets {out_features}, and "
            f"vectors of different dimensions cannot be compared: use out_features={in_features}, or a head on each "
            "side."
        )


def _check_identity(sizes: Sequence[int], activation: str) -> None:
    """Refuse what cannot start as the identity, naming the random start that would work."""
    in_features, *hidden, out_features = sizes
    reason = None
    if out_features > in_features:
        reason = f"out_features={out_features} is more than in_features={in_features}"
    elif hidden and activation not in _MIRRORED:
        reason = f"f(x) - f(-x) = x holds for {', '.join(_MIRRORED)}, not for {activation}"
    elif hidden and min(hidden) < 2 * in_features:
        reason = (
            f"a hidden layer of {min(hidden)} is too narrow, since each input needs one unit for each sign: at least "
            f"2 x in_features = {2 * in_features}"
        )
    if reason is not None:
        widths: Any = None if not hidden else hidden[0] if len(hidden) == 1 else tuple(hidden)
        raise ValueError(
            f"A head of this shape cannot start as the identity: {reason}. With init='random' it works, but loses the "
            f"encoder's geometry: AsymmetricProjection({in_features}, {out_features}, hidden_features={widths}, "
            f"activation={activation!r}, init='random')."
        )


def _require_task_in_training(router: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a column without a task while the heads train; in evaluation the stock default route applies."""
    features: dict[str, Tensor] = args[0]
    if router.training and kwargs.get("task") is None and features.get("task") is None:
        raise ValueError(
            "While training, a column reached the heads without a task, so it would train the document head, whatever "
            "it holds: `router_mapping` in the training arguments misses it or misspells its name, or, in your own "
            "loop, the features have no `task`. st_asym.router_mapping(dataset) makes a mapping of every column."
        )
