"""Whether a saved model is whole, finite, stock and on its own encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from st_asym.data.files import PROVENANCE_FILE, ROUTER_FILE
from st_asym.trust.folder import Folder, shown
from st_asym.trust.modules import (
    ROUTES,
    Saved,
    check_configurations,
    check_files,
    is_document,
    is_too_large,
    read_saved,
)
from st_asym.trust.provenance import SETTINGS_FILE, Provenance, are_prompts, read_provenance

# What cannot be told where a folder does not say what it was made of: of any model, and of heads.
_NOTES = (
    f"There is no {PROVENANCE_FILE}: a change of the files since they were saved cannot be told.",
    "Whether the heads fit the encoder is known by its dimension at most; exchanged weights of the two heads cannot be "
    "told.",
)


@dataclass(frozen=True)
class Verification:
    """A saved model that has passed :func:`verify`.

    Attributes:
        path: The folder.
        kind: ``"model"``, ``"encoder"`` (a model without heads) or ``"heads"`` (saved alone).
        modules: Class names in order; empty for heads alone.
        dimension: Of the vectors, where the files tell.
        heads: For ``query`` and ``document``, input and output dimensions; without an entry where that side has none.
        provenance: What the model was made of; None where the folder does not say.
        notes: What could not be told, a sentence each.

    Example:
        >>> verify("model").heads  # doctest: +SKIP
        {'query': (384, 384), 'document': (384, 384)}
    """

    path: Path
    kind: str
    modules: tuple[str, ...]
    dimension: int | None
    heads: dict[str, tuple[int, int]]
    provenance: Provenance | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The result as text."""
        what = {"model": "a model with heads", "encoder": "a model without heads", "heads": "heads alone"}[self.kind]
        sides = [f"{route} {size[0]} -> {size[1]}" for route, size in self.heads.items()]
        lines = [f"{self.path} is {what}: whole, finite and stock."]
        lines += [f"Modules: {', '.join(self.modules)}."] if self.modules else []
        lines += [f"Heads: {', '.join(sides)}."] if sides else []
        if self.provenance is not None:
            encoder = self.provenance.encoder
            name, revision = shown(encoder.get("name") or "unnamed"), encoder.get("revision")
            at = f" at {shown(revision)}" if revision else ""
            made = shown(self.provenance.versions.get("st_asym", "an unknown version"))
            created = shown(self.provenance.created)
            lines.append(f"Encoder: {name}{at}. Made with st_asym {made}, {created}. All digests fit.")
        return "\n".join([*lines, *self.notes])


def verify(path: str | os.PathLike[str]) -> Verification:
    """Check a saved model, or heads saved alone, before it is loaded.

    Nothing is run, unpickled or loaded as a model: configurations are parsed, weights read a megabyte at a time, links
    not followed. In order means: stock classes of sentence-transformers alone, one behind the other in dimensions that
    fit; all weights as safetensors, whole and finite; no pickles, no code, nothing that leads out of the folder, and no
    settings by which loading would read other files or run code; cosine where there are heads. Where the folder says
    what it was made of (``st_asym.json``, which :func:`st_asym.fit` and :func:`st_asym.save_provenance` write), all
    files are those that were saved: the encoder that the heads were trained on, and each head on its own side. Without
    it, another encoder of the same dimension, exchanged weights and changed values cannot be told; ``notes`` says so.
    It is no signature: it tells accidents, and not who made a model.

    Args:
        path: The folder.

    Returns:
        What was found.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        VerificationError: A ``ValueError`` with all findings: what is wrong, where, and what to do.

    Example:
        >>> print(verify("fitted-model"))  # doctest: +SKIP
    """
    folder = Folder(path)
    check_files(folder)
    check_configurations(folder)
    for name in sorted(folder.sizes):
        if name.endswith(".safetensors"):
            with folder.noting():
                folder.weights(name)
    provenance = read_provenance(folder)
    has_modules = "modules.json" in folder.sizes
    heads_alone = provenance.kind == "heads" if provenance else ROUTER_FILE in folder.sizes and not has_modules
    if heads_alone and has_modules:
        folder.add("modules.json", f"makes a model of what {PROVENANCE_FILE} calls heads alone. Remove it.")
    saved = read_saved(folder, heads_alone=heads_alone)
    if not heads_alone:
        with folder.noting():
            _check_settings(folder, with_heads=saved.digests is not None)
    if provenance is not None:
        _check_made(folder, provenance, saved)
        for name in folder.sizes:
            if name not in provenance.files and name != PROVENANCE_FILE and not is_document(name):
                folder.add(name, f"was not there when {PROVENANCE_FILE} was written, and might be loaded. Remove it.")
    folder.check(path)
    return Verification(
        path=folder.path,
        kind="heads" if heads_alone else "encoder" if saved.digests is None else "model",
        modules=tuple(saved.names),
        dimension=saved.dimension,
        heads=saved.sizes,
        provenance=provenance,
        notes=() if provenance is not None else _NOTES[: 1 if saved.digests is None else 2],
    )


