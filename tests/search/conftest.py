"""Makes tests/made_up.py importable under its own name."""

from __future__ import annotations

import pathlib
import sys

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)
