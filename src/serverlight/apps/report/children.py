"""The parts' processes: where the report is told to end, they end before it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

__all__ = ["Children"]


class Children:
    """Processes of this Python. On SIGTERM, which unlike Ctrl-C reaches their parent only, they are interrupted as by Ctrl-C."""

    def __init__(self) -> None:
        self._running = set[subprocess.Popen[str]]()
        self._stopped = threading.Event()

    def run(self, words: Sequence[str]) -> tuple[int, str]:
        """Exit code of ``python -m words``, and what it wrote as errors. Raises :class:`KeyboardInterrupt` once they are to end."""
        if self._stopped.is_set():
            raise KeyboardInterrupt
        with subprocess.Popen(
            [sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        ) as child:  # fmt: skip
            self._running.add(child)
            if self._stopped.is_set():  # meanwhile, by a signal that the main thread took
                child.send_signal(signal.SIGINT)
            try:
                _, errors = child.communicate()
            finally:
                self._running.discard(child)
        if self._stopped.is_set():
            raise KeyboardInterrupt
        return child.returncode, errors

    @contextlib.contextmanager
    def ended_by_sigterm(self) -> Iterator[None]:
        """While it is open; only the main thread can do that, elsewhere SIGTERM does what it did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._stop), signal.getsignal(signal.SIGINT)
        if before[1] is signal.SIG_IGN:  # a shell's job in the background, whose children would ignore it as well
            signal.signal(signal.SIGINT, lambda signum, frame: None)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before[0])
            signal.signal(signal.SIGINT, before[1])

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopped.set()
        for child in tuple(self._running):
            child.send_signal(signal.SIGINT)
