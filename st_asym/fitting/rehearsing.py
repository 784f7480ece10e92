"""Rehearsals: training on part of the queries, to see on the others what training is worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from st_asym.data import RetrievalData
from st_asym.data.collection import normalised
from st_asym.fitting.gate import Choice, Collection, Evidence, Rehearsal, choose, weigh
from st_asym.fitting.heads import State, dialled, heads_state, load_heads
from st_asym.fitting.judging import Judge
from st_asym.fitting.settings import Settings
from st_asym.fitting.training import Log, train_heads
from st_asym.fitting.workbench import Stage, Workbench
from st_asym.ndcg import Scores
from st_asym.splitting import HeldOut, folds, hold_out, seen_unseen

# Weights of trained heads that are turned back towards the identity.
_DIALS = tuple(tenths / 10 for tenths in range(1, 10))
# From how many queries on one cut says enough; below, each query is held out once, in so many folds.
_ONE_CUT = 2000
_FOLDS, _FEW, _FOLDS_OF_FEW = 4, 50, 5


@dataclass(frozen=True)
class Attempt:
    """One way to train, rehearsed.

    Attributes:
        stage: The heads and settings.
        rehearsals: One per cut, as far as there was time: those that were cut off do not count beside whole ones.
        end: The heads at the end of the last of them.
        evidence: What the held-out queries say about each choice.
        chosen: What they say about the chosen one, None where the encoder is better left alone.
        log: For each epoch, from 0, the figures of :class:`st_asym.fitting.judging.Judge`, and, from 1, the losses of
            training; each the mean over the rehearsals.
    """

    stage: Stage
    rehearsals: Sequence[Rehearsal]
    end: State
    evidence: Sequence[Evidence]
    chosen: Evidence | None
    log: Log

    @property
    def last_epoch(self) -> int:
        """How many epochs the heads at the end have seen."""
        return max(self.rehearsals[-1].scores).epoch

    @property
    def gain(self) -> float:
        """What the choice gains; 0 where the encoder is left alone."""
        return 0.0 if self.chosen is None else self.chosen.gain


# Called after each epoch with the number of epochs so far and the mean gain; the attempt ends where it returns True.
Progress = Callable[[int, float], bool]


def cuts(data: RetrievalData, seed: int) -> list[HeldOut]:
    """What to rehearse on: the ``dev`` split, or queries cut from ``train``; each once where they are few.

    There is nothing where no query can be held out, as there is only one.
    """
    train = data.qrels["train"]
    if "dev" in data.qrels:
        dev = data.qrels["dev"]
        return [HeldOut(train, dev, *seen_unseen(train, dev, corpus=data.corpus), {}, ())]
    different = len({normalised(data.queries[query_id]) for query_id in train})
    if different < 2:
        return []
    if different >= _ONE_CUT:
        return [hold_out(train, seed=seed, queries=data.queries, corpus=data.corpus)]
    count = min(_FOLDS if different > _FEW else _FOLDS_OF_FEW, different)
    found = folds(train, count, seed=seed, queries=data.queries, corpus=data.corpus)
    return [part for part in found if part.train]


def attempt(
    bench: Workbench,
    parts: Sequence[HeldOut],
    settings: Settings,
    collection: Collection | None = None,
    progress: Progress | None = None,
) -> Attempt:
    """Rehearse one way to train on all cuts, and choose how far to go."""
    stage = bench.stage(settings)
    rehearsals: list[Rehearsal] = []
    logs: list[Log] = []
    for part in parts:
        started = time.monotonic()
        rehearsal, reached, log = _rehearse(bench, stage, part, _from(len(rehearsals) * settings.epochs, progress))
        whole = max(rehearsal.scores).epoch == settings.epochs
        if whole or not rehearsals:
            rehearsals.append(rehearsal)
            logs.append(log)
            end = reached
        if not whole or not bench.has_time_for(time.monotonic() - started):
            break
    evidence = weigh(rehearsals, collection)
    return Attempt(stage, rehearsals, end, evidence, choose(rehearsals, collection), _mean(logs))


def _from(done: int, progress: Progress | None) -> Progress | None:
    """The same, counting epochs on from those that are done."""
    return None if progress is None else lambda epoch, gain: progress(done + epoch, gain)


def _mean(logs: Sequence[Log]) -> Log:
    means = []
    for entries in zip(*logs, strict=True):
        first = entries[0]
        own = {name: round(float(np.mean([entry[name] for entry in entries])), 6) for name in first}
        means.append({**own, "epoch": first["epoch"]})
    return means


def _rehearse(bench: Workbench, stage: Stage, part: HeldOut, progress: Progress | None) -> tuple[Rehearsal, State, Log]:
    """Train on one side of a cut and judge on the other, after each epoch and turned back by each dial."""
    started = time.monotonic()
    load_heads(stage.model, stage.start)
    judged = {query_id: part.dev[query_id] for query_id in (*part.seen, *part.unseen)}
    judge = Judge(stage.model, bench.searched(stage, judged), bench.data.queries, judged)
    untouched = judge()
    scores: dict[Choice, Scores] = {}
    figures: Log = [{"epoch": 0, **judge.figures}]

    def after_epoch(epoch: int) -> bool:
        scores[Choice(epoch, 1.0)] = judge()
        figures.append(dict(judge.figures))
        gain = float((scores[Choice(epoch, 1.0)] - untouched).mean())
        bench.seconds_kept_back = max(bench.seconds_kept_back, time.monotonic() - started)
        return bench.out_of_time or (progress is not None and progress(epoch, gain))

    losses = train_heads(bench, stage, part.train, ignored=part.withheld, after_epoch=after_epoch)
    log = [{**loss, **own} for loss, own in zip([{}, *losses], figures, strict=True)]
    end = heads_state(stage.model)
    last = max(scores).epoch
    for dial in _DIALS if bench.dials_back else ():
        load_heads(stage.model, dialled(stage.start, end, dial))
        scores[Choice(last, dial)] = judge()
    known = set(part.seen)
    seen = np.array([query_id in known for query_id in judge.queries], dtype=bool)
    return Rehearsal(judge.queries, seen, untouched, scores), end, log
