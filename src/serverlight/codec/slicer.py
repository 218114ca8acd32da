"""Profile ``slicer``: the survivors of the three stages as sections of a frame (docs/wire-format.md, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serverlight.codec import positions
from serverlight.codec.backends import Float32, Survivors
from serverlight.codec.backends.slicer import group_sizes
from serverlight.codec.wire import Header, Reader, Writer
from serverlight.errors import InconsistentFrame

__all__ = ["read", "write"]

MAX_WIRE_BITS = 16
SIGNED_FLAG = 1 << 7


@dataclass(frozen=True, kw_only=True, slots=True)
class _GroupTable:
    low: Float32
    high: Float32
    bits: npt.NDArray[np.uint8]


def write(writer: Writer, survivors: Survivors, header: Header, wanted_positions: str = "auto") -> None:
    """Writes sections 5.1 to 5.6."""
    num_kept, num_groups = len(survivors.positions), len(survivors.bits)
    writer.varint(num_kept, "header")
    if num_kept == 0:
        return
    choice = positions.choose(survivors.positions, header.shape, wanted_positions)
    signed = bool(survivors.negative.any())
    writer.byte(num_groups - 1, "header")
    writer.byte(choice.coding | choice.rice << 2 | (SIGNED_FLAG if signed else 0), "header")
    _write_groups(writer, survivors, header.dtype)
    positions.write(writer, choice, survivors.positions, header.shape)
    if signed:
        writer.bit_fields(survivors.negative, 1, "signs")
    writer.bit_fields(survivors.labels, (num_groups - 1).bit_length(), "labels")
    for group, bits in enumerate(survivors.bits):
        writer.bit_fields(survivors.codes[survivors.labels == group], int(bits), "codes")


def read(reader: Reader, header: Header) -> Survivors:
    """Reads and proves sections 5.1 to 5.6."""
    num_elements, num_kept = header.num_elements, reader.varint("header")
    if num_kept > num_elements:
        raise InconsistentFrame(f"{num_kept} elements kept of {num_elements}")
    if num_kept == 0:
        return _no_survivors()
    num_groups = reader.byte("header") + 1
    if num_groups > num_kept:
        raise InconsistentFrame(f"{num_groups} groups for {num_kept} kept elements")
    modes = reader.byte("header")
    choice = positions.PositionChoice(coding=positions.Coding(modes & 3), rice=modes >> 2 & 31)
    table = _read_groups(reader, num_groups, header.dtype)
    kept = positions.read(reader, choice, num_kept, header.shape)
    negative = reader.bit_fields(num_kept if modes & SIGNED_FLAG else 0, 1, "signs").astype(bool)
    labels = _read_labels(reader, num_kept, num_groups)
    return Survivors(
        positions=kept,
        negative=negative if modes & SIGNED_FLAG else np.zeros(num_kept, bool),
        labels=labels,
        codes=_read_codes(reader, labels, table.bits),
        low=table.low,
        high=table.high,
        bits=table.bits,
    )


def _write_groups(writer: Writer, survivors: Survivors, dtype: str) -> None:
    for bits, low, high in zip(survivors.bits, survivors.low, survivors.high, strict=True):
        writer.byte(int(bits), "groups")
        writer.raw(_pack_floats(np.array([low, high], np.float32), dtype), "groups")


def _read_groups(reader: Reader, num_groups: int, dtype: str) -> _GroupTable:
    size = len(_pack_floats(np.zeros(2, np.float32), dtype))
    bits, ranges = np.empty(num_groups, np.uint8), np.empty((num_groups, 2), np.float32)
    for group in range(num_groups):
        bits[group] = reader.byte("groups")
        ranges[group] = _unpack_floats(reader.take(size, "groups"), dtype)
    low, high = ranges[:, 0].copy(), ranges[:, 1].copy()
    if not (np.isfinite(ranges).all() and (low > 0).all() and (low <= high).all()):
        raise InconsistentFrame("groups: a range is not finite, not positive, or upside down")
    if (bits > MAX_WIRE_BITS).any() or (bits[low == high] > 0).any():
        raise InconsistentFrame(f"groups: a width above {MAX_WIRE_BITS} bits, or codes for a single value")
    return _GroupTable(low=low, high=high, bits=bits)


def _read_labels(reader: Reader, num_kept: int, num_groups: int) -> npt.NDArray[np.uint8]:
    if num_groups == 1:
        return np.zeros(num_kept, np.uint8)
    labels = reader.bit_fields(num_kept, (num_groups - 1).bit_length(), "labels")
    members = np.bincount(labels, minlength=num_groups)
    if len(members) > num_groups or (members != group_sizes(num_kept, num_groups)).any():
        raise InconsistentFrame("labels: the groups do not have the sizes they must have")
    return labels.astype(np.uint8)


def _read_codes(reader: Reader, labels: npt.NDArray[np.uint8], bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    codes = np.zeros(len(labels), np.uint32)
    for group, width in enumerate(bits):
        members = np.flatnonzero(labels == group)
        codes[members] = reader.bit_fields(len(members), int(width), "codes")
    return codes


def _no_survivors() -> Survivors:
    return Survivors(
        positions=np.zeros(0, np.int64),
        negative=np.zeros(0, bool),
        labels=np.zeros(0, np.uint8),
        codes=np.zeros(0, np.uint32),
        low=np.zeros(0, np.float32),
        high=np.zeros(0, np.float32),
        bits=np.zeros(0, np.uint8),
    )


def _pack_floats(values: Float32, dtype: str) -> bytes:
    """Float32 values that are exact in ``dtype``, as that dtype's bytes."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "float16" else "<f4").tobytes()


def _unpack_floats(data: memoryview, dtype: str) -> Float32:
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(data, "<f2" if dtype == "float16" else "<f4").astype(np.float32)
