"""Child processes that speak JSON lines, and never outlive the parent."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from serverlight.errors import PeerUnavailable

__all__ = ["Child", "Family"]

SILENCE_S = 300.0
"""A child that says nothing for so long has gone wrong."""

STOP_S = 5.0
"""So long the children may take to end, all together."""


class Child:
    """A Python process; what it prints arrives, line by line, in the family's inbox.

    A child ends when its standard input ends, and so does not outlive a parent that was killed.
    """

    def __init__(self, name: str, arguments: list[str], inbox: queue.SimpleQueue[tuple[Child, Any]]) -> None:
        self.name = name
        self._inbox = inbox
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in join)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its children in order
        )
        self._reader = threading.Thread(target=self._read, name=f"serverlight-{name}", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def say(self, message: Mapping[str, Any]) -> None:
        """Sends one line; raises :class:`PeerUnavailable` when the child is gone."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure() from None

    def failure(self) -> PeerUnavailable:
        """Why the child is gone, by its own last words."""
        self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines() or [f"ended with exit code {self._process.returncode}"]
        return PeerUnavailable(f"{self.name} process: {lines[-1].removeprefix('error: ')}")

    def end(self, *, at_once: bool) -> None:
        """Asks it to end: by the end of its standard input or, at once, by a signal."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it ended before it read all that was said
            self._process.stdin.close()
        if at_once:
            self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Waits for the end, and brings it about if that takes too long."""
        assert self._process.stdout
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._stderr.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):  # a model's own code may print what it likes
                self._inbox.put((self, json.loads(line)))
        self._inbox.put((self, None))


class Family:
    """All child processes of one run; a context manager that leaves none behind."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._inbox: queue.SimpleQueue[tuple[Child, Any]] = queue.SimpleQueue()

    def start(self, name: str, *arguments: str) -> Child:
        """Runs ``python -m`` with these arguments."""
        child = Child(name, list(arguments), self._inbox)
        self._children.append(child)
        return child

    def hear(self) -> tuple[Child, Any]:
        """The next line of any child; raises :class:`PeerUnavailable` when one has ended or none says anything."""
        try:
            child, message = self._inbox.get(timeout=SILENCE_S)
        except queue.Empty:
            raise PeerUnavailable(
                f"no process has said anything for {SILENCE_S:.0f} s; is the machine overloaded?"
            ) from None
        if message is None:
            raise child.failure()
        return child, message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.end(at_once=kind is not None)
        give_up_s = time.monotonic() + STOP_S
        for child in self._children:
            child.join(max(0.0, give_up_s - time.monotonic()))
