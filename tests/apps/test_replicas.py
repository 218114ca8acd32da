"""How many servers there should be and which of them a session belongs to, without Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from serverlight.apps.ray_options import RayOptions
from serverlight.apps.recipe import Recipe
from serverlight.apps.replicas import load_of, rank, wanted_replicas
from serverlight.apps.watch_options import WatchOptions
from serverlight.errors import ConfigError

SESSIONS = [f"tablet-{i}" for i in range(600)]
ADDRESSES = [f"10.0.0.{i}:50051" for i in range(1, 6)]


def test_sessions_are_spread() -> None:
    """No replica has less than three quarters of its fair share of the sessions, and none more than five quarters."""
    first = [rank(session, ADDRESSES)[0] for session in SESSIONS]
    fair = len(SESSIONS) / len(ADDRESSES)
    assert all(0.75 * fair < first.count(address) < 1.25 * fair for address in ADDRESSES)


def test_only_the_lost_move() -> None:
    """When a replica goes, its sessions go to what was second for them, to every other replica some; nobody else moves."""
    lost, *others = ADDRESSES
    heirs = set()
    for session in SESSIONS:
        before, after = rank(session, ADDRESSES), rank(session, reversed(others))
        assert after == [address for address in before if address != lost]
        if before[0] == lost:
            heirs.add(after[0])
    assert heirs == set(others)


@dataclass
class Context:
    """What the policy reads of Serve's own."""

    loads: dict[str, float]
    current_num_replicas: int = 2
    target_num_replicas: int = 2
    aggregated_metrics: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.aggregated_metrics = {"load": self.loads} if self.loads else {}


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        ({}, 2),  # nobody has said anything yet
        ({"a": 1.0, "b": 1.0}, 2),
        ({"a": 1.2, "b": 1.0}, 3),
        ({"a": 0.1, "b": 0.2}, 1),
        ({"a": 0.0, "b": 0.0}, 0),  # Serve keeps the minimum
        ({"a": 1.5}, 3),  # the other is new
    ],
)
def test_as_many_as_the_load_needs(loads: dict[str, float], wanted: int) -> None:
    """There should be so many replicas that each is as full as it should be, however uneven they are now."""
    assert wanted_replicas(Context(loads)) == (wanted, {})


@pytest.mark.parametrize("name", ["waiting", "sessions", "kv"])
def test_what_is_scarcest_counts(name: str) -> None:
    """A full queue, a full table of sessions and a full memory each make a server full."""
    shares = {"waiting": 0.0, "sessions": 0.0, "kv": 0.0}
    assert load_of(shares) == 0.0
    assert load_of({**shares, name: 1.0}) > 1.0


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"replicas": 2}, "replicas"),
        ({"max_replicas": 2}, "max_replicas"),
        ({"replica_ports": "1-2"}, "replica_ports"),
        ({"ray": True, "replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"ray": True, "replica_ports": "50100"}, "replica_ports"),
        ({"ray": True, "replica_ports": "50100-50099"}, "replica_ports"),
        ({"ray": True, "replica_ports": "0-9"}, "replica_ports"),
        ({"ray": True, "replica_ports": "9-65536"}, "replica_ports"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], field: str) -> None:
    """An option that means nothing, or cannot be met, is named before anything is loaded."""
    with pytest.raises(ConfigError) as caught:
        RayOptions(**given).check(WatchOptions())
    assert caught.value.field == field


def test_ray_is_asked_for_by_name(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray the command says what to install, and loads no model."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "serverlight.apps.ray_app", raising=False)  # half a module, where doctests looked
    outcome = cli("serve", "demo-lm", "--cut", "layers.4", "--ray")
    assert outcome.code == 2
    assert "serverlight[ray]" in outcome.err


def test_same_server_from_a_recipe() -> None:
    """A recipe makes the server that it tells of, again and again, and it does not listen yet."""
    recipe = Recipe(model="demo-lm", cuts=("layers.6", "layers.7"), dtype="float32")
    for server in (recipe.make("127.0.0.1", 0), recipe.make("127.0.0.1", 0)):
        assert [plan.cut for plan in server.core.plans] == ["layers.6", "layers.7"]
        assert server.address == "127.0.0.1:0"
        assert {plan.model for plan in server.core.plans} == {"demo-lm"}


def test_no_page_for_many_servers() -> None:
    """Options that would be without effect under Ray are refused, not forgotten."""
    with pytest.raises(ConfigError) as caught:
        RayOptions(ray=True).check(WatchOptions(http=0))
    assert caught.value.field == "http"
