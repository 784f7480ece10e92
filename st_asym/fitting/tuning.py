"""Other settings than the defaults, tried on the held-out queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from st_asym.fitting.gate import Collection
from st_asym.fitting.rehearsing import Attempt, attempt
from st_asym.fitting.settings import Settings
from st_asym.fitting.workbench import Workbench
from st_asym.splitting import HeldOut

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
    bench: Workbench, parts: Sequence[HeldOut], first: Attempt, trials: int, collection: Collection | None = None
) -> tuple[Attempt, list[dict[str, Any]]]:
    """Try settings until the trials or the time are used up; poor ones are stopped early.

    The sampler is Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter
    Optimization"); after the first trials, one whose gain is below the median of the others after as many epochs is
    stopped.

    Args:
        bench: What is trained on.
        parts: The cuts to rehearse on.
        first: The attempt with the default settings, which counts as the first trial.
        trials: How many more.
        collection: As for :func:`st_asym.fit`.

    Returns:
        The attempt with the largest gain, and what was tried: settings, gain, and whether it was stopped.
    """
    import optuna

    base = first.stage.settings
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=bench.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, base.epochs // 4)),
    )
    best, log = first, [_entry(base, first.gain, stopped=False)]

    def objective(trial: optuna.Trial) -> float:
        nonlocal best
        settings = _suggested(trial, base, bench)
        stopped = False

        def progress(epoch: int, gain: float) -> bool:
            nonlocal stopped
            trial.report(gain, epoch)
            stopped = bool(trial.should_prune())  # a pruner may answer with numpy
            return stopped

        try:
            found = attempt(bench, parts, settings, collection, progress)
        except ValueError as error:  # diverged: the next one may not
            log.append({**_entry(settings, 0.0, stopped=True), "error": str(error)})
            raise optuna.TrialPruned from error
        log.append(_entry(settings, found.gain, stopped=stopped))
        if stopped or bench.out_of_time:
            raise optuna.TrialPruned
        if found.gain > best.gain:
            best = found
        return found.gain

    for _ in range(trials):
        if bench.out_of_time:
            break
        study.optimize(objective, n_trials=1)
    return best, log


def _suggested(trial: optuna.Trial, base: Settings, bench: Workbench) -> Settings:
    found: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 2e-4, 4e-3, log=True),
        "epochs": trial.suggest_int("epochs", 5, 40, log=True),
        "isotropy_weight": trial.suggest_categorical("isotropy_weight", [0.0, 0.1, 0.3, 1.0]),
    }
    if bench.system.contrastive:
        found["temperature"] = trial.suggest_float("temperature", 0.02, 0.1, log=True)
    if found["isotropy_weight"]:
        found["isotropy_kind"] = trial.suggest_categorical("isotropy_kind", ["covariance", "sigreg", "uniformity"])
    if not bench.system.shared:
        found["sides"] = trial.suggest_categorical("sides", ["both", "query", "shared"])
    shape = trial.suggest_categorical("hidden_features", ["none", "2x", "4x", "2x 2x"])
    width = bench.dimension
    shapes: dict[str, Any] = {"none": None, "2x": "2x", "4x": 4 * width, "2x 2x": (2 * width, 2 * width)}
    return replace(base, hidden_features=shapes[shape], **found)


def _entry(settings: Settings, gain: float, *, stopped: bool) -> dict[str, Any]:
    return {"settings": settings.as_dict(), "gain": gain, "stopped early": stopped}
