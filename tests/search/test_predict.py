"""What a request is predicted to take."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up import curve, text_profile, vision_profile
from serverlight.codec import CodecConfig
from serverlight.link import LinkConfig
from serverlight.runtime.conversion import encode_client, encode_server
from serverlight.runtime.messages import Frame, InferReply, InferRequest, RawTensor, Step, StepReply, Timing
from serverlight.runtime.transport import wire_bytes
from serverlight.search import message_sizes
from serverlight.search.constraints import Workload
from serverlight.search.predict import predict, token_budget
from serverlight.search.prediction import Candidate, Scene
from serverlight.search.profile import MessageCost, Profile

TIMING = Timing(queue_ms=0.1, decode_ms=0.2, tail_ms=0.3, cpu_ms=0.4, process_cpu_ms=2.0, sample_ms=0.3, batch_size=1)
SPLIT = Candidate(way="split", cut="block1", frame_bytes=4000.0, loss_pp=0.5)
STEP = Candidate(way="split", cut="layers.4", frame_bytes=130.0, prompt_token_bytes=100.0, loss_pp=0.5)


def scene(link: str = "2mbit,10ms", *, text: bool = False, **load: object) -> Scene:
    make = text_profile if text else vision_profile
    workload = Workload(**load)  # type: ignore[arg-type]
    return Scene(device=make(0.5), server=make(4.0), link=LinkConfig.parse(link), workload=workload)


@pytest.mark.parametrize("num_bytes", [0, 20, 100, 1000, 5000, 20_000, 3_000_000])
def test_messages_are_as_long_as_said(num_bytes: int) -> None:
    """The bytes of requests, steps and replies are those of the real messages, up to a name's length."""
    infer = InferRequest(request_id=300, payloads=(Frame(data=bytes(num_bytes)),), deadline_ms=60_000)
    step = Step(step=300, frames=(bytes(num_bytes),), more=False)
    output = RawTensor(dtype="float32", shape=(1, num_bytes // 4), data=bytes(num_bytes), name="classes")
    reply = InferReply(request_id=300, outputs=(output,), timing=TIMING)
    assert abs(message_sizes.infer_request_bytes(num_bytes) - wire_bytes(len(encode_client(infer)))) <= 3
    assert abs(message_sizes.step_bytes(num_bytes) - wire_bytes(len(encode_client(step)))) <= 3
    assert abs(message_sizes.infer_reply_bytes(num_bytes) - wire_bytes(len(encode_server(reply)))) <= 12
    token = StepReply(step=300, token_id=300, timing=TIMING)
    assert abs(message_sizes.step_reply_bytes() - wire_bytes(len(encode_server(token)))) <= 3


def test_parts_of_a_request() -> None:
    """Each part is its own curve's value or the link's time, and the latency is their sum."""
    p = predict(SPLIT, scene())
    assert p.head_ms == 40.0  # half of the work at half the speed
    assert p.encode_ms == pytest.approx(0.1 + 16.384 * 0.02)
    assert p.decode_ms == pytest.approx(0.0075 + 16.384 * 0.00125)
    assert p.tail_ms == pytest.approx(0.1 + 5.0)
    assert p.uplink_bytes == message_sizes.infer_request_bytes(4000)
    assert p.uplink_ms == pytest.approx(p.uplink_bytes * 8 / 2000)
    assert p.rtt_ms == 20.0
    assert p.queue_ms == 0.0
    message_ms = (1.2 + 0.15 + 0.002 * p.uplink_bytes / 1e3) / 2
    assert p.message_ms == pytest.approx(message_ms)
    assert p.server_busy_ms == pytest.approx(p.decode_ms + p.tail_ms + 0.05 + 0.0005 * p.uplink_bytes / 1e3)
    sum_ms = p.head_ms + p.encode_ms + p.uplink_ms + p.rtt_ms + p.decode_ms + p.tail_ms + p.message_ms + p.downlink_ms
    assert p.latency_ms == pytest.approx(sum_ms)
    assert p.throughput_per_s == pytest.approx(1e3 / p.latency_ms)
    assert p.device_memory_bytes == 2 * 2**20 + 4 * 65_536


def test_choice_says_the_same() -> None:
    """What a running device is handed takes as long as the prediction, the way down of a small reply aside."""
    p = predict(SPLIT, scene())
    choice = p.choice("made-up", "0123")
    assert choice.plan is not None
    assert choice.plan.cut == "block1"
    assert choice.latency_ms(2e6, 20.0) == pytest.approx(p.latency_ms - p.downlink_ms)


def test_first_token_comes_sooner_than_the_parts_of_the_prompt_together() -> None:
    """The device computes a chunk while the one before is on its way and at the server."""
    long = scene(text=True, prompt_tokens=512)
    p, parts = predict(STEP, long), long.device.cut("layers.4")
    device_ms = sum(
        parts.head.ms(tokens=128, context=start) + long.device.codec.encode.ms(tokens=128 * 0.512)
        for start in range(0, 512, 128)
    )
    server_ms = sum(long.server.cut("layers.4").tail.ms(tokens=128, context=start) for start in range(0, 512, 128))
    uplink_ms = 4 * message_sizes.step_bytes(12_800) * 8 / 2000
    assert p.first_token_ms is not None
    assert max(device_ms, uplink_ms) < p.first_token_ms < device_ms + uplink_ms + server_ms + 70 + p.message_ms
    assert predict(SPLIT, scene()).first_token_ms is None


def test_cache_grows_with_the_tokens() -> None:
    """A device holds keys and values of the layers before the cut for prompt and answer, and a chunk's activations."""
    p = predict(STEP, scene(text=True, prompt_tokens=64, new_tokens=100))
    assert p.device_memory_bytes == 6 * 2**20 + 4 * 8192 * 164 + 64 * 4096


def test_budget_of_tokens_is_what_fits() -> None:
    """At the budget the memory holds, one token later it does not; the load's own length is the most."""
    base = scene(text=True, prompt_tokens=64, new_tokens=2000)
    tokens = token_budget("layers.4", base, 20.0)
    held = [
        predict(STEP, scene(text=True, prompt_tokens=64, new_tokens=n)).device_memory_mib for n in (tokens, tokens + 1)
    ]
    assert held[0] <= 20.0 < held[1]
    assert token_budget("layers.0", base, 20.0) == 2000
    assert token_budget("layers.4", base, 1.0) < 1


def test_early_exit_is_the_mean_of_its_stages() -> None:
    """Some tokens at a deep cut, the rest at a shallow one: times lie between, the move costs, the memory is that at the exit."""
    base = scene(text=True, new_tokens=1000)
    deep, shallow = STEP, dataclasses.replace(STEP, cut="layers.1")
    p = predict(dataclasses.replace(deep, tokens=300, then=shallow), base)
    first, second = p.stages
    assert first.head_ms > p.head_ms > second.head_ms
    assert p.head_ms == pytest.approx(0.3 * first.head_ms + 0.7 * second.head_ms)
    assert p.server_busy_ms > 0.3 * first.server_busy_ms + 0.7 * second.server_busy_ms
    assert p.device_memory_bytes < predict(deep, base).device_memory_bytes


def test_a_file_costs_the_device_nothing() -> None:
    """A raw input is sent as it lies there."""
    p = predict(Candidate(way="full-server", cut="input", frame_bytes=3000.0, is_file=True), scene())
    assert (p.head_ms, p.encode_ms, p.device_memory_bytes) == (0.0, 0.0, 0)
    assert p.tail_ms == pytest.approx(10.2)


def test_token_ids_cost_the_device_nothing() -> None:
    """The server looks up the embeddings, for steps and prompts alike."""
    ids = Candidate(way="full-server", cut="layers.0", frame_bytes=2.0, prompt_token_bytes=2.0, sends_ids=True)
    base = scene(text=True)
    server = dataclasses.replace(
        base.server,
        cuts=(dataclasses.replace(base.server.cuts[0], head=curve(0.5, 0.01)), *base.server.cuts[1:]),
    )
    p = predict(ids, dataclasses.replace(base, server=server))
    assert (p.head_ms, p.encode_ms, p.device_memory_bytes, p.energy_mj) == (0.0, 0.0, 0, None)
    assert p.decode_ms == pytest.approx(0.51)
    assert p.uplink_bytes == message_sizes.step_bytes(2)
    step = Step(step=300, token_ids=(300,))
    assert abs(p.uplink_bytes - wire_bytes(len(encode_client(step)))) <= 3
    assert p.first_token_ms is not None
    tail_ms = server.cut("layers.0").tail.ms(tokens=64, context=0)
    assert p.first_token_ms == pytest.approx(
        # 2.5 round trips for the stream; the message, there and back; embeddings; the tail
        50 + message_sizes.step_bytes(128) * 8 / 2000 + 20 + 0.5 + 0.64 + tail_ms + p.message_ms + p.downlink_ms
    )


def test_all_on_the_device_needs_no_link() -> None:
    """However slow the link, it takes what the whole model takes there."""
    p = predict(Candidate(way="all-device"), scene("1kbit,500ms"))
    assert (p.latency_ms, p.uplink_bytes, p.server_busy_ms) == (80.0, 0, 0.0)
    assert p.device_memory_mib == pytest.approx(4.25)
    assert p.plan("made-up", "0123") is None


def test_devices_that_ask_more_than_the_server_can_do_wait_without_end() -> None:
    """So it is with a device that cannot keep up itself."""
    assert predict(SPLIT, scene(devices=500, requests_per_s=1.0)).latency_ms == float("inf")
    assert predict(SPLIT, scene(devices=1, requests_per_s=30.0)).latency_ms == float("inf")
    assert predict(SPLIT, scene(devices=10, requests_per_s=1.0)).latency_ms < 150


def test_energy_is_told_where_the_device_tells() -> None:
    """Watts for as long as the device computes; without them nobody knows."""
    base = scene()
    known = dataclasses.replace(base, device=vision_profile(0.5, watts=3.0))
    p = predict(SPLIT, known)
    assert p.energy_mj == pytest.approx(3 * (p.head_ms + p.encode_ms))
    assert predict(SPLIT, base).energy_mj is None


def test_software_of_both_ends_counts() -> None:
    """Half of a message's way is at the device's speed, half at the server's."""
    base = scene()
    free = MessageCost(latency=curve(0.0), server=curve(0.0))
    slow = dataclasses.replace(base, server=dataclasses.replace(base.server, message=free))
    assert predict(SPLIT, slow).message_ms == pytest.approx(0.6 + 0.001 * 4.03, rel=0.01)


@given(rate=st.floats(0.1, 500), faster=st.floats(1.0, 100), delay=st.floats(0, 300), text=st.booleans())
def test_a_faster_link_never_takes_longer(rate: float, faster: float, delay: float, text: bool) -> None:
    """Latency and first token fall, or stay, as the rate rises."""
    candidate = STEP if text else SPLIT
    slow, fast = (predict(candidate, scene(f"{r:.3f}mbit,{delay:.3f}ms", text=text)) for r in (rate, rate * faster))
    assert fast.latency_ms <= slow.latency_ms + 1e-9
    assert (fast.first_token_ms or 0) <= (slow.first_token_ms or 0) + 1e-9


@given(devices=st.integers(1, 60), more=st.integers(0, 20))
def test_more_devices_never_give_less_throughput(devices: int, more: int) -> None:
    """Together they get at least as much from the server, within what the model of a full window is off by."""
    few, many = (predict(SPLIT, scene(devices=n)) for n in (devices, devices + more))
    assert many.throughput_per_s >= few.throughput_per_s * 0.95


def rests(profile: Profile) -> Profile:
    """The same with work that takes longer after a rest: of everything another round number."""
    return dataclasses.replace(
        profile,
        cuts=tuple(dataclasses.replace(cut, head_rest_ms=1.0, tail_rest_ms=2.0) for cut in profile.cuts),
        codec=dataclasses.replace(profile.codec, encode_rest_ms=0.1, decode_rest_ms=0.2),
        message=dataclasses.replace(profile.message, latency_rest_ms=0.8, server_rest_ms=0.5),
    )


def test_work_takes_longer_after_a_rest() -> None:
    """On a far link both sides wait for each other, and pay for it; the parts still sum up."""
    far = scene("2mbit,500ms")
    plain, p = (
        predict(SPLIT, far),
        predict(SPLIT, dataclasses.replace(far, device=rests(far.device), server=rests(far.server))),
    )
    assert p.head_ms - plain.head_ms == pytest.approx(1.0)
    assert p.encode_ms - plain.encode_ms == pytest.approx(0.1)
    assert p.decode_ms - plain.decode_ms == pytest.approx(0.2)
    assert p.tail_ms - plain.tail_ms == pytest.approx(2.0)
    assert p.message_ms - plain.message_ms == pytest.approx(0.8)
    assert p.server_busy_ms - plain.server_busy_ms == pytest.approx(2.7)


def test_each_profile_of_the_codec_has_its_own_times() -> None:
    """A frame of profile slicer takes what such frames take, on both sides; the sum is larger by that."""
    here = scene("2mbit,500ms")
    device, server = (
        dataclasses.replace(side, other_codecs={"slicer": rests(side.scaled(speed=0.1, name="slow")).codec})
        for side in (here.device, here.server)
    )
    slicer = dataclasses.replace(SPLIT, codec=CodecConfig(profile="slicer"))
    both = dataclasses.replace(here, device=device, server=server)
    ours, theirs = predict(SPLIT, both), predict(slicer, both)
    assert predict(SPLIT, here) == ours
    assert theirs.encode_ms == pytest.approx(10 * ours.encode_ms + 0.1)
    assert theirs.decode_ms == pytest.approx(10 * ours.decode_ms + 0.2)
    assert theirs.server_busy_ms - ours.server_busy_ms == pytest.approx(theirs.decode_ms - ours.decode_ms)


def test_a_busy_server_does_not_rest() -> None:
    """Many devices leave it no gap, though each of them waits."""
    crowd = scene("2mbit,10ms", devices=200)
    rested = dataclasses.replace(crowd, device=rests(crowd.device), server=rests(crowd.server))
    plain, p = predict(SPLIT, crowd), predict(SPLIT, rested)
    assert p.head_ms - plain.head_ms == pytest.approx(1.0)
    assert p.server_busy_ms == pytest.approx(plain.server_busy_ms, rel=1e-3)


def test_a_first_token_waits_for_its_stream() -> None:
    """Connecting takes round trips: half as much again of delay is seen five times over and more."""
    near, far = (predict(STEP, scene(link, text=True)).first_token_ms or 0.0 for link in ("2mbit,10ms", "2mbit,20ms"))
    assert far - near == pytest.approx(10 * (2 * 2.5 + 2))
