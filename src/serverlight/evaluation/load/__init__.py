"""A load of many devices on a server, and what it comes to."""

from serverlight.evaluation.load.clients import Pace
from serverlight.evaluation.load.figures import LoadRow, Sample, Turn, load_row
from serverlight.evaluation.load.scripts import Requests, Script, Text, record_features, record_files, record_text
from serverlight.evaluation.load.turns import run_beside, run_turn

__all__ = [
    "LoadRow",
    "Pace",
    "Requests",
    "Sample",
    "Script",
    "Text",
    "Turn",
    "load_row",
    "record_features",
    "record_files",
    "record_text",
    "run_beside",
    "run_turn",
]
