"""Golomb-Rice codes of many numbers: their quotients by a power of two in unary, then all remainders (docs/wire-format.md, 5.3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serverlight.codec.wire import Reader, Writer
from serverlight.errors import InconsistentFrame

__all__ = ["MAX_RICE", "best_parameter", "read", "unary_bits_of", "write"]

MAX_RICE = 31

Numbers = npt.NDArray[np.int64]
"""Not negative."""


def best_parameter(numbers: Numbers) -> tuple[int, int]:
    """The parameter with the fewest bytes, and that number; the optimum lies beside log2 of the mean."""
    mean = int(numbers.mean()) if len(numbers) else 0
    guess = min(mean.bit_length(), MAX_RICE)
    sizes = {r: _num_bytes_with(numbers, r) for r in range(max(0, guess - 2), min(guess + 1, MAX_RICE) + 1)}
    best = min(sizes, key=lambda r: (sizes[r], r))
    return best, sizes[best]


def unary_bits_of(numbers: Numbers, rice: int) -> int:
    """Bits of all quotients."""
    return int((numbers >> rice).sum()) + len(numbers)


def write(writer: Writer, numbers: Numbers, rice: int, part: str) -> None:
    """Writes the number of unary bits, these, and the remainders."""
    stops = np.cumsum((numbers >> rice) + 1) - 1
    unary = np.zeros(int(stops[-1]) + 1 if len(stops) else 0, np.uint8)
    unary[stops] = 1
    writer.varint(len(unary), part)
    writer.bit_fields(unary, 1, part)
    writer.bit_fields(numbers & ((1 << rice) - 1), rice, part)


def read(reader: Reader, count: int, rice: int, *, most_unary_bits: int, below: int, part: str) -> Numbers:
    """Reads ``count`` numbers, each below a limit.

    Raises:
        InconsistentFrame: more unary bits than there may be, or others than the numbers need; or a number that is too large.
    """
    unary_bits = reader.varint(part)
    if unary_bits > most_unary_bits:
        raise InconsistentFrame(f"{part}: {unary_bits} unary bits, at most {most_unary_bits} are allowed")
    stops = np.flatnonzero(reader.bit_fields(unary_bits, 1, part))
    if len(stops) != count or unary_bits != (int(stops[-1]) + 1 if count else 0):
        raise InconsistentFrame(f"{part}: the unary section must end with the last of {count} one bits")
    remainders = reader.bit_fields(count, rice, part).astype(np.int64)
    quotients = np.diff(stops, prepend=-1) - 1
    numbers: Numbers = (quotients << rice) + remainders
    if count and (int(quotients.max()) << rice >= below or int(numbers.max()) >= below):
        raise InconsistentFrame(f"{part}: a number is not below {below}")
    return numbers


def _num_bytes_with(numbers: Numbers, rice: int) -> int:
    unary_bits = unary_bits_of(numbers, rice)
    length_bytes = max(1, -(-unary_bits.bit_length() // 7))
    return length_bytes + (unary_bits + 7) // 8 + (len(numbers) * rice + 7) // 8
