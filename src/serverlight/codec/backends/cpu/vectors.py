"""Groups of eight lanes of the range coder at once, on processors whose vectors can close and open gaps (AVX-512).

What a group computes is what ``put`` of ``coder.py`` and ``get`` of ``lanes.py`` compute for each of its lanes in turn.
The idea, as in Giesen, "Interleaved entropy coders" (arXiv 1402.3392): lanes have states of their own but share a stream of
words, so a vector of states knows by its own comparisons which lanes write or take a word, and in which order. No loop becomes
these instructions, hence they are put together here; addresses are plain numbers, so the caller answers for what lies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba.extending import intrinsic

__all__ = [
    "BYTE",
    "BYTES",
    "HALF",
    "HAS_VECTORS",
    "LANES",
    "LONG",
    "NOTHING",
    "WORD",
    "WORDS",
    "Vectors",
    "get_group",
    "put_group",
    "put_groups",
    "read_symbols",
]

LANES = 8
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl")


def _has_vectors() -> bool:
    """Whether Numba makes code for a processor that has the instructions: this one, or what its configuration names."""
    features = numba.config.CPU_FEATURES
    if features is not None:
        return all(f"+{name}" in features.split(",") for name in NEEDED)
    host = llvmlite.binding.get_host_cpu_features()
    return bool(numba.config.ENABLE_AVX) and all(host.get(name, False) for name in NEEDED)


HAS_VECTORS = _has_vectors()
"""Where there are none, what codes or reads groups must not be called; it is there, since all that might call it is compiled."""


# -- vectors of eight ----------------------------------------------------------------------------------------------

BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
BYTES, HALVES, WORDS, LONGS = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 16, 32, 64))
NOTHING = LONG(0)


class Vectors:
    """Writes instructions on vectors of eight numbers."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def all(self, number: int, kind: Any = WORDS) -> Any:
        """The same constant in each place."""
        return ir.Constant(kind, [number] * LANES)

    def spread(self, number: Any, kind: Any = WORDS) -> Any:
        """A number in each place, or its lower bits where places have fewer."""
        single = number if number.type == kind.element else self.builder.trunc(number, kind.element)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), single, WORD(0))
        return self.shuffle(first, first, [0] * kind.count)

    def load(self, address: Any, kind: Any, align: int) -> Any:
        """What lies at an address."""
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: Any, address: Any, align: int) -> None:
        """Writes to an address."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=align)

    def shuffle(self, first: Any, second: Any, places: Sequence[int]) -> Any:
        """Numbers of two vectors, by their places in both."""
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(WORD, len(places)), list(places)))

    def look_up(self, table: Any, places: Any) -> Any:
        """Numbers of 16 bits of a table of 32, which lies at an address."""
        kind = ir.FunctionType(places.type, [places.type] * 2)
        permute = self.builder.module.declare_intrinsic("llvm.x86.avx512.permvar.hi.512", (), kind)
        return self.builder.call(permute, [self.load(table, places.type, 2), places])

    def call(self, name: str, *arguments: Any) -> Any:
        """An instruction of the processor that has no other name, from and to 32-bit numbers."""
        kind = ir.FunctionType(WORDS, [argument.type for argument in arguments])
        return self.builder.call(self.builder.module.declare_intrinsic(name, (), kind), arguments)

    def below(self, count: Any) -> Any:
        """Flags of the first ``count`` lanes."""
        return self.builder.icmp_unsigned("<", ir.Constant(WORDS, list(range(LANES))), self.spread(count))

    def flags(self, bits: Any) -> Any:
        """The lower eight bits of a number as flags."""
        return self.builder.bitcast(self.builder.trunc(bits, BYTE), ir.VectorType(ir.IntType(1), LANES))

    def number_of(self, flags: Any) -> Any:
        """How many flags are set, in 64 bits."""
        return self.builder.ctpop(self.builder.zext(self.builder.bitcast(flags, BYTE), LONG))


# -- writing -------------------------------------------------------------------------------------------------------


def _entries(vectors: Vectors, index: Any, stride: Any, table: Any, count: Any) -> tuple[Any, Any, Any, Any]:
    """The four numbers of each lane's entry; a lane that is not there has those of the last one that is."""
    builder, found = vectors.builder, []
    for lane in range(LANES):
        entry = builder.zext(vectors.load(index, HALF, 2), LONG)
        found.append(vectors.load(builder.add(table, builder.shl(entry, LONG(4))), ir.VectorType(WORD, 4), 4))
        more = builder.icmp_unsigned("<", LONG(lane + 1), count)
        index = builder.add(index, builder.select(more, stride, LONG(0)))
    rows = [vectors.shuffle(found[lane], found[lane + 4], range(8)) for lane in range(4)]
    firsts, seconds = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
    halves = [
        [vectors.shuffle(first, second, places) for first, second in (rows[:2], rows[2:])]
        for places in (firsts, seconds)
    ]
    lower, upper = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)
    limit, reciprocal, bias, last = (
        vectors.shuffle(first, second, places) for first, second in halves for places in (lower, upper)
    )
    return limit, reciprocal, bias, last


