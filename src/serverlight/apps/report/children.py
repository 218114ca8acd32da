"""The parts' processes: where the report is told to end, they end before it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

__all__ = ["Children"]

GRACE_S = 10.0
"""So long after it was interrupted a part may still run."""


class Children:
    """Processes of this Python, each with a process group of its own, to which belongs what it starts.

    On SIGTERM and on Ctrl-C all groups are interrupted as by Ctrl-C, and killed where that does not end them. The process alone
    would not do: what it has just started when the signal comes would outlive it.
    """

    def __init__(self) -> None:
        self._running = set[subprocess.Popen[str]]()
        self._stopped = threading.Event()

    def run(self, words: Sequence[str]) -> tuple[int, str]:
        """Exit code of ``python -m words``, and what it wrote as errors. Raises :class:`KeyboardInterrupt` once they are to end."""
        if self._stopped.is_set():
            raise KeyboardInterrupt
        with subprocess.Popen(
            [sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, process_group=0,
        ) as child:  # fmt: skip
            self._running.add(child)
            if self._stopped.is_set():  # meanwhile, and it may have been too young to be told
                _signal(child, signal.SIGINT)
            try:
                _, errors = child.communicate()
            finally:
                self._running.discard(child)
        if self._stopped.is_set():
            raise KeyboardInterrupt
        return child.returncode, errors

    @contextlib.contextmanager
    def ended_with_us(self) -> Iterator[None]:
        """While it is open; only the main thread can do that, elsewhere signals do what they did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        threading.Thread(target=self._end, name="serverlight-report-end", daemon=True).start()
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        # What is ignored, as in a shell's job in the background, children would ignore as well.
        if before[signal.SIGINT] is signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda number, frame: None)
        try:
            yield
            if self._stopped.is_set():  # between two parts
                raise KeyboardInterrupt
        finally:
            self._stopped.set()  # ends the thread, too
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped.set()

    def _end(self) -> None:
        self._stopped.wait()
        for number in (signal.SIGINT, signal.SIGKILL):
            for child in tuple(self._running):
                _signal(child, number)
            time.sleep(GRACE_S)


def _signal(child: subprocess.Popen[str], number: int) -> None:
    """Tells a whole group; a child whose end nobody has waited for still has its number, though macOS lets nobody signal it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
