"""Rehearsals: training on part of the queries, to see on the others what it is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_asym.data import RetrievalData
from st_asym.data.document import text_key
from st_asym.data.holdout import HeldOut, folds, hold_out, seen_unseen
from st_asym.fitting.candidates import Candidate, behind_vectors
from st_asym.fitting.closed_form import pair_covariance
from st_asym.fitting.gate import Choice, Rehearsal, behind, weigh
from st_asym.fitting.loop import Log, dialled, heads_state, load_heads, train_heads
from st_asym.fitting.settings import Settings
from st_asym.fitting.vectors import Vectors
from st_asym.retrieval import Judgments, Scores, nearest
from st_asym.trainer.monitor import scaled_std

# Weights of trained heads that are turned back towards the identity.
_DIALS = (0.4, 0.7, 0.85)
# From how many queries on one cut says enough; below, each query is held out once, in so many folds.
_ONE_CUT = 2_000
_FOLDS, _FEW, _FOLDS_OF_FEW = 4, 50, 5
# The most queries that are judged: more tell little more.
_JUDGED = 2_000
# Documents that go through the heads at once.
_PORTION = 8_192
# Documents of which the spread is measured.
_SPREAD = 1_000
_TOP = 10
# How many standard errors sides are behind in closed form that are not trained.
_FAR = 2.0


class Clock:
    """How much time there is.

    Args:
        deadline: When training must end, by ``time.monotonic()``.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self._deadline = deadline
        # The heads that are chosen may still have to be trained: that takes as long as their rehearsal did.
        self.kept_back = 0.0

    def has(self, seconds: float = 0.0) -> bool:
        """Whether rehearsing may go on for so long."""
        return time.monotonic() + seconds + self.kept_back <= self._deadline


def cuts(data: RetrievalData, seed: int) -> list[HeldOut]:
    """What to rehearse on: the ``dev`` split, or queries cut from ``train``; each once where they are few.

    There is nothing where no query can be held out, as there is only one.
    """
    train = data.qrels["train"]
    if "dev" in data.qrels:
        dev = data.qrels["dev"]
        return [HeldOut(train, dev, *seen_unseen(train, dev, corpus=data.corpus), {}, ())]
    different = len({text_key(data.queries[query_id]) for query_id in train})
    if different < 2:
        return []
    if different >= _ONE_CUT:
        share = min(0.2, _JUDGED / different)
        return [hold_out(train, share=share, seed=seed, queries=data.queries, corpus=data.corpus)]
    count = min(_FOLDS if different > _FEW else _FOLDS_OF_FEW, different)
    found = folds(train, count, seed=seed, queries=data.queries, corpus=data.corpus)
    return [part for part in found if part.train]


