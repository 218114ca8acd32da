from __future__ import annotations

import json

import pytest

from serverlight import errors
from serverlight.errors import (
    CertificateMismatch,
    ConfigError,
    ContextExceeded,
    CutNotFound,
    GenerationInterrupted,
    Infeasible,
    MissingDependency,
    ModelLoading,
    NonFiniteTensor,
    NotPartitionable,
    PlanMismatch,
    QuotaExceeded,
    RemoteError,
    ServerBusy,
)
from serverlight.runtime.failure import describe, rebuild

WITH_FACTS = [
    ConfigError("sparsity", "must be below 1"),
    CutNotFound("layr1", ("layer1", "layer2")),
    ContextExceeded(600, 512),
    Infeasible(("latency_ms", "uplink_bytes"), "no plan keeps both"),
    GenerationInterrupted((3, 1, 4), "no server is left"),
    MissingDependency("numba", "cpu"),
    NonFiniteTensor(3, 17),
    NotPartitionable("org/model", "its layers share keys"),
    PlanMismatch("cut", "layer1", "layer2"),
    ServerBusy(250),
    ModelLoading(500),
    QuotaExceeded("requests_per_s", 40),
    CertificateMismatch("tls_ca", "another authority"),
]


@pytest.mark.parametrize("error", WITH_FACTS, ids=lambda e: type(e).__name__)
def test_round_trip_with_facts(error: errors.ServerlightError) -> None:
    """An error arrives with its class, its text and the facts that a program may act on."""
    arrived = rebuild(*describe(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize("name", errors.__all__)
def test_round_trip_of_every_class(name: str) -> None:
    """Every class of the tree can travel, whatever its constructor takes."""
    kind = getattr(errors, name)
    arrived = rebuild(name, "what happened", "")
    assert type(arrived) is kind
    assert str(arrived) == "what happened"


def test_every_error_with_facts_is_tried() -> None:
    """A class that gets facts of its own must be added to the list above."""
    with_facts = {
        name for name in errors.__all__ if getattr(errors, name).__init__ is not errors.ServerlightError.__init__
    } - {"MissingDependency", "ConfigError"}
    own = {name for name in with_facts if "__init__" in vars(getattr(errors, name))}
    assert own | {"MissingDependency", "ConfigError"} == {type(error).__name__ for error in WITH_FACTS}


def test_subclass_travels_as_the_class_that_the_other_side_knows() -> None:
    """An error class of some module's own arrives as the nearest public one."""

    class OddCut(CutNotFound):
        pass

    assert describe(OddCut("a"))[0] == "CutNotFound"


@pytest.mark.parametrize("code", ["NoSuchError", "Exception", "SystemExit", "", "__builtins__", "x" * 10_000])
def test_unknown_code_becomes_remote_error(code: str) -> None:
    """A peer cannot make us raise anything but our own errors."""
    assert type(rebuild(code, "what happened", "{}")) is RemoteError


@pytest.mark.parametrize(
    "attributes_json", ["[]", "null", "{", "[" * 100_000, '{"__class__": 1, "args": 2, "other": 3}']
)
def test_odd_attributes_are_ignored(attributes_json: str) -> None:
    """Attributes that the class does not have are dropped, and so is what is no JSON object."""
    assert vars(rebuild("ServerBusy", "later", attributes_json)) == {}


@pytest.mark.parametrize("value", ['"soon"', "null", "[1]", "true", "1e400", "9" + "0" * 400, "{}"])
def test_facts_of_another_type_are_ignored(value: str) -> None:
    """A program that acts on a fact finds one of the type that it expects, whatever a stranger sent."""
    assert rebuild("ServerBusy", "later", f'{{"retry_after_ms": {value}}}').retry_after_ms == 0


def test_long_message_is_cut() -> None:
    """A message cannot flood the other side's log."""
    assert len(str(rebuild("FrameError", "x" * 10**6, ""))) == 2000
    assert len(describe(errors.FrameError("x" * 10**6))[1]) == 2000


def test_facts_that_are_no_json_are_sent_as_text() -> None:
    """An attribute of an odd type does not keep the error from travelling."""
    assert json.loads(describe(PlanMismatch("codec", {1, 2}, None))[2]) == {
        "field": "codec",
        "ours": "{1, 2}",
        "theirs": None,
    }
