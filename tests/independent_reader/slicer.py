"""Section 5 of the page: profile 1."""

from __future__ import annotations

from collections.abc import Iterator

from independent_reader.parts import Bytes, read_float, single


def read_slicer(source: Bytes, dtype: str, shape: list[int], num_elements: int) -> list[float]:
    values, num_kept = [0.0] * num_elements, source.varint()
    if num_kept == 0:
        return values
    num_groups, modes = source.byte() + 1, source.byte()
    groups = [(source.byte(), read_float(source, dtype), read_float(source, dtype)) for _ in range(num_groups)]
    kept = list(read_positions(source, modes & 3, modes >> 2 & 31, num_kept, shape, num_elements))
    signs = source.fields(num_kept, 1) if modes & 128 else [0] * num_kept
    labels = source.fields(num_kept, (num_groups - 1).bit_length()) if num_groups > 1 else [0] * num_kept
    for group, (width, low, high) in enumerate(groups):
        members = [j for j in range(num_kept) if labels[j] == group]
        for j, code in zip(members, source.fields(len(members), width), strict=True):
            share = (2 * code + 1) / 2 ** (width + 1)
            magnitude = low if low == high else single(low + single(single(high - low) * share))
            values[kept[j]] = -magnitude if signs[j] else magnitude
    return values


def read_positions(
    source: Bytes, coding: int, rice: int, num_kept: int, shape: list[int], num_elements: int
) -> Iterator[int]:
    if coding == 0:
        yield from range(num_elements)
    elif coding == 1:
        yield from (i for i, bit in enumerate(source.fields(num_elements, 1)) if bit)
    elif coding == 2:
        columns = shape[-1] if shape else 1
        counts = source.fields(num_elements // columns, columns.bit_length())
        column = iter(source.fields(num_kept, (columns - 1).bit_length()))
        yield from (row * columns + next(column) for row, count in enumerate(counts) for _ in range(count))
    else:
        dropped = 2 * num_kept > num_elements
        unary = source.fields(source.varint(), 1)
        remainders = source.fields(num_elements - num_kept if dropped else num_kept, rice)
        listed = set(rice_positions(unary, remainders, rice))
        yield from (i for i in range(num_elements) if (i in listed) != dropped)


def rice_positions(unary: list[int], remainders: list[int], rice: int) -> Iterator[int]:
    position, quotient, remaining = -1, 0, iter(remainders)
    for bit in unary:
        if bit:
            position += (quotient << rice) + next(remaining) + 1
            quotient = 0
            yield position
        else:
            quotient += 1
