"""The plan that is chosen is the best that the caps allow, and the reasons that are given are true."""

from __future__ import annotations

import dataclasses
import pathlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serverlight as sl
from made_up import plain_table, random_table, row, table, text_profile, vision_profile
from serverlight.errors import ConfigError, Infeasible, PlanMismatch
from serverlight.frontier import Frontier
from serverlight.link import LinkConfig
from serverlight.search.caps import broken_caps, objective_value
from serverlight.search.constraints import Constraints, Objective, Workload
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.predict import predict
from serverlight.search.prediction import Candidate, Prediction, Scene
from serverlight.search.quality import QualityTable

DEVICE, SERVER = vision_profile(0.5, watts=3.0), vision_profile(4.0)
TEXT_DEVICE, TEXT_SERVER = text_profile(0.5, watts=3.0), text_profile(4.0)
LINK = LinkConfig.parse("2mbit,10ms")


def choose(constraints: Constraints, rows: QualityTable | None = None, **more: object) -> SearchResult:
    given: dict[str, object] = {"device": DEVICE, "server": SERVER, "link": LINK, **more}
    return optimise(table=rows or plain_table(DEVICE), constraints=constraints, **given)  # type: ignore[arg-type]


def everything(scene: Scene, rows: QualityTable) -> Iterator[Prediction]:
    """Each row at each cut, the raw input, and all on the device, one by one."""
    yield predict(Candidate(way="all-device"), scene)
    first = scene.device.cuts[0]
    raw = Candidate(way="full-server", cut=first.name, frame_bytes=2 * first.elements + 16)
    if scene.is_text:
        raw = Candidate(way="full-server", cut=first.name, frame_bytes=2, prompt_token_bytes=2, sends_ids=True)
    yield predict(raw, scene)
    for r in rows.rows:
        elements = scene.device.cut(r.cut).elements
        prompt = (r.bits_per_element if r.prompt_bits_per_element is None else r.prompt_bits_per_element) * elements / 8
        if r.cut != "output":
            yield predict(
                Candidate(
                    way="split", cut=r.cut, frame_bytes=r.frame_bytes, prompt_token_bytes=prompt, loss_pp=r.loss_pp
                ),
                scene,
            )


CAPS = st.builds(
    Constraints,
    latency_ms=st.none() | st.floats(1, 300),
    device_memory_mib=st.none() | st.floats(0.1, 6),
    uplink_bytes=st.none() | st.floats(100, 30_000),
    max_quality_loss=st.none() | st.floats(0, 5),
    server_ms=st.none() | st.floats(0.5, 12),
    energy_mj=st.none() | st.floats(1, 300),
)
OBJECTIVES = st.builds(
    Objective,
    server_ms=st.sampled_from([0.5, 1.0]),
    latency_ms=st.sampled_from([0.0, 0.1, 1.0]),
    uplink_kib=st.sampled_from([0.0, 1.0]),
    energy_mj=st.sampled_from([0.0, 0.1]),
)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**6), caps=CAPS, objective=OBJECTIVES, devices=st.sampled_from([1, 5]))
def test_search_is_exhaustive(seed: int, caps: Constraints, objective: Objective, devices: int) -> None:
    """On random tables, the chosen plan is as good as the best of all, and there is none exactly where there is none at all."""
    rows, workload = random_table(DEVICE, random.Random(seed)), Workload(devices=devices)
    scene = Scene(device=DEVICE, server=SERVER, link=LINK, workload=workload)
    allowed = [p for p in everything(scene, rows) if not broken_caps(p, caps, scene)]
    try:
        found = choose(caps, rows, objective=objective, workload=workload)
    except Infeasible:
        assert not allowed
        return
    assert not broken_caps(found.best, caps, scene)
    assert found.value(found.best) == pytest.approx(min(objective_value(p, objective) for p in allowed), rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    latency_ms=st.floats(1, 60),
    first_ms=st.floats(50, 2000),
    memory=st.none() | st.floats(4, 14),
)
def test_search_of_a_language_model_is_exhaustive(
    seed: int, latency_ms: float, first_ms: float, memory: float | None
) -> None:
    """So it is with caps on steps and first tokens; with early exits it may only be better."""
    rows = random_table(TEXT_DEVICE, random.Random(seed))
    caps = Constraints(latency_ms=latency_ms, first_token_ms=first_ms, device_memory_mib=memory)
    scene = Scene(device=TEXT_DEVICE, server=TEXT_SERVER, link=LINK, workload=Workload())
    allowed = [objective_value(p, Objective()) for p in everything(scene, rows) if not broken_caps(p, caps, scene)]
    try:
        found = choose(caps, rows, device=TEXT_DEVICE, server=TEXT_SERVER)
    except Infeasible:
        assert not allowed
        return
    best = found.value(found.best)
    assert best <= min(allowed, default=best) + 1e-9
    if memory is None:
        assert best == pytest.approx(min(allowed))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), caps=CAPS, factor=st.floats(1.0, 3.0), data=st.data())
