"""A client that changes its plan between requests: over true sockets, with choices that a script makes; test_adapt.py has the
decisions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import serverlight as sl
from serverlight.codec import CodecConfig, calibrate_basis
from serverlight.errors import ConfigError, DeadlineExceeded, NonFiniteTensor, PeerUnavailable, PlanMismatch
from serverlight.frontier import Choice, Frontier
from serverlight.link import LinkConfig, LinkProxy
from serverlight.loopback import Loopback
from serverlight.models import LoadedModel, load_model
from serverlight.models.images import encode_png
from serverlight.partition import Partition, partition
from serverlight.plan import Plan
from serverlight.runtime import AdaptiveClient, Server
from serverlight.runtime.adapt import Adapter, Change, Rules

Pair = tuple[LoadedModel, Partition]
RULES = Rules(deadline_ms=60_000.0)
HALVES, COARSE = CodecConfig(profile="fp16"), CodecConfig(sparsity=0.6)


def make_choice(
    pair: Pair, cut: str, codec: CodecConfig = HALVES, *, basis: str | None = None, way: Any = "split"
) -> Choice:
    plan = Plan(model=pair[0].name, revision=pair[0].revision, cut=cut, codec=codec, basis=basis)
    return Choice(
        way=way, plan=None if way == "all-device" else plan, head_ms=1.0, server_ms=1.0, server_busy_ms=1.0,
        uplink_bytes=1000, downlink_bytes=100, device_memory_bytes=0, loss_pp=0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(residual: Pair) -> Iterator[Server]:
    with Server(residual[0], ["input", "stem", "body"], parts=residual[1]) as server:
        yield server


@pytest.fixture
def choices(residual: Pair) -> list[Choice]:
    return [
        make_choice(residual, "body", COARSE),
        make_choice(residual, "body"),
        make_choice(residual, "stem"),
        make_choice(residual, "input", way="full-server"),
        make_choice(residual, "output", way="all-device"),
    ]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes adapters choose in turn what a test wants."""

    def scripted(choices: Sequence[Choice]) -> None:
        turns = itertools.cycle(choices)

        def choose(adapter: Adapter, horizon: int | None = None, *, elapsed_s: float = 0.0) -> Choice:
            choice = next(turns)
            adapter.stand_at(choice, "script")
            return choice

        monkeypatch.setattr(Adapter, "choose", choose)

    return scripted


def images(batch: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(batch).normal(size=(batch, 3, 16, 16)).astype(np.float32))


def test_each_choice_answers_as_its_own_client_would(
    server: Server, residual: Pair, choices: list[Choice], scripted: Any
) -> None:
    """Whatever a request goes by, its outputs are, bit for bit, those of that plan; a change needs no word to the server."""
    scripted(choices)
    expected = [Loopback(each.plan, residual[1]).infer(images()) for each in choices if each.plan]
    with torch.inference_mode():
        expected.append(residual[0].module(images()))
    heard: list[Change] = []
    frontier = Frontier(choices=tuple(choices))
    with AdaptiveClient(
        server.address, model=residual[1], frontier=frontier, rules=RULES, on_change=heard.append
    ) as client:
        for turn in range(2 * len(choices)):
            made = client.infer_detailed(images())
            assert made.choice is choices[turn % len(choices)]
            assert torch.equal(made.outputs["logits"], expected[turn % len(choices)]["logits"])
            assert (made.result.uplink_bytes > 0) == (made.choice.way != "all-device")
            assert made.latency_ms >= made.result.head_ms
    assert [change.to_choice for change in heard] == 2 * choices


def test_starts_and_settles_by_itself(server: Server, residual: Pair, choices: list[Choice]) -> None:
    """With a deadline that everything keeps it goes to the best choice, and stays."""
    with AdaptiveClient(
        server.address, model=residual[0], frontier=Frontier(choices=tuple(choices)), rules=RULES
    ) as client:
        made = [client.infer_detailed(images()).choice for _ in range(12)]
        assert made[-1] is choices[0]
        assert client.adapter.estimates.link.trip_ms() < 1000


