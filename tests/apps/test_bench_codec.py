"""Tests of ``serverlight bench codec``."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from serverlight.apps.bench_plots import _front, plot_codecs
from serverlight.apps.bench_tables import rate_sections
from serverlight.apps.cli import main
from serverlight.apps.commands.bench_codec import _families, _task_names
from serverlight.codec.rivals import family
from serverlight.evaluation.checks import Check
from serverlight.evaluation.codec_bench import TaskReport, bench_task
from serverlight.evaluation.rates import RateRow
from serverlight.evaluation.speed import SpeedRow
from serverlight.evaluation.tasks import UPLINK_TASKS, load_task

RATE_FIELDS = {
    "model", "cut", "codec", "config", "bits_per_element", "ratio_vs_fp16", "quality", "quality_delta_pp",
    "quality_interval_pp", "kl", "rel_mse", "ecsq_bits_per_element",
}  # fmt: skip


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(["bench", "codec", *words])
    return int(exited.value.code or 0)


@pytest.fixture(scope="module")
def report() -> TaskReport:
    codecs = [family(name) for name in ("int-channel", "uniform-rans")]
    return bench_task(load_task("demo", limit=20), codecs, reference="uniform-rans", rounds=0)


def speed_row(codec: str, shape: tuple[int, ...]) -> SpeedRow:
    size = 4 * int(np.prod(shape))
    return SpeedRow(
        codec=codec, shape=shape, dtype="float32", tensor_bytes=size, bits_per_element=2.0, encode_gb_s=1.0,
        decode_gb_s=2.0, encode_us=size / 1e3, decode_us=size / 2e3, encode_vs_memcpy=10.0, decode_vs_memcpy=5.0,
        memcpy_gb_s=10.0, rounds=3,
    )  # fmt: skip


def test_demo_needs_no_data(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a data folder the shipped model is measured; rows have every field asked for, and tables tell the same."""
    monkeypatch.delenv("SERVERLIGHT_SHARED", raising=False)
    path = tmp_path / "c.json"
    codecs = "int-channel,uniform-rans"
    assert run("--codecs", codecs, "--limit", "20", "--quick", "--no-speed", "--json", str(path)) == 0
    fields = json.loads(path.read_text())
    assert {row["codec"] for row in fields["rows"]} == {*codecs.split(","), "jpeg input", "raw input"}
    assert fields["uplink"] == []
    assert all(row.keys() >= RATE_FIELDS for row in fields["rows"])
    assert [task["task"] for task in fields["tasks"]] == ["demo"]
    assert fields["speed"] == []
    best = {e["codec"]: e["bits_per_element"] for e in fields["tasks"][0]["best"] if e["bits_per_element"]}
    printed = capsys.readouterr().out
    for codec, bits in best.items():
        assert any(codec in line and f"{bits:.2f}" in line for line in printed.splitlines())


def test_codecs_that_not_every_task_has(report: TaskReport) -> None:
    """A codec with a basis has no row for feature maps: its cells there are empty, and the others stay in their places."""
    without = dataclasses.replace(report, comparisons=report.comparisons[1:], equal_kl=None)
    for pair in ((report, without), (without, report)):
        for section in rate_sections(pair, 1.0):
            cells = {row[0]: row[1:] for row in section.rows}
            assert sorted(cells) == sorted(comparison.codec for comparison in report.comparisons)
            missing, place = report.comparisons[0].codec, pair.index(without)
            assert cells[missing][place] == "-"
            assert cells["uniform-rans"][0].split()[0] == cells["uniform-rans"][1].split()[0]


QUICK = ("--tasks", "demo", "--codecs", "q80", "--limit", "4", "--quick")


