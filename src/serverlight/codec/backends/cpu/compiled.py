"""What compiled loops of profile ``serverlight`` are made with. Nothing that is compiled reads configuration or raises.

Integers are cast at every step on purpose: the compiler's own promotion to 64 bits would halve the width of its vectors. The
definition of what is computed is in ``reference/``. Functions for Numba are made here only; what Python calls are the entry
points that ``kernels.py`` makes of them, each one machine-code function with all its callees.
"""

from __future__ import annotations

import sys
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

njit = numba.njit(nogil=True, error_model="numpy")
inlined = numba.njit(nogil=True, error_model="numpy", inline="always")
"""For what is small, and for what is large and called in one place: each function that is compiled by itself has all that it calls
optimised once more, which a call tree of eight levels pays for with minutes."""
entry_point = numba.njit(cache=True, nogil=True, error_model="numpy")

ABS = np.int32(0x7FFFFFFF)
INFINITE = np.int32(0x7F800000)


@intrinsic  # type: ignore[untyped-decorator]
def marks_within(typing_context: Any, address: Any, low: Any, width: Any) -> Any:
    """Which of 64 bit patterns of float32 from an address on have a magnitude in [low, low + width), one bit each.

    No loop becomes the few instructions that this takes.
    """
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(32), 64)

        def spread(number: Any) -> Any:
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(single, single, ir.Constant(vector, [0] * 64))

        keys = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()), align=4)
        magnitudes = builder.and_(keys, ir.Constant(vector, [0x7FFFFFFF] * 64))
        distances = builder.sub(magnitudes, spread(arguments[1]))
        return builder.bitcast(builder.icmp_unsigned("<", distances, spread(arguments[2])), ir.IntType(64))

    return numba.uint64(numba.uint64, numba.int32, numba.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def marks_of_fifteens(typing_context: Any, address: Any) -> Any:
    """Which of 64 bytes from an address on have a nibble of 15, one bit each."""
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 64)
        upper, lower = (ir.Constant(vector, [mask] * 64) for mask in (0xF0, 0x0F))
        pairs = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()), align=1)
        found = [builder.icmp_unsigned("==", builder.and_(pairs, mask), mask) for mask in (upper, lower)]
        return builder.bitcast(builder.or_(*found), ir.IntType(64))

    return numba.uint64(numba.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_mark(typing_context: Any, marks: Any) -> Any:
    """Place of the lowest bit that is set; there is one."""
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return numba.uint64(numba.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def highest_mark(typing_context: Any, marks: Any) -> Any:
    """Place of the highest bit that is set; there is one."""
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.sub(ir.Constant(ir.IntType(64), 63), builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1)))

    return numba.uint64(numba.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def read_long(typing_context: Any, address: Any) -> Any:
    """Eight bytes from an address, the first one lowest; byte by byte they would be read as bytes."""
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        number = builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), align=1)
        return number if sys.byteorder == "little" else builder.bswap(number)

    return numba.uint64(numba.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def write_long(typing_context: Any, address: Any, number: Any) -> Any:
    """Writes eight bytes to an address, the lowest first."""
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        number = arguments[1] if sys.byteorder == "little" else builder.bswap(arguments[1])
        builder.store(number, place, align=1)
        return ir.Constant(ir.IntType(64), 0)

    return numba.uint64(numba.uint64, numba.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_sixteen(typing_context: Any, into: Any, source: Any) -> Any:
    """Copies sixteen numbers of 32 bits from one address to another; a loop copies one by one."""
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        into, source = (
            builder.inttoptr(address, ir.VectorType(ir.IntType(32), 16).as_pointer()) for address in arguments
        )
        builder.store(builder.load(source, align=4), into, align=4)
        return ir.Constant(ir.IntType(64), 0)

    return numba.uint64(numba.uint64, numba.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def write_sixteen(typing_context: Any, address: Any, first: Any, pace: Any) -> Any:
    """Writes sixteen numbers of 32 bits to an address, each larger than the one before by ``pace``; a loop writes one by one."""
    from llvmlite import ir

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        vector, number = ir.VectorType(ir.IntType(32), 16), ir.IntType(32)

        def spread(single: Any) -> Any:
            alone = builder.insert_element(ir.Constant(vector, ir.Undefined), single, number(0))
            return builder.shuffle_vector(alone, alone, ir.Constant(vector, [0] * 16))

        address, first, pace = arguments
        numbers = builder.add(spread(first), builder.mul(spread(pace), ir.Constant(vector, list(range(16)))))
        builder.store(numbers, builder.inttoptr(address, vector.as_pointer()), align=4)
        return ir.Constant(ir.IntType(64), 0)

    return numba.uint64(numba.uint64, numba.uint32, numba.uint32), generate
