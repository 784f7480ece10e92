"""What stands in the place of an earlier result: files that it wrote, and what people put beside them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

from st_asym.disk.card_file import FILE as CARD_FILE
from st_asym.disk.card_file import Card
from st_asym.disk.writing import PLOT_FILE, PROVENANCE_FILE, REPORT_FILE, are_same, free_name, take_over
from st_asym.trust.folder import Findings, Folder, VerificationError
from st_asym.trust.provenance import Provenance, write_json

logger = logging.getLogger(__name__)

# Among the documents of a result: its card with what somebody wrote into an earlier one.
_COMPLETED = f"{CARD_FILE}, completed"


def keep_what_is_not_ours(earlier: Path, new: Path) -> list[str]:
    """Take over into a new result what an earlier one did not write, for :func:`st_asym.disk.writing.new_folder`.

    What it wrote is what its ``st_asym.json`` lists, and the card, the report and the plot as they were written. All
    else is kept: notes, evaluations, a repository. A card that somebody completed gives its own sections, licence and
    metadata to the new one, and is kept whole as ``README.earlier.md``. Any other document of the result that somebody
    changed is kept with ``.earlier`` in its name. The names of what was kept are logged and returned.
    """
    replaced, changed = _written(earlier, new)
    completed = CARD_FILE not in replaced and all((folder / CARD_FILE).is_file() for folder in (earlier, new))
    if completed:
        _complete_card(earlier, new)
        replaced.add(CARD_FILE)
    kept = sorted({*take_over(earlier, new, replaced), *([CARD_FILE] if completed else [])})
    if kept:
        logger.warning("Kept beside the new result, as st_asym did not write it: %s.", ", ".join(kept))
    if changed:
        logger.warning("Changed since it was saved, and replaced by the new result: %s.", ", ".join(changed))
    return kept


def _written(earlier: Path, new: Path) -> tuple[set[str], list[str]]:
    """What of an earlier result is its own, to be replaced, and which of that was changed since it was saved.

    The names in the new result stand for those of an earlier one that does not say what it wrote.
    """
    own = {PROVENANCE_FILE, REPORT_FILE, *_folders(earlier)}
    made = _made(earlier)
    if made is None:
        names = {path.relative_to(new).as_posix() for path in new.rglob("*")}
        return own | names - {CARD_FILE}, []
    folder = Folder(earlier, Findings())
    digests = {name: folder.digest(name) for name in [*made.files, *made.documents] if folder.has(name)}
    own |= {name for name, digest in made.documents.items() if digests.get(name) == digest}
    changed = [name for name, digest in made.files.items() if digests.get(name, digest) != digest]
    if not made.documents:  # 0.1 did not note them
        own.add(PLOT_FILE)
    return own | set(made.files), changed


def _folders(earlier: Path) -> set[str]:
    """The folders of its modules, some of which are empty."""
    try:
        modules = json.loads((earlier / "modules.json").read_text(encoding="utf-8"))
        return {str(module["path"]) for module in modules}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _complete_card(earlier: Path, new: Path) -> None:
    """Give the new card what somebody wrote into the earlier one, and keep that too, unless it came about like this."""
    aside = new / f"{Path(CARD_FILE).stem}.earlier.md"
    made = _made(earlier)
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
    if path.is_file():  # lets the next result know that this card is complete as it is, so that it does not keep each
        content = json.loads(path.read_text(encoding="utf-8"))
        content["documents"] = {**content.get("documents", {}), _COMPLETED: _sha256(new / CARD_FILE)}
        write_json(path, content)


def _made(folder: Path) -> Provenance | None:
    try:
        return Provenance.of(folder)
    except (OSError, VerificationError):
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
