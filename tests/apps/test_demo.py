"""``serverlight demo``: real processes on a few images, and the arithmetic on made-up figures."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from serverlight.apps.demo.children import Family
from serverlight.apps.demo.measure import Measured
from serverlight.apps.demo.modes import DEVICE, FP16, JPEG, OURS, PNG, SLICER, Mode, make_modes
from serverlight.apps.demo.report import Row, make_rows, summary, table_cells
from serverlight.apps.demo.worker import Answer
from serverlight.apps.plots import plot_demo
from serverlight.errors import PeerUnavailable

Cli = Callable[..., Any]

FIELDS = [
    "mode",
    "cut",
    "requests",
    "uplink_bytes_per_request",
    "ratio_vs_fp16",
    "ratio_vs_jpeg",
    "server_cpu_ms_per_request",
    "server_time_ratio_vs_full",
    "device_ms",
    "latency_ms_p50",
    "latency_ms_p95",
    "accuracy",
    "accuracy_delta_pp",
]

ROWS = [
    ("png", "input"),
    ("jpeg", "input"),
    ("fp16", "layer2"),
    ("fp16", "layer3.0"),
    ("slicer", "layer2"),
    ("slicer", "layer3.0"),
    ("serverlight", "layer2"),
    ("serverlight", "layer3.0"),
    ("device", "output"),
]


def test_small_demo(cli: Cli, tmp_path: pathlib.Path) -> None:
    """Real processes over an imitated link: every mode has its row, and the rows make sense."""
    path = tmp_path / "d.json"
    words = ["--limit", "6", "--clients", "1", "--cut", "layer3.0", "--cut", "layer2", "--link", "100mbit,1ms"]
    outcome = cli("demo", *words, "--json", str(path), "--plot", str(tmp_path / "figure"))
    assert (outcome.code, outcome.err) == (0, "")
    document = json.loads(path.read_text())
    rows = document["rows"]
    assert {"date", "versions", "hardware", "settings"} <= set(document)
    assert document["settings"]["link"] == "100mbit,1ms"
    assert [(row["mode"], row["cut"]) for row in rows] == ROWS
    for row in rows:
        check_row(row)
    by = {(row["mode"], row["cut"]): row for row in rows}
    assert by["serverlight", "layer3.0"]["ratio_vs_fp16"] > by["slicer", "layer3.0"]["ratio_vs_fp16"] > 5
    assert 2 * 3072 < by["fp16", "layer3.0"]["uplink_bytes_per_request"] < 2 * 3072 + 100
    assert by["png", "input"]["accuracy_delta_pp"] == by["device", "output"]["accuracy_delta_pp"] == 0
    assert all(title in outcome.out for title in ("full server, PNG", "layer3.0, SLICER", "all on the device"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def check_row(row: dict[str, Any]) -> None:
    assert list(row) == FIELDS
    assert row["requests"] == 6
    assert 0.5 <= row["accuracy"] <= 1
    assert 0 < row["latency_ms_p50"] <= row["latency_ms_p95"]
    assert 0 < row["device_ms"] <= row["latency_ms_p95"]
    if row["mode"] == DEVICE:
        assert (row["uplink_bytes_per_request"], row["server_cpu_ms_per_request"]) == (0, 0)
        assert row["ratio_vs_fp16"] is row["ratio_vs_jpeg"] is row["server_time_ratio_vs_full"] is None
    else:
        assert row["latency_ms_p50"] > 2  # there and back over the link
        assert 0 < row["server_cpu_ms_per_request"] < 1000


# -- the arithmetic, on made-up figures ------------------------------------------------------------


def modes() -> list[Mode]:
    return make_modes("demo-vision", "r", ["layer1", "layer3.0"], first="input", last="output")


def measured(mode: Mode, num_bytes: int, *, cpu_ms: float, latency_ms: float, right: int = 10) -> Measured:
    answers = [
        Answer(
            key=mode.key,
            image=i,
            is_lead_in=False,
            predicted=0 if i < right else 1,
            latency_ms=latency_ms + i,
            device_ms=1.0,
            uplink_bytes=num_bytes,
            process_cpu_ms=None,
        )
        for i in range(10)
    ]
    return Measured(answers=answers, server_cpu_ms=10 * cpu_ms, server_requests=10)


def made_up_rows() -> list[Row]:
    figures = {
        (PNG, "input"): {"num_bytes": 800, "cpu_ms": 9.0, "latency_ms": 20.0},
        (JPEG, "input"): {"num_bytes": 500, "cpu_ms": 8.0, "latency_ms": 15.0, "right": 9},
        (FP16, "layer1"): {"num_bytes": 10_000, "cpu_ms": 4.0, "latency_ms": 30.0},
        (FP16, "layer3.0"): {"num_bytes": 4_000, "cpu_ms": 2.0, "latency_ms": 30.0},
        (SLICER, "layer1"): {"num_bytes": 1_000, "cpu_ms": 8.5, "latency_ms": 16.0, "right": 9},
        (SLICER, "layer3.0"): {"num_bytes": 250, "cpu_ms": 4.0, "latency_ms": 10.0},
        (OURS, "layer1"): {"num_bytes": 400, "cpu_ms": 4.0, "latency_ms": 16.0},
        (OURS, "layer3.0"): {"num_bytes": 125, "cpu_ms": 2.0, "latency_ms": 9.0},
        (DEVICE, "output"): {"num_bytes": 0, "cpu_ms": 0.0, "latency_ms": 12.0},
    }
    found = {mode.key: measured(mode, **figures[mode.mode, mode.cut]) for mode in modes()}  # type: ignore[arg-type]
    return make_rows(modes(), found, [0] * 10)


def test_ratios_name_their_base() -> None:
    """Features are compared with fp16 at their own cut, images with fp16 at the first; the server with the better file."""
    rows = {(row.mode, row.cut): row for row in made_up_rows()}
    assert rows[SLICER, "layer3.0"].ratio_vs_fp16 == 16
    assert rows[SLICER, "layer1"].ratio_vs_fp16 == 10
    assert rows[JPEG, "input"].ratio_vs_fp16 == 20
    assert rows[SLICER, "layer3.0"].ratio_vs_jpeg == 2
    assert rows[SLICER, "layer3.0"].server_time_ratio_vs_full == 2
    assert rows[PNG, "input"].server_time_ratio_vs_full == pytest.approx(8 / 9)
    assert rows[SLICER, "layer1"].accuracy_delta_pp == pytest.approx(-10)
    assert rows[SLICER, "layer3.0"].latency_ms_p95 == 10 + 9


def test_table_says_where_a_codec_loses() -> None:
    """A coded row that sends more, burdens the server more, is slower or less accurate says so; others say nothing."""
    cells = {row[0]: row[1] for row in table_cells(made_up_rows(), modes())}
    assert cells["layer1, SLICER"] == "bytes, server, latency, accuracy"
    assert cells["layer1, serverlight"] == "latency"
    assert cells["layer3.0, SLICER"] == cells["layer3.0, serverlight"] == ""
    assert cells["full server, JPEG"] == cells["all on the device"] == ""


def test_summary_says_what_won() -> None:
    """The sentence gives both directions: fewer or more, less or more."""
    text = summary(made_up_rows())
    assert "serverlight at layer3.0 sends 32.0x fewer bytes than fp16 features, 2.0x fewer than SLICER" in text
    assert "4.0x fewer than the JPEG; it takes 4.0x less of the server's time" in text
    assert "Fastest here is serverlight at layer3.0 (13.5 ms)" in text


def test_plot_draws_every_row(tmp_path: pathlib.Path) -> None:
    """The figure has a label for each row, and comes as PNG and SVG whichever was named."""
    titles = [mode.title for mode in modes()]
    png, svg = plot_demo(made_up_rows(), titles, "a caption", str(tmp_path / "figure.v2.svg"))
    assert (png.name, svg.name) == ("figure.v2.png", "figure.v2.svg")
    text = svg.read_text()
    assert all(f"<!-- {title} -->" in text for title in titles)


# -- child processes -------------------------------------------------------------------------------


def test_last_words_of_a_failed_child() -> None:
    """When a child fails, the error names it and says why."""
    with Family() as family:
        family.start("server", "serverlight", "inspect", "nowhere.sl")
        with pytest.raises(PeerUnavailable, match=r"^server process: frame: cannot read nowhere\.sl"):
            family.hear()


def test_children_end_with_the_block() -> None:
    """No child is left when the block ends, neither after success nor after an error."""
    children = []
    for error in (None, RuntimeError):
        try:
            with Family() as family:
                children += [family.start("waiting", "json.tool") for _ in range(2)]
                if error:
                    raise error
        except RuntimeError:
            pass
    assert all(not child.is_alive for child in children)


def test_stubborn_child_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that goes on when its standard input has ended does not outlive the block either."""
    monkeypatch.setattr("serverlight.apps.demo.children.STOP_S", 0.1)
    with Family() as family:
        child = family.start("stubborn", "http.server", "0", "--bind", "127.0.0.1")
    assert not child.is_alive
