"""Connecting to a server: by a plan, or along a frontier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import overload

from serverlight.codec import Basis
from serverlight.errors import ConfigError
from serverlight.frontier import Frontier
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.plan import Plan
from serverlight.runtime.adapt import Change, Rules
from serverlight.runtime.adaptive_client import AdaptiveClient
from serverlight.runtime.client import DEFAULT_DEADLINE_MS, Client, dial
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.transport import DEFAULT_MAX_MESSAGE_BYTES

__all__ = ["connect"]


@overload
def connect(
    address: str,
    *,
    plan: Plan,
    model: LoadedModel | Partition,
    basis: Basis | None = None,
    timeout_s: float = 5.0,
    deadline_ms: int = DEFAULT_DEADLINE_MS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    credentials: Credentials | None = None,
    load_timeout_s: float = 60.0,
) -> Client: ...


@overload
def connect(
    address: str,
    *,
    model: LoadedModel | Partition,
    frontier: Frontier,
    rules: Rules,
    bases: Mapping[str, Basis] | None = None,
    on_change: Callable[[Change], None] | None = None,
    timeout_s: float = 5.0,
    deadline_ms: int = DEFAULT_DEADLINE_MS,
    credentials: Credentials | None = None,
) -> AdaptiveClient: ...


def connect(
    address: str,
    *,
    model: LoadedModel | Partition,
    plan: Plan | None = None,
    basis: Basis | None = None,
    frontier: Frontier | None = None,
    rules: Rules | None = None,
    bases: Mapping[str, Basis] | None = None,
    on_change: Callable[[Change], None] | None = None,
    timeout_s: float = 5.0,
    deadline_ms: int = DEFAULT_DEADLINE_MS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    credentials: Credentials | None = None,
    load_timeout_s: float = 60.0,
) -> Client | AdaptiveClient:
    """Connects to a server and agrees on the plan; with a frontier in place of a plan the client follows its link.

    Args:
        address: ``HOST:PORT`` of a :class:`~serverlight.runtime.server.Server`, or ``ray+http://HOST:PORT`` of a directory,
            which is asked once.
        model: the model that the plan names, or its partition if it has been made already.
        plan: which model, cut where, compressed how.
        basis: the one that the plan names, if it names one.
        frontier: what to move along, as a search makes it; each of its cuts is connected to when it is first used.
        rules: the deadline that requests over a frontier should keep, and caps.
        bases: by cut, those that the frontier's plans name.
        on_change: hears of each change of plan.
        timeout_s: how long connecting may take.
        deadline_ms: how long a request may take that does not say otherwise; then it fails.
        max_message_bytes: the largest message to send or read.
        credentials: whom to trust and who the client is; by default nothing is encrypted.
        load_timeout_s: how long to come back to a server that is loading the model.

    Returns:
        A :class:`Client`, or for a frontier a :class:`~serverlight.runtime.adaptive_client.AdaptiveClient`.

    Raises:
        ModelLoading: the server has not loaded the model in that time.
        Unauthenticated: the server wants a token and knows none like this one.
        CertificateMismatch: the sides cannot agree on TLS; the error names the setting.
        PeerUnavailable: nobody listens at the address.
        ConnectTimeout: nobody answered in time.
        PlanMismatch: the server has another model, revision, cut, codec or basis; the error names the field.
        ConfigError: another basis than the plan's, a token that would travel without encryption, both a plan and a frontier or
            none of them, or no choice of the frontier that keeps the rules.
        CutNotFound: the model has no such cut.
    """
    if (plan is None) == (frontier is None):
        raise ConfigError("plan", "or frontier, with rules, is what a client goes by; give one of them")
    if (frontier is None) != (rules is None):
        raise ConfigError("rules", "a frontier needs rules with the deadline, and rules a frontier; give both")
    if frontier is not None and rules is not None:
        if basis is not None:
            raise ConfigError("basis", "is a plan's; give those of a frontier as `bases`, by cut")
        return AdaptiveClient(
            address, model=model, frontier=frontier, rules=rules, bases=bases, on_change=on_change, timeout_s=timeout_s,
            give_up_ms=deadline_ms, credentials=credentials,
        )  # fmt: skip
    assert plan is not None
    return dial(
        address, plan=plan, model=model, basis=basis, timeout_s=timeout_s, deadline_ms=deadline_ms,
        max_message_bytes=max_message_bytes, credentials=credentials, load_timeout_s=load_timeout_s,
    )  # fmt: skip
