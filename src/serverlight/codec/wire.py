"""The format page in code: constants, header, and the only reader and writer of bytes.

Section numbers refer to docs/wire-format.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serverlight.errors import (
    BadMagic,
    BadPadding,
    BadVarint,
    ChecksumMismatch,
    ConfigError,
    FrameTooLarge,
    FrameTooShort,
    TrailingBytes,
    UnsupportedFeature,
    UnsupportedProfile,
    UnsupportedVersion,
)

try:  # in a tenth of zlib's time, where it runs
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = [
    "CORRECTED_FORM",
    "COSINE_FORM",
    "DEFAULT_MAX_ELEMENTS",
    "DTYPES",
    "MAX_RANK",
    "PROFILE_IDS",
    "Header",
    "Reader",
    "Writer",
    "behind_header",
    "header_bytes",
    "sealed",
]

MAGIC = b"SL"
VERSION = 1
MAX_RANK = 8
SHORT_MAGIC = 0xA0
"""The first byte of a short header, whose lower half is the rank."""
MAX_HEADER_BYTES = 6 + 5 * MAX_RANK
MAX_VARINT = 2**32 - 1
CHECKSUM_FLAG = 1 << 4
BASIS_FORM, COSINE_FORM, CORRECTED_FORM, FORM_BITS = 1 << 5, 2 << 5, 3 << 5, 3 << 5
CHECKSUM_BYTES, BASIS_BYTES, SHORT_BASIS_BYTES = 4, 8, 4
DEFAULT_MAX_ELEMENTS = 1 << 28
RESIDUE = 0x2144DF1C
"""CRC-32 of anything with its own CRC-32 behind it, least significant byte first."""

DTYPES = ("float32", "float16", "bfloat16")
"""Element types; the index is the dtype's number on the wire (section 2)."""

PROFILE_IDS = {"fp16": 0, "slicer": 1, "serverlight": 2}
"""Profiles by their number on the wire (section 2)."""

PROFILE_NAMES = {number: name for name, number in PROFILE_IDS.items()}

Codes = npt.NDArray[np.uint32]
Fields = npt.NDArray[np.integer] | npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What section 2 puts at the front of every frame."""

    profile: str
    dtype: str
    shape: tuple[int, ...]
    checksum: bool
    basis: bytes = b""
    """Digest of the basis that the values are in (section 6.8), or the start of it; empty for none."""

    cosine: bool = False
    """Whether they are cosine coefficients of planes (section 6.10)."""

    corrected: bool = False
    """Whether the mean error of each plane lies beside them (section 6.11)."""

    @property
    def is_turned(self) -> bool:
        """Whether the values are made of what the sections hold, and are not just that."""
        return bool(self.basis) or self.cosine or self.corrected

    @property
    def num_elements(self) -> int:
        """``n``, as a Python integer that cannot overflow."""
        return math.prod(self.shape)


@functools.lru_cache(maxsize=256)
def header_bytes(
    profile: str, dtype: str, shape: tuple[int, ...], checksum: bool, basis: bytes = b"", form: int = 0
) -> bytes:
    """Section 2 of a frame, in its short form; under a basis the form follows from it."""
    flags = (CHECKSUM_FLAG if checksum else 0) | (BASIS_FORM if basis else form)
    front = bytes((SHORT_MAGIC | len(shape), DTYPES.index(dtype) | PROFILE_IDS[profile] << 2 | flags))
    return front + b"".join(map(varint_bytes, shape)) + basis[:SHORT_BASIS_BYTES]


def varint_bytes(value: int) -> bytes:
    """An unsigned integer as section 1.2 says.

    >>> varint_bytes(300).hex()
    'ac02'
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def sealed(*parts: bytes | memoryview, checksum: bool) -> bytes:
    """A frame from its parts, with its checksum if asked for."""
    if not checksum:
        return b"".join(parts)
    value = 0
    for part in parts:
        value = crc32(part, value)
    return b"".join((*parts, value.to_bytes(CHECKSUM_BYTES, "little")))


