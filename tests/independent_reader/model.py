"""Section 6.5 of the page: from the levels of each context to the frequencies of its 256 symbols."""

from __future__ import annotations

from collections.abc import Iterator

from independent_reader.parts import Bits, from_zigzag

FLAT, TOKENS, ONE_SIDED_PLANES, SIGNED_PLANES, TRELLIS = range(5)
"""The last is not on the wire: it stands for tokens along a trellis."""
ESCAPE = 255

PROBABILITIES = [
    *(32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030),
    *(64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508),
    65514,
]

DEFAULTS = {
    FLAT: "0 0 -4 -5 -4",
    TOKENS: """-5 -1 -8 -4 -4; -5 -2 -10 -3 -1; -3 -1 -7 -6 -4; -4 -3 -8 -4 -3; -2 -1 -6 -6 -4; -3 -3 -7 -5 -4;
        -2 -1 -5 -5 -3; -2 -4 -6 -6 -4; -4 0 -5 -3 1; -1 -4 -5 -5 -4; -1 -1 -4 -4 -3; 0 -5 -4 -5 -3; 0 -1 -3 -4 -2;
        1 -6 -3 -4 -2; 1 -1 -2 -2 -1; 3 -8 0 -2 -1""",
    ONE_SIDED_PLANES: """-9 0 -2 0 -1; -6 0 -5 -3 -2; -5 0 -1 -1 -2; -1 0 -5 -5 -3; -1 0 -5 -2 0; -1 0 -3 -3 -3;
        0 0 2 1 0; 2 0 -1 -3 -2; 1 0 2 2 1; 0 0 -5 -5 -2; -1 0 -4 -1 0; -2 0 -2 -2 -1; 4 0 -3 -2 0; 7 0 -5 -5 0;
        4 0 0 -1 0; 4 0 0 -2 -1; 7 0 4 -2 0; 6 0 0 -3 -2; 2 0 4 1 1; 2 0 -1 -3 -1; 0 0 1 1 0; 5 0 1 -2 -1;
        8 0 4 -2 -1; 6 0 0 -3 -1; 5 0 4 3 2; 9 0 2 -1 -1; 8 0 8 3 1""",
    SIGNED_PLANES: """-5 -1 -9 -9 -5; -3 -2 -8 -8 -5; -1 -4 -4 -6 -4; -1 -7 -7 -8 -5; -1 -7 -6 -8 -5; -1 -1 -5 -6 -5;
        -2 -1 -5 -7 -5; -1 1 -4 -6 -4; -1 -4 -5 -7 -5; 0 -8 -6 -9 -6; 0 -7 -6 -8 -5; 1 -5 -3 -5 -4; 2 -10 -4 -8 -5;
        3 -12 -3 -7 -6""",
    TRELLIS: """-12 0 -12 -6 -14; -9 0 -14 -14 -1; -6 0 -10 -7 -5; -9 -2 -9 -11 -6; -3 0 -6 -7 -6; -7 -3 -8 -7 -5;
        -4 -1 -7 -6 -5; -5 -3 -7 -7 -5; -9 -2 -5 -4 -1; -4 -4 -6 -6 -4; -3 -2 -5 -5 -3; -3 -5 -5 -5 -3;
        -2 -2 -4 -4 -3; -1 -5 -3 -2 -1; 1 -2 -1 0 0; 2 -8 2 2 1; -6 -1 -10 -14 -4; -2 -5 -13 -14 -1; -2 -2 -8 -9 -7;
        -1 -7 -11 -12 -11; 0 -2 -7 -8 -5; 0 -3 -8 -7 -5; 2 -2 -5 -6 -5; 2 -4 -6 -7 -5; 4 -2 -4 -5 -5; 5 -4 -4 -5 -4;
        5 -2 -3 -5 -3; 7 -5 -3 -4 -3; 7 -2 -2 -4 -2; 10 -6 -2 -2 -1; 9 -3 0 -1 0; 12 -7 2 2 1""",
}


def probability(level: int) -> int:
    return PROBABILITIES[level] if level >= 0 else 65536 - PROBABILITIES[-level]


def clip(level: int) -> int:
    return max(-32, min(32, level))


def read_levels(bits: Bits, kind: int, short: bool = False) -> list[list[int]]:
    """The five levels of every context: defaults, moved by the frame's parameters."""
    contexts = [[int(level) for level in row.split()] for row in DEFAULTS[kind].split(";")]
    for decision in range(5):
        if kind == ONE_SIDED_PLANES and decision == 1:
            continue
        offset = from_zigzag(bits.golomb(2, 8)) if short else bits.number(6) - 32
        corrected = bits.bit() if len(contexts) > 1 or not short else 0
        for levels in contexts:
            correction = from_zigzag(bits.golomb(0, 6)) if corrected else 0
            levels[decision] = clip(clip(levels[decision] + offset) + correction)
    bits.end()
    return contexts


def nibble_shares(levels: list[int], kind: int) -> list[int]:
    """How often each of the 16 nibbles is expected, in 65536ths."""
    rest = probability(levels[0])
    shares = [65536 - rest] + [0] * 15
    for m in range(1, 15 if kind == ONE_SIDED_PLANES else 8):
        above = rest * probability(levels[min(m, 3) + 1]) >> 16
        if kind == ONE_SIDED_PLANES:
            shares[m] = rest - above
        else:
            shares[2 * m] = (rest - above) * probability(levels[1]) >> 16
            shares[2 * m - 1] = rest - above - shares[2 * m]
        rest = above
    shares[15] = rest
    return shares


def number_of(nibble: int, kind: int) -> int:
    return nibble if kind == ONE_SIDED_PLANES else from_zigzag(nibble)


def opposite(nibble: int) -> int:
    """The nibble of the number with the other sign; 15 is its own."""
    return nibble if nibble in (0, 15) else nibble + 1 if nibble & 1 else nibble - 1


def digits(context: int, kind: int) -> tuple[int, int, int]:
    """The classes left, above and above right that make this context without a flip."""
    classes = range(3) if kind == ONE_SIDED_PLANES else range(-1, 2)
    found = [(a, b, c) for a in classes for b in classes for c in classes if 9 * a + 3 * b + c == context]
    return found[0]


def class_of(number: int, kind: int) -> int:
    """Section 6.4: what a neighbour in a plane counts as."""
    return min(number, 2) if kind == ONE_SIDED_PLANES else (number > 0) - (number < 0)


def second_context(context: int, first: int, kind: int) -> tuple[int, int]:
    """Context and flip of a pair's second number, after the first, in the pair's own flipped frame."""
    if kind == FLAT:
        return 0, 1
    if kind == TOKENS:
        c, m = divmod(context, 2)
        if first == 0:
            return 2 * max(c - 1, 0) + m, 1
        louder = 2 * min(c + 1, 7)
        if first > 0:
            return louder + 1, 1
        return (louder, 1) if m else (louder + 1, -1)
    _, above, above_right = digits(context, kind)
    k = 9 * class_of(first, kind) + 3 * above_right + above
    return abs(k), -1 if k < 0 else 1


def state_after(state: int, number: int) -> int:
    """Section 6.9: where a number leads to."""
    return ((0, 2), (2, 0), (1, 3), (3, 1))[state][number & 1]


def pair_weights(shares: list[list[int]], row: int, kind: int, half: bool) -> Iterator[tuple[int, int]]:
    state, context = divmod(row, 16) if kind == TRELLIS else (0, row)
    first_shares = shares[context + 16 * (state >> 1)]
    for a in range(15 + half):
        number = number_of(a, kind)
        second, flip = second_context(context, number, TOKENS if kind == TRELLIS else kind)
        second += 16 * (state_after(state, number) >> 1) if kind == TRELLIS else 0
        for b in range(15 + half):
            yield 16 * a + b, first_shares[a] * shares[second][b if flip > 0 else opposite(b)]


def frequencies(weights: Iterator[tuple[int, int]]) -> list[int]:
    """256 frequencies that sum to 4096, from weights that sum to 2^32 at most."""
    table = [0] * 256
    for symbol, weight in weights:
        table[symbol] = (weight + (1 << 19)) >> 20 or int(weight >= 180000)
    both, table[ESCAPE] = table[ESCAPE], 0
    spare = 4096 - sum(table)
    commonest = table.index(max(table))
    table[ESCAPE] = max(both, 32 if spare > 32 else max(1, spare))
    spare -= table[ESCAPE]
    if table[commonest] + spare >= 1:
        table[commonest] += spare
        return table
    for symbol in range(ESCAPE):
        gives = min(max(table[symbol] - 1, 0), -spare)
        table[symbol] -= gives
        spare += gives
    table[ESCAPE] += spare
    return table


def pair_tables(levels: list[list[int]], kind: int, half: bool) -> list[list[int]]:
    shares = [nibble_shares(each, kind) for each in levels]
    num_rows = 64 if kind == TRELLIS else len(levels)
    return [frequencies(pair_weights(shares, row, kind, half)) for row in range(num_rows)]


def single_tables(levels: list[list[int]], kind: int, half: bool) -> list[list[int]]:
    shares = [nibble_shares(each, kind) for each in levels]
    if kind == TRELLIS:  # two states share a quantiser
        shares = shares[:16] + shares[:16] + shares[16:] + shares[16:]
    return [frequencies((16 * a, own[a] << 16) for a in range(15 + half)) for own in shares]
