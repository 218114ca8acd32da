"""``serverlight report``: stages that resume, keys, the page and what is missing on it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the page has figures")
TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)

from made_up import plain_table, text_profile, vision_profile  # noqa: E402
from serverlight.apps.report import children, keys, runner  # noqa: E402
from serverlight.apps.report.blocks import Table  # noqa: E402
from serverlight.apps.report.children import Children  # noqa: E402
from serverlight.apps.report.compose import compose, write  # noqa: E402
from serverlight.apps.report.found import Found  # noqa: E402
from serverlight.apps.report.html import as_html  # noqa: E402
from serverlight.apps.report.markdown import as_markdown  # noqa: E402
from serverlight.apps.report.parts import Command, Function, Part, Stage  # noqa: E402
from serverlight.apps.report.records import Record, Shelf  # noqa: E402
from serverlight.apps.report.sections.rates import reductions  # noqa: E402
from serverlight.apps.report.settings import QUICK, Settings, Subject  # noqa: E402
from serverlight.apps.report.stages import STAGES  # noqa: E402
from serverlight.apps.uplink_tables import verdict_text  # noqa: E402
from serverlight.evaluation.codec_bench import TaskReport  # noqa: E402
from serverlight.evaluation.uplink import uplink_row  # noqa: E402

Cli = Callable[..., Any]

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
HOSTILE = "<script>alert(1)</script>|`x`"


def settings_at(out: pathlib.Path, data: pathlib.Path | None = None) -> Settings:
    models = (Subject(spec="demo-vision", kind="images"), Subject(spec="demo-lm", kind="language", layers=8))
    return Settings(out=out, data=data, subjects=models, budget=QUICK)


# -- what is measured, and when it is not measured again ----------------------------------------------


def reading(folder: pathlib.Path, *names: str, is_timed: bool = True) -> Stage:
    """A stage whose parts read a JSON file each."""

    def parts(settings: Settings) -> list[Part]:
        return [
            Part(
                name=name,
                work=Function(
                    module="serverlight.json_files",
                    name="load_json",
                    arguments={"path": str(folder / name), "field": "file"},
                ),
                minutes=1,
                files=(folder / name,),
            )
            for name in names
        ]

    return Stage(name="reading", title="Reading", parts=parts, is_timed=is_timed)


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Callable[..., tuple[dict[str, Record], list[str]]]:
    """Runs a stage; returns its records and the parts that were measured for it."""

    def run_it(stage: Stage, chosen: tuple[str, ...] = ()) -> tuple[dict[str, Record], list[str]]:
        said = list[str]()
        records = runner.run_stages([stage], settings_at(tmp_path / "out"), chosen=chosen, say=said.append)
        begun = [match[1] for line in said if (match := re.match(r"\d+ of \d+: reading/([^,]+),", line))]
        return {record.part: record for record in records}, begun

    return run_it


def write_json(folder: pathlib.Path, **values: Any) -> None:
    for name, value in values.items():
        (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("is_timed", [True, False])
def test_what_is_done_is_not_done_again(tmp_path: pathlib.Path, run: Any, is_timed: bool) -> None:
    """A second run measures only the part whose data has changed, and keeps the results of the others."""
    write_json(tmp_path, a=1, b=2)
    stage = reading(tmp_path, "a", "b", is_timed=is_timed)
    records, begun = run(stage)
    assert sorted(begun) == ["a", "b"]
    assert {part: record.result for part, record in records.items()} == {"a": 1, "b": 2}
    write_json(tmp_path, b=3)
    records, begun = run(stage)
    assert begun == ["b"]
    assert {part: record.result for part, record in records.items()} == {"a": 1, "b": 3}
    assert run(stage)[1] == []


def test_stopped_run_goes_on(tmp_path: pathlib.Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C in the second part the next run begins with it, and does not repeat the first."""
    write_json(tmp_path, a=1, b=2, c=3)
    stage, real = reading(tmp_path, "a", "b", "c"), Children.run

    def stop_at_b(self: Children, words: list[str]) -> Any:
        if any(word.endswith('/b", "field": "file"}') for word in words):
            raise KeyboardInterrupt
        return real(self, words)

    monkeypatch.setattr(Children, "run", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        run(stage)
    monkeypatch.undo()
    records, begun = run(stage)
    assert begun == ["b", "c"]
    assert all(record.status == "done" for record in records.values())


def words_of(process: pathlib.Path) -> str:
    """What a process was started with; nothing of one that has ended meanwhile."""
    with contextlib.suppress(OSError):
        return (process / "cmdline").read_text()
    return ""


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/cmdline").exists(), reason="looks at processes in /proc, as Linux has it"
)
@pytest.mark.parametrize(
    ("is_timed", "is_in_background", "number", "starts"),
    [
        (True, False, signal.SIGTERM, "call"),
        (False, False, signal.SIGTERM, "call"),
        (False, True, signal.SIGTERM, "call"),
        (True, False, signal.SIGINT, "call"),
        (False, False, signal.SIGINT, "Popen"),  # nobody waits for what was started, and it holds the part's pipe
        (False, False, signal.SIGTERM, "obstinate"),
    ],
)
def test_signal_ends_all_that_was_started(
    tmp_path: pathlib.Path,
    run: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    is_timed: bool,
    is_in_background: bool,
    number: int,
    starts: str,
) -> None:
    """A signal that the report alone gets also ends its parts and what they have started, and nothing is kept of them.

    So it does where Ctrl-C is ignored, as in a shell's job in the background.
    """
    taken_by = signal.SIG_IGN if is_in_background else signal.default_int_handler
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, taken_by)))
    monkeypatch.setattr(children, "GRACE_S", 0.5 if starts == "obstinate" else children.GRACE_S)
    seconds = f"60.{os.getpid()}"  # to be told from others' by
    words = ["sh", "-c", f"trap '' INT; sleep {seconds}; :"] if starts == "obstinate" else ["sleep", seconds]

    def parts(settings: Settings) -> list[Part]:
        name = "Popen" if starts == "Popen" else "call"
        work = Function(module="subprocess", name=name, arguments={"args": words})
        return [Part(name=name, work=work, minutes=1) for name in ("a", "b", "c")]

    def sleepers() -> int:
        return [words_of(process) for process in pathlib.Path("/proc").glob("[0-9]*")].count(f"sleep\0{seconds}\0")

    def stop_when_asleep() -> None:
        while not sleepers():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before, begun = signal.getsignal(signal.SIGTERM), time.monotonic()
    stopper = threading.Thread(target=stop_when_asleep, daemon=True)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        run(Stage(name="reading", title="Sleeping", parts=parts, is_timed=is_timed))
    stopper.join()
    assert (sleepers(), signal.getsignal(signal.SIGTERM)) == (0, before)
    assert signal.getsignal(signal.SIGINT) is taken_by
    assert time.monotonic() - begun < 50, "they were waited for"
    assert not list((tmp_path / "out").rglob("*.record.json"))


