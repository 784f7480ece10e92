"""Heads without their encoder: megabytes to keep or send, attached again to the encoder that they belong to."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router

from st_asym.data.files import PROVENANCE_FILE, ROUTER_FILE, new_folder
from st_asym.heads.anatomy import public_name, taken_apart
from st_asym.heads.model import behind_encoder, load_encoder
from st_asym.trust import verify
from st_asym.trust.modules import stock_name
from st_asym.trust.provenance import (
    Provenance,
    describe_encoder,
    installed,
    keep_what_is_not_ours,
    made_with_heads,
    remember,
    write_provenance,
)

logger = logging.getLogger(__name__)

# What writing a model may raise: the last two come out of a module's own ``save``.
_NOT_WRITTEN = (OSError, SafetensorError, ValueError, RuntimeError)


def save_heads(model: SentenceTransformer | str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Save the heads of a model without its encoder: 5 MB instead of 95 for all-MiniLM-L6-v2.

    The folder holds safetensors and JSON, the model's prompts, and a digest of the encoder, see :func:`attach_heads`.
    It is written beside its place and then put there, in the place of earlier heads; what else lies beside these stays.

    Args:
        model: A model with heads, ``[encoder..., Router, Normalize]``, or the folder of one, which is verified first,
            and whose data, settings and seed are then kept with the heads.
        path: The folder to make; it is returned.

    Raises:
        FileExistsError: There is something else than earlier heads.
        ValueError: The model has no heads behind an encoder, or heads that are no stock modules.
        VerificationError: The folder of the model did not pass :func:`st_asym.verify`.

    Example:
        >>> save_heads("fitted-model", "fitted-heads")  # doctest: +SKIP
        >>> attach_heads("sentence-transformers/all-MiniLM-L6-v2", "fitted-heads")  # doctest: +SKIP
    """
    free_for_heads(Path(path))
    facts: dict[str, Any] = {}
    known: dict[str, Any] = {}
    if not isinstance(model, SentenceTransformer):
        made = verify(model).provenance
        if made is not None:
            facts = {"data": made.data, "trained": made.trained, "settings": made.settings, "seed": made.seed}
            known = {key: made.encoder.get(key) for key in ("name", "revision")}
        model = load_encoder(model)
    elif (made := made_with_heads(model)) is not None:
        facts = {"trained": made.trained}
    router = _stock_router(model)
    encoder = {**describe_encoder(model), **known}
    settings = {"prompts": dict(model.prompts), "default_prompt_name": model.default_prompt_name}
    return write_heads(Path(path), router, encoder, model=settings, **facts)


def write_heads(path: Path, router: Router, encoder: dict[str, Any], **facts: Any) -> Path:
    """Write heads, and what they were made of, in a place that is empty or holds earlier heads."""
    output = free_for_heads(path)
    with new_folder(output, free_for_heads, keep_what_is_not_ours) as new:
        new.mkdir()
        router.save(str(new))
        write_provenance(new, kind="heads", encoder=encoder, **facts)
    return output


def attach_heads(
    encoder: SentenceTransformer | str | os.PathLike[str], path: str | os.PathLike[str]
) -> SentenceTransformer:
    """Put saved heads behind the encoder that they were trained on, and behind no other.

    The folder is verified before anything is loaded. The result is the model that was saved, to the bit, with its
    prompts; the encoder's modules are shared and frozen.

    Under other versions of transformers, tokenizers or sentence-transformers, whose classes and configurations may have
    changed, the encoder is known by its weights, vocabulary and ``max_seq_length``, with a warning.

    Args:
        encoder: The encoder, or its Hub id or path. A model with heads is refused.
        path: Where :func:`save_heads` saved them.

    Returns:
        A plain ``SentenceTransformer`` of stock modules, with the ``truncate_dim`` of the encoder.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        VerificationError: The folder is damaged, or does not hold heads alone.
        ValueError: It is not the encoder of these heads. The message says what differs.

    Example:
        >>> model = attach_heads("sentence-transformers/all-MiniLM-L6-v2", "fitted-heads")  # doctest: +SKIP
        >>> model.encode_query("error E17").shape  # doctest: +SKIP
        (384,)
    """
    found = verify(path)
    made = found.provenance
    if found.kind != "heads" or made is None:
        raise ValueError(
            f"{path} does not hold heads alone with their {PROVENANCE_FILE}: st_asym.save_heads(model, path) makes "
            "them, and SentenceTransformer(path) loads a whole model."
        )
    encoder = load_encoder(encoder)
    if "fingerprint" not in made.encoder:
        raise ValueError(
            f"The heads in {path} were fitted on vectors, and do not say by which encoder these were made: apply them "
            "with st_asym.Heads.load(path), or save them with HeadsResult.save(path, encoder=...) to attach them."
        )
    if any(isinstance(module, Router) for module in encoder.modules()):
        raise ValueError("The encoder has heads already: pass the encoder that they were trained on, without them.")
    _check_encoder(made, describe_encoder(encoder), path)
    model = behind_encoder(encoder, Router.load(str(found.path), local_files_only=True))
    model.prompts = {str(name): str(prompt or "") for name, prompt in made.model.get("prompts", {}).items()}
    model.default_prompt_name = made.model.get("default_prompt_name")
    model.truncate_dim = encoder.truncate_dim
    remember(model, made)
    return model.eval()


