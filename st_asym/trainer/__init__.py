"""For those who bring the stock trainer: columns to heads, figures in its log, mined negatives."""

from st_asym.trainer.columns import check_router_mapping, column_prompts, router_mapping
from st_asym.trainer.monitor import TrainingMonitor, watch
from st_asym.trainer.negatives import mine_negatives

__all__ = ["TrainingMonitor", "check_router_mapping", "column_prompts", "mine_negatives", "router_mapping", "watch"]
