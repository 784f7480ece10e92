"""Other settings than those of the candidates, rehearsed on the same held-out queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from st_asym.fitting.candidates import Candidate
from st_asym.fitting.gate import Evidence, weigh
from st_asym.fitting.rehearsal import Clock, Rehearsals
from st_asym.fitting.settings import Settings
from st_asym.fitting.vectors import Vectors

if TYPE_CHECKING:
    import optuna


def check_optuna() -> None:
    """Refuse early.

    Raises:
        ImportError: Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise ImportError("trials needs Optuna: pip install 'st_asym[tune]', or leave trials at 0.")


def tune(
    vectors: Vectors,
    found: Rehearsals,
    tried: Sequence[Candidate],
    given: Settings,
    expected_unseen: float,
    trials: int,
    clock: Clock,
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Try settings until the trials or the time are used up; poor ones are stopped after a cut.

    They start from the best candidate that trains. The sampler is Optuna's tree-structured Parzen estimator (Bergstra
    et al. 2011, "Algorithms for Hyper-Parameter Optimization"); after the first trials, one whose gain is below the
    median of the others after as many cuts is stopped.

    Args:
        vectors: The collection.
        found: What the candidates gave; what is tried here is added.
        tried: The candidates.
        given: The settings that were asked for; sides that are given stay.
        expected_unseen: As for :func:`st_asym.fitting.gate.weigh`.
        trials: How many to try.
        clock: The time there is.

    Returns:
        The candidates that were tried, and of each its settings, gain, and whether it was stopped.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base = _best(found, [candidate for candidate in tried if candidate.trains], expected_unseen)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=vectors.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    more: list[Candidate] = []
    log: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        candidate = Candidate(f"trial {len(more) + 1}", _suggested(trial, base.settings, given, vectors.dimension))
        more.append(candidate)
        stopped = False
        gain = 0.0
        try:
            for done, stage in enumerate(found.stages, start=1):
                found.run(candidate, stage, clock)
                gain = _gain(candidate, found, expected_unseen)
                trial.report(gain, done)
                stopped = bool(trial.should_prune()) or not clock.has()  # a pruner may answer with numpy
                if stopped:
                    break
        except ValueError as error:  # diverged: the next one may not
            log.append({**_entry(candidate.settings, 0.0, stopped=True), "error": str(error)})
            raise optuna.TrialPruned from error
        log.append(_entry(candidate.settings, gain, stopped=stopped))
        if stopped:
            raise optuna.TrialPruned
        found.finalists.append(candidate.name)
        return gain

    for _ in range(trials):
        if not clock.has():
            break
        study.optimize(objective, n_trials=1)
    return more, log


def _best(found: Rehearsals, tried: Sequence[Candidate], expected_unseen: float) -> Candidate:
    finalists = [candidate for candidate in tried if candidate.name in found.finalists]
    return max(finalists or tried, key=lambda candidate: _gain(candidate, found, expected_unseen))


def _gain(candidate: Candidate, found: Rehearsals, expected_unseen: float) -> float:
    """Of the candidate's best choice."""
    own: list[Evidence] = [
        entry for choice, entry in weigh(found.judged, expected_unseen).items() if choice.candidate == candidate.name
    ]
    return max((entry.gain for entry in own), default=0.0)


def _suggested(trial: optuna.Trial, base: Settings, given: Settings, width: int) -> Settings:
    found: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-3, log=True),
        "epochs": trial.suggest_int("epochs", 5, 40, log=True),
        "temperature": trial.suggest_float("temperature", 0.02, 0.1, log=True),
        "isotropy_weight": trial.suggest_categorical("isotropy_weight", [0.0, 0.1, 0.3, 1.0]),
    }
    if given.sides is None:
        found["sides"] = trial.suggest_categorical("sides", ["both", "query", "shared"])
    if base.init == "pairs":
        found["whitening"] = trial.suggest_float("whitening", 0.1, 10.0, log=True)
    if base.contrastive == "corpus":
        found["unlabelled_weight"] = trial.suggest_float("unlabelled_weight", 0.01, 1.0, log=True)
    if found["isotropy_weight"]:
        found["isotropy_kind"] = trial.suggest_categorical("isotropy_kind", ["covariance", "sigreg", "uniformity"])
    shape = trial.suggest_categorical("hidden_features", ["none", "2x", "4x", "2x 2x"])
    shapes: dict[str, Any] = {"none": None, "2x": "2x", "4x": 4 * width, "2x 2x": (2 * width, 2 * width)}
    return replace(base, hidden_features=shapes[shape], **found)


def _entry(settings: Settings, gain: float, *, stopped: bool) -> dict[str, Any]:
    return {"settings": settings.as_dict(), "gain": gain, "stopped early": stopped}
