"""``benchmarks/simulation_check.py`` without a measurement: a simulated one stands for it."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("numba", reason="the event loop is compiled")
pytest.importorskip("grpc", reason="cells of `bench runtime` bring it")

from made_up_profiles import make_profile, ms

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "simulation_check.py"
SETTINGS = {
    "max_batch_delay_ms": None, "warmup_s": 1.0, "duration_s": 4.0, "links": [], "device_time": False, "tokens": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulation_check", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(workload: str, system: str, clients: int, **more: Any) -> dict[str, Any]:
    return {
        "workload": workload, "system": system, "clients": clients, "cuts": ["a", "c"], "uplink_bytes_per_item": 400.0,
        "rate_per_s": None, "device_ms_per_item": 0.0, "mean_batch": 1.0, "server_cpu_s_per_item": 0.001,
        "throughput_per_s": 100.0, "measured_ms_p50": 10.0, "measured_ms_p95": 12.0, **more,
    }  # fmt: skip


def test_what_is_the_same_is_within_ten_percent(check: ModuleType) -> None:
    """Each cell of a server has a row; where the measured figures are the simulated ones, it holds, and else it does not."""
    tails = {"a": ms(2.0, 1.0), "c": ms(1.0, 0.5)}
    profiles = {
        "vision": make_profile(tails, latency=ms(1.0), server=ms(0.5)),
        "lm": make_profile(tails, latency=ms(1.0), server=ms(0.5), kind="language-model"),
    }
    cells = [
        cell(workload, system, clients)
        for workload in profiles
        for system, clients in (("serverlight", 1), ("serverlight", 6), ("one-by-one", 6), ("in-process", 6))
    ]
    first = list(check.compared({"rows": cells, "settings": SETTINGS}, profiles, {"spread": 0.1}))
    assert [(row["system"], row["clients"]) for row in first[:3]] == [
        ("serverlight", 1), ("serverlight", 6), ("one-by-one", 6),
    ]  # fmt: skip
    assert not any(row["holds"] for row in first)
    seen = iter(first)
    measured = [row if row["system"] == "in-process" else row | as_measured(next(seen)["simulated"]) for row in cells]
    second = list(check.compared({"rows": measured, "settings": SETTINGS}, profiles, {"spread": 0.1}))
    assert all(row["holds"] for row in second)
    assert "6 of 6 settings" in check.as_table(second)


def as_measured(simulated: dict[str, float]) -> dict[str, float]:
    return {
        "throughput_per_s": simulated["throughput_per_s"], "measured_ms_p50": simulated["p50_ms"],
        "measured_ms_p95": simulated["p95_ms"],
    }  # fmt: skip


def test_spread_is_that_of_a_client_alone(check: ModuleType) -> None:
    """A 95th percentile and a median of one client tell how far times spread; without such a row they do not."""
    alone = cell(
        "vision",
        "serverlight",
        1,
        measured_ms_p50=10.0 * (1 + 0.1 * check.P50),
        measured_ms_p95=10.0 * (1 + 0.1 * check.P95),
    )
    assert check.spread_of([alone], "vision") == pytest.approx(0.1)
    assert check.spread_of([alone | {"clients": 2}], "vision") == 0.0
