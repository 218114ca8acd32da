"""Runs the demo: one server process, several device processes, every mode in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from serverlight.apps.demo.children import Child, Family
from serverlight.apps.demo.modes import Mode
from serverlight.apps.demo.worker import Answer
from serverlight.link import LinkConfig, LinkProxy

__all__ = ["LEAD_IN", "ROUNDS", "WARM_UP", "DemoSetup", "Measured", "measure"]

WARM_UP = 3
"""Requests in each mode from each device before anything is timed."""

ROUNDS = 5
"""Every mode has a turn in each round, so that a slow minute of the machine falls on all of them."""

LEAD_IN = 1
"""Requests at the start of a turn that do not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSetup:
    """What to run."""

    model: str
    """Spec of the model."""

    revision: str
    """Digest of its weights; every process must load the same ones."""

    modes: Sequence[Mode]
    """The rows."""

    cuts: Sequence[str]
    """Cuts that the server is to serve."""

    data: str | None
    """Spec of the images."""

    num_images: int
    """How many of them are used."""

    num_clients: int
    """Device processes."""

    link: LinkConfig | None
    """The link of each device; none for plain loopback."""


@dataclass(kw_only=True, slots=True)
class Measured:
    """What came of one mode."""

    answers: list[Answer] = field(default_factory=list)
    """One per image, in no order."""

    server_cpu_ms: float = 0.0
    """CPU time of the whole server process over all turns..."""

    server_requests: int = 0
    """...and the requests that it went into."""


def measure(setup: DemoSetup, *, on_ready: Callable[[], None], on_answer: Callable[[], None]) -> dict[str, Measured]:
    """Classifies every image once in each mode, by mode key.

    Raises :class:`~serverlight.errors.PeerUnavailable`, with its last words, when a process fails.
    """
    with Family() as family, contextlib.ExitStack() as proxies:
        server = family.start("server", *_server_command(setup))
        devices = [
            family.start(f"device {i}", "serverlight.apps.demo.worker", setup.model) for i in range(setup.num_clients)
        ]
        said = dict(family.hear() for _ in (server, *devices))  # each says one line when it is ready
        for i, device in enumerate(devices):
            address = said[server]["address"]
            if setup.link:
                address = proxies.enter_context(LinkProxy(address, setup.link, seed=2 * i)).address
            device.say(_worker_setup(setup, address))
        on_ready()
        return _run_rounds(family, devices, setup, on_answer)


def _server_command(setup: DemoSetup) -> list[str]:
    cuts = [word for cut in setup.cuts for word in ("--cut", cut)]
    return ["serverlight", "serve", setup.model, *cuts, "--port", "0", "--json", "-", "--until-eof"]


def _worker_setup(setup: DemoSetup, address: str) -> dict[str, Any]:
    modes = {mode.key: mode.to_dict() for mode in setup.modes}
    return {"data": setup.data, "limit": setup.num_images, "modes": modes, "address": address}


def _run_rounds(
    family: Family, devices: Sequence[Child], setup: DemoSetup, on_answer: Callable[[], None]
) -> dict[str, Measured]:
    shares = [list(range(setup.num_images))[i :: len(devices)] for i in range(len(devices))]
    for mode in setup.modes:
        _take_turn(family, devices, mode, [share[:WARM_UP] for share in shares], lambda: None)
    measured = {mode.key: Measured() for mode in setup.modes}
    for number in range(ROUNDS):
        parts = [share[number::ROUNDS] for share in shares]
        for mode in _rotated(setup.modes, number):
            answers = _take_turn(family, devices, mode, parts, on_answer)
            _add(measured[mode.key], answers)
    return measured


def _rotated(modes: Sequence[Mode], by: int) -> Iterator[Mode]:
    for i in range(len(modes)):
        yield modes[(i + by) % len(modes)]


def _take_turn(
    family: Family, devices: Sequence[Child], mode: Mode, parts: Sequence[list[int]], on_answer: Callable[[], None]
) -> list[Answer]:
    """Every device goes through its part of the images, one request after the other, all devices at once."""
    busy = [(device, part) for device, part in zip(devices, parts, strict=True) if part]
    for device, part in busy:
        device.say({"key": mode.key, "images": part, "lead_in": LEAD_IN})
    answers, waiting_for = [], len(busy)
    while waiting_for:
        _, message = family.hear()
        if "done" in message:
            waiting_for -= 1
            continue
        answers.append(Answer(**message))
        if not answers[-1].is_lead_in:
            on_answer()
    return answers


def _add(measured: Measured, answers: Sequence[Answer]) -> None:
    """Counts the images, and the server's CPU time.

    The server computes one request at a time and states its CPU time with each. Between the first and the last of a
    turn lie all requests but the first, lead-ins among them, with all that the process did for them.
    """
    measured.answers += [answer for answer in answers if not answer.is_lead_in]
    stamps_ms = [answer.process_cpu_ms for answer in answers if answer.process_cpu_ms is not None]
    if len(stamps_ms) > 1:
        measured.server_cpu_ms += max(stamps_ms) - min(stamps_ms)
        measured.server_requests += len(stamps_ms) - 1
