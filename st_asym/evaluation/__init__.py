"""Models on retrieval data sets: MTEB's scores, and tables that say what is more than chance.

From the bottom up: ``comparison`` (scores by query, rows of them, and what these say), ``models`` (what is compared),
``tasks`` (what it is evaluated on, and which queries are no evidence), ``compressed`` (another index), ``mteb`` (one
model on one task, and where its scores are kept), ``baselines`` (BM25), ``evaluate`` (models through data sets, and
which of two stays); ``checkpoints`` and ``run_folder``, for the models of a run; ``beir``, for BEIR's own.
"""

from st_asym.evaluation.beir import BeirModel
from st_asym.evaluation.checkpoints import choose_model
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.evaluate import Replacement, evaluate, replacement
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
