"""Heads for vectors of any source: what ``fit`` does between texts and model, without either."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from torch import Tensor

from st_asym.data import RetrievalData
from st_asym.data.collection import counted, noted, own_documents, whole_number
from st_asym.data.document import copies_by_query
from st_asym.data.formats import as_list
from st_asym.fitting.fit import Collection, checked_settings, ready_to_train, rehearsed
from st_asym.fitting.loop import train_on_vectors
from st_asym.fitting.report import FitReport
from st_asym.fitting.settings import Settings
from st_asym.fitting.vectors import Vectors
from st_asym.heads.anatomy import is_cut
from st_asym.heads.array_heads import Heads
from st_asym.heads.model import load_encoder

Source = Any
Array = np.ndarray[Any, np.dtype[Any]]
Ids = Iterable[Hashable] | np.ndarray[Any, Any]
Relevant = Mapping[Any, Mapping[Any, int] | Iterable[Any]]

# Numbers that are read at a time: 8 MiB in float32.
_AT_ONCE = 1 << 21
# Numbers of a row by which it is told from others, before whole rows are compared.
_KEY = 16


@dataclass(frozen=True)
class HeadsResult:
    """What :func:`fit_vectors` gives.

    Attributes:
        heads: The heads that are kept; without layers, so that vectors only get length 1, where none are.
        report: What was done, and why: ``print(result.report)``. Its first line says whether heads are kept.

    Example:
        >>> result = fit_vectors("queries.npy", "documents.npy", {0: [7], 1: [3, 9]})  # doctest: +SKIP
        >>> result.heads.query(np.load("queries.npy"))  # doctest: +SKIP
    """

    heads: Heads
    report: FitReport

    def save(
        self, path: str | os.PathLike[str], *, encoder: SentenceTransformer | str | os.PathLike[str] | None = None
    ) -> Path:
        """Save the heads for :meth:`st_asym.Heads.load`.

        Args:
            path: The folder to make, or one with earlier heads.
            encoder: What the vectors were made with, where that is a ``SentenceTransformer``, or the Hub id or path of
                one: :func:`st_asym.attach_heads` then puts the heads behind it, and behind no other.

        Returns:
            The folder.

        Raises:
            FileExistsError: There is something else than earlier heads.
            ValueError: No heads were kept, or the encoder's vectors have another dimension or not length 1.
        """
        if not self.report.kept:
            raise ValueError("No heads were kept, so there is nothing to save: search with the vectors as they are.")
        heads = self.heads
        if encoder is not None:
            from st_asym.trust.provenance import describe_encoder

            model = load_encoder(encoder)
            described = describe_encoder(model)
            if is_cut(model):
                raise ValueError(
                    f"The encoder cuts its vectors to {model.truncate_dim} dimensions (truncate_dim), and heads are "
                    "put behind whole ones: fit on vectors that are not cut, and load it without truncate_dim."
                )
            if described["dimension"] != heads.dimension:
                raise ValueError(
                    f"The encoder gives vectors of {described['dimension']} dimensions, and the heads take "
                    f"{heads.dimension}: it is not what these vectors were made with."
                )
            if not isinstance(list(model.children())[-1], Normalize):
                raise ValueError(
                    "The encoder does not end in a Normalize, and the heads were fitted on vectors of length 1: add "
                    "one, SentenceTransformer(modules=[*encoder, Normalize()])."
                )
            prompts = {"prompts": dict(model.prompts), "default_prompt_name": model.default_prompt_name}
            heads = replace(heads, made={**heads.made, "encoder": described, "model": prompts})
        return heads.save(path)


@ready_to_train()
def fit_vectors(
    queries: Source,
    documents: Source,
    relevant: Relevant,
    *,
    dev: Relevant | None = None,
    query_ids: Ids | None = None,
    document_ids: Ids | None = None,
    collection: Collection | None = None,
    expected_unseen: float | None = None,
    settings: Settings | None = None,
    trials: int = 0,
    max_seconds: float | None = None,
    seed: int = 0,
    show_progress_bar: bool = True,
) -> HeadsResult:
    """Fit query and document heads to vectors of any source, such as an API, or leave the vectors as they are.

    The candidates, rehearsals and gate are those of :func:`st_asym.fit`. Vectors are compared by cosine, and brought to
    length 1 first, in training and by the heads, so that their length does not matter. They stay where they are
    stored; each is looked at once, and training reads those that it needs.

    Args:
        queries: Vectors of queries, shape ``(n, d)``, float16 to float64: a numpy array or ``numpy.memmap``, a torch
            tensor, an Arrow array of fixed-size lists, or the path of a ``.npy`` file, which is not read as a whole.
        documents: Vectors of documents, shape ``(m, d)``, in the same forms.
        relevant: Query to the documents that are relevant to it, or to a mapping of documents to grades (whole numbers,
            above zero is relevant). Both are named by their ids, or by their rows where there are none.
        dev: Queries to judge on, in the same form, and as for :func:`st_asym.fit`.
        query_ids: An id for each row of ``queries``: a list, or an array of numpy, torch or Arrow.
        document_ids: An id for each row of ``documents``. A query with the id of a document is that document, which is
            then no result of its own, unless it is relevant to itself.
        collection: As for :func:`st_asym.fit`.
        expected_unseen: As for :func:`st_asym.fit`.
        settings: As for :func:`st_asym.fit`.
        trials: As for :func:`st_asym.fit`.
        max_seconds: As for :func:`st_asym.fit`.
        seed: The random seed. The caller's random generators stay as they are.
        show_progress_bar: Whether to show rehearsing.

    Returns:
        Heads for arrays, and the report.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: A source, or the documents of a query, in another form.
        ValueError: A vector that is not finite or zero, dimensions that differ, an id that is unknown or there twice, a
            query without a relevant document, or settings that no training can have. The message names the row or id.

    Example:
        >>> random = np.random.default_rng(0)
        >>> documents = random.standard_normal((40, 8))
        >>> queries = documents + random.standard_normal((40, 8)) * [3, 3, 0, 0, 0, 0, 0, 0]
        >>> relevant = {row: [row] for row in range(40)}
        >>> quick = Settings(sides="query", init="pairs", epochs=2)
        >>> result = fit_vectors(queries, documents, relevant, settings=quick, show_progress_bar=False)
        >>> result.report.kept
        True
        >>> (result.heads.query(queries) @ result.heads.document(documents).T).shape
        (40, 40)
    """
    settings, seed, unseen = checked_settings(collection, expected_unseen, trials, max_seconds, settings, seed)
    deadline = time.monotonic() + (max_seconds or math.inf)
    report = FitReport(settings=settings, on="vectors", collection=collection, seed=seed)
    with report.timed("read"):
        vectors, data = _read(queries, documents, relevant, dev, query_ids, document_ids, seed)
        counts = {split: len(judged) for split, judged in data.qrels.items()}
        report.counts, report.notes = {"documents": len(vectors.document_ids), **counts}, data.notes
    with report.timed("rehearse"):
        options: dict[str, Any] = {"deadline": deadline, "trials": trials, "show_progress_bar": show_progress_bar}
        chosen, *_ = rehearsed(vectors, data, report, vectors.dimension, unseen, **options)
    heads = Heads(vectors.dimension, normalises=True)
    if chosen is not None and report.chosen is not None:
        with report.timed("train"):
            train = data.qrels["train"]
            router, report.training = train_on_vectors(chosen, report.chosen.choice, vectors, train)
            with TemporaryDirectory() as folder:
                router.save(folder)
                heads = replace(Heads.load(folder), normalises=True)
    return HeadsResult(replace(heads, made={"settings": report.settings.as_dict(), "seed": seed}), report)


def _read(
    queries: Source,
    documents: Source,
    relevant: Relevant,
    dev: Relevant | None,
    query_ids: Ids | None,
    document_ids: Ids | None,
    seed: int,
) -> tuple[Vectors, RetrievalData]:
    """Vectors by row, and which answers which, with equal vectors in the place of equal texts."""
    asked, stored = UnitRows(queries, "queries"), UnitRows(documents, "documents")
    if asked.shape[1] != stored.shape[1]:
        raise ValueError(
            f"queries have {asked.shape[1]} dimensions and documents {stored.shape[1]}: both must be of one encoder."
        )
    query_ids, document_ids = _plain(query_ids), _plain(document_ids)
    given = {"train": relevant, **({} if dev is None else {"dev": dev})}
    qrels, themselves = _by_row(given, query_ids, document_ids, len(asked), len(stored))
    asked.check(query_ids)
    stored.check(document_ids)
    asked_for = {key for part in qrels.values() for key in part}
    same_queries = asked.same(asked_for)
    again = {key for key in qrels["train"] if not qrels.get("dev", {}).keys().isdisjoint(same_queries.get(key, ()))}
    if len(again) == len(qrels["train"]):
        raise ValueError(
            f"relevant has {counted(len(again), 'query', 'queries')}: each has the vector of a query of dev."
        )
    qrels["train"] = {key: grades for key, grades in qrels["train"].items() if key not in again}
    notes = noted(sorted(again), "query", "of relevant left out, with the vector of one of dev", "queries")
    judged = {key for part in qrels.values() for grades in part.values() for key in grades}
    same = stored.same(judged)
    ignored = copies_by_query({q: grades for part in qrels.values() for q, grades in part.items()}, same)
    for query, document in themselves.items():
        ignored.setdefault(query, {})[document] = 1
    # Both stay where they are, and are brought to length 1 as they are read.
    vectors = Vectors(range(len(asked)), asked, range(len(stored)), stored, ignored, themselves, seed)
    # Where texts are compared, those of equal vectors are equal.
    query_texts, document_texts = (
        {key: str(min(key, *alike.get(key, (key,)))) for key in keys}
        for keys, alike in ((asked_for, same_queries), (judged, same))
    )
    return vectors, RetrievalData(query_texts, document_texts, qrels, notes=tuple(notes))


def _by_row(
    given: Mapping[str, Relevant], query_ids: Any, document_ids: Any, queries: int, documents: int
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """The judgments of each split by the rows of so many queries and documents; queries that are a document of these.

    Rows are numbers, and stand where ids of texts would.
    """
    names = {"train": "relevant", "dev": "dev"}
    graded = {split: _graded(part, names[split], documents) for split, part in given.items()}
    known = _rows(query_ids, queries, "query_ids", {query for part in graded.values() for query in part})
    own = {*known} if query_ids is not None and document_ids is not None else set()
    wanted = {document for part in graded.values() for grades in part.values() for document in grades}
    found = _rows(document_ids, documents, "document_ids", wanted, also=own)
    if twice := [query for query in graded.get("dev", ()) if query in graded["train"]]:
        raise ValueError(f"{counted(len(twice), 'query is', 'queries are')} in relevant and in dev: {twice[0]!r:.80}.")
    qrels = {
        split: {known[query]: {found[key]: grade for key, grade in grades.items()} for query, grades in part.items()}
        for split, part in graded.items()
    }
    selves = {key for part in graded.values() for key in own_documents(found, part)} & own
    return qrels, {known[key]: found[key] for key in selves}


def _graded(relevant: Relevant, name: str, documents: int) -> dict[Any, dict[Any, int]]:
    """Query to document to grade, of either form."""
    if not isinstance(relevant, Mapping) or not relevant:
        raise TypeError(f"{name} must map queries to their relevant documents, and not be {relevant!r:.80}.")
    found: dict[Any, dict[Any, int]] = {}
    for query, own in relevant.items():
        try:
            if isinstance(own, str | bytes):
                raise TypeError
            grades = own.items() if isinstance(own, Mapping) else [(key, 1) for key in own]
            found[query] = {key: whole_number(grade) for key, grade in grades}
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name}[{query!r:.80}] is {own!r:.80}: give a list of documents, or a mapping of documents to "
                "grades that are whole numbers."
            ) from error
        count = sum(grade > 0 for grade in found[query].values())
        if count in (0, documents):
            which = "every" if count else "no"
            raise ValueError(f"{name}[{query!r:.80}] has {which} document that is relevant: leave it out.")
    return found


def _plain(ids: Ids | None) -> Sequence[Hashable] | np.ndarray[Any, Any] | None:
    """Ids by which others can be looked up: elements of torch and Arrow equal no numbers and texts."""
    return ids if ids is None or isinstance(ids, Sequence | np.ndarray) else as_list(ids)


def _rows(
    ids: Sequence[Hashable] | np.ndarray[Any, Any] | None,
    count: int,
    name: str,
    wanted: set[Any],
    also: set[Any] | None = None,
) -> dict[Any, Any]:
    """The rows of wanted ids, and of others where they are there; a dict of all ids would take gigabytes."""
    if ids is None:
        missing = [key for key in wanted if not isinstance(key, int | np.integer) or not 0 <= key < count]
        if missing:
            raise ValueError(
                f"{missing[0]!r:.80} is no row: without {name}, these are named by their rows, from 0 to {count - 1:,}."
            )
        return {key: int(key) for key in sorted(wanted)}
    if len(ids) != count:
        raise ValueError(f"{name} has {len(ids):,} ids for {counted(count, 'vector')}.")
    among = wanted | (also or set())
    found: dict[Any, Any] = {}
    keys = ids.tolist() if isinstance(ids, np.ndarray) else ids
    for row, key in enumerate(keys):
        if key in among and found.setdefault(key, row) != row:
            raise ValueError(f"{name} has {key!r:.80} twice, in rows {found[key]:,} and {row:,}.")
    if missing := [key for key in wanted if key not in found]:
        raise ValueError(
            f"{counted(len(missing), 'judged id is', 'judged ids are')} not in {name}: {missing[0]!r:.80} is the first "
            f"of them, and {name} begins with {keys[0]!r:.80}."
        )
    return found


class UnitRows:
    """Vectors where they are stored, of shape ``(n, d)``, brought to length 1 as they are read.

    ``source`` is in one of the forms that :func:`fit_vectors` takes; errors call it by its ``name``.
    """

    ndim = 2

    def __init__(self, source: Any, name: str) -> None:
        self._array, self._name = _as_array(source, name), name
        if self._array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            kind = self._array.dtype
            lost = ": 8-bit and binary vectors have lost what heads are trained on" if kind.itemsize == 1 else ""
            raise TypeError(f"{name} must hold float16, float32 or float64, not {kind}{lost}.")
        if self._array.ndim != 2 or not self._array.size:
            raise ValueError(f"{name} must be of shape (n, d), one vector a row, not {self._array.shape}.")
        self.shape: tuple[int, int] = self._array.shape
        self._keys = np.zeros(len(self), np.uint64)

    def __len__(self) -> int:
        """The number of vectors."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        """Unit vectors of some rows, float32, shape ``(len(rows), d)``: a copy."""
        found = np.array(self._array[rows], dtype=np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    def check(self, ids: Sequence[Any] | Array | None = None) -> None:
        """Look at every vector, a part at a time: one that is not finite, or zero, is refused, by its row and id."""
        for part in self._parts():
            rows = self._array[part]
            with np.errstate(over="ignore", invalid="ignore"):
                lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
            bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
            if len(bad):
                row = part.start + int(bad[0])
                named = "" if ids is None else f" ({ids[row]!r:.80})"
                kind = "zero: it has no direction" if lengths[bad[0]] == 0 else "not finite, or too long for float32"
                raise ValueError(f"Row {row:,} of {self._name}{named} is {kind}. Leave it out, or embed it again.")
            self._keys[part] = _keys(rows)

    def same(self, wanted: Iterable[int]) -> dict[Any, list[Any]]:
        """Row to the other rows that hold its vector, for those of the wanted ones that have such.

        All must have been looked at.
        """
        rows = set(wanted)
        keys = np.unique(self._keys[list(rows)])
        found = []
        for part in self._parts():
            places = np.minimum(np.searchsorted(keys, self._keys[part]), len(keys) - 1)
            found.append(np.flatnonzero(keys[places] == self._keys[part]) + part.start)
        alike = np.concatenate(found)
        _, key_of, counts = np.unique(self._keys[alike], return_inverse=True, return_counts=True)
        # Of those that share their key, digests, as rows themselves are too large to be kept.
        groups: dict[bytes, list[int]] = {}
        for row in alike[counts[key_of] > 1].tolist():
            groups.setdefault(hashlib.blake2b(self._array[row].tobytes(), digest_size=16).digest(), []).append(row)
        shared = (group for group in groups.values() if len(group) > 1)
        return {row: [other for other in group if other != row] for group in shared for row in group if row in rows}

    def _parts(self) -> Iterator[slice]:
        size = max(1, _AT_ONCE // self.shape[1])
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def _keys(rows: Array) -> Array:
    """A number for each row that is the same for equal rows: its first bits times random odd numbers, modulo 2^64."""
    bits = np.ascontiguousarray(rows[:, :_KEY]).view(f"u{rows.dtype.itemsize}").astype(np.uint64)
    odd = np.random.default_rng(0).integers(1 << 63, size=bits.shape[1], dtype=np.uint64) * 2 + 1
    found: Array = (bits * odd).sum(axis=1, dtype=np.uint64)
    return found


def _as_array(source: Any, name: str) -> Array:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix != ".npy":
            raise ValueError(f"{name} is the path {path}: only .npy files can be read where they are (numpy.save).")
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (EOFError, ValueError):  # whose messages name no file, and advise to unpickle it
            found = None
        if not isinstance(found, np.ndarray):  # an .npz under another name is none either
            raise ValueError(
                f"{name} is the path {path}, which is no whole .npy file of numbers: write it again (numpy.save)."
            )
        return found
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    if isinstance(source, np.ndarray):
        return source
    if type(source).__module__.partition(".")[0] == "pyarrow":
        return _from_arrow(source, name)
    raise TypeError(
        f"{name} must be an array of shape (n, d), by numpy, torch or Arrow, or the path of a .npy file, not "
        f"{type(source).__name__}."
    )


def _from_arrow(source: Any, name: str) -> Array:
    import pyarrow

    column = source.combine_chunks() if isinstance(source, pyarrow.ChunkedArray) else source
    if isinstance(column, pyarrow.ChunkedArray):  # of no chunks, or of more than one array holds
        raise ValueError(f"{name} cannot be one Arrow array: write it into a .npy file, part by part.")
    if not isinstance(getattr(column, "type", None), pyarrow.FixedSizeListType):
        kind = getattr(column, "type", type(column).__name__)
        raise TypeError(f"{name} must be an Arrow array of fixed-size lists, not of {kind}: cast it.")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        number = counted(column.null_count, "row is", "rows are")
        raise ValueError(f"{name}: {number} missing (null), the first is row {row:,}. Leave them out, or embed them.")
    values, size = column.flatten(), column.type.list_size
    if values.null_count:
        row = values.is_null().to_pylist().index(True) // size
        raise ValueError(f"Row {row:,} of {name} has a missing value (null). Leave it out, or embed it again.")
    found: Array = values.to_numpy(zero_copy_only=False).reshape(-1, size)
    return found