def test_what_cannot_be_run_has_a_reason(tmp_path: pathlib.Path, run: Any) -> None:
    """A part that the package refuses is not run, one that breaks has failed, and both are tried again the next time."""
    write_json(tmp_path, a=1)
    broken = Part(
        name="broken", work=Function(module="serverlight.json_files", name="no_such", arguments={}), minutes=1
    )
    reads = reading(tmp_path, "a", "gone")
    stage = dataclasses.replace(reads, parts=lambda settings: [*reads.parts(settings), broken])
    records, _ = run(stage)
    assert [record.status for record in records.values()] == ["done", "not run", "failed"]
    assert "cannot read" in records["gone"].reason
    assert "no_such" in records["broken"].reason
    write_json(tmp_path, gone=4)
    records, begun = run(stage)
    assert begun == ["gone", "broken"]
    assert records["gone"].result == 4


def test_only_what_was_asked_for(tmp_path: pathlib.Path, run: Any) -> None:
    """--stages names stages or parts; what was measured before is shown all the same."""
    write_json(tmp_path, a=1, b=2)
    stage = reading(tmp_path, "a", "b")
    records, begun = run(stage, ("reading/b",))
    assert begun == ["b"]
    assert (records["a"].status, records["a"].reason) == ("not run", runner.NOT_ASKED)
    records, begun = run(stage, ("reading/a",))
    assert begun == ["a"]
    assert records["b"].result == 2


def test_half_a_record_is_none(tmp_path: pathlib.Path, run: Any) -> None:
    """Files that were cut short are measured again."""
    write_json(tmp_path, a=1)
    stage = reading(tmp_path, "a")
    records, _ = run(stage)
    (tmp_path / "out" / records["a"].file).write_text("[1,")
    records, begun = run(stage)
    assert begun == ["a"]
    assert records["a"].result == 1


