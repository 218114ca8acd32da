"""Whatever clients say and do, in whatever order, a server keeps its promises: a short run of what ``make fuzz-sessions`` does.

The promises are in ``fuzz/session_play.py``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from session_play import PLAYS, play
from session_worlds import InlineCore, World, make_worlds

from serverlight.runtime.connection import Connection
from serverlight.runtime.messages import StepReply
from serverlight.runtime.sessions import SessionTable

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, World]:
    return make_worlds(tmp_path_factory.mktemp("models") / "tiny")


@st.composite
def plays(draw: st.DrawFn) -> bytes:
    """One of the fuzzer's seeds with bytes replaced, taken out or put in, or two of them one after the other."""
    data = bytearray(draw(st.sampled_from(list(PLAYS.values()))))
    if draw(st.booleans()):
        data += draw(st.sampled_from(list(PLAYS.values())))[1:]
    for _ in range(draw(st.integers(0, 8))):
        start, size = draw(st.integers(0, len(data))), draw(st.integers(0, 4))
        data[start : start + size] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.mark.parametrize("server", [0, 1], ids=["language", "vision"])
@QUICK
@given(plays())
def test_promises_hold(worlds: tuple[World, World], server: int, data: bytes) -> None:
    """Each request has one answer, errors are ours, limits hold, nothing is left, and an honest client is served as ever."""
    play(worlds[server], data, honest_every=8)


def test_plays_get_somewhere(worlds: tuple[World, World]) -> None:
    """The fuzzer starts from conversations that are answered, not from noise."""
    said = {
        name: Counter(type(message).__name__ for world in worlds for message in play(world, data))
        for name, data in PLAYS.items()
    }
    assert said["writes"]["StepReply"] == 2
    assert said["samples"]["StepReply"] == 2
    assert said["moves"]["StepReply"] == 3
    assert said["ids"]["StepReply"] == 2
    assert said["together"]["StepReply"] == 6
    assert said["asks"]["InferReply"] == 2
    assert said["reads ahead"]["StepReply"] >= 1
    assert said["talks"]["Pong"] == 4


def unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InlineCore, "_deliver", lambda self, job, message: None)


def leaked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionTable, "remove", lambda self, owner: None)


def failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *words: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(InlineCore, "_take_answer", fail)


def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Connection._answer

    def tell(self: Any, message: Any) -> None:
        told(self, dataclasses.replace(message, token_id=3) if isinstance(message, StepReply) else message)

    monkeypatch.setattr(Connection, "_answer", tell)


@pytest.mark.parametrize("sabotage", [unanswered, leaked, failed, changed])
def test_broken_promise_is_found(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch, sabotage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The oracles can fail: each kind of fault is a finding."""
    play(worlds[0], PLAYS["writes"])
    sabotage(monkeypatch)
    with caplog.at_level(logging.CRITICAL + 1), pytest.raises(AssertionError):
        play(worlds[0], PLAYS["leaves"])
