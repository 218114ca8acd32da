"""Where the kept elements are: four codings, the cheapest wins (docs/wire-format.md, section 5.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from serverlight.codec import rice as rice_codes
from serverlight.codec.wire import Reader, Writer
from serverlight.errors import InconsistentFrame

__all__ = ["Coding", "PositionChoice", "choose", "read", "write"]

PART = "positions"

Positions = npt.NDArray[np.int64]
"""Flat indices of the kept elements, ascending."""


class Coding(IntEnum):
    """The codings by their number on the wire."""

    ALL = 0
    BITMAP = 1
    CSR = 2
    RICE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionChoice:
    """The coding that a writer picked."""

    coding: Coding
    rice: int = 0
    """Rice parameter ``r``: remainders take ``r`` bits each."""


def choose(kept: Positions, shape: tuple[int, ...], wanted: str = "auto") -> PositionChoice:
    """Picks the coding that is wanted by name, or the one with the fewest bytes; ties go to the lowest number."""
    num_elements = math.prod(shape)
    if wanted in ("bitmap", "csr"):
        return PositionChoice(coding=Coding[wanted.upper()])
    if len(kept) == num_elements and wanted == "auto":
        return PositionChoice(coding=Coding.ALL)
    rice, rice_bytes = rice_codes.best_parameter(_gaps(_listed(kept, num_elements)))
    if wanted == "rice":
        return PositionChoice(coding=Coding.RICE, rice=rice)
    sizes = {
        Coding.BITMAP: _num_bytes(num_elements),
        Coding.CSR: _csr_bytes(len(kept), shape),
        Coding.RICE: rice_bytes,
    }
    coding = min(sizes, key=lambda c: (sizes[c], c))
    return PositionChoice(coding=coding, rice=rice if coding is Coding.RICE else 0)


def write(writer: Writer, choice: PositionChoice, kept: Positions, shape: tuple[int, ...]) -> None:
    """Writes section 5.3."""
    if choice.coding is Coding.BITMAP:
        bitmap = np.zeros(math.prod(shape), np.uint8)
        bitmap[kept] = 1
        writer.raw(np.packbits(bitmap, bitorder="little").tobytes(), PART)
    elif choice.coding is Coding.CSR:
        rows, columns = _grid(shape)
        counts = np.bincount(kept // columns, minlength=rows)
        writer.bit_fields(counts, columns.bit_length(), PART)
        writer.bit_fields(kept % columns, (columns - 1).bit_length(), PART)
    elif choice.coding is Coding.RICE:
        rice_codes.write(writer, _gaps(_listed(kept, math.prod(shape))), choice.rice, PART)


def read(reader: Reader, choice: PositionChoice, num_kept: int, shape: tuple[int, ...]) -> Positions:
    """Reads and proves section 5.3; the result has ``num_kept`` ascending flat indices."""
    num_elements = math.prod(shape)
    if choice.rice and choice.coding is not Coding.RICE:
        raise InconsistentFrame("positions: a Rice parameter beside another coding")
    if choice.coding is Coding.ALL:
        if num_kept != num_elements:
            raise InconsistentFrame(f"positions: `all` keeps {num_elements} elements, the header says {num_kept}")
        return np.arange(num_elements, dtype=np.int64)
    if choice.coding is Coding.BITMAP:
        return _read_bitmap(reader, num_kept, num_elements)
    if choice.coding is Coding.CSR:
        return _read_csr(reader, num_kept, shape)
    return _read_rice(reader, num_kept, num_elements, choice.rice)


def _read_bitmap(reader: Reader, num_kept: int, num_elements: int) -> Positions:
    kept = np.flatnonzero(reader.bit_fields(num_elements, 1, PART))
    if len(kept) != num_kept:
        raise InconsistentFrame(f"positions: {len(kept)} bits are set, the header says {num_kept}")
    return kept


def _read_csr(reader: Reader, num_kept: int, shape: tuple[int, ...]) -> Positions:
    rows, columns = _grid(shape)
    counts = reader.bit_fields(rows, columns.bit_length(), PART).astype(np.int64)
    if int(counts.sum()) != num_kept:
        raise InconsistentFrame(f"positions: row counts sum to {int(counts.sum())}, the header says {num_kept}")
    column = reader.bit_fields(num_kept, (columns - 1).bit_length(), PART).astype(np.int64)
    if num_kept and int(column.max()) >= columns:
        raise InconsistentFrame(f"positions: a column is not below {columns}")
    kept = np.repeat(np.arange(rows, dtype=np.int64), counts) * columns + column
    return _proved_ascending(kept, columns * rows)


def _read_rice(reader: Reader, num_kept: int, num_elements: int, rice: int) -> Positions:
    lists_dropped = 2 * num_kept > num_elements
    num_listed = num_elements - num_kept if lists_dropped else num_kept
    gaps = rice_codes.read(
        reader, num_listed, rice, most_unary_bits=num_elements, below=max(num_elements, 1), part=PART
    )
    listed = np.cumsum(gaps + 1) - 1
    return _listed(_proved_ascending(listed, num_elements), num_elements, complement=lists_dropped)


def _proved_ascending(positions: Positions, num_elements: int) -> Positions:
    if len(positions) and (int(positions[-1]) >= num_elements or (np.diff(positions) <= 0).any()):
        raise InconsistentFrame(f"positions: not strictly ascending below {num_elements}")
    return positions


def _listed(kept: Positions, num_elements: int, complement: bool | None = None) -> Positions:
    """The rarer of kept and dropped positions; with ``complement`` given, that decides."""
    if not (2 * len(kept) > num_elements if complement is None else complement):
        return kept
    others = np.ones(num_elements, bool)
    others[kept] = False
    return np.flatnonzero(others)


def _gaps(positions: Positions) -> Positions:
    return np.diff(positions, prepend=-1) - 1


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    columns = shape[-1] if shape else 1
    return math.prod(shape) // columns, columns


def _csr_bytes(num_kept: int, shape: tuple[int, ...]) -> int:
    rows, columns = _grid(shape)
    return _num_bytes(rows * columns.bit_length()) + _num_bytes(num_kept * (columns - 1).bit_length())


def _num_bytes(num_bits: int) -> int:
    return (num_bits + 7) // 8
