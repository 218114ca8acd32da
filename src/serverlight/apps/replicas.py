"""Many servers of one model: how full they are, how many there should be, which of them a session belongs to.

Plain functions without Ray, which calls :func:`wanted_replicas` in its controller.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from serverlight.errors import ConfigError

__all__ = ["load_of", "rank", "read_ports", "wanted_replicas"]

TARGET_WAITING, TARGET_SESSIONS, TARGET_KV = 0.25, 0.7, 0.7
"""Shares of a server's limits at which it is as full as it should be; above, there should be more servers."""


def load_of(shares: Mapping[str, float]) -> float:
    """How full a server is, by what it has least of; 1 is as full as it should be.

    Args:
        shares: what is used of its limits, from 0 to 1: ``waiting`` requests, ``sessions``, and ``kv``, the memory for keys
            and values.

    >>> load_of({"waiting": 0.0, "sessions": 0.35, "kv": 0.14})
    0.5
    """
    targets = {"waiting": TARGET_WAITING, "sessions": TARGET_SESSIONS, "kv": TARGET_KV}
    return max(shares[name] / target for name, target in targets.items())


def wanted_replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """Ray Serve's policy: so many replicas that each is as full as it should be, by the ``load`` that they report.

    Serve itself keeps minimum, maximum and delays. Without a report all stays as it is.
    """
    loads = (context.aggregated_metrics or {}).get("load", {})
    if not loads:
        return context.target_num_replicas, {}
    # Not all have reported yet: the others count as the mean of those that have.
    mean = sum(loads.values()) / len(loads)
    return math.ceil(mean * max(context.current_num_replicas, 1) - 1e-9), {}


def rank(session: str, addresses: Iterable[str]) -> list[str]:
    """Addresses in the order in which a session should try them (rendezvous hashing).

    The order is the same wherever it is asked for. An address that goes moves only the sessions that it had, evenly to
    the others; one that comes takes its share of all of them.

    >>> order = rank("tablet-7", ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"])
    >>> rank("tablet-7", order[1:]) == order[1:]
    True
    """
    return sorted(addresses, key=lambda address: hashlib.sha256(f"{address} {session}".encode()).digest())


def read_ports(text: str | None) -> range:
    """``FIRST-LAST`` as a range, ``None`` as any free port; raises :class:`ConfigError`.

    >>> read_ports("50100-50163"), read_ports(None)
    (range(50100, 50164), range(0, 1))
    """
    if text is None:
        return range(1)
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65536):
        raise ConfigError("replica_ports", f"must be FIRST-LAST, such as 50100-50163, got {text!r}")
    return range(int(first), int(last) + 1)
