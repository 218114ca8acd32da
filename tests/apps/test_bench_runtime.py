"""``serverlight bench runtime``: a short run with true servers; what it measures on a busy machine is not looked at."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from serverlight.apps.load_bench import LoadBench, run_bench
from serverlight.apps.made_models import make_resnet
from serverlight.apps.vision import load_model_images
from serverlight.errors import ConfigError
from serverlight.models import load_model

FIELDS = {
    "workload", "system", "clients", "cuts", "throughput_per_s", "latency_ms_p50", "latency_ms_p95", "latency_ms_p99",
    "server_cpu_s_per_item", "uplink_bytes_per_item", "mean_batch",
}  # fmt: skip

BENCH: dict[str, Any] = {
    "vision": "demo-vision", "lm": "demo-lm", "clients": (2,), "vision_cuts": (), "lm_cuts": (), "data": None, "text": None,
    "tokens": 24, "duration_s": 1.0, "warmup_s": 0.1, "rounds": 1, "rate_per_s": None, "device_time": False, "links": (),
    "max_batch_delay_ms": None, "dtype": "float32",
}  # fmt: skip

NETWORKED = ["full-server", "fp16-cut", "serverlight", "one-by-one"]


def test_short_run(cli: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    """Every system of both workloads has a row with all fields, counts add up, and tables and figure are written."""
    pytest.importorskip("matplotlib")
    out, page, figure = (tmp_path / name for name in ("r.json", "r.md", "r.png"))
    words = [
        "--clients",
        "2",
        "--duration",
        "1",
        "--warmup",
        "0.1",
        "--rounds",
        "1",
        "--tokens",
        "24",
        "--lm",
        "demo-lm",
    ]
    done = cli("bench", "runtime", *words, "--json", str(out), "--markdown", str(page), "--plot", str(figure))
    assert done.code == 0, done.err
    document = json.loads(out.read_text())
    rows = document["rows"]
    assert all(row.keys() >= FIELDS for row in rows)
    for workload in ("vision", "lm"):
        found = [row["system"] for row in rows if row["workload"] == workload]
        assert found[: len(NETWORKED)] == NETWORKED
    for row in rows:
        assert row["items"] > 0
        assert row["throughput_per_s"] == pytest.approx(row["items"] / row["seconds"])
        assert 1 <= row["mean_batch"] <= 2
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p95"] <= row["latency_ms_p99"]
        assert row["server_cpu_s_per_item"] > 0
        assert (row["uplink_bytes_per_item"] > 0) == (row["system"] != "in-process")
        assert row["clients"] == 2
    ours, halves = (
        next(row for row in rows if (row["workload"], row["system"]) == ("vision", name))
        for name in ("serverlight", "fp16-cut")
    )
    assert ours["uplink_bytes_per_item"] < halves["uplink_bytes_per_item"]
    assert document.keys() >= {"cpu", "cores", "date", "versions", "settings", "load_before", "checks"}
    assert page.read_text().startswith("# A server under the load of many devices")
    assert figure.stat().st_size > 0


def test_open_loop_over_a_link() -> None:
    """With a rate and links the images come at random times, as many as were due, and no faster than the links allow."""
    bench = {
        **BENCH,
        "lm": "none",
        "rate_per_s": 40.0,
        "links": ("100mbit,20ms", "100mbit,30ms"),
        "vision_cuts": ("layer3.0",),
    }
    result = run_bench(LoadBench(**bench))
    networked = [row for row in result.rows if row.system in NETWORKED]
    assert all(row.rate_per_s == 40.0 for row in networked)
    assert all(10 < row.items + row.refused + row.unanswered < 80 for row in networked)
    assert all(row.latency_ms_p50 >= 40 for row in networked)
    assert not result.checks


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"vision": "none", "lm": "none"}, "lm"),
        ({"clients": (0,)}, "clients"),
        ({"clients": (1000,)}, "clients"),
        ({"links": ("fast",)}, "link"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], field: str) -> None:
    """What cannot be measured is refused before anything is loaded."""
    with pytest.raises(ConfigError) as refusal:
        LoadBench(**{**BENCH, **change})
    assert refusal.value.field == field


def test_quick_is_shorter() -> None:
    """A quick look takes a shipped model and one short turn."""
    quick = LoadBench(
        **{**BENCH, "vision": "random-resnet", "lm": "random-llama", "rounds": 5, "duration_s": 60.0}
    ).quick()
    assert (quick.vision, quick.lm, quick.rounds, quick.duration_s) == ("demo-vision", "demo-lm", 1, 1.0)
    assert quick.clients == (1, 8)


def test_no_path_is_told() -> None:
    """Models and data in folders of the user's are known by their last name."""
    told = LoadBench(**{**BENCH, "lm": "/home/me/models/llama"}).to_dict()
    assert told["lm"] == "llama"


def test_made_models_are_what_they_say(tmp_path: pathlib.Path) -> None:
    """The ResNet-50 that is made for the purpose loads as any other, and the images beside it fit it."""
    spec, data = make_resnet(tmp_path)
    model = load_model(spec)
    assert round(sum(weight.numel() for weight in model.module.parameters()) / 1e6) == 24
    assert load_model_images(model, data, 2).images.shape == (2, 224, 224, 3)
