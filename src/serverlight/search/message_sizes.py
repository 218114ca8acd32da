"""What messages take on the wire beside what they carry, without making them (proto/serverlight.proto)."""

from __future__ import annotations

from serverlight.runtime.transport import wire_bytes

__all__ = ["infer_reply_bytes", "infer_request_bytes", "step_bytes", "step_reply_bytes"]

_ID_BYTES = 1 + 2
"""Of a request or a step: ids above 127, as most are."""

_DEADLINE_BYTES = 1 + 3
_TIMING_BYTES = 2 + 5 * 5 + 9 + 2
"""Five floats, the process's time as a double, the size of the batch."""

_TENSOR_BYTES = 9 + 6 + 10
"""Its dtype, shape and name."""

_TOKEN_BYTES = 1 + 2


def infer_request_bytes(payload_bytes: int) -> int:
    """A request of a single-shot model with its payload."""
    return wire_bytes(_field(_ID_BYTES + _field(_field(payload_bytes)) + _DEADLINE_BYTES))


def infer_reply_bytes(output_bytes: int) -> int:
    """The reply to it, with one output."""
    return wire_bytes(_field(_ID_BYTES + _field(_TENSOR_BYTES + _field(output_bytes)) + _TIMING_BYTES))


def step_bytes(payload_bytes: int) -> int:
    """A step of a language model with one frame."""
    return wire_bytes(_field(_ID_BYTES + _field(payload_bytes)))


def step_reply_bytes() -> int:
    """The reply to it, with the token."""
    return wire_bytes(_field(_ID_BYTES + _TOKEN_BYTES + _TIMING_BYTES))


def _field(num_bytes: int) -> int:
    """A field of so many bytes: tag, length in groups of seven bits, content.

    >>> _field(127), _field(128)
    (129, 131)
    """
    return 1 + max(1, -(-num_bytes.bit_length() // 7)) + num_bytes
