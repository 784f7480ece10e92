"""Models on retrieval data sets: MTEB's scores, and tables that say what is more than chance.

From the left to the right: ``tasks`` and ``models`` (what is evaluated), ``compressed`` and ``mteb`` (one model on one
task), ``scores`` (by query, and where they are kept), ``seen`` (queries that are no evidence), ``baselines`` (BM25 on
it), ``verdict`` and ``comparison`` (scores to rows), ``evaluate`` (all of it), ``decision`` (which of two stays);
``checkpoints`` and ``run_folder``, for the models of a run; and ``beir``, for BEIR's own evaluation.
"""

from st_asym.evaluation.beir import BeirModel
from st_asym.evaluation.checkpoints import choose_model
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.decision import Replacement, replacement
from st_asym.evaluation.evaluate import evaluate
from st_asym.evaluation.run_folder import evaluate_run, follow_run

__all__ = [
    "BeirModel",
    "Comparison",
    "Replacement",
    "choose_model",
    "evaluate",
    "evaluate_run",
    "follow_run",
    "replacement",
]
