"""The probability model of profile ``serverlight``: a few levels a context, and the frequency tables they stand for.

Everything here is in integers, so that every writer and reader computes the same tables. The functions are plain Python on NumPy
arrays, written so that a compiler of Python loops can take them as they are: one definition, and as many speeds as there are
backends. Section numbers refer to docs/wire-format.md.

A symbol is a pair of nibbles ``16 a + b``; each nibble holds one quantised element. The distribution of a nibble is given by five
binary decisions: zero or not, which sign, above one or not, above two or not, above ``m`` or not for the rest; each has a level, a
logit in quarters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serverlight.codec import trellis

__all__ = [
    "DEFAULT_LEVELS",
    "ESCAPE",
    "FIRST",
    "FLIP_NEXT",
    "LARGE",
    "NEXT",
    "NUM_CONTEXTS",
    "NUM_DECISIONS",
    "NUM_ROWS",
    "SCALE",
    "build_tables",
    "count_decisions",
    "fit_levels",
    "levels_of",
    "payload_bits",
]

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
ESCAPE = 255
LARGE = 15
"""The nibble that stands for all numbers too large for one."""

NUM_DECISIONS = 5
MAX_LEVEL = 32
LEAST_SHARE = 180_000  # of 2^32: rarer pairs than 0.17 / 4096 are escaped, commoner ones get a frequency of one

ONE = 65536
ESCAPED_BITS = 6
"""About what a number too large for a nibble takes beside its symbol."""

_UPPER_PROBABILITIES = np.array(
    [
        32768,
        36843,
        40793,
        44511,
        47911,
        50941,
        53581,
        55834,
        57724,
        59287,
        60565,
        61598,
        62428,
        63090,
        63615,
        64030,
        64357,
        64614,
        64816,
        64974,
        65097,
        65194,
        65269,
        65328,
        65374,
        65410,
        65438,
        65459,
        65476,
        65489,
        65500,
        65508,
        65514,
    ],
    np.int64,
)
PROBABILITY: Ints = np.concatenate([ONE - _UPPER_PROBABILITIES[:0:-1], _UPPER_PROBABILITIES])
"""Probability, in 65536ths, that a decision with a given level is yes; index is the level plus 32 (section 6.5).

The logistic function of a quarter of the level, rounded; written out, so that no two platforms can differ.
"""
COST = np.rint(-256 * np.log2(PROBABILITY / ONE)).astype(np.int64)
"""Price of a yes at each level, in 256ths of a bit; that of a no is the price of a yes at the opposite level."""
COST_OF_FREQUENCY = np.rint(-256 * np.log2(np.maximum(np.arange(SCALE + 1), 1) / SCALE)).astype(np.int64)
"""Price of a symbol by its frequency, in 256ths of a bit."""


# -- contexts (section 6.4) ---------------------------------------------------------------------------

FLAT, TOKENS, ONE_SIDED_PLANES, SIGNED_PLANES, TRELLIS = range(5)
"""Families of contexts, but for the last by their number on the wire: that one is for tokens along a trellis."""

NUM_CONTEXTS = (1, 16, 27, 14, 32)
NUM_ROWS = (1, 16, 27, 14, 64)
"""Tables for pairs: one a context, but that along a trellis each of the four states has its own."""


def neighbour_context(kind: int, left: int, up: int, up_right: int) -> tuple[int, int]:
    """Context and flip (+1 or -1) of a pair in a plane, from the classes of its neighbours.

    Classes are 0, 1, 2 (zero, one, more) for one-sided planes, and -1, 0, 1 (the sign) for signed ones.
    """
    index = 9 * left + 3 * up + up_right
    if kind == ONE_SIDED_PLANES:
        return index, 1
    return abs(index), 1 if index >= 0 else -1


def _plane_transitions(kind: int) -> tuple[Ints, Ints]:
    """Context and flip of the second nibble, by the context and the class of the first (canonical frame)."""
    classes = (0, 1, 2) if kind == ONE_SIDED_PLANES else (-1, 0, 1)
    following = np.zeros((NUM_CONTEXTS[kind], 3), np.int64)
    flips = np.ones((NUM_CONTEXTS[kind], 3), np.int64)
    for left in classes:
        for up in classes:
            for up_right in classes:
                context, flip = neighbour_context(kind, left, up, up_right)
                if flip < 0:
                    continue
                for index, first in enumerate(classes):
                    following[context, index], flips[context, index] = neighbour_context(kind, first, up_right, up)
    return following, flips


def _token_transitions() -> tuple[Ints, Ints]:
    following, flips = np.zeros((16, 3), np.int64), np.ones((16, 3), np.int64)
    for context in range(16):
        activity, leaning = divmod(context, 2)
        busier, calmer = min(activity + 1, 7), max(activity - 1, 0)
        following[context] = (2 * busier + (1 if not leaning else 0), 2 * calmer + leaning, 2 * busier + 1)
        flips[context, 0] = 1 if leaning else -1
    return following, flips


def _trellis_transitions() -> tuple[Ints, Ints]:
    """As those of tokens, in the quantiser of the state that the first number's parity leads to; classes come even and odd."""
    following, flips = (np.tile(np.repeat(table, 2, axis=1), (4, 1)) for table in _token_transitions())
    for state in range(4):
        for parity in range(2):
            following[16 * state : 16 * (state + 1), parity::2] += 16 * trellis.quantiser_of(
                trellis.MOVES[state, parity]
            )
    return following, flips


