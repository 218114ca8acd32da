"""Features of real models with the data to judge what a codec does to them."""

from serverlight.evaluation.tasks.catalogue import TASK_NAMES, available_tasks, load_task
from serverlight.evaluation.tasks.task import CodecTask, Feature, Quality

__all__ = ["TASK_NAMES", "CodecTask", "Feature", "Quality", "available_tasks", "load_task"]
