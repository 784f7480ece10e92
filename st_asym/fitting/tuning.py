"""Other settings than those of the candidates, rehearsed on the same held-out queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from st_asym.fitting.candidates import Candidate
from st_asym.fitting.rehearsal import Rehearsals
from st_asym.fitting.settings import Settings

if TYPE_CHECKING:
    import optuna


def check_optuna() -> None:
    """Refuse early, with an ImportError, where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ImportError("trials needs Optuna: pip install 'st_asym[tune]', or leave trials at 0.")


def tune(
    found: Rehearsals, tried: Sequence[Candidate], given: Settings, trials: int
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Try settings until the trials or the time are used up; poor ones are stopped after a cut.

    They start from the best candidate that trains; what is ``given``, and is not the default, stays. The sampler is
    Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization");
    after the first trials, one whose gain is below the median of the others after as many cuts is stopped. What comes
    back are the candidates, whose rehearsals are added to ``found``, and of each its settings, gain, and whether it was
    stopped.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trained = [candidate for candidate in tried if candidate.trains]
    finalists = [candidate for candidate in trained if candidate.name in found.finalists]
    base = max(finalists or trained, key=lambda candidate: _gain(candidate, found))
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=found.vectors.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    more: list[Candidate] = []
    log: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        settings = _suggested(trial, base.settings, given, found.vectors.dimension)
        candidate = Candidate(f"trial {len(more) + 1}", settings)
        more.append(candidate)
        entry: dict[str, Any] = {"settings": settings.as_dict(), "gain": 0.0, "stopped early": False}
        log.append(entry)
        for cut in range(len(found.judged)):
            try:
                found.run(candidate, cut)
            except ValueError as error:  # diverged: the next one may not
                entry |= {"gain": 0.0, "stopped early": True, "error": str(error)}
                raise optuna.TrialPruned from error
            entry["gain"] = _gain(candidate, found)
            trial.report(entry["gain"], cut + 1)
            if trial.should_prune() or not found.has_time():
                entry["stopped early"] = True
                raise optuna.TrialPruned
        found.finalists.append(candidate.name)
        return float(entry["gain"])

    for _ in range(trials):
        if not found.has_time():
            break
        study.optimize(objective, n_trials=1)
    return more, log


def _gain(candidate: Candidate, found: Rehearsals) -> float:
    """The largest gain of the candidate's choices."""
    own = [entry.gain for choice, entry in found.evidence().items() if choice.candidate == candidate.name]
    return max(own, default=0.0)


def _suggested(trial: optuna.Trial, base: Settings, given: Settings, width: int) -> Settings:
    """The base with other values for what is not ``given``."""
    shapes: dict[str, Any] = {"none": None, "2x": "2x", "4x": 4 * width, "2x 2x": (2 * width, 2 * width)}
    ways: dict[str, Callable[[], Any]] = {
        "learning_rate": lambda: trial.suggest_float("learning_rate", 1e-4, 2e-3, log=True),
        "epochs": lambda: trial.suggest_int("epochs", 5, 40, log=True),
        "temperature": lambda: trial.suggest_float("temperature", 0.02, 0.1, log=True),
        "isotropy_weight": lambda: trial.suggest_categorical("isotropy_weight", [0.0, 0.1, 0.3, 1.0]),
        "sides": lambda: trial.suggest_categorical("sides", ["both", "query", "shared"]),
        "whitening": lambda: trial.suggest_float("whitening", 0.1, 10.0, log=True),
        "unlabelled_weight": lambda: trial.suggest_float("unlabelled_weight", 0.01, 1.0, log=True),
        "isotropy_kind": lambda: trial.suggest_categorical("isotropy_kind", ["covariance", "sigreg", "uniformity"]),
        "hidden_features": lambda: shapes[trial.suggest_categorical("hidden_features", [*shapes])],
    }
    idle = {"whitening": base.init != "pairs", "unlabelled_weight": base.contrastive == "in-batch"}
    found: dict[str, Any] = {}
    for name, way in ways.items():
        idle["isotropy_kind"] = not found.get("isotropy_weight", given.isotropy_weight)
        if getattr(given, name) == getattr(Settings(), name) and not idle.get(name):
            found[name] = way()
    return replace(base, **found)
