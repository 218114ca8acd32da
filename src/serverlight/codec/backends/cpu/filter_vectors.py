"""Vectors for the filter: one look over all elements, at the pace of the memory, on any processor with vectors.

As in ``vectors.py``, addresses are plain numbers, and the caller answers for what lies there.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic

__all__ = ["GROUP", "survey_groups"]

GROUP, WIDTH = 64, 16
"""Elements that a mark of 64 bits is for, and those of one vector."""

WORD, LONG = ir.IntType(32), ir.IntType(64)
WORDS = ir.VectorType(WORD, WIDTH)


@intrinsic
def survey_groups(typing_context: Any, keys: Any, groups: Any, low: Any, high: Any, marks: Any, tallies: Any) -> Any:
    """Looks over groups of 64 bit patterns of float32, at least one group.

    No loop becomes the few instructions that this takes: tallies stay in registers, and comparisons are marks at once.

    Args:
        keys: address of the patterns.
        groups: how many there are.
        low, high: marked are magnitudes in [low, high).
        marks: address of 64 bits for each group.
        tallies: address of four numbers of 32 bits: how many magnitudes are zero, and how many at least ``high``; the largest
            pattern as a signed number, and the largest as one without sign.

    Returns:
        How many are marked.
    """

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        keys, groups, low, high, marks, tallies = arguments
        borders = _spread(builder, low), _spread(builder, high), _spread(builder, builder.sub(high, low))
        before, each = builder.block, builder.append_basic_block("group")
        after = builder.append_basic_block("groups_done")
        builder.branch(each)
        builder.position_at_end(each)
        sums, (group, marked) = [builder.phi(WORDS) for _ in range(4)], [builder.phi(LONG) for _ in range(2)]
        start = builder.add(keys, builder.mul(group, LONG(4 * GROUP)))
        new_sums, found = _look_over(builder, start, borders, sums)
        _store(builder, found, builder.add(marks, builder.shl(group, LONG(3))), 8)
        following, new_marked = builder.add(group, LONG(1)), builder.add(marked, builder.ctpop(found))
        firsts = [_same(0), _same(0), _same(-(2**31)), _same(0)]
        loop = [*zip(sums, firsts, new_sums, strict=True), (group, LONG(0), following), (marked, LONG(0), new_marked)]
        for phi, first, then in loop:
            phi.add_incoming(first, before)
            phi.add_incoming(then, each)
        builder.cbranch(builder.icmp_unsigned("==", following, groups), after, each)
        builder.position_at_end(after)
        joining = (builder.add, builder.add, _larger(builder.icmp_signed), _larger(builder.icmp_unsigned))
        for i, (join, total) in enumerate(zip(joining, new_sums, strict=True)):
            _store(builder, _folded(builder, join, total), builder.add(tallies, LONG(4 * i)), 4)
        return new_marked

    address, number = numba.uint64, numba.int32
    return address(address, address, number, number, address, address), generate


def _look_over(builder: Any, start: Any, borders: tuple[Any, Any, Any], sums: list[Any]) -> tuple[list[Any], Any]:
    """Takes a group into the tallies; returns them, and the group's marks."""
    (low, high, width), (zeros, reaching, signed, unsigned), within = borders, sums, []
    for part in range(GROUP // WIDTH):
        place = builder.inttoptr(builder.add(start, LONG(4 * WIDTH * part)), WORDS.as_pointer())
        keys = builder.load(place, align=4)
        magnitudes = builder.and_(keys, _same(0x7FFFFFFF))
        zeros = builder.sub(zeros, builder.sext(builder.icmp_unsigned("==", magnitudes, _same(0)), WORDS))
        reaching = builder.sub(reaching, builder.sext(builder.icmp_signed(">=", magnitudes, high), WORDS))
        signed = _larger(builder.icmp_signed)(signed, keys)
        unsigned = _larger(builder.icmp_unsigned)(unsigned, keys)
        within.append(builder.icmp_unsigned("<", builder.sub(magnitudes, low), width))
    while len(within) > 1:
        pairs = zip(within[::2], within[1::2], strict=True)
        within = [builder.shuffle_vector(*pair, _places(range(2 * pair[0].type.count))) for pair in pairs]
    return [zeros, reaching, signed, unsigned], builder.bitcast(within[0], LONG)


def _larger(compare: Any) -> Any:
    """The larger of two vectors' numbers, by one way to compare them."""

    def larger(one: Any, other: Any) -> Any:
        builder = compare.__self__
        return builder.select(compare(">", one, other), one, other)

    return larger


def _folded(builder: Any, join: Any, total: Any) -> Any:
    """All numbers of a vector joined."""
    half = WIDTH // 2
    while half:
        lower, upper = (
            builder.shuffle_vector(total, total, _places(range(start, start + half))) for start in (0, half)
        )
        total, half = join(lower, upper), half // 2
    return builder.extract_element(total, WORD(0))


def _same(number: int) -> Any:
    return ir.Constant(WORDS, [number] * WIDTH)


def _places(numbers: range) -> Any:
    return ir.Constant(ir.VectorType(WORD, len(numbers)), list(numbers))


def _spread(builder: Any, number: Any) -> Any:
    """A number in each place."""
    single = builder.insert_element(ir.Constant(WORDS, ir.Undefined), number, WORD(0))
    return builder.shuffle_vector(single, single, _same(0))


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)
