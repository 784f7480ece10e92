"""Digests: of an encoder and all that shapes its vectors, of a model, of texts under an encoder, of collections."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.util import fullname
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig

from st_asym.cache.foreign import (
    Inventory,
    digest_of,
    foreign_parts,
    hidden_buffers,
    is_library_class,
    note_changes,
    replaced_methods,
)
from st_asym.cache.stock import (
    deviations,
    has_few_added_tokens,
    module_settings,
    network_settings,
    quick_tokenizer,
    tokenizer_settings,
    watched,
)
from st_asym.cache.store import GROUP_BYTES, KEY_BYTES
from st_asym.data import RetrievalData
from st_asym.heads.anatomy import encoder_modules

# Values looked at in each tensor at every call, and the share of the time that may go into reading all of them again.
# They are rarely in the processor's cache, so looking at more would show in the time of a training step.
_PROBES = 4
_SHARE = 0.01
# What turns texts into vectors, beside the modules.
_RUNS = ("encode", "forward", "preprocess", "tokenize")
# What numpy, which does not know bfloat16, reads values of so many bytes as.
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def encoder_fingerprint(model: SentenceTransformer) -> str:
    """Digest what shapes an encoder's vectors: 64 hexadecimal digits.

    It covers the weights with their dtype, the tokenizer, and class and configuration of every module up to the heads
    (see :func:`encoder_modules`), ``max_seq_length`` among them. Of modules that are not the library's, nor torch's or
    those of transformers, it covers code and attributes too: which adapter is active and how it is scaled, a factor
    that ``forward`` multiplies by, and what its code names in your own files: values, functions, classes and objects.
    What was replaced in the library's modules by hand is covered, in one of them or in all of a class. Attributes with
    ``cache`` in their names are left out, and those that change when the encoder runs, once it has run in this process.
    It does not cover prompts, the heads, hooks, the environment, the device, and how attention is computed. It is the
    same in every process, and after saving and loading; for a module that counts its own calls, say, from the first run
    of the encoder on.

    Reading the weights takes about a second per gigabyte, so the result is remembered for each model. Every call looks
    for a change, by torch's own count of in-place changes and by four values of each tensor; now and then, using at
    most a hundredth of the time, everything is read again. A change of some values behind torch's back, through
    ``.data``, numpy or a fused optimizer that reaches few rows of an embedding, may therefore be noticed late, and so
    may one of merges, of a few words in the model of a tokenizer, or of hundreds that were added to it.

    Args:
        model: A ``SentenceTransformer``, with or without heads.

    Raises:
        TypeError: It is no ``SentenceTransformer``.
        ValueError: The model begins with a ``Router``, does not run in torch, has weights that are not in memory, a
            module with state that cannot be hashed, or a method of its own that runs the modules.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> len(encoder_fingerprint(SentenceTransformer(modules=[BoW(["a", "b"])])))
        64
    """
    if not isinstance(model, SentenceTransformer):
        raise TypeError(f"The model must be a SentenceTransformer, not a {type(model).__name__}.")
    check_ways_to_run(model, _RUNS)
    remembered = _REMEMBERED.get(model)
    if remembered is None or remembered.is_stale(model):
        remembered = _REMEMBERED[model] = _Remembered(model)
    return remembered.digest


def check_ways_to_run(model: SentenceTransformer, names: Iterable[str]) -> None:
    """Refuse a model in which some methods are not those of SentenceTransformer, as it is these that run."""
    if (name := way_of_its_own(model, names)) is not None:
        raise ValueError(
            f"The encoder, a {fullname(model)}, has a method {name} of its own, and the cache runs the modules as "
            "SentenceTransformer does: its vectors would be others. Put what the method does into a module."
        )


def way_of_its_own(model: SentenceTransformer, names: Iterable[str]) -> str | None:
    """The first of some methods that is not SentenceTransformer's: the model's class has another, or it itself."""
    kinds = {name: next(kind for kind in type(model).__mro__ if name in vars(kind)) for name in names}
    own = replaced_methods(model)
    return next((name for name, kind in kinds.items() if name in own or not is_library_class(kind)), None)


def was_fingerprint(digest: str, model: SentenceTransformer) -> bool:
    """Whether this is an earlier fingerprint of the model, from before :func:`note_what_ran` left attributes out."""
    return digest in _REMEMBERED[model].former


def note_what_ran(model: SentenceTransformer) -> bool:
    """Whether running the encoder, just now, has changed attributes of its modules: a counter, for instance.

    Such attributes are left out of the fingerprint from then on, which therefore changes.
    """
    before = _REMEMBERED.get(model)
    if before is None or not note_changes(before.values, Inventory(before.parts, _quickly).values):
        return False
    _REMEMBERED[model] = _Remembered(model, former=before.former | {before.digest})
    return True


def model_fingerprint(model: SentenceTransformer) -> str:
    """Digest what shapes a whole model's vectors and how they are compared: 64 hexadecimal digits.

    Unlike :func:`encoder_fingerprint` it covers the heads, the prompts, ``truncate_dim`` and the similarity too, and
    reads all weights at every call. It is the same for a model that is answered from a cache.
    """
    modules = list(model.children())
    inner = [part for module in modules for part in module.modules() if isinstance(part, Module)]
    settings = {
        "modules": [module_settings(part) for part in inner],
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},
        "default_prompt_name": model.default_prompt_name,
        "truncate_dim": model.truncate_dim,
        "similarity": model.similarity_fn_name,
    }
    return digest_of(_as_json([_digest(model, modules), settings]))


def record_keys(
    encoder: str,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    task: str | None = None,
    precision: str = "fp32",
    **options: Any,
) -> list[bytes]:
    """The keys of texts in a cache: the same on every machine, for vectors that are computed elsewhere.

    Args:
        encoder: What :func:`st_asym.encoder_fingerprint` gives.
        texts: Strings.
        prompt: As the text was encoded with; ``""`` and None are the same.
        task: Only for encoders that treat queries and documents differently before the heads; otherwise None.
        precision: As asked for.
        **options: What else was passed to the encoder; None is the same as leaving an option out.

    Returns:
        32 bytes per text, of which the first twelve are the encoder's.

    Raises:
        TypeError: ``texts`` is one text or a table, or a text, the prompt or the task is not a string. The message
            names the row.
        ValueError: Another fingerprint than that of an encoder, an unknown precision, or an option that cannot be told
            from others.

    Example:
        >>> keys = record_keys("0123456789abcdef" * 4, ["a text", "another"])
        >>> [len(key) for key in keys]
        [32, 32]
    """
    check_precision(precision)
    if not isinstance(encoder, str) or not re.fullmatch("[0-9a-f]{64}", encoder):
        raise ValueError(
            f"encoder must be what st_asym.encoder_fingerprint gives, 64 hexadecimal digits, got {encoder!r:.80}."
        )
    check_text("prompt", prompt)
    check_text("task", task)
    rest = {name: value for name, value in options.items() if value is not None}
    setting = _as_json([encoder, prompt or "", task, precision, rest])
    base = hashlib.blake2b(setting + b"\0", digest_size=KEY_BYTES - GROUP_BYTES)
    group = group_of(encoder)
    keys = []
    for row, text in enumerate(listed(texts)):
        if not isinstance(text, str):
            raise TypeError(
                f"Row {row} is {text!r:.80}, a {type(text).__name__}: the cache holds vectors of strings. Convert it, "
                "or leave the row out."
            )
        digest = base.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        keys.append(group + digest.digest())
    return keys


def check_text(name: str, value: str | None) -> None:
    """Refuse what is neither a text nor nothing."""
    if not isinstance(value, str | None):
        raise TypeError(f"{name} must be a text or None, got {value!r:.80}.")


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}.")


def group_of(encoder: str) -> bytes:
    """What the keys of an encoder with this fingerprint begin with."""
    return bytes.fromhex(encoder)[:GROUP_BYTES]


def listed(texts: Iterable[str]) -> list[str]:
    """Texts as a list, and not the letters of one, the ids of a mapping or the column names of a table."""
    kind = type(texts).__name__
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is one {kind}, {texts!r:.80}, and its letters would be encoded: pass [text].")
    if isinstance(texts, Mapping):
        raise TypeError(f"texts is a {kind}, and its keys would be encoded: pass list(texts.values()).")
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise TypeError(f"texts is a {kind} with columns: pass one of them as a list, such as list(table['text']).")
    try:
        return list(texts)
    except TypeError:
        raise TypeError(f"texts must be a list of strings, not a {kind}.") from None


def weights_digest(model: SentenceTransformer) -> str:
    """A digest of the encoder's tensors, whatever their names are in this version of the packages."""
    digests = set()
    for module in encoder_modules(model).values():
        for value in module.state_dict().values():
            if isinstance(value, Tensor):
                digest = hashlib.sha256(json.dumps([str(value.dtype), list(value.shape)]).encode())
                digest.update(tensor_bytes(value))
                digests.add(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def vocabulary_digest(tokenizer: Any) -> str | None:
    """A digest of the tokens and their numbers; None where the tokenizer does not tell them."""
    if not hasattr(tokenizer, "get_vocab"):
        return None
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary.items() if isinstance(vocabulary, Mapping) else enumerate(vocabulary))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def data_digests(data: Any) -> dict[str, Any]:
    """Numbers and digests of one collection, or of the columns and rows of a ``datasets.Dataset``."""
    if isinstance(data, RetrievalData):
        qrels = {
            split: {
                "queries": len(judged),
                "judgements": sum(map(len, judged.values())),
                "sha256": _digest_of([query, sorted(grades.items())] for query, grades in sorted(judged.items())),
            }
            for split, judged in sorted(data.qrels.items())
        }
        return {
            "labels": data.labels,
            "queries": {"texts": len(data.queries), "sha256": _digest_of(sorted(data.queries.items()))},
            "corpus": {"documents": len(data.corpus), "sha256": _digest_of(sorted(data.corpus.items()))},
            "qrels": qrels,
        }
    columns = getattr(data, "column_names", None)
    if columns is None:
        raise TypeError(
            f"data must be RetrievalData or a datasets.Dataset, or a mapping of names to them, not "
            f"{type(data).__name__}: st_asym.data.as_retrieval_data makes the first of many forms."
        )
    sizes = {"rows": len(data)} if hasattr(data, "__len__") else {}
    return {"columns": list(columns), **sizes, "sha256": _digest_of([row[name] for name in columns] for row in data)}