def test_code_counts_but_not_what_is_said_of_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement of an imported module changes the key; comments, docstrings and modules that are not imported do not."""
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("def f():\n    from serverlight.other import x\n")
    other.write_text('"""Says so."""\nx = 1\n')
    (tmp_path / "third.py").write_text("y = 1\n")

    def digest() -> str:
        keys._read.cache_clear()
        return keys.code_digest(["serverlight.one"])

    before = digest()
    other.write_text('"""Says it otherwise."""\nx = 1  # and why\n"""What x is."""\n')
    (tmp_path / "third.py").write_text("y = 2\n")
    assert digest() == before
    other.write_text("x = 2\n")
    assert digest() != before
    keys._read.cache_clear()


def test_every_part_can_be_started() -> None:
    """What the stages run exists, and commands take the options that they are given."""
    import importlib

    from typer.main import get_command

    from serverlight.apps.cli import app

    parts = [part for stage in STAGES for part in stage.parts(settings_at(pathlib.Path("out")))]
    assert len(parts) > 10
    for part in parts:
        for module in part.work.modules:
            assert keys.code_digest([module])
        if isinstance(part.work, Function):
            assert callable(getattr(importlib.import_module(part.work.module), part.work.name))
        else:
            assert isinstance(part.work, Command)
            command: Any = get_command(app)
            words = [*part.work.words, "--json", "x", *(["--resume"] if part.work.resumes else [])]
            while hasattr(command, "commands"):
                command, words = command.commands[words[0]], words[1:]
            command.make_context("x", words)


# -- the page -----------------------------------------------------------------------------------------


def filed(name: str) -> dict[str, Any]:
    return json.loads(next(iter(sorted(RESULTS.glob(name)))).read_text())


def done(stage: str, results: Mapping[str, Any]) -> list[Record]:
    return [
        Record(stage=stage, part=part, status="done", result=result, told=f"serverlight {stage}", date="2026-01-01", seconds=60)
        for part, result in results.items()
    ]  # fmt: skip


def one_task(document: dict[str, Any], i: int) -> dict[str, Any]:
    task = document["tasks"][i]
    return {**document, "tasks": [task], "rows": [row for row in document["rows"] if row["task"] == task["task"]]}


@pytest.fixture
def records() -> list[Record]:
    """Results of most stages, from files of earlier benchmarks and made-up profiles."""
    codec = filed("codec_amd*.json")
    rates = {codec["tasks"][i]["task"]: one_task(codec, i) for i in (1, 2, 5)}
    first = next(iter(rates.values()))
    first["tasks"][0]["model"] = HOSTILE
    image, text = vision_profile(), text_profile()
    parts = {"header": 20, "model": 12, "symbols": 300, "checksum": 4}
    frame = {"config": {"profile": "serverlight", "sparsity": 0.5}, "parts": parts}
    return [
        *done("rates", rates),
        *done("ablation", filed("codec_ablation*.json")["tasks"]),
        *done("frames", {"demo": {"frames": 2, "elements": 2000, "rows": [frame]}}),
        *done("drift", {"demo-lm": filed("lm_drift*.json")}),
        *done("load", {"demo-vision": filed("runtime_vision*.json"), "demo-lm": filed("runtime_lm*.json")}),
        *done("device", {"times": {"rows": codec["speed"]}}),
        *done("profile", {"demo-vision": image.to_dict(), "demo-lm": text.to_dict()}),
        *done("quality", {"demo-vision": {**plain_table(image).to_dict(), "data": "x"}}),
        Record(stage="rates", part="MBv2-5", status="not run", reason="needs vision_imagenet/x.safetensors in the data folder"),
        Record(stage="fleet", part="demo-lm", status="failed", reason=f"it broke {HOSTILE}"),
    ]  # fmt: skip


def test_page_without_results_says_so(tmp_path: pathlib.Path) -> None:
    """Where nothing could be run the page has every section all the same, with the reason in each."""
    found = [
        Record(stage=stage.name, part="any", status="not run", reason="needs the data; give --data") for stage in STAGES
    ]
    page = compose(Found(settings=settings_at(tmp_path), records=found))
    text = as_markdown(page)
    assert len(page.sections) == 14
    assert text.count("Needs the data; give --data.") >= len(STAGES)
    assert "not measured here" in text


def test_page_has_what_was_measured_and_what_was_not(tmp_path: pathlib.Path, records: list[Record]) -> None:
    """Tables, figures and gaps are on the page, and it is the same as Markdown; nothing of a result becomes markup."""
    found = Found(settings=settings_at(tmp_path), records=records)
    write(found)
    html, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert html.count("<figure>") == text.count("![") >= 10
    assert "<script" not in html.lower()
    assert "&lt;script&gt;" in html
    assert "MBv2-5. Needs vision_imagenet/x.safetensors in the data folder." in re.sub(r"<[^>]+>", "", html)
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    for line in text.splitlines():
        if line.startswith("| ") and HOSTILE[:7] in line.replace("&lt;", "<"):
            assert "\\|" in line
            assert "<script" not in line
    for file in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (tmp_path / file).is_file()


def test_text_and_background_differ() -> None:
    """Text and its background differ by 4.5 to 1 at least, in light and in dark (WCAG AA)."""
    css = (pathlib.Path(runner.__file__).parent / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    )
    for colours in (light, dark):
        for ink, grounds in {
            "ink": ("paper", "card", "mark"), "soft": ("paper",), "accent": ("paper", "card"), "gap-ink": ("gap",),
        }.items():  # fmt: skip
            for ground in grounds:
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def browser_path() -> str:
    found = os.environ.get("SERVERLIGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: chromium or google-chrome in PATH, or SERVERLIGHT_CHROMIUM")
    return found


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = browser_path()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_page_in_a_browser(tmp_path: pathlib.Path, records: list[Record], browser: Any) -> None:
    """The page opens offline without a word on the console, shows every figure, and a phone need not scroll it sideways."""
    found = Found(settings=settings_at(tmp_path), records=records)
    path = tmp_path / "page.html"
    path.write_text(as_html(compose(found), tmp_path))
    page = browser.new_context(
        viewport={"width": 390, "height": 844}, offline=True, java_script_enabled=True
    ).new_page()
    complaints, asked = list[str](), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url.partition(",")[0]))
    page.goto(path.as_uri())
    assert complaints == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("nav a >> nth=2")
    assert page.evaluate("location.hash") == "#quality"


# -- who wins -----------------------------------------------------------------------------------------


def test_a_row_says_who_wins(tmp_path: pathlib.Path, records: list[Record]) -> None:
    """The table says of each cut what the comparison of the codecs says: who is best, or tied, and why."""
    found = Found(settings=settings_at(tmp_path), records=records)
    table = next(block for block in reductions(found).blocks if isinstance(block, Table))
    codec = filed("codec_amd*.json")
    expected = {row.cut: row for i in (1, 2, 5) for row in [uplink_row(report_of(one_task(codec, i)))]}
    assert len(table.rows) == 3
    for cells in table.rows:
        row = expected[cells[1].partition(" (")[0]]
        assert cells[-2:] == [verdict_text(row), row.reason]
        assert cells[5].startswith(f"{row.cell('serverlight').reduction:.1f}")


def report_of(document: dict[str, Any]) -> TaskReport:
    return TaskReport.from_dict(document["tasks"][0], document["rows"])


# -- the command --------------------------------------------------------------------------------------


def test_list_and_one_part(cli: Cli, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--list shows every part and runs nothing; then one part is measured, the page is written, and the list says so."""
    monkeypatch.delenv("SERVERLIGHT_SHARED", raising=False)
    words = ("report", "--quick", "--out", str(tmp_path / "look"))
    listed = json.loads(cli(*words, "--list", "--json", "-").out)["parts"]
    states = {row["part"]: row["state"] for row in listed}
    assert states["frames/demo"] == "to do"
    assert states["rates/R56-mid"] == "not run"
    assert not (tmp_path / "look").exists()
    outcome = cli(*words, "--stages", "frames/demo")
    assert outcome.code == 0, outcome.err
    assert "frames/demo" in outcome.err
    assert "1 done" in outcome.out
    assert "Bytes of a frame" in (tmp_path / "look" / "report.html").read_text()
    again = cli(*words, "--stages", "frames/demo")
    assert again.err == ""
    listed = json.loads(cli(*words, "--list", "--json", "-").out)["parts"]
    assert next(row["state"] for row in listed if row["part"] == "frames/demo") == "done"


def test_wrong_words_are_errors(cli: Cli, tmp_path: pathlib.Path) -> None:
    """An unknown stage, a missing data folder and an empty list of models are told by the option's name."""
    for words, option in (
        (["--stages", "speeds"], "stages"), (["--data", str(tmp_path / "no")], "data"), (["--models", ","], "models"),
    ):  # fmt: skip
        outcome = cli("report", "--out", str(tmp_path), *words)
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: {option}: ")


def test_a_model_that_is_not_there_is_a_gap(tmp_path: pathlib.Path) -> None:
    """Of a model that cannot be found every stage says so, and the others go on."""
    gone = Subject.read(str(tmp_path / "gone.safetensors"))
    settings = dataclasses.replace(settings_at(tmp_path), subjects=(gone, Subject.read("demo-lm")))
    entries = runner.look([stage for stage in STAGES if stage.name == "profile"], settings, Shelf(tmp_path))
    assert [entry.record is None for entry in entries] == [gone.kind is not None, True]
