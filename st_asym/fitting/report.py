"""What a fit did, and why: for people, and as JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from st_asym.data import RetrievalData
from st_asym.data.collection import counted, own_documents
from st_asym.data.files import plain, write_json
from st_asym.data.holdout import HeldOut
from st_asym.fitting.candidates import Candidate
from st_asym.fitting.gate import FEWEST_DEV, Choice, Decision, Evidence, Rehearsal, best_of_each
from st_asym.fitting.rehearsal import Rehearsals
from st_asym.fitting.settings import Settings
from st_asym.fitting.vectors import SEARCHED
from st_asym.retrieval import Judgments
from st_asym.retrieval.metrics import TOP
from st_asym.retrieval.search import Bm25Index, bm25_is_installed
from st_asym.trainer.columns import encode_caveat
from st_asym.trust.provenance import installed

# How many queries BM25 scores at a time: 4 MB each for a million documents.
_BLOCK = 32


@dataclass(frozen=True)
class Tried:
    """A candidate, and what it was worth at its best.

    Attributes:
        name: Its name.
        evidence: What the held-out queries say about its best choice.
        cuts: On how many of the cuts that decided it was rehearsed; fewer than others where it was clearly behind.
        seconds: What rehearsing it took.
    """

    name: str
    evidence: Evidence
    cuts: int
    seconds: float

    def __str__(self) -> str:
        """``both sides, whitening 1: +.071 ± .010 (seen +.080, unseen +.010; 4 cut(s))``."""
        gain = self.evidence
        both = {"seen": gain.seen, "unseen": gain.unseen}
        halves = [f"{name} {half.mean:+.3f}" for name, half in both.items() if half.queries]
        return f"{self.name}: {gain.gain:+.3f} ± {gain.error:.3f} ({', '.join(halves)}; {self.cuts} cut(s))"


@dataclass
class FitReport:
    """What a fit did, and why.

    Attributes:
        settings: How the heads that are kept were made; as given, where none are.
        on: Whether heads were fitted on texts, behind an encoder, or on ``"vectors"`` alone.
        collection: ``"open"``, ``"closed"`` or None, as given.
        seed: Of everything that was drawn.
        labels: Where the queries came from: ``"judged"``, ``"titles"`` or ``"sentences"``.
        counts: Documents, and queries by split.
        expected_unseen: The share of queries on unseen documents in the traffic to expect.
        held_out: How queries were held out, in words.
        by_dev: Whether the dev split decided alone, though training queries were held out besides.
        likely: Whether what was chosen is likely to gain, and no more than that, see ``chance``.
        candidates: What was tried, the best first.
        chosen: What the held-out queries say about the choice; None where the encoder was left alone.
        chance: How likely the largest gain would be if no choice were worth anything.
        evidence: What the held-out queries say about all choices.
        log: Training by epoch, from 0, as the rehearsals saw it, of the candidate that was best, see
            :meth:`st_asym.fitting.rehearsal.Rehearsals.log_of`.
        refitted: Whether the heads were trained again at the end, on all training queries, as some had been cut off.
        training: The losses of that training by epoch.
        trials: The settings that were tried besides, with the gain of each.
        bm25: That BM25 alone is better on the held-out queries, in words; empty where it is not, or not known.
        notes: What was left out or changed in the data.
        seconds: What took how long.
        versions: Of the packages.

    Example:
        >>> report = fit("all-MiniLM-L6-v2", "scifact.zip", output_dir="model").report  # doctest: +SKIP
        >>> report.kept, report.chosen.choice.candidate  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """

    settings: Settings
    on: Literal["texts", "vectors"] = "texts"
    collection: str | None = None
    seed: int = 0
    labels: str = "judged"
    counts: dict[str, int] = field(default_factory=dict)
    expected_unseen: float | None = None
    held_out: list[str] = field(default_factory=list)
    by_dev: bool = False
    likely: bool = False
    candidates: Sequence[Tried] = ()
    chosen: Evidence | None = None
    chance: float | None = None
    evidence: Sequence[Evidence] = ()
    log: Sequence[dict[str, float]] = ()
    refitted: bool = False
    training: Sequence[dict[str, float]] = ()
    trials: Sequence[dict[str, Any]] = ()
    bm25: str = ""
    notes: Sequence[str] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: installed("datasets"))

    @property
    def kept(self) -> bool:
        """Whether trained heads were kept; otherwise the model is the encoder itself."""
        return self.chosen is not None

    @property
    def best(self) -> Evidence | None:
        """What held-out queries say about what was kept, or else about the best of what was tried."""
        return self.chosen or next((one.evidence for one in self.candidates), None)

    def note_data(self, data: RetrievalData) -> None:
        """Say what was read."""
        self.labels, self.notes = data.labels, data.notes
        self.counts = {"documents": len(data.corpus), **{split: len(judged) for split, judged in data.qrels.items()}}

    def note_rehearsals(
        self,
        found: Rehearsals,
        decision: Decision,
        tried: Mapping[str, Candidate],
        parts: Sequence[HeldOut],
        like_train: bool,
    ) -> None:
        """Say what the held-out queries have decided, and how they were cut off.

        ``like_train`` is whether dev queries are like the training queries that were held out besides.
        """
        self.expected_unseen, self.chance = found.expected_unseen, decision.chance
        self.evidence, self.chosen = decision.evidence, decision.chosen
        self.by_dev, self.likely = decision.by_dev, decision.likely
        best = best_of_each(decision.evidence)
        if self.chosen is not None:
            best[self.chosen.choice.candidate] = self.chosen
            self.settings = tried[self.chosen.choice.candidate].settings
        rows = [
            Tried(name, one, 1 if self.by_dev else len(found.logs[name]), round(found.seconds[name], 2))
            for name, one in best.items()
        ]
        # What was rehearsed to the end comes first, then what is worth more.
        self.candidates = sorted(rows, key=lambda one: (one.cuts, one.evidence.rank), reverse=True)
        if self.best is not None:
            self.log = found.log_of(self.best.choice.candidate)
        judged = parts[: len(found.judged)]
        given, cut = (judged[:1], judged[1:]) if "dev" in self.counts else ([], judged)
        self.held_out = [*_told_of_dev(given), *_told_of_cuts(cut)]
        if given and cut:
            self.held_out += _told_of_both(self, like_train)
        documents = len(found.vectors.document_ids)
        self.held_out += _told_of_what_was_not_judged(self, given if self.by_dev else judged, documents)
        if len(judged) < len(parts):
            self.held_out.append(f"There was no time for {len(parts) - len(judged)} of {len(parts)} cuts.")
        self.refitted = self.kept and bool(cut)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds of a part."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    @property
    def first_line(self) -> str:
        """What came of it, in one sentence."""
        untouched = "The model is the untouched encoder"
        queries = "the dev queries" if self.by_dev else "held-out queries"
        if self.on == "vectors":
            untouched = "No heads are kept, and the vectors are best left as they are"
        if not self.evidence:
            reason = "there was nothing to judge on" if self.held_out else "there was nothing to train"
            return f"{untouched}: {reason}."
        if self.chosen is None:
            return (
                f"{untouched}: no trained heads beat it on {queries}, beyond noise, "
                "without losing on seen or on unseen documents."
            )
        gain, seen, unseen = self.chosen, self.chosen.seen, self.chosen.unseen
        heads = "Trained heads" if gain.choice.epoch else "Heads"
        line = f"{heads} are kept: nDCG@10 of {queries} {gain.gain:+.3f} ± {gain.error:.3f}"
        if seen.queries and unseen.queries:
            line += (
                f", that is {seen.mean:+.3f} on documents seen in training and {unseen.mean:+.3f} on others, "
                f"{self.expected_unseen:.0%} of the traffic to expect,"
            )
        return f"{line} to the untouched {'encoder' if self.on == 'texts' else 'vectors'}."

    def __str__(self) -> str:
        """The report as text."""
        lines = [self.first_line, *self.held_out]
        if self.likely and self.chance is not None:
            lines.append(
                f"The gain is likely, not certain: if no choice were worth anything, the best would look as good in "
                f"{self.chance:.0%} of cases. That is enough, as labels agree with the encoder and these heads change "
                "little."
            )
        best = self.best
        if best is not None:
            what = "kept" if self.kept else "the best of what was tried"
            choice = best.choice
            how = f", epoch {choice.epoch}, dial {choice.dial:g}" if choice.epoch else ""
            lines += [
                f"{choice.candidate}{how} ({what}), nDCG@10 untouched -> with heads:",
                f"  seen documents    {best.seen}",
                f"  unseen documents  {best.unseen}",
                "What was tried, each at its best, on held-out queries:",
                *(f"  {one}" for one in self.candidates),
            ]
            if len({one.cuts for one in self.candidates}) > 1:
                lines.append(
                    "  What has fewer cuts was clearly behind after these, or stopped: it was judged on fewer."
                )
        if self.refitted:
            lines.append(
                "The kept heads were then made of all training queries, those that had been held out included."
            )
        if self.kept and self.on == "texts":
            lines.append(encode_caveat())
        if self.labels != "judged":
            lines.append(f"There were no labels: queries are the documents' own {self.labels}.")
        lines += [*self.notes, ", ".join(f"{name}: {value:.1f} s" for name, value in self.seconds.items())]
        lines += [self.bm25] if self.bm25 else []
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON knows it, with None for numbers that are not finite."""
        found: dict[str, Any] = plain({"first_line": self.first_line, **asdict(self)})
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, in one step."""
        write_json(Path(path), self.as_dict())


def bm25_sentence(
    data: RetrievalData, parts: Sequence[HeldOut], judged: Sequence[Rehearsal], choice: Choice | None
) -> str:
    """Say so where BM25 alone is better than the encoder on the held-out queries, or than the heads that are kept.

    Nothing where it is not, ``bm25s`` (extra ``eval``) is not installed, or the corpus is larger than what rehearsals
    search.
    """
    if not judged or not bm25_is_installed() or len(data.corpus) > SEARCHED:
        return ""
    index, places = Bm25Index(list(data.corpus.values())), {key: row for row, key in enumerate(data.corpus)}
    # By the whole split, as for the encoder: a part may lack the query that is relevant to itself.
    own = {key for split in data.qrels.values() for key in own_documents(places, split)}
    scores: dict[str, list[Any]] = {"BM25": [], "the untouched encoder": [], "the kept heads": []}
    # Of the last cuts, there may have been no time to judge, and a choice may not have been rehearsed on all of them.
    for part, one in zip(parts, judged, strict=False):
        if choice is not None and choice not in one.scores:
            continue
        found: list[Any] = []
        for start in range(0, len(one.queries), _BLOCK):
            block = one.queries[start : start + _BLOCK]
            similarities = torch.from_numpy(index.similarities([data.queries[query] for query in block]))
            for query in own.intersection(block):
                similarities[block.index(query), places[query]] = -torch.inf
            values, tops = similarities.topk(min(TOP, len(places)), dim=1)
            found.append(np.where(values > 0, tops, len(places)))  # without a word of the query it is not found
        judgments = Judgments({query: part.dev[query] for query in one.queries}, {**places, "": len(places)})
        scores["BM25"].append(judgments.ndcg(np.concatenate(found)))
        scores["the untouched encoder"].append(one.untouched)
        if choice is not None:
            scores["the kept heads"].append(one.scores[choice])
    bm25, *others = [(name, float(np.concatenate(own).mean())) for name, own in scores.items() if own]
    if not any(bm25[1] > value for _, value in others):
        return ""
    return (
        f"BM25 alone has an nDCG@10 of {bm25[1]:.3f} on the held-out queries, "
        f"{', '.join(f'{name} {value:.3f}' for name, value in others)}: search by both. st-asym evaluate shows what "
        "they find together."
    )


def _told_of_dev(given: Sequence[HeldOut]) -> Iterator[str]:
    """The dev split in words, if there is one."""
    for part in given:
        yield (
            f"{counted(len(part.dev), 'dev query', 'dev queries')}: {len(part.seen):,} seen, {len(part.unseen):,} "
            "whose documents are no training positives."
        )
        if len(part.dev) < FEWEST_DEV:
            yield (
                f"Fewer than {FEWEST_DEV} dev queries cannot show a gain: give more, or none, so that training queries "
                "are held out."
            )


def _told_of_both(report: FitReport, like_train: bool) -> Iterator[str]:
    """What dev queries and training queries count beside each other, in words."""
    if report.by_dev:
        yield "The dev queries decide alone: they do not bear out what all held-out queries say together."
    elif like_train:
        yield "The dev queries are like the training queries: all count alike."
    elif report.kept:
        yield "The dev queries may be unlike the training queries, but bear out by themselves what all say together."


def _told_of_what_was_not_judged(report: FitReport, judged: Sequence[HeldOut], documents: int) -> Iterator[str]:
    """What the cuts that decided leave open, of so many documents, in words."""
    kinds = {"unseen": ("new documents", 0), "seen": ("documents that training knows", 1)}
    for kind, (known, without) in kinds.items():
        if report.expected_unseen == without or any(getattr(part, kind) for part in judged):
            continue
        if report.by_dev:
            yield f"No dev query is on {kind} documents: what heads do to {known} did not count."
        else:
            yield f"No query on {kind} documents could be held out: what heads do to {known} was not measured."
    if documents > SEARCHED:
        yield f"Judged among {SEARCHED:,} of {documents:,} documents: scores over all of them are lower."


def _told_of_cuts(cut: Sequence[HeldOut]) -> Iterator[str]:
    """The training queries that were held out, in words."""
    if len(cut) < 2:
        yield from map(str, cut)
        return
    seen, unseen = sum(len(part.seen) for part in cut), sum(len(part.unseen) for part in cut)
    yield (
        f"{seen + unseen:,} training queries were held out, each once, in {len(cut)} cuts: {seen:,} seen, {unseen:,} "
        f"whose documents are no training positives. The first cut: {cut[0]}"
    )
