"""What a saved model was made of, in a file beside it that loading ignores; and what becomes of an earlier result.

It is read without torch, which is loaded to describe a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union
from weakref import WeakKeyDictionary

from st_asym.data import RetrievalData
from st_asym.data.document import TrainedQueries
from st_asym.data.files import (
    CARD_FILE,
    LOGS_FOLDER,
    PLOT_FILE,
    PROVENANCE_FILE,
    REPORT_FILE,
    are_same,
    free_name,
    read_json,
    take_over,
    write_json,
)
from st_asym.data.sources import training_data
from st_asym.trust.folder import MOST_JSON, FindingError, Folder, VerificationError, parsed, shown
from st_asym.trust.modules import check_configurations, check_files, is_document, read_saved

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from torch import nn

logger = logging.getLogger(__name__)

Data: TypeAlias = Union[RetrievalData, "Dataset"]

_FORMAT = 1
_PACKAGES = ("st_asym", "sentence-transformers", "transformers", "tokenizers", "torch", "numpy")
SETTINGS_FILE = "config_sentence_transformers.json"
# The first version that has the modules of a saved model under the names that it is saved with.
_REQUIREMENTS = {
    "sentence-transformers": {"specifier": ">=6.0", "reason": "Earlier versions have its modules under other names."}
}
# Among the documents of a result: its card with what somebody wrote into an earlier one.
_COMPLETED = f"{CARD_FILE}, completed"
# By the heads of models in memory, which do not say where they are saved.
_MADE: WeakKeyDictionary[nn.Module, Provenance] = WeakKeyDictionary()


@dataclass(frozen=True)
class Provenance:
    """What a saved model was made of. It has no paths of the machine that made it, and no tokens.

    It tells accidents: whoever can change the model can change this file too.

    Attributes:
        kind: ``"model"``, or ``"heads"`` where they were saved alone.
        created: When, in UTC.
        encoder: ``name`` and ``revision`` where they are known, ``fingerprint`` (of
            :func:`st_asym.encoder_fingerprint`), ``weights`` (a digest of its tensors alone), ``vocabulary`` (one of
            its tokens), ``max_seq_length`` and ``dimension``.
        heads: For ``query`` and ``document``, the digest of their layers; None where that side has none.
        files: Path in the folder to SHA-256, for all that is loaded.
        data: Name to what was trained on: numbers and digests of queries, corpus and qrels, or of rows.
        settings: What it was trained with.
        seed: Of everything that was drawn.
        versions: Of the packages that made it.
        model: Of heads alone: the prompts of their model.
        documents: Path in the folder to SHA-256, for what people read, as it was written; it may change afterwards.
        trained: Digests of the training queries, see ``TrainedQueries``; empty where there are none, as of 0.1.

    Example:
        >>> Provenance.of("model").encoder["name"]  # doctest: +SKIP
        'sentence-transformers/all-MiniLM-L6-v2'
    """

    kind: str
    created: str
    encoder: dict[str, Any]
    heads: dict[str, str | None]
    files: dict[str, str]
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Provenance | None:
        """Read that of a saved model, or heads; None where it has none.

        Raises:
            VerificationError: It is damaged, or a link.
        """
        folder = Folder(path)
        found = read_provenance(folder)
        # What else lies in the folder says nothing against it: weights that are links, for instance.
        if own := [finding for finding in folder.findings if finding.startswith(f"{PROVENANCE_FILE}: ")]:
            raise VerificationError(path, own)
        return found

    @property
    def trained_queries(self) -> TrainedQueries | None:
        """What tells queries that were trained on; None where the file does not say."""
        return TrainedQueries.of_dict(self.trained) if self.trained else None

    def as_dict(self) -> dict[str, Any]:
        """What is written."""
        return {"format": _FORMAT, **asdict(self)}


def save_provenance(
    path: str | os.PathLike[str],
    model: SentenceTransformer,
    *,
    data: Mapping[str, Data] | Data | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Provenance:
    """Write beside a saved model what it was made of; :func:`st_asym.fit` does.

    The file is ``st_asym.json``. ``config_sentence_transformers.json`` gets the ``requirements`` that the library
    checks before it reads weights. Each is written beside its place and then put there. Call it last: what is saved
    again after it does not fit it any more. A model that :func:`st_asym.verify` would refuse is named in a warning.

    Args:
        path: Where ``model.save_pretrained(path)`` saved it.
        model: The model.
        data: What it was trained on, or several such by name. Texts are not kept, only numbers and digests, among them
            one of each training query, by which :func:`st_asym.evaluate` knows it again (none for more than 100,000).
        settings: Anything that JSON knows.
        seed: Of everything that was drawn.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: Nothing is saved there.
        TypeError: Data of another kind.
        ValueError: The model begins with a ``Router``; or :func:`st_asym.verify` could not read what would be written,
            as it is too long, too deeply nested or no JSON. Nothing was written.

    Example:
        >>> model.save_pretrained("errors-model")  # doctest: +SKIP
        >>> save_provenance("errors-model", model, data=pairs, seed=0)  # doctest: +SKIP
    """
    from st_asym.cache.fingerprint import data_digests
    from st_asym.heads.anatomy import public_name

    path = Path(path)
    if not (path / "modules.json").is_file():
        raise FileNotFoundError(f"{path} holds no saved model: call model.save_pretrained({str(path)!r}) first.")
    options = read_json(path / SETTINGS_FILE)
    options["requirements"] = {**(options.get("requirements") or {}), **_REQUIREMENTS}
    parts = {} if data is None else data if isinstance(data, Mapping) else {"train": data}
    read = [found for part in parts.values() if (found := training_data(part)) is not None]
    trained = TrainedQueries.of(read) if read else None
    if trained is not None and trained.query_digests is None:
        logger.warning(
            "%s does not say which queries were trained on, as they are %s: st_asym.evaluate cannot tell them.",
            PROVENANCE_FILE,
            f"{trained.queries:,}",
        )
    made = write_provenance(
        path,
        kind="model",
        options=options,
        encoder=describe_encoder(model),
        data={public_name(name): data_digests(part) for name, part in parts.items()},
        trained={} if trained is None else trained.as_dict(),
        settings=dict(settings or {}),
        seed=seed,
    )
    remember(model, made)
    return made


def remember(model: SentenceTransformer, made: Provenance) -> None:
    """Know in this process what the heads of a model were made of, also behind a cache and as they train further."""
    from st_asym.heads.anatomy import taken_apart

    _MADE.update(dict.fromkeys(taken_apart(model)[1][:1], made))


def made_with_heads(model: SentenceTransformer | str | os.PathLike[str] | Any) -> Provenance | None:
    """That of a model with heads, by the model, its folder or Hub id; None where it is not known, or damaged."""
    from sentence_transformers import SentenceTransformer

    from st_asym.heads.anatomy import taken_apart

    if isinstance(model, SentenceTransformer):
        if not (heads := taken_apart(model)[1]):
            return None
        if heads[0] in _MADE:
            return _MADE[heads[0]]
        name = getattr(getattr(model.transformers_model, "config", None), "name_or_path", None)
        model = name if name and Path(name).is_dir() else None
    file = _file_of(model, PROVENANCE_FILE)
    made = None if file is None else _made(file.parent)
    return made if made is not None and any(made.heads.values()) else None


def has_provenance(model: SentenceTransformer | str | os.PathLike[str] | Any) -> bool:
    """Whether a model, by its folder or Hub id, says what it was made of, also where that is the encoder alone."""
    return _file_of(model, PROVENANCE_FILE) is not None


def has_heads(model: SentenceTransformer | str | os.PathLike[str] | Any) -> bool:
    """Whether a model, by itself, its folder or Hub id, has routes of its own for queries and documents."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    if isinstance(model, SentenceTransformer):
        return any(isinstance(module, Router) for module in model.modules())
    file = _file_of(model, "modules.json")
    with contextlib.suppress(OSError):  # as for _file_of
        return file is not None and b'.Router"' in file.read_bytes()
    return False


