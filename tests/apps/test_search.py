"""``serverlight search``: one screen, files, and exit codes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)

from made_up import NAMES, plain_table, text_profile, vision_profile  # noqa: E402
from serverlight.frontier import Frontier  # noqa: E402
from serverlight.plan import Plan  # noqa: E402

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Options that name profiles and qualities, for an image model and a language model."""
    folder, made = tmp_path_factory.mktemp("search"), {}
    for name, profile in (("image", vision_profile), ("text", text_profile)):
        words = []
        for option, thing in (
            ("--device-profile", profile(0.5)),
            ("--server-profile", profile(4.0)),
            ("--quality", plain_table(profile())),
        ):
            path = folder / f"{name}{option}.json"
            thing.save(path)
            words += [option, str(path)]
        made[name] = ["search", "made-up", *words, "--uplink", "2mbit,10ms"]
    return made


REAL_CUTS = ("input", "layer1", "layer2", "layer3.0", "output")

CAPS = ["--latency", "90ms", "--device-memory", "3MiB", "--max-loss", "1pp"]


def test_screen_tells_plan_rivals_and_reasons(cli: Cli, files: dict[str, list[str]]) -> None:
    """The plan, both honest rivals with what rules them out, and the caps that bind, in fewer lines than a screen has."""
    outcome = cli(*files["image"], *CAPS, "--input-bytes", "20kB")
    assert outcome.code == 0
    assert outcome.out.startswith("Cut made-up at block1")
    assert "Raw input to a full server is ruled out: latency 112 ms over 90 ms." in outcome.out
    assert "All on the device is ruled out: device memory 4.25 MiB over 3 MiB." in outcome.out
    assert "The cap on device memory binds (3 MiB): a tenth more would buy 50%" in outcome.out
    assert outcome.out.count("\n") <= 24


def test_explain_tells_caps_and_frontier(cli: Cli, files: dict[str, list[str]]) -> None:
    """--explain adds a line for each cap and one for each plan that no other beats."""
    plain, more = (
        cli(*files["text"], *CAPS[:2]).out,
        cli(*files["text"], *CAPS[:2], "--first-token", "2s", "--explain").out,
    )
    assert "Frontier" not in plain
    assert "Frontier" in more
    assert "first token" in more.partition("Caps")[2]


def test_written_files_can_be_used(cli: Cli, files: dict[str, list[str]], tmp_path: pathlib.Path) -> None:
    """Plan, frontier, figure and JSON are written, and the first two are those that the runtime reads."""
    pytest.importorskip("matplotlib")
    paths = {name: tmp_path / name for name in ("plan.json", "frontier.json", "plot.png", "all.json")}
    words = ["--save", paths["plan.json"], "--frontier", paths["frontier.json"], "--plot", paths["plot.png"]]
    outcome = cli(*files["image"], *CAPS, *map(str, words), "--json", str(paths["all.json"]))
    assert outcome.code == 0
    plan, frontier = Plan.load(paths["plan.json"]), Frontier.load(paths["frontier.json"])
    document = json.loads(paths["all.json"].read_text())
    assert plan.cut == "block1"
    assert plan in [choice.plan for choice in frontier.choices]
    assert document["plan"] == plan.to_dict()
    assert document["binding"] == ["device_memory_mib", "max_quality_loss"]
    assert paths["plot.png"].read_bytes().startswith(b"\x89PNG")


def test_infeasible_is_exit_code_3(cli: Cli, files: dict[str, list[str]]) -> None:
    """The cap in the way and the nearest plans are printed, and are in the JSON."""
    words = [*files["image"], "--latency", "30ms", "--device-memory", "3MiB", "--max-loss", "1pp"]
    outcome = cli(*words)
    assert outcome.code == 3
    assert outcome.err.startswith(
        "error: latency_ms: no plan keeps all caps; the nearest, a cut at input, has latency_ms 44.2"
    )
    assert "No plan keeps all caps; the nearest:" in outcome.out
    document = json.loads(cli(*words, "--json", "-").out)
    assert (document["feasible"], document["binding"]) == (False, ["latency_ms"])
    assert document["nearest"][0]["breaks"][0]["field"] == "latency_ms"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--latency", "-5ms"], "latency"),
        (["--latency", "fast"], "latency"),
        (["--latency", "200"], "latency"),
        (["--device-memory", "0GiB"], "device_memory"),
        (["--device-memory", "2 lightyears"], "device_memory"),
        (["--max-loss", "-1pp"], "max_loss"),
        (["--max-uplink", "nan"], "max_uplink"),
        (["--energy", "5mJ"], "energy_mj"),
        (["--first-token", "1s"], "first_token_ms"),
        (["--uplink", "2furlongs"], "uplink"),
        (["--devices", "0"], "devices"),
        (["--rate", "-1"], "rate"),
        (["--minimise", "beauty"], "minimise"),
        (["--minimise", "server=-1"], "minimise"),
        (["--device-profile", "/nowhere.json"], "device_profile"),
        (["--quality", "/nowhere.json"], "quality"),
        (["--save", "/nowhere/plan.json"], "save"),
    ],
)
def test_nonsense_is_exit_code_2(cli: Cli, files: dict[str, list[str]], words: list[str], field: str) -> None:
    """The message begins with the field, and nothing is printed beside it."""
    outcome = cli(*files["image"], *words)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {field}: ")
    assert outcome.out == ""


def of_demo_vision(revision: str, thing: Any) -> Any:
    """A made-up profile or table under the shipped model's name."""
    real = dict(zip(NAMES, REAL_CUTS, strict=True))
    named = {"model": "demo-vision", "revision": revision}
    if hasattr(thing, "rows"):
        return dataclasses.replace(
            thing, **named, rows=tuple(dataclasses.replace(row, cut=real[row.cut]) for row in thing.rows)
        )
    return dataclasses.replace(
        thing, **named, cuts=tuple(dataclasses.replace(cut, name=real[cut.name]) for cut in thing.cuts)
    )


def test_other_commands_cut_where_the_search_chose(
    cli: Cli, start_server: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    """A server without --cut serves every cut, and a device without one takes what was chosen last, settings included."""
    _, ready = start_server()
    assert set(REAL_CUTS[:-1]) <= set(ready["cuts"])
    words = []
    for option, thing in (
        ("--device-profile", vision_profile(0.5)),
        ("--server-profile", vision_profile(4.0)),
        ("--quality", plain_table(vision_profile())),
    ):
        path = tmp_path / f"{option}.json"
        of_demo_vision(ready["revision"], thing).save(path)
        words += [option, str(path)]
    assert cli("search", "demo-vision", *words, "--uplink", "2mbit,10ms", *CAPS).code == 0
    outcome = cli("run", "demo-vision", "--server", ready["address"], "--limit", "3", "--json", "-")
    plan = json.loads(outcome.out)["plan"]
    assert (plan["cut"], plan["codec"]["sparsity"]) == ("layer2", 0.75)


def test_what_stays_on_the_device_is_not_cut(cli: Cli, files: dict[str, list[str]]) -> None:
    """Where the search chose the device alone, a command that would cut says so."""
    assert cli(*files["image"]).out.startswith("Run all of made-up on the device")
    outcome = cli("run", "made-up", "--server", "localhost:1")
    assert outcome.code == 2
    assert "the search chose to run all of made-up on the device" in outcome.err
