"""Limits of a server; brings nothing heavy, since the commands show them in their help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from serverlight.errors import ConfigError

__all__ = ["DEFAULT_MAX_MESSAGE_BYTES", "ServerConfig"]

DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest message either side reads unless told otherwise; gRPC's own 4 MiB is too small for a batch of early features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Limits of a server; the defaults suit small models on a few cores."""

    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """The largest message it reads or writes."""

    max_batch: int = 64
    """The most samples in one request."""

    max_batch_requests: int = 64
    """The most requests that run as one batch; 1 runs one after the other."""

    max_batch_delay_ms: float = 15.0
    """The longest that a request waits for others to join its batch, in milliseconds."""

    max_waiting: int = 64
    """The most requests that wait, all clients together; further ones get :class:`ServerBusy`."""

    max_in_flight: int = 16
    """Requests without a reply that it reads from one stream; it leaves further ones unread."""

    max_streams: int = 256
    """The most streams at a time; further ones get :class:`ServerBusy`."""

    hello_timeout_s: float = 10.0
    """How long a new stream may say nothing."""

    max_sessions: int = 64
    """The most sequences of a language model at a time; further ones get :class:`ServerBusy`."""

    max_session_tokens: int = 8192
    """The most tokens of one sequence; the model's context may hold fewer."""

    max_kv_bytes: int = 2**30
    """Keys and values of all sequences together; a step beyond it gets :class:`ServerBusy`."""

    session_idle_s: float = 600.0
    """How long a sequence is remembered without a step."""

    drain_s: float = 10.0
    """How long a stopping server goes on with what it has accepted."""

    stall_s: float = 60.0
    """How long there may be work and no answer before the server says that it is not healthy."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "drain_s" else 1
            if field.type == "int" and (not isinstance(value, int) or value < least):
                raise ConfigError(field.name, f"must be a whole number of at least {least}, got {value!r}")
            if field.type == "float" and not value >= 0:
                raise ConfigError(field.name, f"must be zero or more, got {value!r}")
