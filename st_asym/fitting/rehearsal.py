"""Rehearsals: training on part of the queries, to see on the others what it is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from st_asym.data import RetrievalData
from st_asym.data.document import text_key
from st_asym.data.holdout import HeldOut, apart, folds, hold_out, seen_unseen
from st_asym.fitting.candidates import Candidate, behind_vectors
from st_asym.fitting.closed_form import pair_covariance
from st_asym.fitting.gate import FEWEST_DEV, Choice, Evidence, Rehearsal, behind, best_of_each, weigh
from st_asym.fitting.loop import Log, set_dial, train_heads, weights_of
from st_asym.fitting.settings import Settings
from st_asym.fitting.vectors import Vectors, taken
from st_asym.losses.isotropy import scaled_std
from st_asym.retrieval import Judgments, Scores, nearest
from st_asym.retrieval.significance import one_source

# Weights of trained heads that are turned back towards the identity.
_DIALS = (0.4, 0.7, 0.85)
# From how many queries on one cut says enough; below, each query is held out once, in so many folds.
_ONE_CUT = 2_000
_FOLDS, _FEW, _FOLDS_OF_FEW = 4, 50, 5
# From how many queries on a dev split says enough by itself; below, training queries are held out besides.
_ENOUGH = 1_000
# Dev queries count as like training queries if there are at least so many, of which at most so many are compared, and
# the p-value of their difference is above this.
_TOLD_APART, _COMPARED, _ALIKE = 20, 2_000, 0.2
# So many judged queries, or half as many as are on the next cut, are needed to drop a candidate.
_TELLING = 100
# The most queries that are judged: more tell little more.
_JUDGED = 2_000
# Documents that go through the heads at once, and of which the spread is measured.
_AT_ONCE, _SPREAD = 1_024, 1_000
_TOP = 10
# A start is not trained whose closed form is behind the best by more than so many standard errors.
_FAR = 2.0


def cuts(data: RetrievalData, seed: int) -> list[HeldOut]:
    """What to rehearse on: the ``dev`` split first, where there is one, and then queries cut from ``train``.

    A dev split of 1,000 queries is enough, and one of fewer than 5 could not bear out what others say. Training queries
    are cut once where they are many, and each is held out once where they are few. There is nothing where no query can
    be held out, as there is only one.
    """
    train, dev = data.qrels["train"], data.qrels.get("dev")
    if dev is None:
        return _cuts_of_train(data, seed)
    given = HeldOut(train, dev, *seen_unseen(train, dev, corpus=data.corpus), {}, ())
    return [given, *(_cuts_of_train(data, seed) if FEWEST_DEV <= len(dev) < _ENOUGH else ())]


def _cuts_of_train(data: RetrievalData, seed: int) -> list[HeldOut]:
    train = data.qrels["train"]
    different = len({text_key(data.queries[query_id]) for query_id in train})
    if different < 2:
        return []
    if different >= _ONE_CUT:
        share = min(0.2, _JUDGED / different)
        return [hold_out(train, share=share, seed=seed, queries=data.queries, corpus=data.corpus)]
    count = min(_FOLDS if different > _FEW else _FOLDS_OF_FEW, different)
    found = folds(train, count, seed=seed, queries=data.queries, corpus=data.corpus)
    return [part for part in found if part.train]


def alike(vectors: Vectors, data: RetrievalData) -> bool:
    """Whether ``dev`` queries are like the training queries, which are then evidence for them as well.

    Those of another collection, or real ones beside pseudo-queries, are not. It goes by the mean of their vectors, see
    :func:`st_asym.retrieval.significance.one_source`; fewer than 20 are never alike, as they could not be told apart.
    """
    if data.labels != "judged":
        return False
    train, dev = apart(data.qrels["train"], data.qrels["dev"], seed=vectors.seed, corpus=data.corpus)
    if min(len(train), len(dev)) < _TOLD_APART:
        return False
    first, second = (normalize(vectors.of_queries(part[:_COMPARED])).numpy() for part in (dev, train))
    return one_source(first, second, vectors.seed) > _ALIKE


@dataclass
class Rehearsals:
    """What is rehearsed, and what came of it.

    Attributes:
        vectors: The collection.
        expected_unseen: As for :func:`st_asym.fitting.gate.weigh`.
        out_features: The dimension of the vectors that heads give.
        deadline: When training must end, by ``time.monotonic()``.
        judged: The scores on each cut that was rehearsed on.
        finalists: Names of the candidates that were rehearsed on all of these.
        logs: Candidate to the figures by epoch on each of its cuts.
        seconds: Candidate to seconds.
        kept_back: Seconds that the heads that are chosen may take to be trained: as long as a rehearsal did.
    """

    vectors: Vectors
    expected_unseen: float
    out_features: int
    deadline: float = math.inf
    judged: list[Rehearsal] = field(default_factory=list)
    finalists: list[str] = field(default_factory=list)
    logs: dict[str, list[Log]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept_back: float = 0.0
    _cuts: list[_Cut] = field(default_factory=list)

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether rehearsing may go on for so long."""
        return time.monotonic() + seconds + self.kept_back <= self.deadline

    def add(self, part: HeldOut) -> None:
        """Rehearse on one more cut."""
        cut = _Cut(self.vectors, part, self.out_features)
        self._cuts.append(cut)
        self.judged.append(cut.rehearsal)

    def run(self, candidate: Candidate, cut: int) -> None:
        """Rehearse a candidate on the cut of this number."""
        started, log = time.monotonic(), Log()
        try:
            log = self._cuts[cut].rehearse(candidate, self.has_time)
        finally:  # one that has diverged may have been judged before
            seconds = time.monotonic() - started
            self.logs.setdefault(candidate.name, []).append(log)
            self.seconds[candidate.name] = self.seconds.get(candidate.name, 0.0) + seconds
        if candidate.trains:
            self.kept_back = max(self.kept_back, seconds)

    def evidence(self) -> dict[Choice, Evidence]:
        """What the cuts say so far about each choice."""
        return weigh(self.judged, self.expected_unseen)

    def log_of(self, candidate: str) -> Log:
        """The figures of a candidate by epoch, the mean over its cuts.

        Losses, and where the epoch was judged ``accuracy`` (the share of held-out queries whose nearest document is
        relevant), ``query_std`` and ``document_std``, see :func:`st_asym.losses.isotropy.scaled_std`.
        """
        means: Log = []
        for entries in zip(*self.logs.get(candidate, ()), strict=False):  # one may have run out of time
            names = [name for name in entries[0] if all(name in entry for entry in entries)]
            means.append({name: round(sum(entry[name] for entry in entries) / len(entries), 6) for name in names})
        return means