def _digest_of(rows: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, default=repr).encode() + b"\n")
    return digest.hexdigest()


class _Remembered:
    """A fingerprint, and what is compared to tell whether it still holds.

    ``former`` are those that it had until running the encoder showed what is no setting.
    """

    def __init__(self, model: SentenceTransformer, former: frozenset[str] = frozenset()) -> None:
        start = time.monotonic()
        modules = list(encoder_modules(model).values())
        self.digest, self.former = _digest(model, modules), former
        self.all = [part for top in modules for part in top.modules()]
        self.watched, self.parts = watched(self.all), foreign_parts(modules)
        inventory = Inventory(self.parts, _quickly)
        self.values, self.tensors = inventory.values, _registered(self.all) + inventory.tensors
        self.few_added = [has_few_added_tokens(getattr(module, "tokenizer", None)) for module in modules]
        self.probes = _probes(self.tensors)
        self.seen = list(self._looks(model))
        self.read_at = time.monotonic()
        self.seconds = self.read_at - start

    def is_stale(self, model: SentenceTransformer) -> bool:
        """Whether something may have changed: asked in every step, so of stock modules in a tenth of a millisecond."""
        return (
            self.seconds < _SHARE * (time.monotonic() - self.read_at)
            or any(now != then for now, then in zip(self._looks(model), self.seen, strict=True))
            or any(
                (size is not None and len(now) != size) or not before.items() <= now.items()
                for now, size, before in self.watched
            )
        )

    def _looks(self, model: SentenceTransformer) -> Iterator[Any]:
        """What shows a change. The values of tensors come last: one that has moved must not be read where it was."""
        modules = list(encoder_modules(model).values())
        tokenizers = [getattr(module, "tokenizer", None) for module in modules]
        yield list(map(id, _registered(self.all)))
        # Where each lies and how often it was written to; tensors made in inference mode are not counted.
        yield [(one.data_ptr(), -1 if one.is_inference() else one._version) for one in self.tensors]
        looks = zip(tokenizers, self.few_added, strict=False)
        yield [modules, tokenizers, [quick_tokenizer(one, few_added=few) for one, few in looks]]
        yield Inventory(self.parts, _quickly).values
        arrays, others = self.probes
        joined = [torch.cat(group).view(torch.uint8).cpu().numpy() for group in others]  # one read for each dtype
        yield [values.tobytes() for values in (*arrays, *joined)]