def test_relaxing_a_cap_never_harms(seed: int, caps: Constraints, factor: float, data: st.DataObject) -> None:
    """A larger cap, or none, gives a plan at least as good."""
    rows = random_table(DEVICE, random.Random(seed))
    fields = [f.name for f in dataclasses.fields(caps) if getattr(caps, f.name) is not None]
    if not fields:
        return
    name = data.draw(st.sampled_from(fields))
    wider = dataclasses.replace(caps, **{name: getattr(caps, name) * factor})
    try:
        tight = choose(caps, rows)
    except Infeasible:
        return
    loose = choose(wider, rows)
    assert loose.value(loose.best) <= tight.value(tight.best) + 1e-12


# -- the honest rivals ------------------------------------------------------------------------------


def test_file_to_a_full_server_wins_on_a_fast_link() -> None:
    """With a weak device and a fast link the search says: send the file as it is."""
    found = choose(
        Constraints(latency_ms=30, max_quality_loss=1.0),
        device=vision_profile(0.05),
        link=LinkConfig.parse("100mbit,2ms"),
        workload=Workload(input_bytes=3000),
    )
    assert found.best.way == "full-server"
    assert found.best.candidate.is_file
    assert found.plan is not None
    assert found.plan.cut == "input"


def test_token_ids_to_a_full_server_win_where_the_device_can_hold_nothing() -> None:
    """A language model's raw input is ids: a few bytes and no loss, for a device without memory or time for any layer."""
    found = choose(
        Constraints(device_memory_mib=0.5, max_quality_loss=0.0),
        plain_table(TEXT_DEVICE),
        device=TEXT_DEVICE,
        server=TEXT_SERVER,
        link=LinkConfig.parse("50kbit,5ms"),
    )
    assert (found.best.way, found.best.candidate.sends_ids) == ("full-server", True)
    assert (found.best.head_ms, found.best.device_memory_bytes, found.best.loss_pp) == (0.0, 0, 0.0)
    assert found.best.uplink_bytes < 64
    assert found.plan is not None
    assert (found.plan.cut, found.plan.sends) == ("layers.0", "token-ids")
    assert found.rivals[0].what != "raw input to a full server"


def test_all_on_the_device_wins_for_a_tiny_model() -> None:
    """A model that the device runs in less than a round trip stays there."""
    tiny = vision_profile(0.5, whole_ms=1.0)
    found = choose(Constraints(latency_ms=20), device=tiny, server=vision_profile(4.0, whole_ms=1.0))
    assert found.best.way == "all-device"
    assert found.plan is None
    with pytest.raises(ConfigError, match="device"):
        found.save("plan.json")


def test_split_wins_between_them() -> None:
    """Too large for the device, too slow a link for the file: a cut is chosen, and both rivals are told with what they break."""
    found = choose(
        Constraints(latency_ms=90, device_memory_mib=3, max_quality_loss=1.0), workload=Workload(input_bytes=20_000)
    )
    assert found.best.way == "split"
    told = {rival.what: [broken.field for broken in rival.broken] for rival in found.rivals}
    assert told["raw input to a full server"] == ["latency_ms"]
    assert told["all on the device"] == ["device_memory_mib"]


def test_early_exit_is_a_choice() -> None:
    """A device whose memory fills up runs more layers for the tokens that it can, where that spares the server most."""
    caps = Constraints(device_memory_mib=11.0)
    found = choose(
        caps, plain_table(TEXT_DEVICE), device=TEXT_DEVICE, server=TEXT_SERVER, workload=Workload(new_tokens=600)
    )
    assert any(p.stages for p in found.predictions)
    assert found.best.device_memory_mib <= 11.0
    plain = min(found.value(p) for p in found.predictions if not p.stages and not broken_caps(p, caps, found.scene))
    assert found.value(found.best) <= plain


def test_loss_is_that_of_texts_as_long_as_the_load() -> None:
    """Where losses are known by position, those of the first tokens count, as many as there will be."""
    early = dataclasses.replace(row("layers.4", 512, 2.0, 5.0, prompt_bits=2.0), loss_by_position_pp=(1.0, 9.0))
    rows = dataclasses.replace(table([early]), position_edges=(0, 100, 200))
    for tokens, loss_pp in ((10, 1.0), (110, 5.0)):
        load = Workload(prompt_tokens=90, new_tokens=tokens)
        found = choose(Constraints(), rows, device=TEXT_DEVICE, server=TEXT_SERVER, workload=load)
        assert [p.loss_pp for p in found.predictions if p.candidate.cut == "layers.4"] == [pytest.approx(loss_pp)]