def _transitions() -> tuple[tuple[Ints, Ints], ...]:
    flat = (np.zeros((1, 3), np.int64), np.ones((1, 3), np.int64))
    planes = (_plane_transitions(kind) for kind in (ONE_SIDED_PLANES, SIGNED_PLANES))
    return flat, _token_transitions(), *planes, _trellis_transitions()


NEXT = tuple(following for following, _ in _transitions())
FLIP_NEXT = tuple(flips for _, flips in _transitions())
"""By kind: context and flip of the second nibble, by the table's row and the class of the first."""

FIRST = (
    *(np.arange(num_rows) for num_rows in NUM_ROWS[:TRELLIS]),
    np.concatenate([np.arange(16) + 16 * trellis.quantiser_of(state) for state in range(4)]),
)
"""By kind: the context of the first nibble, by the table's row."""


# -- from counts to levels (writer only) ----------------------------------------------------------------


def count_decisions(histogram: Ints, firsts: Ints, following: Ints, flips: Ints, one_sided: bool) -> Ints:
    """How often each decision was no and yes in each context: shape (C, 5, 2).

    ``histogram`` has shape (2 R, 256): pairs by row, then, for the odd last column, single nibbles in the upper half. ``firsts``
    of shape (R,), ``following`` and ``flips`` of shape (R, classes) are those of the kind.
    """
    num_rows, num_classes = following.shape
    counts = np.zeros((firsts[-1] + 1, 5, 2), np.int64)
    for row in range(2 * num_rows):
        context = row if row < num_rows else row - num_rows
        for symbol in range(256):
            times = histogram[row, symbol]
            if times == 0:
                continue
            first, second = symbol >> 4, symbol & 15
            count_nibble(counts[firsts[context]], first, 1, times, one_sided)
            if row < num_rows:
                index = class_of_nibble(first, one_sided, num_classes)
                count_nibble(counts[following[context, index]], second, flips[context, index], times, one_sided)
    return counts


def class_of_nibble(nibble: int, one_sided: bool, num_classes: int) -> int:
    """Index of a nibble's class: of three, or of six along a trellis, where each comes even and odd."""
    if one_sided:
        return min(nibble, 2)
    sign = 1 if nibble == 0 else (2 if nibble & 1 else 0)
    return sign if num_classes == 3 else 2 * sign + ((nibble + 1) >> 1 & 1)


def count_nibble(counts: Ints, nibble: int, flip: int, times: int, one_sided: bool) -> None:
    """Adds one nibble, seen so many times, to its context's decisions."""
    magnitude = nibble if one_sided else (nibble + 1) >> 1
    largest = 15 if one_sided else 8
    if magnitude == 0:
        counts[0, 0] += times
        return
    counts[0, 1] += times
    if not one_sided and magnitude < largest:
        negative = (nibble & 1) == 0
        counts[1, 1 if negative == (flip > 0) else 0] += times
    for step in range(1, largest):
        if magnitude >= step:
            counts[min(step, 3) + 1, 1 if magnitude > step else 0] += times


