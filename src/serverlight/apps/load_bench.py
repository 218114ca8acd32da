"""``serverlight bench runtime`` from its settings to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from serverlight.apps.bench_tables import Section
from serverlight.apps.load_cells import Cell, Load, lm_load, vision_load
from serverlight.apps.load_options import NOTHING, RANDOM_LLAMA, RANDOM_RESNET
from serverlight.apps.load_run import Cores, measure_load
from serverlight.apps.load_tables import load_heading, load_sections
from serverlight.apps.made_models import make_llama, make_resnet
from serverlight.apps.options import read_dtype
from serverlight.apps.terminal import progress_bar
from serverlight.errors import ConfigError
from serverlight.evaluation import describe_environment
from serverlight.evaluation.checks import Check
from serverlight.evaluation.load import LoadRow, Pace
from serverlight.evaluation.load.claims import load_checks
from serverlight.link import LinkConfig
from serverlight.runtime.memory import keep_freed_memory

__all__ = ["LoadBench", "LoadResult", "run_bench"]

MAX_CLIENTS = 200
"""A server takes 256 streams unless told otherwise, and those of a turn may outlive it a little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadBench:
    """What to run; raises :class:`ConfigError` where there is nothing to run."""

    vision: str
    lm: str
    clients: tuple[int, ...]
    vision_cuts: tuple[str, ...]
    lm_cuts: tuple[str, ...]
    data: str | None
    text: str | None
    tokens: int
    duration_s: float
    warmup_s: float
    rounds: int
    rate_per_s: float | None
    device_time: bool
    links: tuple[str, ...]
    max_batch_delay_ms: float | None
    """Of the server with batches; ``None`` for its default."""

    dtype: str

    def __post_init__(self) -> None:
        if self.vision == self.lm == NOTHING:
            raise ConfigError("lm", f"and vision are both {NOTHING!r}; name a model")
        if not all(1 <= count <= MAX_CLIENTS for count in self.clients):
            raise ConfigError("clients", f"must be from 1 to {MAX_CLIENTS}, got {', '.join(map(str, self.clients))}")
        read_dtype(self.dtype)
        for link in self.links:
            LinkConfig.parse(link)

    def quick(self) -> LoadBench:
        """A look at the same in a minute."""
        return dataclasses.replace(
            self,
            vision="demo-vision" if self.vision == RANDOM_RESNET else self.vision,
            lm="demo-lm" if self.lm == RANDOM_LLAMA else self.lm,
            clients=(1, 8),
            tokens=min(self.tokens, 64),
            duration_s=min(self.duration_s, 1.0),
            warmup_s=min(self.warmup_s, 0.2),
            rounds=1,
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; of what may be a path only the last part."""
        fields = dataclasses.asdict(self)
        for name in ("vision", "lm", "data", "text"):
            fields[name] = fields[name] and pathlib.PurePath(fields[name]).name
        return fields


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """What was measured."""

    bench: LoadBench
    rows: tuple[LoadRow, ...]
    cores: Cores
    load_before: float
    """Load average of the machine over the last minute, before it began."""

    @property
    def checks(self) -> list[Check]:
        """What is claimed."""
        return load_checks(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """All that is there, ready for JSON."""
        return {
            **describe_environment(),
            "settings": {**self.bench.to_dict(), "own_cores": self.cores.server is not None},
            "load_before": self.load_before,
            "rows": [row.to_dict() for row in self.rows],
            "checks": [check.to_dict() for check in self.checks],
        }

    def sections(self) -> list[Section]:
        """The tables."""
        return load_sections(self.rows, self.checks)

    def heading(self) -> str:
        """What stands above them."""
        return load_heading(self.to_dict())


def run_bench(bench: LoadBench) -> LoadResult:
    """Measures everything.

    Raises :class:`~serverlight.errors.PeerUnavailable`, with its last words, when a server process fails, and what
    loading a model raises.
    """
    torch.set_num_threads(1)
    keep_freed_memory()  # as the server does: the bound has its best settings, too
    load_before, cores, rows = os.getloadavg()[0], Cores.choose(), list[LoadRow]()
    pace = Pace(
        warmup_s=bench.warmup_s, duration_s=bench.duration_s, rate_per_s=bench.rate_per_s, thinks=bench.device_time
    )
    with _loads(bench) as loads, progress_bar("preparing", _num_turns(loads, bench)) as (bar, job):

        def show(cells: Sequence[Cell]) -> None:
            what = (
                f"{cells[0].workload}, {' and '.join(cell.system for cell in cells)}, {len(cells[0].scripts)} clients"
            )
            bar.update(job, advance=len(cells), description=what)

        for load in loads:
            rows += measure_load(
                load, pace, rounds=bench.rounds, dtype=bench.dtype, max_batch_delay_ms=bench.max_batch_delay_ms,
                links=[*map(LinkConfig.parse, bench.links)], cores=cores, on_turn=show,
            )  # fmt: skip
    return LoadResult(bench=bench, rows=tuple(rows), cores=cores, load_before=load_before)


def _num_turns(loads: list[Load], bench: LoadBench) -> int:
    return bench.rounds * sum(len(load.cells) for load in loads)


@contextlib.contextmanager
def _loads(bench: LoadBench) -> Iterator[list[Load]]:
    """What is measured, with everything recorded; a model that is made for the purpose goes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        loads = list[Load]()
        if bench.vision != NOTHING:
            spec, data = bench.vision, bench.data
            if spec == RANDOM_RESNET:
                spec, made = make_resnet(pathlib.Path(folder))
                data = data or made
            loads.append(vision_load(spec, bench.clients, list(bench.vision_cuts), data))
        if bench.lm != NOTHING:
            spec = make_llama(pathlib.Path(folder)) if bench.lm == RANDOM_LLAMA else bench.lm
            text = _read_text(bench.text)
            loads.append(lm_load(spec, bench.clients, list(bench.lm_cuts), text, bench.tokens, read_dtype(bench.dtype)))
        yield loads


def _read_text(path: str | None) -> str:
    shipped = importlib.resources.files("serverlight.models") / "data" / "demo_lm" / "held_out.txt"
    try:
        return pathlib.Path(path).expanduser().read_text() if path else shipped.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("text", f"cannot read {path!r}: {exc}; give a file of text") from None
