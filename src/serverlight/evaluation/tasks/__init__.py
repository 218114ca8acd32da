"""Features of real models with the data to judge what a codec does to them."""

from serverlight.evaluation.tasks.catalogue import (
    TASK_NAMES,
    UPLINK_TASKS,
    available_tasks,
    check_task,
    load_task,
)
from serverlight.evaluation.tasks.task import Calibration, CodecTask, Feature, LossyInput, Quality, RawInput

__all__ = [
    "TASK_NAMES",
    "UPLINK_TASKS",
    "Calibration",
    "CodecTask",
    "Feature",
    "LossyInput",
    "Quality",
    "RawInput",
    "available_tasks",
    "check_task",
    "load_task",
]
