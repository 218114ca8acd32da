"""``serverlight search``: one screen, files, and exit codes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)

from made_up import NAMES, plain_table, text_profile, vision_profile  # noqa: E402
from serverlight.apps.demo.modes import make_modes  # noqa: E402
from serverlight.apps.demo.shown import Shown, what_to_show  # noqa: E402
from serverlight.apps.kept_search import keep  # noqa: E402
from serverlight.frontier import Frontier  # noqa: E402
from serverlight.link import LinkConfig  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.search.constraints import Constraints  # noqa: E402
from serverlight.search.optimise import optimise  # noqa: E402

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


def test_without_a_search_the_middle_is_cut(cli: Cli, start_server: Callable[..., Any]) -> None:
    """A device that nobody searched for takes the built-in cut with its settings, and says so in one line."""
    _, ready = start_server()
    for words in ([], ["--cut", "auto"]):
        outcome = cli("run", "demo-vision", "--server", ready["address"], "--limit", "2", "--json", "-", *words)
        assert outcome.code == 0
        plan = json.loads(outcome.out)["plan"]
        assert (plan["cut"], plan["codec"]["profile"], plan["codec"]["sparsity"]) == ("layer2", "serverlight", 0.9)
        assert outcome.err.count("\n") == 1
        assert "no search of demo-vision was made here" in outcome.err
        assert "`serverlight search demo-vision`" in outcome.err


def test_demo_shows_what_the_search_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """The cut and settings of the last search; without one, or where that did not cut, those that are built in, with the reason."""
    monkeypatch.setenv("SERVERLIGHT_CACHE", str(tmp_path))
    assert what_to_show("made-up", []).source == what_to_show("made-up", ["auto"]).source == "built-in"
    assert what_to_show("made-up", ["stem", "block1"]) == Shown(
        source="given", reason="cut as asked for", cuts=["stem", "block1"]
    )
    chosen = optimise(
        device=vision_profile(0.5),
        server=vision_profile(4.0),
        table=plain_table(vision_profile()),
        constraints=Constraints(latency_ms=90, device_memory_mib=3, max_quality_loss=1.0),
        link=LinkConfig.parse("2mbit,10ms"),
    )
    keep("made-up", chosen)
    assert chosen.plan is not None
    shown = what_to_show("made-up", [])
    assert (shown.source, shown.cuts, shown.codec) == ("search", ["block1"], chosen.plan.codec)
    modes = make_modes("made-up", "0", shown.cuts, first="input", last="output", chosen=shown.codec)
    assert [mode.plan.codec for mode in modes if mode.mode == "serverlight" and mode.plan] == [chosen.plan.codec]
    alone = optimise(device=vision_profile(0.5), server=vision_profile(4.0), table=plain_table(vision_profile()))
    keep("made-up", alone)
    assert "the search chose all on the device" in what_to_show("made-up", []).reason


# -- fleets -----------------------------------------------------------------------------------------

FLEET = """
budget = 0.5

[[devices]]
name = "camera"
count = 4
rate = 2.0
speed = 0.5
link = "4mbit,20ms"
device_memory = "3MiB"
max_loss = "2pp"

[[devices]]
name = "phone"
"""


def test_fleet_gets_a_plan_each(cli: Cli, files: dict[str, list[str]], tmp_path: pathlib.Path) -> None:
    """A row for each kind, the server's load within the budget; the same from JSON; plans as files that can be read."""
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    outcome = cli(*files["image"], "--fleet", str(path), "--max-loss", "1pp")
    assert outcome.code == 0, outcome.err
    assert "camera" in outcome.out
    assert "phone" in outcome.out
    assert "5 devices keep the server busy" in outcome.out
    same = tmp_path / "fleet.json"
    same.write_text(json.dumps(tomllib.loads(FLEET)))
    words = [*files["image"], "--fleet", str(same), "--max-loss", "1pp"]
    outcome = cli(*words, "--json", "-", "--save", str(tmp_path / "plans"))
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert 0 < document["server_load"] <= document["budget"] == 0.5
    camera, phone = document["devices"]
    assert (camera["name"], camera["count"], camera["requests_per_s"]) == ("camera", 4, 2.0)
    assert (phone["name"], phone["count"], phone["requests_per_s"]) == ("phone", 1, 1.0)
    assert camera["constraints"]["max_quality_loss"] == 2.0
    assert phone["constraints"]["max_quality_loss"] == 1.0
    assert camera["chosen"]["device_memory_bytes"] <= 3 * 2**20
    assert (camera["link"]["rate_bits_per_s"], phone["link"]["rate_bits_per_s"]) == (4e6, 2e6)
    assert sum(kind["server_load"] for kind in document["devices"]) == pytest.approx(document["server_load"])
    for kind in document["devices"]:
        path = tmp_path / "plans" / f"{kind['name']}.json"
        assert path.exists() == (kind["plan"] is not None)
        if kind["plan"] is not None:
            assert Plan.load(path).to_dict() == kind["plan"]
    assert camera["plan"] is not None


