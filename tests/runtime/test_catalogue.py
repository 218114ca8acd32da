"""Which models are loaded, and which make room: the catalogue alone, without models, threads or a clock."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from serverlight.errors import ConfigError, ModelLoading, PlanMismatch, RemoteError, ServerBusy
from serverlight.plan import Plan
from serverlight.runtime.catalogue import Catalogue, Engine, Offer

RUNNER: Any = None
"""No test here runs anything."""


def engine_of(name: str, num_bytes: int = 10) -> Engine:
    plan = Plan(model=name, revision="1", cut="middle")
    return Engine(plans={plan.cut: plan}, runner=RUNNER, num_bytes=num_bytes)


def offer(name: str, num_bytes: int = 10) -> Offer:
    return Offer(name=name, load=lambda: engine_of(name, num_bytes), num_bytes=num_bytes)


def load_next(catalogue: Catalogue, now_s: float) -> bool:
    """What the loading thread does."""
    wanted = catalogue.begin(now_s)
    assert wanted is not None
    return catalogue.add(wanted, wanted.load(), now_s)


def names(catalogue: Catalogue) -> list[str]:
    return [engine.model for engine in catalogue.engines]


def ask(catalogue: Catalogue, name: str, now_s: float) -> Engine:
    """Loads a model that is asked for, and holds it."""
    with pytest.raises(ModelLoading):
        catalogue.hold(name, now_s)
    assert load_next(catalogue, now_s)
    return catalogue.hold(name, now_s)


def test_loads_what_is_asked_for() -> None:
    """Nothing is loaded before the first client asks; who asks is told when to come back, and then has it."""
    catalogue = Catalogue([offer("a"), offer("b")])
    assert catalogue.begin(0) is None
    with pytest.raises(ModelLoading) as told:
        catalogue.hold("a", 0)
    assert told.value.retry_after_ms > 0
    assert load_next(catalogue, 1)
    assert catalogue.hold("a", 2).model == "a"
    assert names(catalogue) == ["a"]


def test_asked_twice_loaded_once() -> None:
    """Of two clients that ask for the same model the second finds it on its way."""
    catalogue = Catalogue([offer("a")])
    for _ in range(2):
        with pytest.raises(ModelLoading):
            catalogue.hold("a", 0)
    assert load_next(catalogue, 0)
    assert catalogue.begin(0) is None


def test_one_after_the_other() -> None:
    """Several models that are wanted are loaded in the order in which they were asked for."""
    catalogue = Catalogue([offer("a"), offer("b")])
    for name in ("b", "a"):
        with pytest.raises(ModelLoading):
            catalogue.hold(name, 0)
    assert load_next(catalogue, 0)
    assert names(catalogue) == ["b"]
    assert load_next(catalogue, 0)
    assert names(catalogue) == ["a", "b"]


def test_longest_unused_makes_room() -> None:
    """Of those that nobody uses the one goes that was used longest ago, and no more than needed."""
    catalogue = Catalogue([offer("a"), offer("b"), offer("c")], memory_bytes=20, keep_s=5)
    first, second = ask(catalogue, "a", 0), ask(catalogue, "b", 1)
    catalogue.release(first, 10)
    catalogue.release(second, 9)
    ask(catalogue, "c", 20)
    assert names(catalogue) == ["a", "c"]
    assert catalogue.num_bytes == 20


def test_held_model_stays() -> None:
    """A model with a client is never dropped: another that has no room without it is refused, with the time to come back."""
    catalogue = Catalogue([offer("a"), offer("b")], memory_bytes=15, keep_s=5)
    held = ask(catalogue, "a", 0)
    catalogue.hold("a", 1)
    catalogue.release(held, 2)
    with pytest.raises(ServerBusy) as told:
        catalogue.hold("b", 1000)
    assert not isinstance(told.value, ModelLoading)
    assert told.value.retry_after_ms > 0
    assert names(catalogue) == ["a"]
    catalogue.release(held, 1000)
    ask(catalogue, "b", 1006)
    assert names(catalogue) == ["b"]


def test_fresh_model_stays_for_who_asked() -> None:
    """A model that was just loaded is there when the client that asked for it comes back, whoever asks meanwhile."""
    catalogue = Catalogue([offer("a"), offer("b")], memory_bytes=15, keep_s=5)
    with pytest.raises(ModelLoading):
        catalogue.hold("a", 0)
    assert load_next(catalogue, 100)
    with pytest.raises(ServerBusy):
        catalogue.hold("b", 101)
    assert catalogue.hold("a", 104).model == "a"


def test_room_that_went_to_another() -> None:
    """Two models that are wanted at once and have room for one: the first is loaded, the second's client is told."""
    catalogue = Catalogue([offer("a"), offer("b")], memory_bytes=15)
    for name in ("a", "b"):
        with pytest.raises(ModelLoading):
            catalogue.hold(name, 0)
    assert load_next(catalogue, 0)
    assert catalogue.begin(0) is None
    with pytest.raises(ServerBusy):
        catalogue.hold("b", 0)


def test_larger_than_was_known() -> None:
    """A model that turns out larger than its files is not taken without room, and its clients learn that it never fits."""
    large = dataclasses.replace(offer("large", 30), num_bytes=5)
    catalogue = Catalogue([large], memory_bytes=20)
    with pytest.raises(ModelLoading):
        catalogue.hold("large", 0)
    assert not load_next(catalogue, 0)
    assert catalogue.num_bytes == 0
    with pytest.raises(RemoteError, match="does not fit"):
        catalogue.hold("large", 1)


def test_failed_model_is_tried_again_later() -> None:
    """Who asks for a model that could not be loaded is told so at once; after a while it is tried again."""
    catalogue = Catalogue([offer("a")])
    with pytest.raises(ModelLoading):
        catalogue.hold("a", 0)
    wanted = catalogue.begin(0)
    assert wanted is not None
    catalogue.fail(wanted, 0)
    assert catalogue.begin(0) is None
    with pytest.raises(RemoteError, match="could not load 'a'"):
        catalogue.hold("a", 29)
    with pytest.raises(ModelLoading):
        catalogue.hold("a", 31)


def test_unknown_model() -> None:
    """A client that asks for another model learns which there are, unless the server keeps that to itself."""
    catalogue = Catalogue([offer("a"), offer("b")])
    with pytest.raises(PlanMismatch) as told:
        catalogue.hold("c", 0)
    assert (told.value.field, told.value.ours, told.value.theirs) == ("model", "c", "a, b")
    catalogue.tells_names = False
    with pytest.raises(PlanMismatch) as untold:
        catalogue.hold("c", 0)
    assert "a" not in str(untold.value.theirs).split()
    assert "b" not in str(untold.value).split()


def test_folders_have_the_name_of_their_last_part() -> None:
    """Where a model's files lie is the server's own business; two that clients could not tell apart are refused."""
    catalogue = Catalogue([offer("/here/llama"), offer("demo-lm")])
    assert ask(catalogue, "/there/llama/", 0).model == "/here/llama"
    with pytest.raises(ConfigError, match="llama"):
        Catalogue([offer("/here/llama"), offer("org/llama")])


def test_all_at_start() -> None:
    """What is loaded at the start must fit, or nothing starts."""
    catalogue = Catalogue([offer("a"), offer("b")], memory_bytes=20)
    loaded = list[str]()
    catalogue.load_all(lambda engine: loaded.append(engine.model))
    assert loaded == names(catalogue) == ["a", "b"]
    with pytest.raises(ConfigError, match="memory") as refused:
        Catalogue([offer("a"), offer("b")], memory_bytes=19).load_all()
    assert refused.value.field == "memory"