def _put(vectors: Vectors, state: Any, entries: Any, end: Any, taking: Any) -> tuple[Any, Any]:
    """Codes one symbol into each lane that takes part; returns the states after it, and where its words begin."""
    builder, (limit, reciprocal, bias, last) = vectors.builder, entries
    full = builder.and_(builder.icmp_unsigned(">=", state, limit), taking)
    num_words = vectors.number_of(full)
    words = vectors.call("llvm.x86.avx512.mask.compress.v8i32", state, vectors.all(0), full)
    order = builder.add(ir.Constant(WORDS, list(range(LANES))), vectors.spread(num_words))
    words = vectors.call("llvm.x86.avx2.permd", words, order)  # the last ones come to lie at the end
    vectors.store(builder.trunc(words, HALVES), builder.sub(end, LONG(2 * LANES)), 2)
    less = builder.select(full, builder.lshr(state, vectors.all(16)), state)
    product = builder.mul(builder.zext(less, LONGS), builder.zext(reciprocal, LONGS))
    quotient = builder.trunc(builder.lshr(product, vectors.all(32, LONGS)), WORDS)
    shift = builder.and_(builder.lshr(last, vectors.all(16)), vectors.all(31))  # of 32 and more, 32 are done
    worth = builder.mul(builder.lshr(quotient, shift), builder.and_(last, vectors.all(0xFFFF)))
    return builder.add(builder.add(less, bias), worth), builder.sub(end, builder.shl(num_words, LONG(1)))


@intrinsic
def put_groups(
    typing_context: Any,
    states: Any,
    index: Any,
    stride: Any,
    advance: Any,
    groups: Any,
    table: Any,
    end: Any,
    count: Any,
    mark: Any,
) -> Any:
    """Codes groups of symbols, one into each of the first ``count`` of eight states, up to one that is marked.

    Words end up before an address, those of the last group first, and of a group those of lane 0. Before them, as many as eight
    more are overwritten, and so are the other states.

    Args:
        states: address of eight states of 32 bits.
        index: address of the entry of the first lane of the last group, 16 bits.
        stride: bytes from one lane's entry to that of the next.
        advance: bytes from one group's entries to those of the next.
        groups: how many groups there are, at least one.
        table: address of the writer's table, four numbers of 32 bits an entry.
        end: address after the words.
        count: so many lanes take part, at least one.
        mark: which last numbers of entries count as marked: those that are not less.

    Returns:
        The address of the first word; how many groups are left; and a bit for each lane of the last coded group whose entry is
        marked.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        states, index, stride, advance, groups, table, end, count, mark = arguments
        if not HAS_VECTORS:
            return context.make_tuple(builder, signature.return_type, [end, groups, NOTHING])
        vectors, before = Vectors(builder), builder.block
        taking, first_state = vectors.below(count), vectors.load(states, WORDS, 4)
        each = builder.append_basic_block("group")
        after = builder.append_basic_block("groups_done")
        builder.branch(each)
        builder.position_at_end(each)
        state, place, to, left = (builder.phi(kind) for kind in (WORDS, LONG, LONG, LONG))
        entries = _entries(vectors, place, stride, table, count)
        new_state, new_to = _put(vectors, state, entries, to, taking)
        marked = builder.and_(builder.icmp_unsigned(">=", entries[3], vectors.spread(mark)), taking)
        marks, new_left = builder.zext(builder.bitcast(marked, BYTE), LONG), builder.sub(left, LONG(1))
        new_place = builder.sub(place, advance)
        for phi, first, following in (
            (state, first_state, new_state), (place, index, new_place), (to, end, new_to), (left, groups, new_left),
        ):  # fmt: skip
            phi.add_incoming(first, before)
            phi.add_incoming(following, each)
        is_last = builder.or_(
            builder.icmp_unsigned("==", new_left, LONG(0)), builder.icmp_unsigned("!=", marks, LONG(0))
        )
        builder.cbranch(is_last, after, each)
        builder.position_at_end(after)
        vectors.store(new_state, states, 4)
        return context.make_tuple(builder, signature.return_type, [new_to, new_left, marks])

    number = numba.uint64
    return numba.types.UniTuple(number, 3)(*[number] * 9), generate


@intrinsic
def put_group(typing_context: Any, states: Any, index: Any, stride: Any, table: Any, end: Any, mark: Any) -> Any:
    """Codes one group of eight symbols; arguments are those of :func:`put_groups`.

    Returns:
        The address of the first word, and a bit for each lane whose entry is marked.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        states, index, stride, table, end, mark = arguments
        if not HAS_VECTORS:
            return context.make_tuple(builder, signature.return_type, [end, NOTHING])
        vectors = Vectors(builder)
        entries = _entries(vectors, index, stride, table, LONG(LANES))
        state, end = _put(vectors, vectors.load(states, WORDS, 4), entries, end, vectors.flags(LONG(255)))
        vectors.store(state, states, 4)
        marked = builder.icmp_unsigned(">=", entries[3], vectors.spread(mark))
        marks = builder.zext(builder.bitcast(marked, BYTE), LONG)
        return context.make_tuple(builder, signature.return_type, [end, marks])

    number = numba.uint64
    return numba.types.UniTuple(number, 2)(*[number] * 6), generate