def price(counts: Ints, level: int, cost: Ints) -> int:
    """Bits, in 256ths, of one decision's outcomes at a level."""
    total: int = counts[1] * cost[level + MAX_LEVEL] + counts[0] * cost[MAX_LEVEL - level]
    return total


def clamp_level(level: int) -> int:
    """A level within the table of probabilities."""
    return min(MAX_LEVEL, max(-MAX_LEVEL, level))


def correction_bits(correction: int) -> int:
    """Length of a correction in the parameters section: an order-0 exponential Golomb code."""
    value = (2 * correction if correction > 0 else -2 * correction + 1) if correction != 0 else 1
    bits = 0
    while value >> (bits + 1):
        bits += 1
    return 2 * bits + 1


def fit_levels(counts: Ints, defaults: Ints, one_sided: bool, cost: Ints) -> tuple[Ints, Ints, Ints]:
    """The cheapest offset of each decision, and where corrections of single contexts pay for themselves.

    Returns ``(offsets, has_corrections, corrections)`` of shapes (5,), (5,) and (C, 5).
    """
    num_contexts = counts.shape[0]
    offsets, present = np.zeros(5, np.int64), np.zeros(5, np.int64)
    corrections = np.zeros((num_contexts, 5), np.int64)
    for decision in range(5):
        if one_sided and decision == 1:
            continue
        offsets[decision] = best_offset(counts[:, decision], defaults[:, decision], cost)
        if num_contexts == 1:  # the offset is all that a lone context needs
            continue
        saved = 0
        for context in range(num_contexts):
            base = clamp_level(defaults[context, decision] + offsets[decision])
            correction, gain = best_correction(counts[context, decision], base, cost)
            corrections[context, decision] = correction
            saved += gain
        if saved > 0:
            present[decision] = 1
        else:
            corrections[:, decision] = 0
    return offsets, present, corrections


def best_offset(counts: Ints, defaults: Ints, cost: Ints) -> int:
    """The offset, -31 to 31, at which the decision costs least over all contexts: the price is convex, so walk downhill."""
    offset, here, step = 0, total_price(counts, defaults, 0, cost), 8
    while step:
        for direction in (-step, step):
            there = total_price(counts, defaults, offset + direction, cost)
            while there < here and -31 <= offset + direction <= 31:
                offset, here = offset + direction, there
                there = total_price(counts, defaults, offset + direction, cost)
        step >>= 1
    return offset


def total_price(counts: Ints, defaults: Ints, offset: int, cost: Ints) -> int:
    """Price of one decision over all contexts at an offset."""
    total = 0
    for context in range(counts.shape[0]):
        if counts[context, 0] + counts[context, 1] > 0:
            total += price(counts[context], clamp_level(defaults[context] + offset), cost)
    return total


def best_correction(counts: Ints, base: int, cost: Ints) -> tuple[int, int]:
    """The correction of a level that saves most, its own bits counted, and what it saves against none at all."""
    if counts[0] + counts[1] == 0:
        return 0, -256
    least = price(counts, base, cost) + 256
    uncorrected, best = least - 256, 0
    for direction in (-1, 1):
        correction = direction
        while abs(base + correction) <= MAX_LEVEL:
            payload = price(counts, base + correction, cost)
            if payload + 256 > least and abs(correction - best) > 3:
                break
            if payload + 256 * correction_bits(correction) < least:
                least, best = payload + 256 * correction_bits(correction), correction
            correction += direction
    return best, uncorrected - least


def levels_of(defaults: Ints, offsets: Ints, corrections: Ints) -> Ints:
    """Levels of all contexts (section 6.5): default plus offset, held within bounds, plus correction, held again."""
    levels = np.empty_like(defaults)
    for context in range(defaults.shape[0]):
        for decision in range(5):
            base = clamp_level(defaults[context, decision] + offsets[decision])
            levels[context, decision] = clamp_level(base + corrections[context, decision])
    return levels


# -- from levels to frequencies (section 6.5) -----------------------------------------------------------