def rehearse(
    vectors: Vectors,
    parts: Sequence[HeldOut],
    candidates: Sequence[Candidate],
    expected_unseen: float,
    *,
    out_features: int,
    deadline: float = math.inf,
    progress: Callable[[], object] = lambda: None,
) -> Rehearsals:
    """Rehearse all candidates on the first cut, and on each further one those that are not clearly behind.

    A first cut that is small beside the next one drops nothing. One candidate is rehearsed on one cut in any case,
    whatever time there is; ``progress`` is called after each rehearsal. The other arguments are those of
    :class:`Rehearsals`.
    """
    found = Rehearsals(vectors, expected_unseen, out_features, deadline)
    alive = list(candidates)
    for number, part in enumerate(parts):
        if number and not found.has_time(sum(found.seconds[one.name] for one in alive) / number):
            break  # a cut that only some have seen would compare them on different queries
        found.add(part)
        judged, coming = sum(len(one.dev) for one in parts[: number + 1]), parts[number + 1 : number + 2]
        telling = all(judged >= min(_TELLING, len(one.dev) / 2) for one in coming)
        done: list[Candidate] = []
        for candidate in alive:
            if done and number == 0:
                if not found.has_time():
                    break
                if telling and candidate.trains and _start_is_behind(candidate, alive, found):
                    continue
            found.run(candidate, number)
            done.append(candidate)
            progress()
        found.finalists = [candidate.name for candidate in done]
        alive = _not_behind(done, found) if telling else done
    return found


def _start_is_behind(candidate: Candidate, tried: Sequence[Candidate], found: Rehearsals) -> bool:
    """Whether the closed form that training starts from is far behind another start: training will not turn that round.

    The closed forms come first, so that all that can be compared have been rehearsed.
    """
    starts = {one.start for one in tried if one.trains}
    evidence = found.evidence()
    closed = {one.start: Choice(one.name) for one in tried if not one.trains and one.start in starts}
    closed = {start: choice for start, choice in closed.items() if choice in evidence}
    if candidate.start not in closed:
        return False
    winner = max(closed.values(), key=lambda choice: evidence[choice].gain)
    gap, error = behind(closed[candidate.start], winner, found.judged, found.expected_unseen)
    return gap > _FAR * error