def read_heads(path: str | os.PathLike[str]) -> tuple[dict[str, list[str]], Provenance | None]:
    """Side to the folders of its layers, of heads saved alone, and what these were made of, where the folder says it.

    What is read of them is checked as by :func:`verify`, and nothing else that lies there.
    """
    folder = Folder(path, links=True)
    provenance = read_provenance(folder)
    saved = read_saved(folder, heads_alone=True)
    folder.check(path)
    structure = folder.json(ROUTER_FILE)["structure"]
    if provenance is not None:
        layers = {layer for route in structure.values() for layer in route}
        own = {n: d for n, d in provenance.files.items() if n == ROUTER_FILE or n.partition("/")[0] in layers}
        _check_made(folder, replace(provenance, files=own), saved)
        folder.check(path)
    return structure, provenance


def _check_settings(folder: Folder, *, with_heads: bool) -> None:
    settings = folder.json(SETTINGS_FILE)
    kind, similarity = settings.get("model_type", "SentenceTransformer"), settings.get("similarity_fn_name")
    if kind != "SentenceTransformer":
        folder.add(SETTINGS_FILE, f"is of a {shown(kind)}, not of a SentenceTransformer. Use its own class.")
    if with_heads and similarity != "cosine":
        what = f"compares vectors by {shown(similarity)}, and heads are trained for cosine. Set it so."
        folder.add(SETTINGS_FILE, what)
    if not are_prompts(settings):
        what = "has prompts that are no texts, or a default prompt that is not among them. Save the model again."
        folder.add(SETTINGS_FILE, what)
    truncated = settings.get("truncate_dim")
    if truncated is not None and (type(truncated) is not int or truncated < 1):
        folder.add(SETTINGS_FILE, f"truncates vectors to {shown(truncated)}, which is no dimension.")


def _check_made(folder: Folder, provenance: Provenance, saved: Saved) -> None:
    """Compare all that is loaded with what was saved."""
    if saved.digests is not None:
        _check_routes(folder, provenance, saved)
    for name, digest in provenance.files.items():
        if name not in folder.sizes:
            folder.add(name, f"is missing, and {PROVENANCE_FILE} says that it was saved. Download it again.")
        elif not is_too_large(name, folder.sizes[name]):  # a finding already, and perhaps without end
            with folder.noting():
                if folder.digest(name) == digest:
                    continue
                of_encoder = name.endswith(".safetensors") and "Router" in saved.names and "_Router/" not in name
                whose = ": the heads were trained on another encoder" if of_encoder else ""
                what = f"is not what was saved, by the digest in {PROVENANCE_FILE}{whose}. Download it again, or, "
                folder.add(name, what + "if the change is your own, write the file anew with st_asym.save_provenance.")


def _check_routes(folder: Folder, provenance: Provenance, saved: Saved) -> None:
    """Compare the heads by side, so that exchanged ones are told from changed ones."""
    found = [(saved.digests or {}).get(route) for route in ROUTES]
    made = [provenance.heads.get(route) for route in ROUTES]
    if found == made[::-1] and found != made:
        what = "was written with the heads the other way round: queries and documents are swapped. Download it again."
        folder.add(PROVENANCE_FILE, what)
        return
    dimension = provenance.encoder.get("dimension")
    for route, own, saved_one in zip(ROUTES, found, made, strict=True):
        if own != saved_one:
            what = f"was written with another {route} head than there is. Download the model again."
            folder.add(PROVENANCE_FILE, what)
        takes, _ = saved.sizes.get(route, (dimension, None))
        if type(dimension) is int and takes != dimension:
            what = f"says that the encoder gives {dimension} dimensions, and the {route} head takes {takes}: "
            folder.add(PROVENANCE_FILE, what + "it is another encoder's.")
