"""Runs what a model wrote: the filter and the metric of ``humaneval_local.yaml``.

Each program runs in a process and a folder of its own, with little memory and time, and without this process's environment. That
keeps accidents small. It is no sandbox: files and network can be reached.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ALLOWED", "complete", "pass_at_1", "passes"]

ALLOWED = "HF_ALLOW_CODE_EVAL"
"""Set to 1 in the environment by whoever wants programs to run; the word of the hub's metric of the same kind."""

TIME_LIMIT_S = 5.0
MEMORY_LIMIT_BYTES = 1 << 30

PASSED = 42
"""Exit code after the last line of a program; one that leaves before has another."""

RUNNER = f"""
import os, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_LIMIT_BYTES}, {MEMORY_LIMIT_BYTES}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass  # a system without such limits
exec(compile(sys.stdin.read(), "program", "exec"), {{"__name__": "__main__"}})
os._exit({PASSED})
"""


def complete(answers: Iterable[Sequence[str]], docs: Iterable[Mapping[str, str]]) -> list[list[str]]:
    """Puts the beginning that a model was given before each of its answers.

    >>> complete([["    return 1"]], [{"prompt": "def one():\\n"}])
    [['def one():\\n    return 1']]
    """
    return [[doc["prompt"] + text for text in texts] for texts, doc in zip(answers, docs, strict=True)]


def pass_at_1(references: Sequence[str], predictions: Sequence[Sequence[str]]) -> float:
    """Share of programs that pass the tests of their problem.

    Args:
        references: Tests of each problem, to run behind a program.
        predictions: Programs for each problem.

    Raises:
        ValueError: nobody allowed it (:data:`ALLOWED`).
    """
    if os.environ.get(ALLOWED) != "1":
        raise ValueError(f"untrusted code is not run; set {ALLOWED}=1 to allow it")
    passed = [
        passes(f"{program}\n{test}")
        for test, programs in zip(references, predictions, strict=True)
        for program in programs
    ]
    return sum(passed) / len(passed)


def passes(program: str, *, time_limit_s: float = TIME_LIMIT_S) -> bool:
    """Whether a program reaches its end, without an error and in time; whatever it has started is ended with it."""
    with tempfile.TemporaryDirectory(prefix="serverlight-program-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=time_limit_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
    return process.returncode == PASSED


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