def _file_of(model: Any, name: str) -> Path | None:
    """A file of a saved model, by its folder or Hub id; whether it can be read is for who loads the model to say."""
    from st_asym.heads.anatomy import model_file

    if not isinstance(model, str | os.PathLike):
        return None
    if not Path(model).is_dir() and os.fspath(model).count("/") != 1:  # which no Hub id has
        return None
    with contextlib.suppress(OSError):
        return model_file(os.fspath(model), name, None)
    return None


def write_provenance(path: Path, *, kind: str, options: Mapping[str, Any] | None = None, **facts: Any) -> Provenance:
    """Digest the files of a folder and write everything that is known of them, and ``options`` as the model's own."""
    folder = Folder(path)
    folder.sizes.pop(PROVENANCE_FILE, None)
    check_files(folder)
    check_configurations(folder)
    files: dict[str, str] = {}
    documents: dict[str, str] = {}
    for name in sorted(folder.sizes):
        with folder.noting():
            (documents if is_document(name) else files)[name] = folder.digest(name)
    saved = read_saved(folder, heads_alone=kind == "heads")
    for sentence in folder.findings:
        logger.warning("%s would not pass st_asym.verify: %s", path, sentence)
    made = Provenance(
        kind=kind,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        heads=saved.digests or {},
        files=files,
        documents=documents,
        versions=installed(),
        **facts,
    )
    _check_readable(made)
    if options is not None:
        write_json(path / SETTINGS_FILE, options)
        files[SETTINGS_FILE] = _sha256(path / SETTINGS_FILE)
    write_json(path / PROVENANCE_FILE, made.as_dict())
    return made


