"""What the platform tells of power, from trees of files like the kernel's."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from serverlight.search.energy import JetsonRails, NvmlBoards, RaplPackages, find_sources, measure_watts

FULL_UJ = 1_000_000_000


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rapl(sysfs: pathlib.Path, name: str, start: int = 0) -> Callable[[int], None]:
    folder = sysfs / "class" / "powercap" / name
    write(folder / "max_energy_range_uj", f"{FULL_UJ}\n")
    state = {"uj": start}
    write(folder / "energy_uj", f"{start}\n")

    def add(uj: int) -> None:
        state["uj"] = (state["uj"] + uj) % FULL_UJ
        write(folder / "energy_uj", f"{state['uj']}\n")

    return add


class Time:
    """A clock that moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_rapl_is_what_the_counters_gain_above_rest(tmp_path: pathlib.Path) -> None:
    """The difference between work and rest counts, also where a counter passes its end; what lies in a package counts once."""
    add, inner, time = rapl(tmp_path, "intel-rapl:0", FULL_UJ - 5), rapl(tmp_path, "intel-rapl:0:0"), Time()

    def spend(seconds: float, watts: float) -> None:
        time.now_s += seconds
        add(round(seconds * watts * 1e6))
        inner(round(seconds * watts * 1e6))

    sources = find_sources(tmp_path)
    watts = measure_watts(lambda: spend(0.25, 30.0), sources, clock=time, sleep=lambda seconds: spend(seconds, 12.0))
    assert watts == pytest.approx(18.0, rel=1e-3)


def test_jetson_is_the_rail_of_the_board(tmp_path: pathlib.Path) -> None:
    """Volts times amperes of the board's input; the rails behind it are not counted again."""
    chip = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    for number, (label, millivolts, milliamperes) in enumerate([("VDD_IN", 5000, 800), ("VDD_GPU", 5000, 300)], 1):
        write(chip / f"in{number}_label", f"{label}\n")
        write(chip / f"in{number}_input", f"{millivolts}\n")
        write(chip / f"curr{number}_input", f"{milliamperes}\n")
    time = Time()
    board = JetsonRails(tmp_path)

    def at(milliamperes: int, seconds: float) -> None:
        write(chip / "curr1_input", f"{milliamperes}\n")
        time.now_s += seconds

    assert measure_watts(lambda: at(1800, 0.1), [board], clock=time, sleep=lambda s: at(800, s)) == pytest.approx(5.0)
    assert find_sources(tmp_path)[0].__class__ is JetsonRails


class Nvml:
    """A board that draws 60 W."""

    class NVMLError(Exception):
        pass

    def __init__(self, count: int) -> None:
        self._count = count

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._count:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self._count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetPowerUsage(self, board: int) -> int:  # noqa: N802
        return 60_000


def test_nvml_sums_the_boards() -> None:
    """Two boards of 60 W draw 120 W; without a driver there are none."""
    boards = NvmlBoards(Nvml(2))
    boards.joules(0.0)
    assert boards.joules(2.0) == 240.0
    assert not NvmlBoards(Nvml(0))


def test_a_platform_that_tells_nothing(tmp_path: pathlib.Path) -> None:
    """Without sources there is no figure, and no work is done for one; a counter that may not be read is none."""
    write(tmp_path / "class/powercap/intel-rapl:0/energy_uj", "")
    assert not RaplPackages(tmp_path)
    assert measure_watts(lambda: pytest.fail("it ran"), []) is None