def nibble_shares(levels: Ints, one_sided: bool, probability: Ints, shares: Ints) -> None:
    """Writes the 16 shares of a nibble, in 65536ths; the last one stands for all larger magnitudes."""
    rest = probability[levels[0] + MAX_LEVEL]
    shares[0] = ONE - rest
    negative = probability[levels[1] + MAX_LEVEL]
    for magnitude in range(1, 15 if one_sided else 8):
        above = (rest * probability[levels[min(magnitude, 3) + 1] + MAX_LEVEL]) >> 16
        share, rest = rest - above, above
        if one_sided:
            shares[magnitude] = share
        else:
            shares[2 * magnitude] = (share * negative) >> 16
            shares[2 * magnitude - 1] = share - shares[2 * magnitude]
    shares[15] = rest


def nibble_costs(levels: Ints, cost: Ints, costs: Ints) -> None:
    """Writes the prices of the 16 signed nibbles, in 256ths of a bit; of numbers too large for one, about."""
    rest = cost[MAX_LEVEL + levels[0]]
    costs[0] = cost[MAX_LEVEL - levels[0]]
    for magnitude in range(1, 8):
        level = levels[min(magnitude, 3) + 1]
        here, rest = rest + cost[MAX_LEVEL - level], rest + cost[MAX_LEVEL + level]
        costs[2 * magnitude - 1] = here + cost[MAX_LEVEL - levels[1]]
        costs[2 * magnitude] = here + cost[MAX_LEVEL + levels[1]]
    costs[LARGE] = rest + 256 * ESCAPED_BITS


def payload_bits(histogram: Ints, frequencies: Ints, cost_of_frequency: Ints) -> int:
    """What the symbols will cost, in bits; a symbol without a frequency counts as an escape."""
    total = 0
    for row in range(frequencies.shape[0]):
        for symbol in range(256):
            if histogram[row, symbol] > 0:
                frequency = frequencies[row, symbol]
                coded_as = frequency if frequency > 0 else frequencies[row, ESCAPE]
                total += histogram[row, symbol] * cost_of_frequency[coded_as]
    return total >> 8


def build_tables(
    levels: Ints,
    firsts: Ints,
    following: Ints,
    flips: Ints,
    one_sided: bool,
    with_tail: bool,
    half_escapes: bool,
    probability: Ints,
) -> Ints:
    """Frequencies of all symbols, each row summing to 4096: shape (R or 2 R, 256); the upper half is for single nibbles."""
    num_rows, num_classes = following.shape
    shares = np.zeros((levels.shape[0], 16), np.int64)
    for context in range(levels.shape[0]):
        nibble_shares(levels[context], one_sided, probability, shares[context])
        if not half_escapes:
            shares[context, LARGE] = 0
    frequencies = np.zeros((num_rows * (2 if with_tail else 1), 256), np.int64)
    for row in range(num_rows):
        own = shares[firsts[row]]
        for first in range(16):
            index = class_of_nibble(first, one_sided, num_classes)
            second_shares, flip = shares[following[row, index]], flips[row, index]
            for second in range(16):
                share = own[first] * second_shares[second if flip > 0 else mirror_of(second)]
                frequencies[row, 16 * first + second] = frequency_of(share)
        settle(frequencies[row])
        if with_tail:
            for first in range(16):
                frequencies[num_rows + row, 16 * first] = frequency_of(own[first] << 16)
            settle(frequencies[num_rows + row])
    return frequencies


def mirror_of(nibble: int) -> int:
    """The nibble of the number with the other sign; zero and large numbers, whose sign is not in the nibble, have none."""
    return nibble if nibble in (0, LARGE) else (nibble + 1 if nibble & 1 else nibble - 1)


def frequency_of(share: int) -> int:
    """A share of 2^32 as a frequency of 4096, rounded; rare symbols keep a frequency of one, very rare ones none."""
    frequency = (share + (1 << 19)) >> 20
    return 1 if frequency == 0 and share >= LEAST_SHARE else frequency


