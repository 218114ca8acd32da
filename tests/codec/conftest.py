"""Makes the second reader, tests/independent_reader, importable under its own name."""

import os
import pathlib
import sys

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["gpu_interpreted.py"]
"""It wants a process of its own, which test_gpu.py makes."""