def _check_readable(made: Provenance) -> None:
    """Refuse to write what :func:`read_provenance` would refuse to read, and say which part of it that is."""
    lengths: dict[str, int] = {}
    for name, part in vars(made).items():
        try:
            text = json.dumps({name: part}, indent=2, allow_nan=False)
            parsed(text.encode())
        except (RecursionError, TypeError, ValueError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else shown(str(error))
            raise ValueError(f"{name} cannot be kept in {PROVENANCE_FILE}: {why}. Nothing was written.") from error
        lengths[name] = len(text)
    if sum(lengths.values()) >= MOST_JSON:
        name = max(lengths, key=lengths.__getitem__)
        what = f"{name} takes {lengths[name]:,} bytes of {PROVENANCE_FILE}, which may have {MOST_JSON:,} in all. "
        raise ValueError(what + "Nothing was written: pass less.")


def read_provenance(folder: Folder) -> Provenance | None:
    """That of a folder; None where it has none, or one that cannot be read, which is noted."""
    found = None
    if PROVENANCE_FILE in folder.sizes:
        with folder.noting():
            found = _of_json(folder.json(PROVENANCE_FILE))
    return found


def _of_json(found: dict[str, Any]) -> Provenance:
    if found.pop("format", None) != _FORMAT:
        raise FindingError(PROVENANCE_FILE, f"is not in format {_FORMAT}: read it with the st_asym that wrote it.")
    found = {"documents": {}, "trained": {}, "seed": None, **found}  # 0.1 did not note the first two
    kinds: dict[str, Any] = dict.fromkeys(Provenance.__dataclass_fields__, dict)
    kinds |= {"kind": str, "created": str, "seed": int | None}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    wrong += sorted(set(found) - set(kinds))
    checks = {"files": _are_digests, "heads": _are_digests, "documents": _are_digests}
    checks |= {"model": are_prompts, "trained": _are_trained}
    wrong += [name for name, are_sound in checks.items() if name not in wrong and not are_sound(found[name])]
    if wrong:
        raise FindingError(PROVENANCE_FILE, f"is damaged ({', '.join(wrong[:5])}). Download the model again.")
    return Provenance(**found)


def describe_encoder(model: SentenceTransformer) -> dict[str, Any]:
    """What tells an encoder from others, as :class:`Provenance` holds it."""
    from st_asym.cache.fingerprint import encoder_fingerprint, vocabulary_digest, weights_digest
    from st_asym.heads.anatomy import encoder_modules, encoder_origin

    name, revision = encoder_origin(model)
    modules = list(encoder_modules(model).values())
    longest = getattr(modules[0], "max_seq_length", None)
    sizes = [module.get_embedding_dimension() for module in modules if hasattr(module, "get_embedding_dimension")]  # type: ignore[operator]
    return {
        "name": name,
        "revision": revision,
        "fingerprint": encoder_fingerprint(model),
        "weights": weights_digest(model),
        "vocabulary": vocabulary_digest(getattr(modules[0], "tokenizer", None)),
        # Infinite where nothing is cut, and JSON has no name for that.
        "max_seq_length": longest if isinstance(longest, int) else None,
        "dimension": sizes[-1] if sizes else None,
    }


def installed(*others: str) -> dict[str, str]:
    """The versions of the packages that shape vectors, and of others, where they are installed."""
    found = {}
    for name in (*_PACKAGES, *others):
        with contextlib.suppress(PackageNotFoundError):  # such as st_asym out of a checkout
            found[name] = version(name)
    return found


def keep_what_is_not_ours(earlier: Path, new: Path) -> list[str]:
    """Take over into a new result what an earlier one did not write: notes, evaluations, a repository.

    What it wrote is what its ``st_asym.json`` lists, and the card, the report and the plot as they were written. A card
    that somebody completed gives its own sections, licence and metadata to the new one, and is kept whole as
    ``README.earlier.md``; any other document that was changed is kept with ``.earlier`` in its name.
    """
    made = _made(earlier)
    replaced, changed = _written(earlier, new, made)
    completed = set()
    if CARD_FILE not in replaced and all((folder / CARD_FILE).is_file() for folder in (earlier, new)):
        _complete_card(earlier, new, made)
        completed = {CARD_FILE}
    kept = sorted({*take_over(earlier, new, replaced | completed), *completed})
    if kept:
        logger.warning("Kept beside the new result, as st_asym did not write it: %s.", ", ".join(kept))
    if changed:
        logger.warning("Changed since it was saved, and replaced by the new result: %s.", ", ".join(changed))
    return kept


def _written(earlier: Path, new: Path, made: Provenance | None) -> tuple[set[str], list[str]]:
    """What of an earlier result is its own, to be replaced, and which of that was changed since it was saved.

    Where the earlier result has no provenance, files that are named as those of the new one count as its own.
    """
    own = {PROVENANCE_FILE, REPORT_FILE}
    own |= {path.relative_to(earlier).as_posix() for path in (earlier / LOGS_FOLDER).rglob("events.out.tfevents.*")}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # the folders of modules, which may be empty
        modules = read_json(earlier / "modules.json")
        own |= {str(module["path"]) for module in modules}
    if made is None:
        return own | {path.relative_to(new).as_posix() for path in new.rglob("*")} - {CARD_FILE}, []
    folder, same = Folder(earlier), set()
    for name, digest in {**made.files, **made.documents}.items():
        with folder.noting():  # what is missing, or weights that are not whole
            if folder.digest(name) == digest:
                same.add(name)
    if not made.documents:  # 0.1 did not note them
        own.add(PLOT_FILE)
    return own | made.files.keys() | same, sorted((made.files.keys() & folder.sizes.keys()) - same)


def _complete_card(earlier: Path, new: Path, made: Provenance | None) -> None:
    """Carry over what somebody wrote into the earlier card, and keep a copy of it, unless it was completed here."""
    from st_asym.report.card import Card  # report stands to the right

    aside = new / f"{Path(CARD_FILE).stem}.earlier.md"
    ours = made is not None and made.documents.get(_COMPLETED) == _sha256(earlier / CARD_FILE)
    if not ours and not are_same(earlier / CARD_FILE, aside):
        shutil.copy2(earlier / CARD_FILE, free_name(aside, "2"))
    try:
        before, card = Card.load(earlier), Card.load(new)
    except ValueError as error:
        logger.warning("The earlier card cannot be read, and is only kept: %s", error)
        return
    if before is None or card is None:
        return
    card.keep(before)
    card.save(new)
    path = new / PROVENANCE_FILE
    if path.is_file():  # by this digest, the next result does not keep the completed card as a user's edit
        content = read_json(path)
        content["documents"] = {**content.get("documents", {}), _COMPLETED: _sha256(new / CARD_FILE)}
        write_json(path, content)


def _made(folder: Path) -> Provenance | None:
    try:
        return Provenance.of(folder)
    except VerificationError as error:
        logger.warning("What %s was made of cannot be read: %s", folder, " ".join(error.findings))
    except OSError:
        pass
    return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def are_prompts(value: Mapping[str, Any]) -> bool:
    """Whether these settings of a model have texts for prompts, and a default that is one of them."""
    prompts = value.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        return False
    return value.get("default_prompt_name") in (None, *prompts)


def _are_trained(value: Mapping[str, Any]) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        return not value or TrainedQueries.of_dict(value) is not None
    return False


def _are_digests(value: Mapping[str, Any]) -> bool:
    return all(one is None or (isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one)) for one in value.values())
