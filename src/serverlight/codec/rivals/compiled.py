"""Compiled loops of the rivals, so that hundreds of settings can be tried; without Numba they run as they are, slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

__all__ = ["decode_rans", "encode_rans", "normalise", "quantise_groups", "write_frequencies"]

Function = TypeVar("Function", bound=Callable[..., object])
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]

LOWER_BOUND = 1 << 16
"""A state is in [2^16, 2^32) between symbols, and gives or takes words of 16 bits."""

MAX_BITS = 10


def _compiled(function: Function) -> Function:
    try:
        import numba
    except ModuleNotFoundError:
        return function
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


@_compiled
def encode_rans(slots: Int32s, precisions: Bytes, frequency: Int64s, start: Int64s, words: Words) -> int:
    """Fills ``words`` from its end, final state first when read forwards; returns where they begin.

    Args:
        slots: where each symbol stands in the tables laid end to end.
        precisions: of the table of each place in them.
        frequency: of each place.
        start: sum of the frequencies before it in its own table.
        words: room for two words and one more for each symbol.
    """
    state, at = LOWER_BOUND, len(words)
    for t in range(len(slots) - 1, -1, -1):
        slot = slots[t]
        share, precision = frequency[slot], np.int64(precisions[slot])
        if state >= share << (32 - precision):
            at -= 1
            words[at] = state & 0xFFFF
            state >>= 16
        quotient = state // share
        state = (quotient << precision) + (state - quotient * share) + start[slot]
    words[at - 1] = state & 0xFFFF
    words[at - 2] = state >> 16
    return at - 2


@_compiled
def decode_rans(
    words: Words, counts: Int64s, precisions: Int64s, slot_at: Int32s, frequency: Int64s, start: Int64s, slots: Int32s
) -> None:
    """Writes the ``slots`` of :func:`encode_rans`; all words that are missing read as zero.

    Args:
        words: of the encoder.
        counts: symbols of each stream.
        precisions: of each stream's table.
        slot_at: for each value of the state's low bits the place in the tables, stream after stream.
        frequency: see :func:`encode_rans`.
        start: see there.
        slots: room for all symbols.
    """
    state, at, t, base = (np.int64(words[0]) << 16) | np.int64(words[1]), 2, 0, 0
    for stream in range(len(counts)):
        precision = precisions[stream]
        mask = (1 << precision) - 1
        for _ in range(counts[stream]):
            low = state & mask
            slot = slot_at[base + low]
            slots[t] = slot
            t += 1
            state = frequency[slot] * (state >> precision) + low - start[slot]
            if state < LOWER_BOUND:
                word = np.int64(words[at]) if at < len(words) else np.int64(0)
                state = (state << 16) | word
                at += 1
        base += mask + 1


@_compiled
def normalise(counts: Int64s, precision: int) -> Int64s:
    """Counts scaled to sum to ``2**precision``, at least 1 for whatever occurs; the largest take up the rounding."""
    total, occurring = 1 << precision, counts.sum()
    if occurring == 0:
        return np.array([total])
    scaled = np.zeros(len(counts), np.int64)
    for i in range(len(counts)):
        if counts[i] > 0:
            scaled[i] = max(1, int(np.rint(counts[i] * (total / occurring))))
    excess = scaled.sum() - total
    while excess != 0:
        largest = scaled.argmax()
        change = min(excess, scaled[largest] // 2) if excess > 0 else excess
        scaled[largest] -= change
        excess -= change
    return scaled


@_compiled
def write_frequencies(frequencies: Int64s, out: Bytes) -> int:
    """Every frequency but the last, seven bits a byte; zero and a length stand for a run of zeros. Returns the bytes written."""
    at, zeros = 0, 0
    for i in range(len(frequencies)):
        value = frequencies[i]
        last = i == len(frequencies) - 1
        if value == 0 and not last:
            zeros += 1
            continue
        if zeros > 0:
            out[at] = 0
            at += 1
            while zeros > 0x7F:
                out[at] = zeros & 0x7F | 0x80
                zeros >>= 7
                at += 1
            out[at] = zeros
            at += 1
            zeros = 0
        if last:
            break
        while value > 0x7F:
            out[at] = value & 0x7F | 0x80
            value >>= 7
            at += 1
        out[at] = value
        at += 1
    return at


@_compiled
def quantise_groups(
    magnitudes: Floats, ends: Int64s, low: Floats, high: Floats, budget: float, at_ends: bool, codes: Int32s
) -> Bytes:
    """Codes of magnitudes that lie group by group, each group at the least width that keeps its budget; returns the widths.

    Args:
        magnitudes: of the survivors.
        ends: where each group ends.
        low: the least magnitude of each group.
        high: the largest.
        budget: mean error allowed, as a share of a group's range.
        at_ends: whether levels go from end to end of the range, or lie in the middle of equal cells.
        codes: room for the codes.
    """
    widths = np.zeros(len(ends), np.uint8)
    begin = 0
    for group in range(len(ends)):
        end, span = ends[group], high[group] - low[group]
        codes[begin:end] = 0
        if span > 0 and end > begin:
            for width in range(MAX_BITS + 1):
                cells = 1 << width
                error = 0.0
                for i in range(begin, end):
                    share = min(max((magnitudes[i] - low[group]) / span, np.float32(0)), np.float32(1))
                    if at_ends:
                        codes[i] = int(np.rint(share * np.float32(cells - 1)))
                        place = codes[i] / max(cells - 1, 1)
                    else:
                        codes[i] = min(int(share * np.float32(cells)), cells - 1)
                        place = (codes[i] + 0.5) / cells
                    error += abs(share - place)
                widths[group] = width
                if error <= budget * (end - begin):
                    break
        begin = end
    return widths
