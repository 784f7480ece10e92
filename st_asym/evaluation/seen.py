"""Judged queries that say less: those that a model was trained on, and those whose documents it was trained on."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from st_asym.cache.fingerprint import data_digests
from st_asym.data import Qrels, RetrievalData
from st_asym.data.collection import counted, first_few
from st_asym.data.document import text_key
from st_asym.data.formats import is_table
from st_asym.data.sources import is_one_source, read
from st_asym.evaluation.comparison import FEW
from st_asym.evaluation.evaluate import Models, models_of
from st_asym.trust.provenance import Provenance, made_with_heads

if TYPE_CHECKING:
    from st_asym.evaluation.mteb import Scores
    from st_asym.evaluation.tasks import Benchmark

Train: TypeAlias = Union[RetrievalData, Qrels, str, "os.PathLike[str]", Any]

TRAINED, OTHERS = "trained on", "not trained on"
_KEEP_OUT = (
    "Keep a part out of training: fit(..., hold_out_test=True), or st-asym fit with --evaluate of the file that is "
    "trained on."
)


def text_digest(text: str) -> str:
    """A short digest of a text, whatever its case and white space."""
    return hashlib.blake2b(text_key(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def seen_queries(
    scores: Scores, positives: Mapping[str, set[str]], trained: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, ...]]:
    """The queries of a data set in groups, as far as it is known what was trained on.

    ``"seen"`` and ``"unseen"`` have a relevant document among ``positives``, those of training, and none;
    ``"trained on"`` and ``"not trained on"`` are queries that any system was trained on (``trained``), and the others.
    """
    groups: dict[str, tuple[str, ...]] = {}
    if scores.benchmark in positives:
        known = positives[scores.benchmark]
        relevant = {query: {*found, *found.values()} for query, found in scores.relevant.items() if found}
        groups["seen"] = tuple(query for query, names in relevant.items() if names & known)
        groups["unseen"] = tuple(query for query, names in relevant.items() if not names & known)
    if again := {query for own in trained.values() for query in own}:
        groups[TRAINED] = tuple(query for query in scores.queries if query in again)
        groups[OTHERS] = tuple(query for query in scores.queries if query not in again)
    return groups


def training_documents(
    train: Train | Mapping[str, Train] | None, found: Sequence[Benchmark], split: str = "test"
) -> dict[str, set[str]]:
    """The relevant documents of training, where ``train`` says what the models were trained on.

    By data set: digests of their texts; their ids, where neither ``train`` nor the data set has texts here.
    """
    names = [benchmark.name for benchmark in found]
    by_name: dict[str, Any] = dict.fromkeys(names, train)
    if isinstance(train, Mapping) and not _is_collection(train, names):
        if unknown := sorted(set(train) - set(names)):
            number = counted(len(unknown), "data set")
            raise ValueError(f"train names {number} not evaluated: {first_few(unknown)}; there are {names}.")
        by_name = {name: train.get(name) for name in names}
    positives: dict[str, set[str]] = {}
    known: dict[int, set[str]] = {}  # by identity: one collection for all data sets is read once
    for benchmark in found:
        source, data = by_name[benchmark.name], benchmark.data
        if source is None:
            continue
        if data is not None and _is_its_file(source, benchmark):
            rest = {query: judged for part in data.qrels if part != split for query, judged in data.qrels[part].items()}
            positives[benchmark.name] = _positives(replace(data, qrels={"train": rest}))
            continue
        if id(source) not in known:
            known[id(source)] = _positives(source)
        positives[benchmark.name] = known[id(source)]
        if data is not None and _is_qrels(source):  # by text, so that copies under other ids are known too
            positives[benchmark.name] = {text_digest(data.corpus[d]) for d in known[id(source)] if d in data.corpus}
    return positives


def _is_its_file(source: Any, benchmark: Benchmark) -> bool:
    """Whether a file of pairs is itself what is judged: then a part of its queries was kept out of training."""
    path = Path(source).resolve() if isinstance(source, str | os.PathLike) else None
    return path is not None and path == benchmark.path and not path.is_dir() and not zipfile.is_zipfile(path)


def _positives(source: Any) -> set[str]:
    """Ids of the relevant documents of qrels; of a collection, digests of their texts."""
    if _is_qrels(source):
        return {document for grades in source.values() for document, grade in grades.items() if grade > 0}
    if not isinstance(source, Iterable | RetrievalData | os.PathLike):
        raise TypeError(f"train must be a collection, its path or qrels, not a {type(source).__name__}.")
    found = read(source, "train")  # as fit does: all pairs of a file are for training
    if not isinstance(found, RetrievalData):
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "train"
        raise ValueError(f"{name} holds documents alone: no query was trained on.")
    if "train" not in found.qrels:
        raise ValueError(f"The training data have no split 'train', only {sorted(found.qrels)}.")
    documents = {document for relevant in found.relevant("train").values() for document in relevant}
    return {text_digest(found.corpus[document]) for document in documents}


def _is_collection(train: Mapping[str, Any], names: Sequence[str]) -> bool:
    """One collection or qrels, rather than data set to such."""
    splits = all(map(is_table, train.values())) and not set(train) <= set(names)
    return splits or is_one_source(train) or _is_qrels(train)


def _is_qrels(train: Any) -> bool:
    """Query id to document id to grade, rather than data set to something."""
    return (
        isinstance(train, Mapping)
        and not is_one_source(train)
        and all(
            isinstance(grades, Mapping) and not any(isinstance(grade, Mapping) for grade in grades.values())
            for grades in train.values()
        )
    )


def trained_queries(
    models: Models, found: Sequence[Benchmark], split: str
) -> tuple[dict[str, dict[str, set[str]]], list[str]]:
    """What the provenance of saved models says of the queries that they are judged on.

    Local data set to system to the ids of judged queries that it was trained on, where there are any; and sentences.
    """
    trained: dict[str, dict[str, set[str]]] = {}
    notes: list[str] = []
    for name, given in models.items():
        made = [one for one in map(made_with_heads, models_of(given)) if one is not None]
        for one in found if made else ():
            if one.data is not None:
                again, said = _trained_on(name, made, one.name, one.data, split)
                notes += said
                if again:
                    trained.setdefault(one.name, {})[name] = again
    return trained, notes


def _trained_on(
    system: str, made: Sequence[Provenance], name: str, data: RetrievalData, split: str
) -> tuple[set[str], list[str]]:
    """The judged queries of a data set that a system was trained on, and what to say of it."""
    relevant = data.relevant(split)
    texts = {query: data.queries[query] for query in data.with_all_split().relevant("all")}
    digests = [one.trained_queries for one in made]
    known = [found for found in digests if found is not None and found.query_digests is not None]
    rest = [one for one, found in zip(made, digests, strict=True) if found not in known]
    trained = {query for one in known for query in one.among(texts)}
    if rest:  # without digests of each query: whether it was trained on all of this data set
        described = data_digests(data)["queries"]
        parts = [part for one in rest for part in one.data.values() if part.get("queries") == described]
        if any(split not in part.get("qrels", {split}) for part in parts):
            trained = set(texts)
    again = trained & relevant.keys()
    if not again:
        # Of models of 0.1 it is not known how many.
        numbers = [one.trained["queries"] for one in rest if one.trained]
        return again, [
            f"{system} was trained on {number:,} queries, too many for a digest of each: whether queries of {name} "
            "were among them is not known."
            for number in numbers[:1]
        ]
    if trained >= texts.keys():
        return again, [
            f"{system} was trained on all queries of {name}, those judged here included: its scores say nothing about "
            f"new ones. {_KEEP_OUT}"
        ]
    judged, left = len(relevant), len(relevant) - len(again)
    if not left:
        new = [one for one in data.qrels if one != "all" and not trained & data.relevant(one).keys()]
        every = f"all {judged:,} judged queries" if judged > 1 else "the one judged query"
        return again, [
            f"{system} was trained on {every} of {name} (split {split}): its scores say nothing about new ones. "
            + (f"It was not trained on those of the split {new[0]}: evaluate on them." if new else _KEEP_OUT)
        ]
    relevant = {query: relevant[query] for query in again}
    pairs = {query for one in known for query in one.with_their_documents(texts, data.corpus, relevant)}
    shared = f" ({len(pairs):,} with a document that answers them here)" if pairs else ""
    few = f" {left:,} {'says' if left == 1 else 'say'} little: evaluate on more new ones." if left < FEW else ""
    return again, [
        f"{system} was trained on {len(again):,} of {judged:,} judged queries of {name}{shared}. They are no evidence: "
        f"its verdict is by the other {left:,}, whose scores stand apart ({OTHERS}).{few}"
    ]
