"""Models on retrieval data sets: MTEB's scores, and tables that say what is more than chance.

From the bottom up: ``scores`` (by query, and where they are kept), ``statistics``, ``verdict``, ``comparison`` and
``tables`` (the result), ``models``, ``trained`` (judged queries that were trained on), ``comparing`` (scores to rows),
``tasks``, ``compression``, ``running`` and ``seen`` (which need MTEB), ``main``; ``choosing``, ``run_folder``,
``runs``, ``steps`` and ``watching``, for the models of a run; and ``beir``, for BEIR's own evaluation.
"""

from st_asym.evaluation.beir import BeirModel
from st_asym.evaluation.checkpoints import choose_model
from st_asym.evaluation.comparison import Comparison
from st_asym.evaluation.evaluate import evaluate
from st_asym.evaluation.follow import follow_run
from st_asym.evaluation.run_folder import evaluate_run

__all__ = ["BeirModel", "Comparison", "choose_model", "evaluate", "evaluate_run", "follow_run"]
