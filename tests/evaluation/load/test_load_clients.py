from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

import serverlight as sl
from serverlight.codec import CodecConfig
from serverlight.errors import PeerUnavailable, PlanMismatch
from serverlight.evaluation.load import Pace, Requests, Turn, record_features, record_files, run_beside, run_turn
from serverlight.evaluation.load.in_process import image_batches, run_batches
from serverlight.models.images import encode_png
from serverlight.partition import Partition, partition
from serverlight.runtime.core import ServerConfig

HALVES = CodecConfig(profile="fp16")
SHORT = Pace(warmup_s=0.0, duration_s=0.3)


@pytest.fixture(scope="module")
def demo() -> tuple[sl.LoadedModel, Partition]:
    model = sl.load_model("demo-vision")
    return model, partition(model.module, model.example_inputs)


@pytest.fixture(scope="module")
def scripts(demo: tuple[sl.LoadedModel, Partition]) -> list[Requests]:
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    features = [record_features(*demo, cut, HALVES, images) for cut in ("layer3.0", "layer2")]
    return [*features, record_files(*demo, [encode_png(image) for image in images])]


@pytest.fixture(scope="module")
def address(demo: tuple[sl.LoadedModel, Partition]) -> Iterator[str]:
    with sl.Server(demo[0], ["layer3.0", "layer2", "input"], parts=demo[1]) as server:
        yield server.address


def test_features_are_recorded_one_request_an_image(scripts: list[Requests]) -> None:
    """Each image has its own request at the script's cut, and what the device spends on one is known."""
    assert [script.plan.cut for script in scripts] == ["layer3.0", "layer2", "input"]
    assert all(len(set(script.payloads)) == 3 for script in scripts)
    assert all(script.device_ms > 0 for script in scripts[:2])


def test_closed_loop(address: str, scripts: list[Requests]) -> None:
    """Each device sends when it has its answer: its samples follow each other, and none is lost."""
    turn = run_turn([address] * 3, scripts, SHORT)
    assert turn.seconds >= 0.29  # the loop counts in milliseconds
    assert set(Counter(sample.client for sample in turn.answers)) == {0, 1, 2}
    for client in range(3):
        mine = [sample for sample in turn.samples if sample.client == client]
        assert all(before.done_s <= after.due_s for before, after in itertools.pairwise(mine))
    assert not turn.unanswered_ms
    assert all(sample.batch_size >= 1 and sample.process_cpu_ms > 0 for sample in turn.samples)


def test_beside_a_rival_one_runs_at_a_time(address: str, scripts: list[Requests]) -> None:
    """While the rival runs no device has asked and none does; then they go on, and no answer is lost between slices."""
    ran = list[tuple[float, float]]()

    def rival(seconds: float) -> Turn:
        turn = Turn(begin_s=time.perf_counter())
        time.sleep(seconds / 4)
        turn.end_s = time.perf_counter()
        ran.append((turn.begin_s, turn.end_s))
        return turn

    pairs = run_beside([address] * 3, scripts, SHORT, rival, slices=3)
    assert len(pairs) == len(ran) == 3
    for ours, theirs in pairs:
        assert ours.seconds >= 0.09
        assert ours.end_s <= theirs.begin_s
        assert ours.begin_s < ours.answers[0].done_s
        assert ours.samples[-1] == ours.answers[-1]  # the last one was waited for
        assert {sample.client for sample in ours.answers} == {0, 1, 2}
        asked = [(sample.due_s, sample.done_s) for sample in ours.answers]
        assert all(done <= begin or due >= end for due, done in asked for begin, end in ran)


def test_open_loop(address: str, scripts: list[Requests]) -> None:
    """Requests go out at their times, whether or not those before them have an answer."""
    turn = run_turn([address] * 3, scripts, Pace(warmup_s=0.1, duration_s=0.6, rate_per_s=60.0, seed=3))
    assert 10 <= len(turn.due) + len(turn.unanswered_ms) + turn.num_refused <= 80
    assert all(sample.latency_ms > 0 for sample in turn.due)


def test_busy_server_is_asked_again(demo: tuple[sl.LoadedModel, Partition], scripts: list[Requests]) -> None:
    """A request that a full server refuses is sent again, and counts from when it was due."""
    config = ServerConfig(max_waiting=1)
    with sl.Server(demo[0], ["layer3.0"], parts=demo[1], config=config) as server:
        turn = run_turn([server.address] * 8, [scripts[0]] * 8, SHORT)
    assert turn.num_refused > 0
    assert turn.answers


def test_what_a_device_meets_ends_the_turn(address: str, scripts: list[Requests]) -> None:
    """A plan that the server does not serve is its error, and a server that is not there is PeerUnavailable."""
    plan = sl.Plan(model="demo-vision", revision="1", cut="layer2")
    with pytest.raises(PlanMismatch):
        run_turn([address], [Requests(plan=plan, payloads=scripts[0].payloads)], SHORT)
    with pytest.raises(PeerUnavailable):
        run_turn(["127.0.0.1:1"], scripts[:1], SHORT)


def test_batches_in_one_process(demo: tuple[sl.LoadedModel, Partition], scripts: list[Requests]) -> None:
    """There is a batch for each cut with all devices that have cut there, and batches take turns."""
    batches = image_batches(demo[1], [scripts[i % 2] for i in range(5)])
    turn = run_batches(itertools.cycle(batches), 0.3)
    assert {sample.batch_size for sample in turn.answers} == {2, 3}