def test_fleet_without_room_is_exit_code_3(cli: Cli, files: dict[str, list[str]], tmp_path: pathlib.Path) -> None:
    """A kind that no plan suits is named with its cap and the nearest plans; a budget that is too small is named, too."""
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET + 'latency = "1ms"\n')
    outcome = cli(*files["image"], "--fleet", str(path))
    assert outcome.code == 3
    assert outcome.err.startswith("error: latency_ms: of 'phone' no plan keeps all caps")
    assert "the nearest" in outcome.out
    path.write_text(FLEET.replace("rate = 2.0", "rate = 5000.0"))
    outcome = cli(*files["image"], "--fleet", str(path))
    assert outcome.code == 3
    assert outcome.err.startswith("error: budget: all devices together need")
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("budget = ", "fleet"),
        ("colour = 1", "fleet"),
        ("budget = 0.5", "devices"),
        ("devices = [1]", "devices"),
        ("budget = 1.5\n[[devices]]\nname = 'a'", "budget"),
        ("budget = true\n[[devices]]\nname = 'a'", "budget"),
        ("[[devices]]\ncount = 2", "name"),
        ("[[devices]]\nname = '../a'", "name"),
        ("[[devices]]\nname = 'a'\n[[devices]]\nname = 'A'", "name"),
        ("[[devices]]\nname = 'a'\nbeauty = 2", "beauty"),
        ("[[devices]]\nname = 'a'\ncount = 2.5", "count"),
        ("[[devices]]\nname = 'a'\ncount = 0", "count"),
        ("[[devices]]\nname = 'a'\nrate = -1", "rate"),
        ("[[devices]]\nname = 'a'\nspeed = 'fast'", "speed"),
        ("[[devices]]\nname = 'a'\nlink = '2furlongs'", "link"),
        ("[[devices]]\nname = 'a'\nlink = 2", "link"),
        ("[[devices]]\nname = 'a'\nprofile = 'nowhere.json'", "profile"),
        ("[[devices]]\nname = 'a'\nlatency = '-5ms'", "latency"),
        ("[[devices]]\nname = 'a'\nlatency = 5", "latency"),
        ("[[devices]]\nname = 'a'\nfirst_token = '1s'", "first_token_ms"),
    ],
)
def test_nonsense_in_a_fleet_is_exit_code_2(
    cli: Cli, files: dict[str, list[str]], tmp_path: pathlib.Path, text: str, field: str
) -> None:
    """The message begins with the field, and nothing is printed beside it."""
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    outcome = cli(*files["image"], "--fleet", str(path))
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {field}: "), outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("words", [["--plot", "a.png"], ["--frontier", "f.json"], ["--explain"], ["--devices", "3"]])
def test_what_is_for_one_kind_only(
    cli: Cli, files: dict[str, list[str]], tmp_path: pathlib.Path, words: list[str]
) -> None:
    """Options without a meaning for a fleet are refused by name."""
    (tmp_path / "fleet.toml").write_text(FLEET)
    outcome = cli(*files["image"], "--fleet", str(tmp_path / "fleet.toml"), *words)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {words[0].removeprefix('--')}: ")


def test_what_stays_on_the_device_is_not_cut(cli: Cli, files: dict[str, list[str]]) -> None:
    """Where the search chose the device alone, a command that would cut says so."""
    assert cli(*files["image"]).out.startswith("Run all of made-up on the device")
    outcome = cli("run", "made-up", "--server", "localhost:1")
    assert outcome.code == 2
    assert "the search chose to run all of made-up on the device" in outcome.err