class Writer:
    """Collects the parts of a frame, and remembers how many bytes each took."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.part_bytes: dict[str, int] = {}

    def header(self, header: Header) -> None:
        """Writes section 2."""
        self._put("header", header_bytes(header.profile, header.dtype, header.shape, header.checksum))

    def byte(self, value: int, part: str) -> None:
        """Writes one byte."""
        self._put(part, bytes((value,)))

    def varint(self, value: int, part: str) -> None:
        """Writes an unsigned integer as section 1.2 says."""
        self._put(part, varint_bytes(value))

    def varints(self, values: npt.NDArray[np.int64], part: str) -> None:
        """Writes many of them, each below 2^32."""
        groups = values[:, None] >> np.arange(0, 35, 7)
        has_more = groups > 0x7F
        is_sent = np.hstack((np.ones((len(values), 1), bool), has_more[:, :-1]))
        self._put(part, (groups & 0x7F | has_more * 0x80)[is_sent].astype(np.uint8).tobytes())

    def raw(self, data: bytes | memoryview, part: str) -> None:
        """Writes bytes as they are; they stay where they lie until the frame is finished."""
        self._put(part, data)

    def bit_fields(self, values: Fields, width: int, part: str) -> None:
        """Writes one section of equally wide bit fields (section 1.3)."""
        self._put(part, pack_bit_fields(values, width))

    def finish(self, *, checksum: bool) -> bytes:
        """Ends the frame, with its checksum if asked for."""
        return sealed(*self.parts, checksum=checksum)

    def _put(self, part: str, data: bytes | memoryview) -> None:
        self.parts.append(data)
        self.part_bytes[part] = self.part_bytes.get(part, 0) + len(data)


class Reader:
    """Takes bytes off the front of a frame; every length is checked before it is used."""

    __slots__ = ("_offset", "_view", "part_bytes")

    def __init__(self, frame: bytes | bytearray | memoryview) -> None:
        self._view, self._offset = memoryview(frame).cast("B"), 0
        self.part_bytes: dict[str, int] = {}

    def header(self, max_elements: int) -> Header:
        """Reads and proves section 2, the limits and the checksum included."""
        if max_elements < 0:
            raise ConfigError("max_elements", f"must not be negative, got {max_elements}")
        header, extent, self._offset = _read_header(self._header_candidate())
        self.part_bytes["header"] = self._offset
        if extent > max_elements:
            raise FrameTooLarge(
                f"the frame declares {extent} elements, the limit is {max_elements}; raise max_elements if you trust the sender"
            )
        if header.checksum:
            self._check_and_cut_checksum()
        return header

    def byte(self, part: str) -> int:
        """Reads one byte."""
        return self.take(1, part)[0]

    def varint(self, part: str) -> int:
        """Reads an unsigned integer as section 1.2 says."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte(part)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if (byte == 0 and shift > 0) or value > MAX_VARINT:
                    raise BadVarint(f"{part}: an integer is not minimal, or above 2^32 - 1")
                return value
        raise BadVarint(f"{part}: an integer is longer than five bytes")

    def varints(self, count: int, part: str) -> npt.NDArray[np.int64]:
        """Reads many of them."""
        data = np.frombuffer(self.peek(5 * count), np.uint8)
        ends = np.flatnonzero(data < 0x80)[:count]
        sizes = np.diff(ends, prepend=-1)
        if len(ends) < count or (sizes > 4).any() or ((data[ends] == 0) & (sizes > 1)).any():
            return np.array([self.varint(part) for _ in range(count)], np.int64)  # large ones; or tells what is wrong
        starts, groups = ends + 1 - sizes, data[: ends[-1] + 1].astype(np.int64)
        shifts = 7 * (np.arange(len(groups)) - np.repeat(starts, sizes))
        self.take(len(groups), part)
        return np.add.reduceat((groups & 0x7F) << shifts, starts)

    def take(self, num_bytes: int, part: str) -> memoryview:
        """Reads ``num_bytes`` bytes without a copy."""
        left = self.num_left
        if num_bytes > left:
            raise FrameTooShort(f"{part}: needs {num_bytes} bytes at offset {self._offset}, {left} left")
        self._offset += num_bytes
        self.part_bytes[part] = self.part_bytes.get(part, 0) + num_bytes
        return self._view[self._offset - num_bytes : self._offset]

    @property
    def num_left(self) -> int:
        """Bytes that are not taken yet."""
        return len(self._view) - self._offset

    def peek(self, num_bytes: int) -> memoryview:
        """The next bytes, at most so many, without taking them."""
        return self._view[self._offset : self._offset + num_bytes]

    def rest(self, part: str) -> memoryview:
        """Reads all that is left."""
        left = self._view[self._offset :]
        self._offset, self.part_bytes[part] = len(self._view), len(left)
        return left

    def bit_fields(self, count: int, width: int, part: str) -> Codes:
        """Reads one section of equally wide bit fields (section 1.3)."""
        data = self.take((count * width + 7) // 8, part)
        return unpack_bit_fields(np.frombuffer(data, np.uint8), count, width, part)

    def finish(self) -> None:
        """Proves that nothing is left."""
        if left := self.num_left:
            raise TrailingBytes(f"{left} bytes after the last section")

    def _header_candidate(self) -> bytes:
        """The bytes that are the header if there is a valid one: the key under which it may have been read before."""
        view = self._view
        is_short = _is_short(view)
        end, digest_bytes = (2, SHORT_BASIS_BYTES) if is_short else (6, BASIS_BYTES)
        if len(view) < end:
            return bytes(view)
        rank, flags = (view[0] & 0x0F, view[1]) if is_short else (view[5], view[4])
        for _ in range(min(rank, MAX_RANK)):
            while end < min(len(view), MAX_HEADER_BYTES) and view[end] & 0x80:
                end += 1
            end += 1
        return bytes(view[: end + (digest_bytes if flags & FORM_BITS == BASIS_FORM else 0)])

    def header_fields(self) -> Header:
        """Reads section 2, and proves all but the limits and the checksum."""
        is_short = _is_short(self._view)
        profile, flags, rank = self._short_front() if is_short else self._long_front()
        if profile not in PROFILE_NAMES:
            raise UnsupportedProfile(f"profile {profile}; this reader knows {PROFILE_NAMES}: update serverlight")
        dtype = flags & 0x0F
        if dtype >= len(DTYPES) or flags & ~(0x0F | CHECKSUM_FLAG | FORM_BITS):
            raise UnsupportedFeature(f"dtype and flags byte 0x{flags:02x} has reserved bits or an unknown dtype")
        form = flags & FORM_BITS
        if form and PROFILE_NAMES[profile] != "serverlight":
            raise UnsupportedFeature(
                f"a basis, waves or corrections under profile {PROFILE_NAMES[profile]}; only serverlight has any"
            )
        if rank > MAX_RANK:
            raise UnsupportedFeature(f"rank {rank}; a frame has at most {MAX_RANK} dimensions")
        shape = tuple(self.varint("header") for _ in range(rank))
        digest_bytes = SHORT_BASIS_BYTES if is_short else BASIS_BYTES
        return Header(
            profile=PROFILE_NAMES[profile],
            dtype=DTYPES[dtype],
            shape=shape,
            checksum=bool(flags & CHECKSUM_FLAG),
            basis=bytes(self.take(digest_bytes, "header")) if form == BASIS_FORM else b"",
            cosine=form == COSINE_FORM,
            corrected=form == CORRECTED_FORM,
        )

    def _short_front(self) -> tuple[int, int, int]:
        """Profile, dtype and flags, and rank, in two bytes."""
        rank, settings = self.byte("header") & 0x0F, self.byte("header")
        return settings >> 2 & 3, settings & ~0x0C, rank

    def _long_front(self) -> tuple[int, int, int]:
        """The same in six bytes, as writers once had it."""
        magic, version = bytes(self.take(2, "header")), self.byte("header")
        if magic != MAGIC:
            raise BadMagic(f"a frame starts with 0xa0 to 0xa8 or {MAGIC!r}, this starts with {magic!r}")
        if version != VERSION:
            raise UnsupportedVersion(
                f"format version {version}; this reader knows version {VERSION}: update serverlight"
            )
        return self.byte("header"), self.byte("header"), self.byte("header")

    def _check_and_cut_checksum(self) -> None:
        if len(self._view) - self._offset < CHECKSUM_BYTES:
            raise FrameTooShort("checksum: the frame ends before it")
        if crc32(self._view) != RESIDUE:
            actual, stated = crc32(self._view[:-CHECKSUM_BYTES]), self._view[-CHECKSUM_BYTES:]
            raise ChecksumMismatch(f"checksum is {stated.hex()}, the bytes give {actual.to_bytes(4, 'little').hex()}")
        self._view = self._view[:-CHECKSUM_BYTES]
        self.part_bytes["checksum"] = CHECKSUM_BYTES


def _is_short(frame: memoryview) -> bool:
    """Whether a frame has the short header."""
    return len(frame) > 0 and frame[0] & 0xF0 == SHORT_MAGIC


def behind_header(frame: bytes | bytearray | memoryview, start: bytes, checksum: bool) -> memoryview | None:
    """What a frame has behind a header that was read and proved before, its checksum proved and cut; none where it begins
    otherwise or the checksum is wrong, which a :class:`Reader` tells more about.
    """
    view = memoryview(frame)
    if view.itemsize != 1 or view.ndim != 1 or not view.c_contiguous or bytes(view[: len(start)]) != start:
        return None
    if not checksum:
        return view[len(start) :]
    is_sound = len(view) >= len(start) + CHECKSUM_BYTES and crc32(frame) == RESIDUE
    return view[len(start) : -CHECKSUM_BYTES] if is_sound else None


@functools.lru_cache(maxsize=256)
def _read_header(data: bytes) -> tuple[Header, int, int]:
    """A header, the extent that its shape declares, and its length: most frames begin like one before."""
    reader = Reader(data)
    header = reader.header_fields()
    # An empty tensor with huge other sides holds nothing, but its strides overflow in every tensor library.
    extent = math.prod(max(size, 1) for size in header.shape)
    return header, extent, reader.part_bytes["header"]


def pack_bit_fields(values: Fields, width: int) -> bytes:
    """Packs ``values``, each below ``2**width``, least significant bit first.

    >>> pack_bit_fields(np.array([1, 2, 3]), 2).hex()
    '39'
    """
    bits = (values.astype(np.uint32)[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def unpack_bit_fields(data: npt.NDArray[np.uint8], count: int, width: int, part: str) -> Codes:
    """The inverse of :func:`pack_bit_fields`; ``data`` has exactly the bytes that ``count`` fields take."""
    bits = np.unpackbits(data, bitorder="little")
    if bits[count * width :].any():
        raise BadPadding(f"{part}: padding bits are not zero")
    fields = bits[: count * width].reshape(count, width).astype(np.uint32)
    values: Codes = (fields << np.arange(width, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    return values