def settle(frequencies: Ints) -> None:
    """Gives escapes at least their frequency and makes the row sum to 4096, at the cost or gain of the commonest symbol."""
    total, commonest = 0, 0
    for symbol in range(255):
        total += frequencies[symbol]
        if frequencies[symbol] > frequencies[commonest]:
            commonest = symbol
    spare = SCALE - total
    frequencies[ESCAPE] = max(frequencies[ESCAPE], 32 if spare > 32 else max(1, spare))
    spare -= frequencies[ESCAPE]
    if frequencies[commonest] + spare >= 1:
        frequencies[commonest] += spare
        return
    for symbol in range(255):
        taken = min(max(frequencies[symbol] - 1, 0), -spare)
        frequencies[symbol] -= taken
        spare += taken
    frequencies[ESCAPE] += spare  # where all others have one at most, it has nearly all


def _level_table(text: str) -> Ints:
    return np.array([[int(level) for level in row.split()] for row in text.split("/")], np.int64)


DEFAULT_LEVELS: tuple[Any, ...] = (
    _level_table("0 0 -4 -5 -4"),
    _level_table(
        "-5 -1 -8 -4 -4/-5 -2 -10 -3 -1/-3 -1 -7 -6 -4/-4 -3 -8 -4 -3/-2 -1 -6 -6 -4/-3 -3 -7 -5 -4/-2 -1 -5 -5 -3/-2 -4 -6 -6 -4/"
        "-4 0 -5 -3 1/-1 -4 -5 -5 -4/-1 -1 -4 -4 -3/0 -5 -4 -5 -3/0 -1 -3 -4 -2/1 -6 -3 -4 -2/1 -1 -2 -2 -1/3 -8 0 -2 -1"
    ),
    _level_table(
        "-9 0 -2 0 -1/-6 0 -5 -3 -2/-5 0 -1 -1 -2/-1 0 -5 -5 -3/-1 0 -5 -2 0/-1 0 -3 -3 -3/0 0 2 1 0/2 0 -1 -3 -2/1 0 2 2 1/"
        "0 0 -5 -5 -2/-1 0 -4 -1 0/-2 0 -2 -2 -1/4 0 -3 -2 0/7 0 -5 -5 0/4 0 0 -1 0/4 0 0 -2 -1/7 0 4 -2 0/6 0 0 -3 -2/"
        "2 0 4 1 1/2 0 -1 -3 -1/0 0 1 1 0/5 0 1 -2 -1/8 0 4 -2 -1/6 0 0 -3 -1/5 0 4 3 2/9 0 2 -1 -1/8 0 8 3 1"
    ),
    _level_table(
        "-5 -1 -9 -9 -5/-3 -2 -8 -8 -5/-1 -4 -4 -6 -4/-1 -7 -7 -8 -5/-1 -7 -6 -8 -5/-1 -1 -5 -6 -5/-2 -1 -5 -7 -5/"
        "-1 1 -4 -6 -4/-1 -4 -5 -7 -5/0 -8 -6 -9 -6/0 -7 -6 -8 -5/1 -5 -3 -5 -4/2 -10 -4 -8 -5/3 -12 -3 -7 -6"
    ),
    _level_table(
        "-12 0 -12 -6 -14/-9 0 -14 -14 -1/-6 0 -10 -7 -5/-9 -2 -9 -11 -6/-3 0 -6 -7 -6/-7 -3 -8 -7 -5/-4 -1 -7 -6 -5/"
        "-5 -3 -7 -7 -5/-9 -2 -5 -4 -1/-4 -4 -6 -6 -4/-3 -2 -5 -5 -3/-3 -5 -5 -5 -3/-2 -2 -4 -4 -3/-1 -5 -3 -2 -1/"
        "1 -2 -1 0 0/2 -8 2 2 1/-6 -1 -10 -14 -4/-2 -5 -13 -14 -1/-2 -2 -8 -9 -7/-1 -7 -11 -12 -11/0 -2 -7 -8 -5/"
        "0 -3 -8 -7 -5/2 -2 -5 -6 -5/2 -4 -6 -7 -5/4 -2 -4 -5 -5/5 -4 -4 -5 -4/5 -2 -3 -5 -3/7 -5 -3 -4 -3/"
        "7 -2 -2 -4 -2/10 -6 -2 -2 -1/9 -3 0 -1 0/12 -7 2 2 1"
    ),
)
"""Levels that a frame's parameters start from, by kind: shape (C, 5)."""
