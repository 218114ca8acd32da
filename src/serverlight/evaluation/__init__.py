"""Measuring what a cut saves and what it costs."""

from serverlight.environment import describe_environment, measured_document
from serverlight.evaluation.datasets import ImageSet, load_images
from serverlight.evaluation.paired import PairedRow, PairedScore
from serverlight.evaluation.statistics import PairedDifference, paired_difference
from serverlight.evaluation.vision import evaluate_vision

__all__ = [
    "ImageSet",
    "PairedDifference",
    "PairedRow",
    "PairedScore",
    "describe_environment",
    "evaluate_vision",
    "load_images",
    "measured_document",
    "paired_difference",
]