# -- reading -------------------------------------------------------------------------------------------------------


def _looked_up(vectors: Vectors, table: Any, places: Any) -> Any:
    """Numbers of a table of 32-bit numbers, one by one: faster than the instruction that looks up eight."""
    builder, found = vectors.builder, ir.Constant(WORDS, ir.Undefined)
    for lane in range(LANES):
        place = builder.zext(builder.extract_element(places, WORD(lane)), LONG)
        number = vectors.load(builder.add(table, builder.shl(place, LONG(2))), WORD, 4)
        found = builder.insert_element(found, number, WORD(lane))
    return found


def read_symbols(vectors: Vectors, state: Any, rows: Any, table: Any, words: Any, taking: Any) -> tuple[Any, Any, Any]:
    """Takes a symbol from each lane's state, and words into those that become too small.

    Returns the states after it, symbols of eight bits, and how many words were taken.
    """
    builder, rows = vectors.builder, vectors.builder.zext(rows, WORDS)
    slots = builder.and_(state, vectors.all(4095))
    entry = _looked_up(vectors, table, builder.or_(builder.shl(rows, vectors.all(12)), slots))
    frequency = builder.lshr(entry, vectors.all(20))
    offset = builder.and_(builder.lshr(entry, vectors.all(8)), vectors.all(4095))
    less = builder.add(builder.mul(frequency, builder.lshr(state, vectors.all(12))), offset)
    short = builder.and_(builder.icmp_unsigned("<", less, vectors.all(1 << 15)), taking)
    ahead = builder.zext(vectors.load(words, HALVES, 2), WORDS)
    ahead = vectors.call("llvm.x86.avx512.mask.expand.v8i32", ahead, vectors.all(0), short)
    longer = builder.select(short, builder.or_(builder.shl(less, vectors.all(16)), ahead), less)
    return longer, builder.trunc(entry, BYTES), vectors.number_of(short)


@intrinsic
def get_group(typing_context: Any, states: Any, rows: Any, table: Any, words: Any, into: Any, taking: Any) -> Any:
    """Reads one symbol from each of eight states, or of those that take part; returns how many words were taken.

    The other states are overwritten.

    Args:
        states: address of eight states of 32 bits.
        rows: address of each lane's row of the tables, eight bytes.
        table: address of the reader's table, 4096 numbers of 32 bits a row.
        words: address of the next word; eight are there.
        into: address of eight bytes for the symbols.
        taking: a bit for each lane that takes part, lane 0's the lowest.
    """

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        if not HAS_VECTORS:
            return NOTHING
        states, rows, table, words, into, taking = arguments
        vectors = Vectors(builder)
        state, lanes = vectors.load(states, WORDS, 4), vectors.load(rows, BYTES, 1)
        state, symbols, taken = read_symbols(vectors, state, lanes, table, words, vectors.flags(taking))
        vectors.store(state, states, 4)  # of all lanes: what is stored in part is slow to be read again
        vectors.store(symbols, into, 1)
        return taken

    number = numba.uint64
    return number(number, number, number, number, number, number), generate