@contextlib.contextmanager
def rescued_heads(model: SentenceTransformer, output: Path) -> Iterator[None]:
    """Keep the heads of a model, if it has any, in a temporary folder where saving it in ``output`` fails.

    The error is raised again as an OSError of the same kind, with the place of the heads in its one line.
    """
    try:
        yield
    except _NOT_WRITTEN as error:
        if not taken_apart(model)[1]:
            raise
        heads = _put_anywhere(model)
        where = "and the trained heads could be kept nowhere else"
        if heads is not None:
            where = f"but the trained heads are kept in {heads}: st_asym.attach_heads(encoder, {str(heads)!r})"
        told = str(error.strerror or error) if isinstance(error, OSError) else " ".join(str(error).split())
        kind = type(error) if isinstance(error, OSError) else OSError
        rescue = kind(f"{told.rstrip('.')}. {output} was not saved, {where}.")
        rescue.errno = getattr(error, "errno", None)
        raise rescue from error


def _put_anywhere(model: SentenceTransformer) -> Path | None:
    for folder in (tempfile.gettempdir(), Path.home(), Path.cwd()):
        try:
            place = Path(tempfile.mkdtemp(dir=folder, prefix="st_asym-"))
        except OSError:
            continue
        try:
            return save_heads(model, place / "heads")
        except _NOT_WRITTEN:
            shutil.rmtree(place, ignore_errors=True)
    return None


def _check_encoder(made: Provenance, found: dict[str, Any], path: object) -> None:
    wanted = made.encoder
    if found["fingerprint"] == wanted.get("fingerprint"):
        return
    named = " at ".join(str(wanted[key]) for key in ("name", "revision") if wanted.get(key)) or "an unnamed encoder"
    begin = f"The heads in {public_name(path)} belong to {named}, and this is another encoder"
    if found["dimension"] != wanted.get("dimension"):
        raise ValueError(f"{begin}: its vectors have {found['dimension']} dimensions, not {wanted.get('dimension')}.")
    if found["weights"] != wanted.get("weights"):
        raise ValueError(
            f"{begin}: its weights have the digest {found['weights'][:12]}, not {str(wanted.get('weights'))[:12]}. "
            "Load that encoder, in the precision and revision that the heads were trained on."
        )
    differ = [name for name in ("vocabulary", "max_seq_length") if found[name] != wanted.get(name)]
    packages = ("sentence-transformers", "transformers", "tokenizers")
    others = [name for name in packages if made.versions.get(name) != installed().get(name)]
    if differ or not others:
        what = " and ".join(differ) or "tokenizer, pooling or another setting"
        raise ValueError(
            f"{begin}: it has the same weights, but not the same {what}. Load it as it was when the heads were trained."
        )
    logger.warning(
        "The encoder of the heads in %s was described under another %s: it is known by its weights, vocabulary and "
        "max_seq_length alone.",
        path,
        " and ".join(others),
    )


def _stock_router(model: SentenceTransformer) -> Router:
    encoder, heads = taken_apart(model)
    if not encoder or len(heads) != 2 or not isinstance(heads[1], Normalize):
        kinds = ", ".join(type(module).__name__ for module in model)
        raise ValueError(f"save_heads needs a model [encoder..., Router, Normalize]; this one is [{kinds}].")
    router: Router = heads[0]  # type: ignore[assignment]
    parts = [router, *(layer for layers in router.sub_modules.values() for layer in layers.children())]
    foreign = [
        type(part).__name__ for part in parts if stock_name(f"{type(part).__module__}.{type(part).__name__}") is None
    ]
    if foreign:
        raise ValueError(
            f"The heads have modules that are not part of sentence-transformers ({', '.join(foreign)}): "
            "leave them out, or put their stock form in their place."
        )
    return router


def free_for_heads(output: Path) -> Path:
    """A place that is empty, or holds earlier heads."""
    output = output.resolve()
    earlier = (output / PROVENANCE_FILE).is_file() and (output / ROUTER_FILE).is_file()
    if output.exists() and not earlier and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and does not hold heads that were saved alone: name another folder.")
    return output