_REMEMBERED: WeakKeyDictionary[SentenceTransformer, _Remembered] = WeakKeyDictionary()


def _registered(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The parameters and buffers that are in the modules; no caches."""
    groups = [group for module in modules for group in (module._parameters, module._buffers) if group]
    return [one for group in groups for name, one in group.items() if one is not None and "cache" not in name]


def _probes(tensors: Sequence[Tensor]) -> tuple[list[Any], list[list[Tensor]]]:
    """Views of some values of each tensor: arrays on the processor, elsewhere tensors by device and dtype."""
    arrays: list[Any] = []
    others: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and tensor.is_contiguous():
            values = tensor.detach().view(-1)[:: max(1, tensor.numel() // _PROBES)]
            if tensor.device.type == "cpu":
                # In numpy, which takes an eighth of torch's time.
                arrays.append(values.view(_SAME_SIZE[tensor.element_size()]).numpy())
            else:
                others.setdefault((tensor.device, tensor.dtype), []).append(values)
    return arrays, list(others.values())


def _digest(model: SentenceTransformer, modules: Sequence[nn.Module]) -> str:
    if model.get_backend() != "torch":
        raise ValueError(
            f"The encoder runs in {model.get_backend()}, which does not show its weights, so its vectors cannot be "
            "told from those of another: load it with backend='torch'."
        )
    settings = [module_settings(module) for module in modules]
    digest = hashlib.blake2b(_as_json(settings), digest_size=32)
    if beside := without_configuration(modules):
        digest.update(_as_json(beside))
    for position, module in enumerate(modules):
        for name, value in module.state_dict().items():
            if not isinstance(value, Tensor):
                digest.update(_as_json([position, name, value]))
                continue
            if value.device.type == "meta":
                raise ValueError(f"Weight {name!r} of the encoder is not in memory: load it without offloading.")
            digest.update(_as_json([position, name, str(value.dtype), list(value.shape)]))
            digest.update(tensor_bytes(value))
    return digest.hexdigest()


def without_configuration(modules: Sequence[nn.Module]) -> list[Any]:
    """What shapes vectors and is neither in the weights nor in the configurations; empty for the library's modules.

    A module that holds what cannot be told from another of its kind is a ValueError.
    """
    changed = [[position, *each] for position, top in enumerate(modules) for each in deviations(top)]
    parts = foreign_parts(modules)
    buffers = [(place, _contents(buffer)) for place, buffer in hidden_buffers(parts)]
    return [*changed, *buffers, *Inventory(parts, _contents).values]


def _contents(value: Any) -> Any:
    """What is in a tensor, a tokenizer or a configuration."""
    if isinstance(value, PretrainedConfig):
        return network_settings(value)
    if not isinstance(value, Tensor):
        return _as_json(tokenizer_settings(value)).decode()
    if value.device.type == "meta":
        raise ValueError("a tensor that is not in memory")
    return [str(value.dtype), list(value.shape), digest_of(tensor_bytes(value))]


def _quickly(value: Any) -> Any:
    """What shows at once of a change of these; the values of tensors are looked at beside it, with the weights."""
    if isinstance(value, PreTrainedTokenizerBase):
        return [id(value), quick_tokenizer(value)]
    return network_settings(value) if isinstance(value, PretrainedConfig) else id(value)


def tensor_bytes(tensor: Tensor) -> Any:
    """The values of a tensor, of any dtype and on any device, for a digest."""
    if tensor.is_quantized:  # the whole numbers alone would be the same under any scale
        tensor = tensor.dequantize()
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _as_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=_as_plain).encode()


def _as_plain(value: Any) -> Any:
    """Other objects as what JSON knows, in the same way in every process."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "__dict__") and type(value).__module__.startswith("sentence_transformers."):
        return {"class": fullname(value), **vars(value)}
    if isinstance(value, torch.dtype):
        return repr(value)
    try:
        if isinstance(value, Tensor):
            return ["tensor", *_contents(value)]
        if is_library_class(type(value)):
            return [fullname(value), digest_of(pickle.dumps(value, 4))]
        return Inventory([], _contents).told(value)
    except Exception as error:  # whatever its own reduction raises
        raise ValueError(
            f"The encoder's configuration has a {fullname(value)} ({error}), and whether that changes cannot be seen, "
            "so its vectors cannot be kept: give it plain values."
        ) from error