def test_uplink(tmp_path: pathlib.Path, shared_data: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row for each task that was asked for, names those that were not, and is in JSON and Markdown; nothing is
    timed.
    """
    words = ("--uplink", "--tasks", "LM-0.26M-4", "--codecs", "serverlight,q80", "--limit", "6", "--quick")
    files = ("--json", str(tmp_path / "u.json"), "--markdown", str(tmp_path / "u.md"), "--data", str(shared_data))
    assert run(*words, *files) == 0
    fields, page = json.loads((tmp_path / "u.json").read_text()), (tmp_path / "u.md").read_text()
    assert [(row["model"], row["position"]) for row in fields["uplink"]] == [("stories260K", "late")]
    assert [cell["codec"] for cell in fields["uplink"][0]["cells"]] == ["serverlight", "q80", "jpeg input", "raw input"]
    assert fields["speed"] == []
    printed = capsys.readouterr().out
    assert "is serverlight best?" in printed
    assert "Not measured: R56-early" in " ".join(printed.split())
    assert "How many times less than fp16 each codec sends" in page
    assert "How many times less than fp16 each codec sends" not in printed


def test_uplink_leaves_out_longer_forms() -> None:
    """By default the table has every codec but the forms of plain SLICER that another form is shorter than."""
    names = {found.name for found in _families("all", True)}
    assert {found.name for found in _families("all", False)} - names == {
        "slicer", "slicer-bitmap", "slicer-csr", "serverlight-basis", "serverlight-trellis", "serverlight-trellis-basis",
        "serverlight-steps", "serverlight-cosine", "serverlight-corrected",
    }  # fmt: skip
    assert list(_task_names("all", None, True)) == list(UPLINK_TASKS)
    assert [found.name for found in _families("slicer-csr", True)] == ["slicer-csr"]


@pytest.fixture
def imagined_times(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """No clock runs; the shapes that were to be timed are listed."""
    shapes: list[tuple[int, ...]] = []

    def imagine(_: object, shape: tuple[int, ...], **__: object) -> list[SpeedRow]:
        shapes.append(shape)
        slow = dataclasses.replace(speed_row("bitsandbytes int8 64", shape), encode_us=1e6)
        return [speed_row("serverlight (cpu)", shape), slow]

    monkeypatch.setattr("serverlight.apps.bench_run.time_codecs", imagine)
    extra = Check(name="warm start", value=0.5, unit="s", limit=1.0)
    monkeypatch.setattr("serverlight.apps.bench_run.extra_checks", lambda rows, codec: [extra])
    return shapes


def test_speed_and_claims_reach_file_and_tables(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], imagined_times: list[tuple[int, ...]]
) -> None:
    """Speed rows and what is claimed of them are in the JSON, in the tables on screen and in the Markdown."""
    assert run(*QUICK, "--json", str(tmp_path / "c.json"), "--markdown", str(tmp_path / "c.md")) == 0
    fields = json.loads((tmp_path / "c.json").read_text())
    assert fields["speed"][0] == {**speed_row("serverlight (cpu)", (1, 4096)).to_dict(), "shape": [1, 4096]}
    checks = {check["name"]: check for check in fields["checks"]}
    assert all(check.keys() >= {"name", "value", "wanted", "holds"} for check in checks.values())
    assert checks["warm start"]["holds"]
    claim = checks["serverlight (cpu): encode 512 x 4096, speed over the fastest of bitsandbytes"]
    assert (claim["value"], claim["wanted"], claim["holds"]) == (pytest.approx(1e6 / 8388.608), ">= 3 x", True)
    for text in (capsys.readouterr().out, (tmp_path / "c.md").read_text()):
        assert "memcpy of a buffer of that size 10.0 GB/s" in text
        assert "speed over the fastest of bitsandbytes" in text


def test_a_stopped_run_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, imagined_times: list[tuple[int, ...]]
) -> None:
    """With --resume only what the file lacks is measured, and the file ends as that of a run in one go."""
    path = tmp_path / "c.json"
    assert run(*QUICK, "--json", str(path)) == 0
    whole = json.loads(path.read_text())
    part = {**whole, "speed": [row for row in whole["speed"] if row["shape"] == [1, 4096]], "extras": []}
    path.write_text(json.dumps(part))
    monkeypatch.setattr("serverlight.apps.bench_run.bench_task", None)
    imagined_times.clear()
    assert run(*QUICK, "--json", str(path), "--resume") == 0
    assert imagined_times == [(1, 64, 56, 56), (512, 4096)]
    assert {**json.loads(path.read_text()), "seconds": 0} == {**whole, "seconds": 0}


def test_resume_needs_the_same_settings(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of two kinds never end up in one file."""
    path = tmp_path / "c.json"
    assert run(*QUICK, "--no-speed", "--json", str(path)) == 0
    assert run(*QUICK[:-2], "5", "--quick", "--no-speed", "--json", str(path), "--resume") == 2
    assert "resume: " in (told := capsys.readouterr().err)
    assert "measured with another samples" in told
    path.write_text("{}")
    assert run(*QUICK, "--no-speed", "--json", str(path), "--resume") == 2
    assert "is not of an earlier run" in capsys.readouterr().err
    assert run(*QUICK, "--no-speed", "--resume") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--codecs", "zip"), "unknown codec 'zip'; choose from serverlight"),
        (("--tasks", "demo,R57"), "unknown task 'R57'; choose from demo"),
        (("--tasks", "R56-mid", "--data", "nowhere"), "R56-mid needs vision_cifar10/resnet56.safetensors"),
        (("--json", "no/such/folder/c.json"), "create it first"),
    ],
)
def test_wrong_words(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name is told before anything is measured, with the right ones."""
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_what_is_done_stays(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped in the middle leaves the tasks that were finished in the file."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serverlight.apps.bench_run.time_codecs", stop)
    path = tmp_path / "c.json"
    assert run(*QUICK, "--json", str(path)) == 130
    codecs = [row["codec"] for row in json.loads(path.read_text())["rows"]]
    assert [*dict.fromkeys(codecs)] == ["q80", "jpeg input", "raw input"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(tmp_path: pathlib.Path, report: TaskReport, suffix: str) -> None:
    """Curves of the tasks and times by size become one picture, also where either is missing."""
    speed = [speed_row(codec, (1, n)) for codec in ("serverlight (cpu)", "q80") for n in (256, 4096)]
    for name, reports, timed in (("both", [report], speed), ("rates", [report], []), ("speed", [], speed)):
        path = tmp_path / f"{name}.{suffix}"
        plot_codecs(reports, timed, str(path))
        assert path.stat().st_size > 5000


def test_curves_show_no_beaten_settings() -> None:
    """A point with more bits and no less error than another is left out of a curve."""
    assert _front([(2.0, 0.3), (1.0, 0.5), (3.0, 0.3), (4.0, 0.1), (5.0, 0.2)]) == [(1.0, 0.5), (2.0, 0.3), (4.0, 0.1)]


def test_rows_have_the_fields_asked_for() -> None:
    """What outside readers of the JSON rely on."""
    assert RateRow.__dataclass_fields__.keys() >= RATE_FIELDS
    wanted = {"codec", "shape", "dtype", "encode_gb_s", "decode_gb_s", "encode_us", "decode_us"}
    assert wanted | {"encode_vs_memcpy", "decode_vs_memcpy"} <= SpeedRow.__dataclass_fields__.keys()