def _not_behind(candidates: Sequence[Candidate], found: Rehearsals) -> list[Candidate]:
    """The candidates that are not behind the best by more than a standard error; of those that train, the better half.

    At least two of these stay.
    """
    best = best_of_each(found.evidence().values())
    ranked = sorted(candidates, key=lambda one: best[one.name].rank, reverse=True)
    trained = [one for one in ranked if one.trains]
    dropped = {one.name for one in trained[max(2, len(trained) // 2) :]}
    alive = []
    for candidate in candidates:
        own, first = best[candidate.name].choice, best[ranked[0].name].choice
        gap, error = behind(own, first, found.judged, found.expected_unseen)
        if gap <= error and candidate.name not in dropped:
            alive.append(candidate)
    return alive


class _Cut:
    """Queries that are trained on and others that are judged, by nDCG@10 of each over the corpus."""

    def __init__(self, vectors: Vectors, part: HeldOut, out_features: int) -> None:
        self._vectors, self._part, self._out = vectors, part, out_features
        self._covariance = pair_covariance(vectors.queries, vectors.documents, *vectors.pairs(part.train))
        judged = {query_id: part.dev[query_id] for query_id in (*part.seen, *part.unseen)}
        self._rows = vectors.searched(judged)
        places = {vectors.document_ids[row]: place for place, row in enumerate(self._rows)}
        self._judgments = Judgments(judged, places)
        queries = self._judgments.queries
        self._queries = vectors.of_queries(queries)
        own = [(row, places[vectors.own[key]]) for row, key in enumerate(queries) if vectors.own.get(key) in places]
        self._own = torch.tensor(own, dtype=torch.int64).reshape(-1, 2).T
        untouched = Candidate("untouched", Settings()).heads(vectors.dimension, out_features, self._covariance)
        positions, self._epoch_0 = self._search(behind_vectors(untouched, normalise=not vectors.by_dot))
        known = set(part.seen)
        seen = np.array([key in known for key in queries], dtype=bool)
        of_another = positions[np.random.default_rng(vectors.seed).permutation(len(queries))]
        scores, mismatched = self._judgments.ndcg(positions), self._judgments.ndcg(of_another)
        self.rehearsal = Rehearsal(queries, seen, scores, {}, mismatched)

    def rehearse(self, candidate: Candidate, has_time: Callable[[], bool]) -> Log:
        """Train and judge, at half and all of the epochs, and turned back by each dial."""
        vectors, part, scores = self._vectors, self._part, self.rehearsal.scores
        heads = candidate.heads(vectors.dimension, self._out, self._covariance)
        model = behind_vectors(heads)
        if not candidate.trains:
            scores[Choice(candidate.name)] = self._judge(model)[0]
            return []
        half, figures = -(-(candidate.settings.epochs or 1) // 2), {0: self._epoch_0}

        def after_epoch(epoch: int) -> bool:
            if epoch == half:
                scores[Choice(candidate.name, half)], figures[half] = self._judge(model)
            return not has_time()

        losses = train_heads(candidate, model, vectors, part.train, withheld=part.withheld, after_epoch=after_epoch)
        trained, reached = weights_of(heads), len(losses)
        scores[Choice(candidate.name, reached)], figures[reached] = self._judge(model)
        if candidate.settings.init != "random":  # which has left the identity behind
            identity = candidate.identity(vectors.dimension, self._out)
            for dial in _DIALS:
                set_dial(heads, identity, trained, dial)
                scores[Choice(candidate.name, reached, dial)], _ = self._judge(model)
        return [{**entry, **figures.get(int(entry["epoch"]), {})} for entry in [{"epoch": 0.0}, *losses]]

    def _judge(self, model: SentenceTransformer) -> tuple[Scores, dict[str, float]]:
        """The score of each held-out query, and figures of all."""
        positions, figures = self._search(model)
        return self._judgments.ndcg(positions), figures

    @torch.no_grad()
    def _search(self, model: SentenceTransformer) -> tuple[Tensor, dict[str, float]]:
        """The positions of what is found for each held-out query, and figures of all."""
        model.eval()
        queries = _through(model, self._queries, "query")
        every = math.ceil(len(self._rows) / _SPREAD)
        # In one piece: small tensors that stay, made one after the other, would keep the heap between them from use.
        some = torch.empty(len(range(0, len(self._rows), every)), self._out)

        def moved() -> Iterator[tuple[int, Tensor]]:
            for start in range(0, len(self._rows), _AT_ONCE):
                rows = self._rows[start : start + _AT_ONCE]
                documents = _through(model, taken(self._vectors.documents, rows), "document")
                picked, place = documents[-start % every :: every], -(-start // every)
                some[place : place + len(picked)] = picked
                yield start, documents

        similarities, positions = nearest(queries, moved(), _TOP, excluded=self._own)
        if not torch.isfinite(similarities[:, :1]).all():
            raise ValueError("The heads give vectors that are not finite: they have diverged. Lower the learning rate.")
        figures = {
            "accuracy": float(self._judgments.relevant(positions[:, :1]).mean()),
            "query_std": scaled_std(queries).item(),
            "document_std": scaled_std(some).item(),
        }
        return positions, figures


def _through(model: SentenceTransformer, vectors: Tensor, side: str) -> Tensor:
    """What the model makes of one side's vectors."""
    features: dict[str, Any] = {"sentence_embedding": vectors, "task": side}
    found: Tensor = model(features)["sentence_embedding"]
    return found
