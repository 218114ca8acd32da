"""Makes the second reader, tests/independent_reader, and what the fuzzers of fuzz/ play importable under their own names."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
for folder in (ROOT / "tests", ROOT / "fuzz"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
