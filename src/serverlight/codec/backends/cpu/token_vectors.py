"""Vectors for tokens: a line's symbols become values, and choose what is read in the next line.

As in ``vectors.py``, addresses are plain numbers, and the caller answers for what lies there.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic

from serverlight.codec.backends.cpu.vectors import BYTE, HALF, HAS_VECTORS, LONG, NOTHING, WORD, Vectors

__all__ = ["CHANNELS", "busy_group"]

CHANNELS = 32
"""How many there are in a group."""

SHORTS, WORDS = ir.VectorType(HALF, CHANNELS), ir.VectorType(WORD, CHANNELS)


def _const(number: int) -> Any:
    return ir.Constant(SHORTS, [number] * CHANNELS)


@intrinsic
def busy_group(
    typing_context: Any,
    line: Any,
    means: Any,
    leads: Any,
    contexts: Any,
    tables: Any,
    borders: Any,
    unit: Any,
    upper: Any,
    lower: Any,
) -> Any:
    """Values of 32 channels' pairs, which are taken into the running means by an eighth; and the contexts of the next line's.

    A loop's vectors would be as wide as its widest numbers allow, which are those of 32 bits, and nothing would be looked up.

    Args:
        line: address of the symbols.
        means, leads: addresses of the channels' running means of magnitudes and of numbers, 16 bits.
        contexts: address of bytes for the contexts.
        tables: address of two tables of 32 numbers of 16 bits, by a nibble, plus 16 where signs are turned around: values in
            64ths of a step, and numbers.
        borders: address of seven numbers of 16 bits, which the means are compared with.
        unit: a 64th of the step.
        upper, lower: addresses of the values of the pairs' two lines.
    """

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        if not HAS_VECTORS:
            return NOTHING
        vectors = Vectors(builder)
        line, means, leads, contexts, tables, borders, unit, upper, lower = arguments
        symbols = builder.zext(vectors.load(line, ir.VectorType(BYTE, CHANNELS), 1), SHORTS)
        mean, lead = (vectors.load(address, SHORTS, 2) for address in (means, leads))
        turned = builder.and_(builder.lshr(lead, _const(11)), _const(16))
        magnitudes, numbers = _const(0), _const(0)
        for nibbles, into in (
            (builder.lshr(symbols, _const(4)), upper),
            (builder.and_(symbols, _const(15)), lower),
        ):
            places = builder.or_(nibbles, turned)
            steps = vectors.look_up(tables, places)
            number = vectors.look_up(builder.add(tables, LONG(2 * CHANNELS)), places)
            exact = builder.sitofp(builder.sext(steps, WORDS), ir.VectorType(ir.FloatType(), CHANNELS))
            vectors.store(builder.fmul(exact, vectors.spread(unit, exact.type)), into, 4)
            magnitudes, numbers = builder.add(magnitudes, _magnitude(builder, number)), builder.add(numbers, number)
        mean, lead = _moved(builder, mean, magnitudes), _moved(builder, lead, numbers)
        vectors.store(mean, means, 2)
        vectors.store(lead, leads, 2)
        rows = _rows(vectors, mean, lead, borders)
        vectors.store(builder.trunc(rows, ir.VectorType(BYTE, CHANNELS)), contexts, 1)
        return NOTHING

    number = numba.uint64
    return number(number, number, number, number, number, number, numba.float32, number, number), generate


def _magnitude(builder: Any, number: Any) -> Any:
    return builder.select(builder.icmp_signed("<", number, _const(0)), builder.neg(number), number)


def _moved(builder: Any, mean: Any, total: Any) -> Any:
    """What ``moved`` of ``symbols.py`` returns."""
    less = builder.sub(mean, builder.ashr(builder.add(mean, _const(7)), _const(3)))
    return builder.add(less, builder.shl(total, _const(3)))


def _rows(vectors: Vectors, mean: Any, lead: Any, borders: Any) -> Any:
    """Contexts: twice the number of borders that a mean reaches, plus one where ``is_leaning`` of ``symbols.py`` says so."""
    builder, rows = vectors.builder, _const(0)
    for i in range(7):
        border = vectors.load(builder.add(borders, LONG(2 * i)), HALF, 2)
        reached = builder.icmp_signed(">=", mean, vectors.spread(border, SHORTS))
        rows = builder.select(reached, builder.add(rows, _const(2)), rows)
    eighths = builder.mul(builder.and_(mean, _const(7)), _const(3))
    eighths = builder.lshr(builder.add(eighths, _const(7)), _const(3))
    least = builder.add(builder.mul(builder.ashr(mean, _const(3)), _const(3)), builder.add(eighths, _const(3)))
    leaning = builder.icmp_signed(">=", _magnitude(builder, lead), least)
    return builder.select(leaning, builder.add(rows, _const(1)), rows)
