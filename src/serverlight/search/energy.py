"""What the machine draws while it computes, where the platform tells: RAPL, the rails of a Jetson, NVML."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["JetsonRails", "NvmlBoards", "RaplPackages", "Source", "find_sources", "measure_watts"]

SYSFS = pathlib.Path("/sys")

WINDOW_S = 1.0
"""How long to look, at rest and at work."""

REST_S = 0.02
"""Between two looks at rest."""


class Source(Protocol):
    """Something that knows a power."""

    def joules(self, now_s: float) -> float:
        """Energy since some fixed time; between two calls the power is taken as it is at the later."""


class RaplPackages:
    """Counters of Intel's and AMD's processors, by ``/sys/class/powercap``; often for root alone."""

    def __init__(self, sysfs: pathlib.Path = SYSFS) -> None:
        folders = sorted((sysfs / "class" / "powercap").glob("intel-rapl:*"))
        # What has two colons lies within a package, which counts it.
        self._files = [
            (folder / "energy_uj", _number(folder / "max_energy_range_uj") or 0)
            for folder in folders
            if folder.name.count(":") == 1 and _number(folder / "energy_uj") is not None
        ]
        self._last: dict[pathlib.Path, int] = {}
        self._sum_uj = 0

    def __bool__(self) -> bool:
        return bool(self._files)

    def joules(self, now_s: float) -> float:
        """The counters' own sum; one that is full begins anew at zero."""
        for path, full in self._files:
            value = _number(path)
            if value is None:
                continue
            step = value - self._last.get(path, value)
            self._sum_uj += step if step >= 0 else step + full
            self._last[path] = value
        return self._sum_uj / 1e6


class _Gauges:
    """Powers that are read now and then, and summed over time."""

    def __init__(self, read_watts: Callable[[], float]) -> None:
        self._read_watts = read_watts
        self._sum_j = 0.0
        self._last_s: float | None = None

    def joules(self, now_s: float) -> float:
        """The sum of what was read times how long ago the reading before was."""
        if self._last_s is not None:
            self._sum_j += self._read_watts() * (now_s - self._last_s)
        self._last_s = now_s
        return self._sum_j


class JetsonRails(_Gauges):
    """The INA3221 of a Jetson board: the rail of the whole board where there is one, else all of them."""

    def __init__(self, sysfs: pathlib.Path = SYSFS) -> None:
        chips = sorted((sysfs / "bus" / "i2c" / "drivers" / "ina3221").glob("*/hwmon/hwmon*"))
        rails = {
            label.read_text().strip(): (label.parent, label.name[2:-6])
            for chip in chips
            for label in sorted(chip.glob("in*_label"))
            if _number(chip / f"curr{label.name[2:-6]}_input") is not None
        }
        board = [rails[name] for name in rails if name in BOARD_RAILS]
        self._rails = board[:1] or [*rails.values()]
        super().__init__(self._watts)

    def __bool__(self) -> bool:
        return bool(self._rails)

    def _watts(self) -> float:
        pairs = (
            (_number(chip / f"in{i}_input") or 0, _number(chip / f"curr{i}_input") or 0) for chip, i in self._rails
        )
        return sum(millivolts * milliamperes for millivolts, milliamperes in pairs) / 1e6


BOARD_RAILS = {"VDD_IN", "POM_5V_IN", "VIN_SYS_5V0"}


class NvmlBoards(_Gauges):
    """NVIDIA's boards, if the package ``nvidia-ml-py`` is installed and its library finds any."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml if nvml is not None else _import_nvml()
        self._boards: list[Any] = []
        if self._nvml is not None:
            try:
                self._nvml.nvmlInit()
                boards = range(self._nvml.nvmlDeviceGetCount())
                self._boards = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in boards]
                self._watts()
            except self._nvml.NVMLError:
                self._boards = []
        super().__init__(self._watts)

    def __bool__(self) -> bool:
        return bool(self._boards)

    def _watts(self) -> float:
        milliwatts = [int(self._nvml.nvmlDeviceGetPowerUsage(board)) for board in self._boards]
        return sum(milliwatts) / 1e3


def find_sources(sysfs: pathlib.Path = SYSFS) -> list[Source]:
    """What tells on this machine. A board's rail counts its processor and graphics too, so nothing is asked beside it."""
    rails = JetsonRails(sysfs)
    if rails:
        return [rails]
    packages, boards = RaplPackages(sysfs), NvmlBoards()
    return [source for source in (packages, boards) if source]


def measure_watts(
    work: Callable[[], object],
    sources: Sequence[Source],
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """What ``work``, again and again, draws above rest; ``None`` without a source. At least zero."""
    if not sources:
        return None
    at_rest = _watts(lambda: sleep(REST_S), sources, clock)
    at_work = _watts(work, sources, clock)
    return max(0.0, at_work - at_rest)


def _watts(act: Callable[[], object], sources: Sequence[Source], clock: Callable[[], float]) -> float:
    begun_s = clock()
    begun_j = sum(source.joules(begun_s) for source in sources)
    while True:
        act()
        now_s = clock()
        now_j = sum(source.joules(now_s) for source in sources)
        if now_s - begun_s >= WINDOW_S:
            return (now_j - begun_j) / (now_s - begun_s)


def _number(path: pathlib.Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml
