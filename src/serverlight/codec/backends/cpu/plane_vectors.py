"""Vectors for planes: the reader's symbols, where what was read chooses what is read next, and values.

As in ``vectors.py``, addresses are plain numbers, and the caller answers for what lies there.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic

from serverlight.codec.backends.cpu.vectors import (
    BYTE,
    BYTES,
    HALF,
    HAS_VECTORS,
    LANES,
    LONG,
    NOTHING,
    WORD,
    WORDS,
    Vectors,
    read_symbols,
)

__all__ = [
    "RUN",
    "place_one_sided_group",
    "place_signed_group",
    "place_small_one_sided_group",
    "place_small_signed_group",
    "reader_of_rows",
    "turn_group",
]


# -- symbols -------------------------------------------------------------------------------------------------------


def reader_of_rows(one_sided: bool, ways: int) -> Any:
    """An intrinsic for planes of one kind, in so many segments.

    It reads pairs of a row in eight planes of each segment, or in those that take part, up to one with escapes. The other lanes'
    states are overwritten.

    Args:
        states: address of eight states of 32 bits for each segment.
        left: address of eight bytes for each: nine times the class of the number on the left; becomes what the last pair tells
            the next one, as if nothing were escaped.
        above, line: address of eight bytes for each pair, and how far it is from one segment's to the next's: three times the
            class of the first number above, plus that of the second; becomes what this pair tells the row below.
        into, block: the same for the symbols, which have their own signs there.
        words, at: address of all words, and that of each segment's position there, 64 bits; eight words are there beyond what
            pairs can take.
        taking: address of 64 bits for each segment, of which one is set for each lane that takes part, lane 0's the lowest.
        pairs: how many there are, at least one.
        table: address of the reader's table, 4096 numbers of 32 bits a row.
        tail: what to add to rows of the tables for the single end of an odd line, which comes alone; otherwise 0.

    Returns:
        How many pairs are left, and eight bits for each segment, of which one is set for each lane whose last symbol has escapes.
    """

    @intrinsic
    def get_row(
        typing_context: Any,
        states: Any,
        left: Any,
        above: Any,
        line: Any,
        into: Any,
        block: Any,
        words: Any,
        at: Any,
        taking: Any,
        pairs: Any,
        table: Any,
        tail: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if not HAS_VECTORS:
                return context.make_tuple(builder, signature.return_type, [NOTHING, NOTHING])
            return context.make_tuple(builder, signature.return_type, _read_row(builder, one_sided, ways, arguments))

        number = numba.uint64
        return numba.types.UniTuple(number, 2)(*[number] * 12), generate

    return get_row


def _read_row(builder: Any, one_sided: bool, ways: int, arguments: Any) -> list[Any]:
    """The loop over pairs, with states, positions and what is on the left in registers; returns pairs left and marks."""
    states, left, above, line, into, block, words, at, taking, pairs, table, tail = arguments
    vectors, before = Vectors(builder), builder.block

    def offset(address: Any, pitch: Any, way: int) -> Any:
        return builder.add(address, builder.mul(pitch, LONG(way)))

    starts = [
        (
            vectors.load(offset(states, LONG(4 * LANES), way), WORDS, 4),
            vectors.load(offset(left, LONG(LANES), way), BYTES, 1),
            builder.add(words, builder.shl(vectors.load(offset(at, LONG(8), way), LONG, 8), LONG(1))),
        )
        for way in range(ways)
    ]
    flags = [vectors.flags(vectors.load(offset(taking, LONG(8), way), LONG, 8)) for way in range(ways)]
    each, after = builder.append_basic_block("pair"), builder.append_basic_block("pairs_done")
    builder.branch(each)
    builder.position_at_end(each)
    phis = [tuple(builder.phi(kind) for kind in (WORDS, BYTES, LONG)) for _ in range(ways)]
    place, remaining, marks = builder.phi(LONG), builder.phi(LONG), LONG(0)
    ends = []
    for way, (state, beside, word) in enumerate(phis):
        up, to = builder.add(offset(above, line, way), place), builder.add(offset(into, block, way), place)
        *end, marked = _read_pair(vectors, one_sided, state, beside, word, up, to, table, flags[way], tail)
        marks = builder.or_(marks, builder.shl(builder.zext(builder.bitcast(marked, BYTE), LONG), LONG(8 * way)))
        ends.append(end)
    next_place, fewer = builder.add(place, LONG(LANES)), builder.sub(remaining, LONG(1))
    all_phis = [(place, LONG(0), next_place), (remaining, pairs, fewer)]
    all_phis += [triple for way in range(ways) for triple in zip(phis[way], starts[way], ends[way], strict=True)]
    for phi, first, following in all_phis:
        phi.add_incoming(first, before)
        phi.add_incoming(following, each)
    is_last = builder.or_(builder.icmp_unsigned("==", fewer, LONG(0)), builder.icmp_unsigned("!=", marks, LONG(0)))
    builder.cbranch(is_last, after, each)
    builder.position_at_end(after)
    for way, (state, beside, word) in enumerate(ends):
        vectors.store(state, offset(states, LONG(4 * LANES), way), 4)
        vectors.store(beside, offset(left, LONG(LANES), way), 1)
        vectors.store(builder.lshr(builder.sub(word, words), LONG(1)), offset(at, LONG(8), way), 8)
    return [fewer, marks]


def _read_pair(
    vectors: Vectors,
    one_sided: bool,
    state: Any,
    beside: Any,
    word: Any,
    above: Any,
    into: Any,
    table: Any,
    flags: Any,
    tail: Any,
) -> tuple[Any, Any, Any, Any]:
    """Reads a pair in each plane of a segment; returns the states after it, what it tells the next pair, where the next word is,
    and which symbols have escapes.
    """
    builder = vectors.builder
    place = builder.add(vectors.load(above, BYTES, 1), beside)
    row, turned = (place, None) if one_sided else _leaning(vectors, place)
    row = builder.add(row, vectors.spread(tail, BYTES))
    state, symbols, taken = read_symbols(vectors, state, row, table, word, flags)
    upper, lower = builder.lshr(symbols, vectors.all(4, BYTES)), builder.and_(symbols, vectors.all(15, BYTES))
    escaped = [builder.icmp_unsigned("==", nibbles, vectors.all(15, BYTES)) for nibbles in (upper, lower)]
    up, right = (_classes(vectors, nibbles, turned) for nibbles in (upper, lower))
    right = builder.select(builder.icmp_unsigned("==", tail, LONG(0)), right, up)
    vectors.store(builder.add(builder.add(builder.add(up, up), up), right), above, 1)
    if turned is not None:
        upper, lower = (_upright(vectors, nibbles, turned) for nibbles in (upper, lower))
        symbols = builder.or_(builder.shl(upper, vectors.all(4, BYTES)), lower)
    vectors.store(symbols, into, 1)
    nine = builder.add(builder.shl(right, vectors.all(3, BYTES)), right)
    return state, nine, builder.add(word, builder.shl(taken, LONG(1))), builder.and_(builder.or_(*escaped), flags)


def _leaning(vectors: Vectors, place: Any) -> tuple[Any, Any]:
    """Row of the tables of a pair of signed numbers, and whether its signs are turned around."""
    builder = vectors.builder
    leaning = builder.sub(place, vectors.all(13, BYTES))
    turned = builder.icmp_signed("<", leaning, vectors.all(0, BYTES))
    return builder.select(turned, builder.neg(leaning), leaning), turned


def _classes(vectors: Vectors, nibbles: Any, turned: Any) -> Any:
    """Classes of numbers as neighbours, of those that are not escaped."""
    builder = vectors.builder
    if turned is None:
        return builder.select(
            builder.icmp_unsigned("<", nibbles, vectors.all(2, BYTES)), nibbles, vectors.all(2, BYTES)
        )
    odd = builder.icmp_unsigned("!=", builder.and_(nibbles, vectors.all(1, BYTES)), vectors.all(0, BYTES))
    signs = builder.select(builder.xor(odd, turned), vectors.all(2, BYTES), vectors.all(0, BYTES))
    return builder.select(builder.icmp_unsigned("==", nibbles, vectors.all(0, BYTES)), vectors.all(1, BYTES), signs)


def _upright(vectors: Vectors, nibbles: Any, turned: Any) -> Any:
    """Nibbles with their own signs: odd ones are positive, and neither zero nor the escape has one."""
    builder = vectors.builder
    less = builder.sub(nibbles, vectors.all(1, BYTES))
    flipped = builder.add(builder.xor(less, vectors.all(1, BYTES)), vectors.all(1, BYTES))
    has_sign = builder.icmp_unsigned("<", less, vectors.all(14, BYTES))
    return builder.select(builder.and_(has_sign, turned), flipped, nibbles)


@intrinsic
def turn_group(typing_context: Any, source: Any, target: Any, pitch: Any) -> Any:
    """Writes eight rows of eight bytes as columns: byte ``i`` of row ``j`` to byte ``j`` of a row ``i`` times ``pitch`` away."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        source, target, pitch = arguments
        vectors = Vectors(builder)
        square = vectors.load(source, ir.VectorType(BYTE, LANES * LANES), 1)
        for lane in range(LANES):
            vectors.store(vectors.shuffle(square, square, range(lane, LANES * LANES, LANES)), target, 1)
            target = builder.add(target, pitch)
        return NOTHING

    return numba.uint64(numba.uint64, numba.uint64, numba.uint64), generate


# -- values of planes ----------------------------------------------------------------------------------------------

RUN = 32


def _value_group_of(one_sided: bool, is_small: bool = False) -> Any:
    """An intrinsic for planes of one kind; for small numbers, values in 64ths of a step fit 16 bits."""
    shorts, words = ir.VectorType(HALF, RUN), ir.VectorType(WORD, RUN)

    def const(number: int) -> Any:
        return ir.Constant(shorts, [number] * RUN)

    @intrinsic
    def place_group(
        typing_context: Any, numbers: Any, sides: Any, up: Any, down: Any, lifts: Any, unit: Any, out: Any
    ) -> Any:
        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            if not HAS_VECTORS:
                return NOTHING
            vectors = Vectors(builder)
            *places, lifts, unit, out = arguments
            here, beside, above, below = (vectors.load(place, shorts, 2) for place in places)
            around = builder.add(beside, builder.add(above, below))
            magnitude, turned = here, None
            if not one_sided:
                zero, negative = const(0), builder.icmp_signed("<", here, const(0))
                magnitude = builder.select(negative, builder.neg(here), here)
                decides = builder.select(builder.icmp_signed("==", here, zero), around, here)
                turned = builder.icmp_signed("<", decides, zero)
                around = builder.select(turned, builder.neg(around), around)
                around = builder.select(builder.icmp_signed("<", around, const(-1)), const(-1), around)
            around = builder.select(builder.icmp_signed(">", around, const(4)), const(4), around)
            magnitude = builder.select(builder.icmp_signed(">", magnitude, const(3)), const(3), magnitude)
            place = builder.add(builder.mul(magnitude, const(6)), builder.add(around, const(1)))
            lift = vectors.look_up(lifts, place)
            if turned is not None:
                lift = builder.select(turned, builder.neg(lift), lift)
            if is_small:
                steps = builder.sext(builder.add(builder.shl(here, const(6)), lift), words)
            else:
                whole = builder.shl(builder.sext(here, words), ir.Constant(words, [6] * RUN))
                steps = builder.add(whole, builder.sext(lift, words))
            exact = builder.sitofp(steps, ir.VectorType(ir.FloatType(), RUN))
            vectors.store(builder.fmul(exact, vectors.spread(unit, exact.type)), out, 4)
            return NOTHING

        number = numba.uint64
        return number(number, number, number, number, number, numba.float32, number), generate

    return place_group


place_one_sided_group, place_signed_group = _value_group_of(True), _value_group_of(False)
place_small_one_sided_group, place_small_signed_group = _value_group_of(True, True), _value_group_of(False, True)
"""Makes values of 32 elements of a plane of one kind, numbers of up to 4095 steps, or small ones of up to 500.

Args:
    numbers: address of the numbers of steps, 16 bits.
    sides: address of the sums of the numbers on their left and right, 16 bits.
    up, down: addresses of the numbers above and below.
    lifts: address of 32 lifts of 16 bits in 64ths of a step, by six times the magnitude, at most 3, plus one, plus the sum of the
        neighbours, from -1 to 4, with the element's own sign, or that of the sum where it is zero.
    unit: a 64th of the step.
    out: address of the values.
"""
