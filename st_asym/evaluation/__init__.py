"""Models on retrieval data sets: MTEB's scores, and tables that say what is more than chance.

From the left to the right: ``comparison`` (scores by query, where they are kept, and rows of them), ``models`` and
``tasks`` (what is evaluated, and on what), ``seen`` (queries that are no evidence), ``compressed`` (another index),
``mteb`` (one model on one task), ``baselines`` (BM25 on it), ``verdict`` (scores to rows, and which of two models
stays), ``evaluate`` (all of it); ``checkpoints`` and ``run_folder``, for the models of a run; ``beir``, for BEIR's own.
"""

from st_asym.evaluation.beir import BeirModel
from st_asym.evaluation.checkpoints import choose_model
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.evaluate import evaluate
from st_asym.evaluation.run_folder import evaluate_run, follow_run
from st_asym.evaluation.verdict import Replacement, replacement

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
