"""One compute thread: test processes that spin on shared cores slow each other down many times over.

Makes tests/decoder_models.py importable under its own name, too.
"""

from __future__ import annotations

import pathlib
import sys

import torch

torch.set_num_threads(1)

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)
