"""Profile ``serverlight``: coded tensors as sections of a frame (docs/wire-format.md, section 6)."""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, tables
from serverlight.codec.coded import NUM_SHIFTS, Coded, Streams, is_one_sided_kind, segments_of, shift_classes
from serverlight.codec.tables import Ints
from serverlight.codec.wire import Header, Reader, Writer
from serverlight.errors import BadPadding, FrameError, FrameTooShort, InconsistentFrame, UnsupportedFeature

__all__ = ["read", "with_unit_step", "write"]

ALL_ZERO = 7
ONE_SIDED_FLAG, LANES_SHIFT, RAW_FLAG, HALF_FLAG = 1 << 3, 4, 1 << 6, 1 << 7
MAX_RAW_BITS = 26
UNIT_STEP = b"\x80\x42"  # 64 as bfloat16: then a 64th of the step is one
MAX_MODEL_BYTES = 300  # five offsets, and 27 corrections of at most 13 bits each
MODEL_ERRORS: dict[int, tuple[type[FrameError], str]] = {
    -1: (FrameTooShort, "the parameters are cut short"),
    -2: (InconsistentFrame, "a correction is wider than any level"),
    -3: (BadPadding, "padding bits are not zero"),
}


def write(writer: Writer, coded: Coded | None) -> None:
    """Writes sections 6.1 to 6.6; ``None`` is a tensor of zeros."""
    if coded is None:
        writer.byte(ALL_ZERO, "header")
        return
    lanes = coded.lanes.bit_length() - 1
    flags = (ONE_SIDED_FLAG if coded.one_sided else 0) | (RAW_FLAG if coded.raw_bits else 0)
    flags |= HALF_FLAG if coded.half_escapes else 0
    writer.byte(coded.kind | lanes << LANES_SHIFT | flags, "header")
    writer.raw((np.float32(coded.step).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes(), "header")
    if coded.kind == tables.TOKENS:
        writer.byte(coded.activity, "header")
    if coded.raw_bits:
        writer.byte(coded.raw_bits, "header")
    writer.raw(coded.model, "model")
    writer.raw(bytes(int(coded.shifts[c]) & 0xFF for c in shift_classes(coded.kind, coded.one_sided)), "shifts")
    streams = coded.streams
    writer.varints(np.stack((streams.num_words, streams.num_escapes), axis=1).reshape(-1), "segments")
    writer.raw(streams.words.astype("<u2", copy=False).view(np.uint8).data, "symbols")
    writer.raw(streams.escapes.data, "escapes")
    writer.raw(coded.raw.data, "raw bits")


def read(reader: Reader, header: Header) -> Coded | None:
    """Reads sections 6.1 to 6.6 and proves all that can be proved without the entropy coder."""
    mode = reader.byte("header")
    if mode == ALL_ZERO:
        return None
    kind, one_sided = mode & 7, bool(mode & ONE_SIDED_FLAG)
    if kind >= len(tables.NUM_CONTEXTS):
        raise UnsupportedFeature(f"mode byte 0x{mode:02x} has an unknown kind of context")
    _check_kind_under_basis(kind, header)
    if header.num_elements == 0:
        raise InconsistentFrame("an empty tensor is coded as zeros")
    if kind >= tables.ONE_SIDED_PLANES and one_sided != is_one_sided_kind(kind):
        raise InconsistentFrame(f"kind {kind} of context contradicts the sign flag")
    step = _read_step(reader)
    start = reader.byte("header") if kind == tables.TOKENS else 0
    if start >= len(activity.ACTIVITY):
        raise InconsistentFrame(f"starting activity {start}; there are {len(activity.ACTIVITY)}")
    raw_bits = _read_raw_bits(reader) if mode & RAW_FLAG else 0
    model, levels = _read_model(reader, kind)
    shifts = np.zeros(NUM_SHIFTS, np.int64)
    classes = list(shift_classes(kind, one_sided))
    shifts[classes] = np.frombuffer(reader.take(len(classes), "shifts"), np.int8)
    return Coded(
        kind=kind,
        one_sided=one_sided,
        lanes=1 << (mode >> LANES_SHIFT & 3),
        step=step,
        activity=start,
        raw_bits=raw_bits,
        half_escapes=bool(mode & HALF_FLAG),
        model=model,
        levels=levels,
        shifts=shifts,
        streams=_read_streams(reader, header, kind),
        raw=np.frombuffer(reader.rest("raw bits") if raw_bits else b"", np.uint8),
    )


def with_unit_step(section: memoryview, header: Header) -> tuple[float, memoryview]:
    """The step of a frame under a basis, and its sections with a step of 64, so that its values are whole 64ths of a step."""
    reader = Reader(section)
    mode = reader.byte("header")
    if mode == ALL_ZERO:
        return 0.0, section
    _check_kind_under_basis(mode & 7, header)
    step = _read_step(reader)
    return step, memoryview(b"".join((section[:1], UNIT_STEP, section[3:])))


def _check_kind_under_basis(kind: int, header: Header) -> None:
    if header.basis and kind in (tables.ONE_SIDED_PLANES, tables.SIGNED_PLANES):
        raise InconsistentFrame("contexts of planes under a basis, whose channels are last")


def _read_step(reader: Reader) -> float:
    bits = np.frombuffer(reader.take(2, "header"), "<u2").astype(np.uint32) << np.uint32(16)
    step = float(bits.view(np.float32)[0])
    if not (np.isfinite(step) and step >= 2.0**-126):
        raise InconsistentFrame(f"step {step} is not a positive normal number")
    return step


def _read_raw_bits(reader: Reader) -> int:
    raw_bits = reader.byte("header")
    if not 1 <= raw_bits <= MAX_RAW_BITS:
        raise InconsistentFrame(f"{raw_bits} raw bits; 1 to {MAX_RAW_BITS} are allowed")
    return raw_bits


def _read_model(reader: Reader, kind: int) -> tuple[bytes, Ints]:
    levels = np.empty((tables.NUM_CONTEXTS[kind], tables.NUM_DECISIONS), np.int64)
    data = np.frombuffer(reader.peek(MAX_MODEL_BYTES), np.uint8)
    size = tables.unpack_model(data, tables.DEFAULT_LEVELS[kind], is_one_sided_kind(kind), levels)
    if size < 0:
        error, why = MODEL_ERRORS[size]
        raise error(f"model: {why}")
    return bytes(reader.take(size, "model")), levels


def _read_streams(reader: Reader, header: Header, kind: int) -> Streams:
    _, bounds = segments_of(header.shape, kind)
    num_words, num_escapes = reader.varints(2 * len(bounds) - 2, "segments").reshape(-1, 2).T
    words = np.frombuffer(reader.take(2 * int(num_words.sum()), "symbols"), "<u2")
    escapes = np.frombuffer(reader.take(int(num_escapes.sum()), "escapes"), np.uint8)
    return Streams(
        num_words=num_words, num_escapes=num_escapes, words=words.astype(np.uint16, copy=False), escapes=escapes
    )
