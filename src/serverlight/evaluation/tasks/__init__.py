"""Features of real models with the data to judge what a codec does to them."""

from serverlight.evaluation.tasks.catalogue import TASK_NAMES, available_tasks, check_task, load_task
from serverlight.evaluation.tasks.task import CodecTask, Feature, Quality, RawInput

__all__ = ["TASK_NAMES", "CodecTask", "Feature", "Quality", "RawInput", "available_tasks", "check_task", "load_task"]
