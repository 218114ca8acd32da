"""A run of ``serverlight bench runtime``: server processes, and turns of devices until every cell has had enough."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.apps.demo.children import Child, Family
from serverlight.apps.load_cells import Cell, Load
from serverlight.evaluation.load import LoadRow, Pace, Turn, load_row, run_beside, run_turn
from serverlight.evaluation.load.figures import IN_PROCESS, OURS, SERIAL
from serverlight.evaluation.load.in_process import run_batches
from serverlight.link import LinkConfig, LinkProxy

__all__ = ["Cores", "bound_to", "measure_load"]

SLICE_S, WARM_S = 1.0, 0.5
"""About how long ours and its bound run at a time; how long the bound runs before the first."""

SERIAL_WORDS = ["--max-batch-requests", "1"]
LANGUAGE_WORDS = ["--max-sessions", "256", "--kv-memory", "4096"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cores:
    """The processor's cores for devices and for the server; ``None`` where the system decides."""

    devices: int | None = None
    server: int | None = None

    @classmethod
    def choose(cls) -> Cores:
        """The first and the last that this process may use, where there are two."""
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return cls(devices=allowed[0], server=allowed[-1]) if len(allowed) > 1 else cls()


@contextlib.contextmanager
def bound_to(core: int | None) -> Iterator[None]:
    """Binds this thread, and what it starts meanwhile, to a core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_load(
    load: Load,
    pace: Pace,
    *,
    rounds: int,
    dtype: str,
    max_batch_delay_ms: float | None,
    links: Sequence[LinkConfig],
    cores: Cores,
    on_turn: Callable[[Sequence[Cell]], None],
) -> list[LoadRow]:
    """A row for each cell. All cells have a turn in each round, so that a slow minute of the machine falls on all; a server
    and its bound share one, second by second, and the server without batches comes before it and then after it.

    Raises :class:`~serverlight.errors.PeerUnavailable`, with its last words, when a server process fails.
    """
    turns: dict[int, list[Turn]] = {i: [] for i in range(len(load.cells))}
    with contextlib.ExitStack() as stack:
        family = stack.enter_context(Family())
        delay = [] if max_batch_delay_ms is None else ["--max-batch-delay", str(max_batch_delay_ms)]
        words = {"batched": delay, "serial": SERIAL_WORDS}
        with bound_to(cores.server):
            servers = {
                _start(family, load, name, words[name], dtype): name
                for name in dict.fromkeys(cell.server for cell in load.cells if cell.server)
            }
        addresses = {servers[child]: message["address"] for child, message in (family.hear() for _ in servers)}
        for number in range(rounds):
            for group in _order(load.cells, number):
                on_turn([load.cells[i] for i in group])
                taken = _take_turns([load.cells[i] for i in group], addresses, pace, number, links, cores)
                for i, own in zip(group, taken, strict=True):
                    turns[i] += own
    return [_row(cell, turns[i], pace) for i, cell in enumerate(load.cells)]


def _order(cells: Sequence[Cell], number: int) -> list[tuple[int, ...]]:
    """Which cells have their turns in a round, one after the other; ours and the bound of it have theirs together."""
    bounds = {cell.scripts: i for i, cell in enumerate(cells) if cell.system == IN_PROCESS}
    pairs = [
        (i, bounds[cell.scripts]) for i, cell in enumerate(cells) if cell.system == OURS and cell.scripts in bounds
    ]
    serial = [(i,) for i, cell in enumerate(cells) if cell.system == SERIAL]
    compared = [*serial, *pairs]
    apart = [i for group in compared for i in group]
    alone = [(i,) for i in range(len(cells)) if i not in apart]
    return alone + (compared if number % 2 else compared[::-1])


def _start(family: Family, load: Load, name: str, own: Sequence[str], dtype: str) -> Child:
    cuts = [word for cut in load.cuts for word in ("--cut", cut)]
    words = [*cuts, *own, "--port", "0", "--json", "-", "--until-eof"]
    if load.is_language:
        words += [*LANGUAGE_WORDS, "--dtype", dtype]
    return family.start(f"{name} server", "serverlight", "serve", load.model, *words)


def _take_turns(
    cells: Sequence[Cell],
    addresses: Mapping[Any, str],
    pace: Pace,
    number: int,
    links: Sequence[LinkConfig],
    cores: Cores,
) -> list[list[Turn]]:
    """Those of each cell: of a server one, of a server beside its bound one for each slice."""
    cell, *bounds = cells
    paced = _paced(cell, pace, number)
    with contextlib.ExitStack() as stack, bound_to(cores.devices):
        reached = [addresses[cell.server]] * len(cell.scripts)
        if links:
            reached = [
                stack.enter_context(LinkProxy(address, links[i % len(links)], seed=2 * i)).address
                for i, address in enumerate(reached)
            ]
        if not bounds:
            return [[run_turn(reached, cell.scripts, paced)]]
        rival = _bound(bounds[0], cores)
        if paced.rate_per_s is not None:  # an open loop does not stand still
            return [[run_turn(reached, cell.scripts, paced)], [rival(pace.duration_s)]]
        slices = max(1, round(pace.duration_s / SLICE_S))
        pairs = run_beside(reached, cell.scripts, paced, rival, slices=slices)
    return [list(turns) for turns in zip(*pairs, strict=True)]


def _bound(cell: Cell, cores: Cores) -> Callable[[float], Turn]:
    """Runs the same batches without a server, on the server's core; they are warm."""
    assert cell.batches is not None
    batches = itertools.cycle(cell.batches())

    def run(seconds: float) -> Turn:
        with bound_to(cores.server):
            return run_batches(batches, seconds)

    run(WARM_S)
    return run


def _paced(cell: Cell, pace: Pace, number: int) -> Pace:
    """Times of an open loop differ from round to round; texts have no open loop."""
    return Pace(
        warmup_s=pace.warmup_s,
        duration_s=pace.duration_s,
        rate_per_s=pace.rate_per_s if cell.workload == "vision" else None,
        thinks=pace.thinks,
        seed=number,
    )


def _row(cell: Cell, turns: Sequence[Turn], pace: Pace) -> LoadRow:
    return load_row(
        turns,
        workload=cell.workload,
        system=cell.system,
        clients=len(cell.scripts),
        cuts=cell.cuts,
        rate_per_s=_paced(cell, pace, 0).rate_per_s if cell.server else None,
        device_ms=cell.device_ms,
        thinks=pace.thinks and cell.server is not None,
        note=cell.note,
    )