def test_connect_follows_a_frontier(server: Server, residual: Pair, choices: list[Choice]) -> None:
    """With a frontier in place of a plan, connect gives a client that follows its link; half of either is refused."""
    frontier, plan = Frontier(choices=tuple(choices)), choices[0].plan
    assert plan is not None
    with sl.connect(server.address, model=residual[1], frontier=frontier, rules=RULES, timeout_s=30.0) as client:
        assert isinstance(client, AdaptiveClient)
        assert client.infer(images())["logits"].shape[0] == 2
    connect: Any = sl.connect
    for wrong in (
        {},
        {"frontier": frontier},
        {"rules": RULES},
        {"plan": plan, "rules": RULES},
        {"plan": plan, "frontier": frontier, "rules": RULES},
    ):
        with pytest.raises(ConfigError, match=r"plan|rules"):
            connect(server.address, model=residual[1], **wrong)


def test_full_server_takes_files(scripted: Any) -> None:
    """A full server gets the files where there are some, and the tensor where not; the answer is the uncut model's."""
    model = load_model("demo-vision")
    parts = partition(model.module, model.example_inputs)
    assert model.preprocess is not None
    assert model.image_shape is not None
    pixels = np.random.default_rng(0).integers(0, 256, (2, *model.image_shape), np.uint8)
    inputs = model.preprocess(pixels)
    with torch.inference_mode():
        expected = model.module(inputs)
    choice = make_choice((model, parts), "input", way="full-server")
    with (
        Server(model, ["input"], parts=parts) as server,
        AdaptiveClient(server.address, model=parts, frontier=Frontier(choices=(choice,)), rules=RULES) as client,
    ):
        by_file = client.infer_detailed(inputs, files=[encode_png(image) for image in pixels])
        by_tensor = client.infer_detailed(inputs)
    assert by_file.result.uplink_bytes < by_tensor.result.uplink_bytes
    torch.testing.assert_close(by_file.outputs, expected)
    torch.testing.assert_close(by_tensor.outputs, expected, atol=0.02, rtol=0.02)


def test_stream_that_breaks_is_opened_again(server: Server, residual: Pair, choices: list[Choice]) -> None:
    """A link that is cut fails the request; the next one, when the link is back, opens another stream."""
    frontier = Frontier(choices=(choices[1],))
    with (
        LinkProxy(server.address, LinkConfig()) as proxy,
        AdaptiveClient(proxy.address, model=residual[1], frontier=frontier, rules=RULES) as client,
    ):
        before = client.infer(images())
        proxy.cut()
        with pytest.raises(PeerUnavailable):
            client.infer(images())
        proxy.restore()
        assert torch.equal(client.infer(images())["logits"], before["logits"])


def test_what_a_request_raises(server: Server, residual: Pair, choices: list[Choice]) -> None:
    """Errors are those of a plain client, and the next request works; one without an answer counts as a slow link."""
    frontier = Frontier(choices=(choices[1],))
    with AdaptiveClient(server.address, model=residual[1], frontier=frontier, rules=RULES, give_up_ms=1) as client:
        with pytest.raises(NonFiniteTensor):
            client.infer(images() * float("nan"))
        held = LinkConfig.parse("500ms")
        with (
            LinkProxy(server.address, held) as proxy,
            AdaptiveClient(
                proxy.address, model=residual[1], frontier=frontier, rules=RULES, give_up_ms=400, timeout_s=30.0
            ) as far,
            pytest.raises(DeadlineExceeded),
        ):
            far.infer(images())
        assert far.adapter.estimates.link.trip_ms() > client.adapter.estimates.link.trip_ms(0.2)


def test_basis_belongs_to_its_cut(residual: Pair) -> None:
    """Plans in a basis need it, and frames are in it."""
    with torch.inference_mode():
        features = [residual[1].split("body")[0](images(seed))[0].movedim(1, -1) for seed in (3, 4)]
    basis = calibrate_basis(features)
    choice = make_choice(residual, "body", CodecConfig(), basis=basis.digest.hex())
    with pytest.raises(ConfigError, match="basis"):
        AdaptiveClient("a:1", model=residual[1], frontier=Frontier(choices=(choice,)), rules=RULES)


def test_server_without_the_cut(server: Server, residual: Pair) -> None:
    """A choice whose cut is not served fails with the name of what differs."""
    frontier = Frontier(choices=(make_choice(residual, "forward:add"),))
    with (
        AdaptiveClient(server.address, model=residual[1], frontier=frontier, rules=RULES) as client,
        pytest.raises(PlanMismatch, match="cut"),
    ):
        client.infer(images())