# -- reasons ----------------------------------------------------------------------------------------


def test_binding_cap_is_the_one_in_the_way() -> None:
    """Only a cap whose absence would help binds; a tenth more of it buys what the search then finds."""
    caps = Constraints(latency_ms=1000, device_memory_mib=3.0)
    found = choose(caps)
    assert found.binding == ("device_memory_mib",)
    memory = next(relief for relief in found.reliefs if relief.field == "device_memory_mib")
    again = choose(dataclasses.replace(caps, device_memory_mib=3.3))
    assert memory.gain == pytest.approx(found.value(found.best) - again.value(again.best))
    assert memory.gain > 0


def test_infeasible_names_cap_and_nearest_plan() -> None:
    """Where nothing fits, the error names the cap in the way and holds the plans that break least, nearest first."""
    with pytest.raises(Infeasible, match=r"^latency_ms: .* nearest, .* has latency_ms 4\d.*cap 30.*relax") as caught:
        choose(Constraints(latency_ms=30, device_memory_mib=3, max_quality_loss=1.0))
    assert caught.value.binding == ("latency_ms",)
    excesses = [sum(b.excess for b in rival.broken) for rival in caught.value.nearest]
    assert excesses == sorted(excesses)
    assert excesses[0] > 0


def test_too_much_load_is_infeasible() -> None:
    """Without any cap, a plan must still keep up with what is asked."""
    with pytest.raises(Infeasible, match="requests_per_s"):
        choose(
            Constraints(),
            workload=Workload(devices=1000, requests_per_s=5.0),
            rows=table([row("block1", 16_384, 1.0, 0.5)]),
            device=vision_profile(0.01),
        )


def test_frontier_holds_what_no_other_beats(tmp_path: pathlib.Path) -> None:
    """Every plan of it is the best for some link or weight, the chosen one among them, and it survives its file."""
    caps = Constraints(latency_ms=90, device_memory_mib=3, max_quality_loss=1.0)
    found = choose(caps)
    for point in found.points:
        assert point.device_memory_mib <= 3
        assert point.loss_pp <= 1.0
        for other in found.points:
            better = (
                other.latency_ms < point.latency_ms
                and other.uplink_bytes < point.uplink_bytes
                and other.server_busy_ms < point.server_busy_ms
                and other.loss_pp < point.loss_pp
                and other.device_memory_bytes < point.device_memory_bytes
                and (other.energy_mj or 0) < (point.energy_mj or 0)
            )
            assert not better
    values = [found.value(point) for point in found.points]
    assert values == sorted(values)
    assert found.best in found.points
    found.frontier.save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json") == found.frontier


def test_slower_link_finds_its_plan_in_the_frontier() -> None:
    """What is best over another link is in the frontier already, so a device need not search again."""
    caps = Constraints(latency_ms=120, device_memory_mib=3, max_quality_loss=4.0)
    points = choose(caps).points
    for link in ("20mbit,5ms", "1mbit,10ms", "400kbit,5ms"):
        best = choose(caps, link=LinkConfig.parse(link)).best
        assert any(
            p.candidate.cut == best.candidate.cut and p.uplink_bytes == best.uplink_bytes and p.way == best.way
            for p in points
        )


def test_saved_plan_is_read_again(tmp_path: pathlib.Path) -> None:
    """`result.save` writes what `Plan.load` reads."""
    found = choose(Constraints(latency_ms=90, device_memory_mib=3))
    found.save(tmp_path / "plan.json")
    assert sl.Plan.load(tmp_path / "plan.json") == found.plan


def test_other_weights_are_refused() -> None:
    """Profiles and a table of different revisions are not mixed up."""
    with pytest.raises(PlanMismatch, match="revision"):
        choose(Constraints(), server=dataclasses.replace(SERVER, revision="4567"))
    with pytest.raises(PlanMismatch, match="model"):
        choose(Constraints(), rows=dataclasses.replace(plain_table(DEVICE), model="other"))


def test_caps_on_what_nobody_knows_are_refused() -> None:
    """Energy needs a device that tells its watts, a first token a language model."""
    with pytest.raises(ConfigError, match="energy_mj"):
        choose(Constraints(energy_mj=5.0), device=vision_profile(0.5))
    with pytest.raises(ConfigError, match="first_token_ms"):
        choose(Constraints(first_token_ms=5.0))