class Stage:
    """One cut: what is trained on, and what is judged.

    Args:
        vectors: The collection.
        part: The cut.
        out_features: The dimension of the vectors that heads give.
    """

    def __init__(self, vectors: Vectors, part: HeldOut, out_features: int) -> None:
        self._vectors, self._part, self._out = vectors, part, out_features
        self._covariance = pair_covariance(vectors.queries, vectors.documents, *vectors.pairs(part.train))
        self._judge = _Judge(vectors, part)
        self._scores: dict[Choice, Scores] = {}
        untouched = Candidate("untouched", Settings()).heads(vectors.dimension, out_features, self._covariance)
        self._untouched = self._judge(behind_vectors(untouched), documents_move=False)
        self._epoch_0 = dict(self._judge.figures)
        rows = list(part.train)
        self._queries, self._labels = vectors.of_queries(rows), torch.arange(len(rows))

    def release(self) -> None:
        """Hold no documents until the next candidate."""
        self._judge.release()

    def rehearsal(self) -> Rehearsal:
        """What all candidates gave."""
        known = set(self._part.seen)
        seen = np.array([query_id in known for query_id in self._judge.queries], dtype=bool)
        return Rehearsal(self._judge.queries, seen, self._untouched, self._scores)

    def rehearse(self, candidate: Candidate, clock: Clock) -> Log:
        """Train on one side of the cut and judge on the other, on the way and turned back by each dial."""
        heads = candidate.heads(self._vectors.dimension, self._out, self._covariance)
        model, settings, name = behind_vectors(heads), candidate.settings, candidate.name
        moves = settings.sides != "query"
        if not candidate.trains:
            self._scores[Choice(name)] = self._judge(model, documents_move=moves)
            return []
        epochs = settings.epochs or 1
        figures: dict[int, dict[str, float]] = {0: self._epoch_0}

        def after_epoch(epoch: int) -> bool:
            out_of_time = not clock.has()
            if epoch in (epochs, -(-epochs // 2)) or out_of_time:
                self._scores[Choice(name, epoch)] = self._judge(model, documents_move=moves)
                figures[epoch] = dict(self._judge.figures)
            return out_of_time

        losses = train_heads(
            model,
            candidate.loss(model, self._vectors, self._part.train, self._part.withheld),
            self._queries,
            self._labels,
            epochs=epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=self._vectors.seed,
            after_epoch=after_epoch,
        )
        end = heads_state(heads)
        for dial in _DIALS if settings.init != "random" else ():
            identity = heads_state(candidate.identity(self._vectors.dimension, self._out))
            load_heads(heads, dialled(identity, end, dial))
            self._scores[Choice(name, len(losses), dial)] = self._judge(model, documents_move=moves)
        return [{**entry, **figures.get(int(entry["epoch"]), {})} for entry in [{"epoch": 0.0}, *losses]]


class _Judge:
    """nDCG@10 of each held-out query over the corpus."""

    def __init__(self, vectors: Vectors, part: HeldOut) -> None:
        judged = {query_id: part.dev[query_id] for query_id in (*part.seen, *part.unseen)}
        self._among = partial(vectors.searched, judged)
        ids, documents = self._among()
        self._documents: Tensor | None = documents
        positions = {key: place for place, key in enumerate(ids)}
        self._judgments = Judgments(judged, positions)
        self.queries = self._judgments.queries
        self._queries = vectors.of_queries(self.queries)
        own = [(row, vectors.own[key]) for row, key in enumerate(self.queries) if vectors.own.get(key) in positions]
        self._own = (torch.tensor([r for r, _ in own]).long(), torch.tensor([positions[d] for _, d in own]).long())
        self._unmoved: Tensor | None = None
        self.figures: dict[str, float] = {}

    def release(self) -> None:
        """Hold no documents until they are needed again."""
        self._documents = self._unmoved = None

    @torch.no_grad()
    def __call__(self, model: SentenceTransformer, *, documents_move: bool) -> Scores:
        """The scores in the order of :attr:`queries`, shape ``(n,)``."""
        model.eval()
        if self._documents is None:
            self._documents = self._among()[1]
        queries = _through(model, self._queries, "query")
        if documents_move or self._unmoved is None:
            documents = _through(model, self._documents, "document")
            if not documents_move:
                self._unmoved = documents
        else:
            documents = self._unmoved
        similarities, positions = nearest(queries, documents, _TOP, excluded=self._own)
        if not torch.isfinite(similarities[:, :1]).all():
            raise ValueError("The heads give vectors that are not finite: they have diverged. Lower the learning rate.")
        some = documents[:: math.ceil(len(documents) / _SPREAD)]
        self.figures = {
            "accuracy": float(self._judgments.relevant(positions[:, :1]).mean()),
            "query_std": scaled_std(queries).item(),
            "document_std": scaled_std(some).item(),
        }
        return self._judgments.ndcg(positions)


def _through(model: SentenceTransformer, vectors: Tensor, side: str) -> Tensor:
    """Unit vectors of one side."""
    parts = []
    for start in range(0, len(vectors), _PORTION):
        features: dict[str, Any] = {"sentence_embedding": vectors[start : start + _PORTION], "task": side}
        parts.append(model(features)["sentence_embedding"])
    return torch.cat(parts)


@dataclass
class Rehearsals:
    """What was rehearsed.

    Attributes:
        parts: The cuts.
        stages: Those that were rehearsed on, with what each candidate gave.
        finalists: Names of the candidates that were rehearsed on all of these.
        logs: Candidate to the log of each of its cuts.
        seconds: Candidate to seconds.
    """

    parts: Sequence[HeldOut]
    stages: list[Stage] = field(default_factory=list)
    finalists: list[str] = field(default_factory=list)
    logs: dict[str, list[Log]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> list[Rehearsal]:
        """The scores on each cut."""
        return [stage.rehearsal() for stage in self.stages]

    def run(self, candidate: Candidate, stage: Stage, clock: Clock) -> None:
        """Rehearse a candidate on a cut."""
        started = time.monotonic()
        for other in self.stages:
            if other is not stage:  # those of several cuts are too many for memory
                other.release()
        log = stage.rehearse(candidate, clock)
        seconds = time.monotonic() - started
        self.logs.setdefault(candidate.name, []).append(log)
        self.seconds[candidate.name] = self.seconds.get(candidate.name, 0.0) + seconds
        if candidate.trains:
            clock.kept_back = max(clock.kept_back, seconds)

    def log_of(self, candidate: str) -> Log:
        """The figures of a candidate by epoch, the mean over its cuts.

        Returns:
            Losses, and where the epoch was judged ``accuracy`` (the share of held-out queries whose nearest document is
            relevant), ``query_std`` and ``document_std``, see :func:`st_asym.trainer.monitor.scaled_std`.
        """
        means: Log = []
        for entries in zip(*self.logs.get(candidate, ()), strict=False):  # the last may have run out of time
            names = [name for name in entries[0] if name != "epoch" and all(name in entry for entry in entries)]
            own = {name: round(float(np.mean([entry[name] for entry in entries])), 6) for name in names}
            means.append({"epoch": entries[0]["epoch"], **own})
        return means


def rehearse(
    vectors: Vectors,
    parts: Sequence[HeldOut],
    candidates: Sequence[Candidate],
    expected_unseen: float,
    *,
    out_features: int,
    clock: Clock,
    progress: Callable[[], object] = lambda: None,
) -> Rehearsals:
    """Rehearse all candidates on the first cut, and on each further one those that are not clearly behind.

    Args:
        vectors: The collection.
        parts: The cuts.
        candidates: What to try, in this order.
        expected_unseen: As for :func:`st_asym.fitting.gate.weigh`.
        out_features: The dimension of the vectors that heads give.
        clock: The time there is. One candidate is rehearsed on one cut in any case.
        progress: Called after each rehearsal.

    Returns:
        What was rehearsed.
    """
    found = Rehearsals(parts)
    alive = list(candidates)
    for part in parts:
        if found.stages and not clock.has(sum(found.seconds[c.name] for c in alive) / len(found.stages)):
            break  # a cut that only some have seen would compare them on different queries
        stage = Stage(vectors, part, out_features)
        found.stages.append(stage)
        done: list[Candidate] = []
        for candidate in alive:
            if done and len(found.stages) == 1:
                if not clock.has():
                    break
                if candidate.trains and _side_is_behind(candidate, done, found.judged, expected_unseen):
                    continue
            found.run(candidate, stage, clock)
            done.append(candidate)
            progress()
        found.finalists = [candidate.name for candidate in done]
        alive = _not_behind(done, found.judged, expected_unseen)
    return found


def _side_is_behind(
    candidate: Candidate, done: Sequence[Candidate], judged: Sequence[Rehearsal], expected_unseen: float
) -> bool:
    """Whether the candidate's sides are far behind other sides in closed form: training will not turn that round."""
    closed = [one for one in done if not one.trains]
    own = [one for one in closed if one.settings.sides == candidate.settings.sides]
    if not own or len(own) == len(closed):
        return False
    best = _best_choices(closed, judged, expected_unseen)
    evidence = weigh(judged, expected_unseen)
    here, winner = (
        max((best[one.name] for one in some), key=lambda choice: evidence[choice].gain) for some in (own, closed)
    )
    gap, error = behind(here, winner, judged, expected_unseen)
    return gap > _FAR * error


def _not_behind(
    candidates: Sequence[Candidate], judged: Sequence[Rehearsal], expected_unseen: float
) -> list[Candidate]:
    """The candidates that are not behind the best by more than a standard error; of those that train, the better half.

    At least two of these stay.
    """
    evidence = weigh(judged, expected_unseen)
    best = _best_choices(candidates, judged, expected_unseen)
    ranked = sorted(candidates, key=lambda one: evidence[best[one.name]].rank, reverse=True)
    trained = [one for one in ranked if one.trains]
    dropped = {one.name for one in trained[max(2, len(trained) // 2) :]}
    alive = []
    for candidate in candidates:
        gap, error = behind(best[candidate.name], best[ranked[0].name], judged, expected_unseen)
        if gap <= error and candidate.name not in dropped:
            alive.append(candidate)
    return alive


def _best_choices(
    candidates: Sequence[Candidate], judged: Sequence[Rehearsal], expected_unseen: float
) -> dict[str, Choice]:
    """The best choice of each candidate."""
    evidence = weigh(judged, expected_unseen)
    names = {candidate.name for candidate in candidates}
    best: dict[str, Choice] = {}
    for choice, entry in evidence.items():
        name = choice.candidate
        if name in names and (name not in best or entry.rank > evidence[best[name]].rank):
            best[name] = choice
    return best
