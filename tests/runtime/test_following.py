"""Sequences that change settings and cut in mid-course: over true sockets, with choices that a script makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.frontier import Choice, Frontier
from serverlight.generation import DecoderLoopback, LoadedDecoder
from serverlight.plan import Plan
from serverlight.runtime.adapt import Adapter, Change, Rules
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.runtime.exits import Caps
from serverlight.runtime.server import Server

CUTS = ["layers.0", "layers.1", "layers.2", "layers.3"]
PROMPT = [1, 17, 40, 9, 33, 71, 5]
NUM_TOKENS = 40
RULES = Rules(deadline_ms=60_000.0)
HALVES, COARSE = CodecConfig(profile="fp16"), CodecConfig(sparsity=0.9)


@pytest.fixture(scope="module")
def head(tiny_llama: str) -> LoadedDecoder:
    return LoadedDecoder.head(tiny_llama, "layers.3", dtype=torch.float32)


@pytest.fixture(scope="module")
def tail(tiny_llama: str) -> LoadedDecoder:
    return LoadedDecoder.tail(tiny_llama, "layers.0", dtype=torch.float32)


@pytest.fixture(scope="module")
def server(tail: LoadedDecoder) -> Iterator[Server]:
    with Server(tail, CUTS) as server:
        yield server


@pytest.fixture
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut="layers.2", codec=HALVES)


def make_choice(plan: Plan, layer: int, codec: CodecConfig = HALVES, **fields: Any) -> Choice:
    made = dataclasses.replace(plan, cut=f"layers.{layer}", codec=codec, **fields)
    return Choice(
        way="split", plan=made, head_ms=0.5, server_ms=0.5, server_busy_ms=0.5, uplink_bytes=100, downlink_bytes=50,
        device_memory_bytes=0, loss_pp=0.0,
    )  # fmt: skip


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes adapters choose, step after step, what a test wants; the last one stays."""

    def scripted(choices: Sequence[Choice]) -> list[int | None]:
        horizons: list[int | None] = []

        def choose(adapter: Adapter, horizon: int | None = None, *, elapsed_s: float = 0.0) -> Choice:
            choice = choices[min(len(horizons), len(choices) - 1)]
            horizons.append(horizon)
            adapter.stand_at(choice, "script")
            return choice

        monkeypatch.setattr(Adapter, "choose", choose)
        return horizons

    return scripted


@pytest.mark.parametrize("way", ["shipped", "recomputed", "auto"])
def test_cut_goes_both_ways(
    server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, scripted: Any, way: str
) -> None:
    """A cut that moves shallower and deeper in mid-sequence changes, loses and repeats no token."""
    layers = [2, 2, 0, 0, 3, 3, 3, 1, 2, 3, 0]
    choices = {layer: make_choice(plan, layer) for layer in range(4)}
    horizons = scripted([choices[layer] for layer in layers])
    client = DecoderClient(
        [server.address], plan=plan, head=head, caps=Caps(way=way), frontier=Frontier(choices=tuple(choices.values())),
        rules=RULES,
    )  # fmt: skip
    made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert made.token_ids == DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert [(exit.token_index, exit.reason, exit.to_cut) for exit in made.exits] == [
        (3, "link", "layers.0"),
        (5, "link", "layers.3"),
        (8, "link", "layers.1"),
        (9, "link", "layers.2"),
        (10, "link", "layers.3"),
        (11, "link", "layers.0"),
    ]
    assert [exit.way for exit in made.exits if exit.to_cut in ("layers.2", "layers.3")] == ["recomputed"] * 3
    assert horizons == list(range(NUM_TOKENS - 1, 0, -1))


def test_settings_change_from_step_to_step(server: Server, head: LoadedDecoder, plan: Plan, scripted: Any) -> None:
    """Coarse frames are smaller, at once and only for their own steps; the server is not told."""
    fine, coarse = make_choice(plan, 2), make_choice(plan, 2, COARSE)
    scripted([fine, fine, coarse, coarse, fine])
    client = DecoderClient(
        [server.address], plan=plan, head=head, frontier=Frontier(choices=(fine, coarse)), rules=RULES
    )
    sizes = [cost.uplink_bytes for cost in client.generate(PROMPT, max_new_tokens=8).costs][1:]
    assert sizes[0] == sizes[1] == sizes[4]
    assert max(sizes[2:4]) < sizes[0]


def test_follows_by_itself(server: Server, head: LoadedDecoder, plan: Plan) -> None:
    """Without a script it starts at the plan's cut, and every change is told."""
    changes: list[Change] = []
    frontier = Frontier(choices=tuple(make_choice(plan, layer) for layer in (2, 1)))
    client = DecoderClient(
        [server.address], plan=plan, head=head, frontier=frontier, rules=RULES, on_change=changes.append
    )
    made = client.generate(PROMPT, max_new_tokens=20)
    assert len(made.token_ids) == 20
    assert made.exits == ()
    assert [change.to_choice for change in changes] == [frontier.choices[0]]


def test_memory_goes_before_the_link(
    server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, scripted: Any
) -> None:
    """A cap on memory moves the cut, and no choice moves it back, nor to a cut that it does not allow."""
    frontier = Frontier(choices=(make_choice(plan, 2), make_choice(plan, 3)))
    scripted([make_choice(plan, 3)])
    caps = Caps(device_memory_bytes=2 * 128 * 15)
    client = DecoderClient([server.address], plan=plan, head=head, frontier=frontier, rules=RULES, caps=caps)
    made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert made.token_ids == DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    moves = [(exit.reason, exit.to_cut) for exit in made.exits]
    assert moves[0] == ("link", "layers.3")
    assert all(reason == "memory" for reason, _ in moves[1:])
    assert moves[-1] == ("memory", "layers.0")


def test_what_a_sequence_cannot_follow(server: Server, head: LoadedDecoder, plan: Plan) -> None:
    """A frontier with what a sequence cannot go over to, without a deadline, or with no cut that is served, is refused."""
    good = make_choice(plan, 2)
    alone = dataclasses.replace(good, way="all-device", plan=None)
    for choice in (alone, make_choice(plan, 2, return_cut="layers.3"), make_choice(plan, 2, basis="0" * 16)):
        with pytest.raises(ConfigError, match="leave"):
            DecoderClient(["a:1"], plan=plan, head=head, frontier=Frontier(choices=(choice,)), rules=RULES)
    with pytest.raises(ConfigError, match="give both"):
        DecoderClient(["a:1"], plan=plan, head=head, frontier=Frontier(choices=(good,)))
    with pytest.raises(ConfigError, match="layers"):
        DecoderClient(["a:1"], plan=plan, head=head, frontier=Frontier(choices=(make_choice(plan, 4),)), rules=RULES)
