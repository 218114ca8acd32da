"""Profile ``serverlight``: coded tensors as sections of a frame (docs/wire-format.md, section 6)."""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, parameters, tables
from serverlight.codec.coded import (
    Coded,
    Streams,
    default_shifts,
    is_one_sided_kind,
    kind_of,
    layout_of_kind,
    segments_of,
    shift_classes,
)
from serverlight.codec.layout import Layout
from serverlight.codec.tables import Ints
from serverlight.codec.wire import Header, Reader, Writer
from serverlight.errors import BadPadding, FrameError, FrameTooShort, InconsistentFrame, UnsupportedFeature

__all__ = ["is_along_trellis", "is_one_sided", "read", "with_unit_step", "write"]

SHORT_KINDS, ALL_ZERO, TRELLIS_MODE = 4, 7, 15
"""From 4 on a kind is a layout, and the section is in short; with the flag of one-sided ones the last kind is the trellis."""
ONE_SIDED_FLAG, LANES_SHIFT, RAW_FLAG, HALF_FLAG = 1 << 3, 4, 1 << 6, 1 << 7
"""In a short section, which has no raw bits, their flag tells that there are shifts."""
MAX_RAW_BITS = 26
UNIT_STEP = b"\x80\x42"  # 64 as bfloat16: then a 64th of the step is one
MAX_MODEL_BYTES = 300  # five offsets, and 32 corrections of at most 13 bits each
MODEL_ERRORS: dict[int, tuple[type[FrameError], str]] = {
    -1: (FrameTooShort, "the parameters are cut short"),
    -2: (InconsistentFrame, "an offset or a correction is wider than any level"),
    -3: (BadPadding, "padding bits are not zero"),
}


def write(writer: Writer, coded: Coded | None) -> None:
    """Writes sections 6.1 to 6.6; ``None`` is a tensor of zeros."""
    if coded is None:
        writer.byte(ALL_ZERO, "header")
        return
    has_shifts = not coded.is_short or bool((coded.shifts != default_shifts(coded.kind, coded.one_sided)).any())
    writer.byte(_mode_of(coded, has_shifts), "header")
    writer.raw((np.float32(coded.step).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes(), "header")
    if layout_of_kind(coded.kind) is Layout.TOKENS:
        writer.byte(coded.activity, "header")
    if coded.raw_bits:
        writer.byte(coded.raw_bits, "header")
    writer.raw(coded.model, "model")
    if has_shifts:
        writer.raw(bytes(int(coded.shifts[c]) & 0xFF for c in shift_classes(coded.kind, coded.one_sided)), "shifts")
    streams = coded.streams
    lengths = np.stack((streams.num_words, streams.num_escapes), axis=1).reshape(-1)
    writer.varints(lengths[1:] if _has_one_length(coded.is_short, len(lengths) // 2) else lengths, "segments")
    writer.raw(streams.words.astype("<u2", copy=False).view(np.uint8).data, "symbols")
    writer.raw(streams.escapes.data, "escapes")
    writer.raw(coded.raw.data, "raw bits")


def _mode_of(coded: Coded, has_shifts: bool) -> int:
    kind = SHORT_KINDS + layout_of_kind(coded.kind) if coded.is_short else coded.kind
    kind = TRELLIS_MODE if coded.kind == tables.TRELLIS else kind
    flags = (ONE_SIDED_FLAG if coded.one_sided else 0) | (HALF_FLAG if coded.half_escapes else 0)
    if coded.raw_bits or (coded.is_short and has_shifts):
        flags |= RAW_FLAG
    return kind | (coded.lanes.bit_length() - 1) << LANES_SHIFT | flags


def read(reader: Reader, header: Header) -> Coded | None:
    """Reads sections 6.1 to 6.6 and proves all that can be proved without the entropy coder."""
    mode = reader.byte("header")
    if mode == ALL_ZERO:
        return None
    is_short = mode & 7 >= SHORT_KINDS
    kind, bounds = _proved_kind(mode, header)
    one_sided = bool(mode & ONE_SIDED_FLAG) and kind != tables.TRELLIS
    step = _read_step(reader)
    start = reader.byte("header") if layout_of_kind(kind) is Layout.TOKENS else 0
    if start >= len(activity.ACTIVITY):
        raise InconsistentFrame(f"starting activity {start}; there are {len(activity.ACTIVITY)}")
    raw_bits = _read_raw_bits(reader) if mode & RAW_FLAG and not is_short else 0
    model, levels = _read_model(reader, kind, is_short)
    shifts = default_shifts(kind, one_sided)
    if mode & RAW_FLAG or not is_short:
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
        is_short=is_short,
        model=model,
        levels=levels,
        shifts=shifts,
        streams=_read_streams(reader, *_read_lengths(reader, len(bounds) - 1, is_short)),
        raw=np.frombuffer(reader.rest("raw bits") if raw_bits else b"", np.uint8),
    )


def with_unit_step(section: memoryview, header: Header) -> tuple[float, memoryview]:
    """The step of a frame, and its sections with a step of 64, so that its values are whole 64ths of a step."""
    reader = Reader(section)
    mode = reader.byte("header")
    if mode == ALL_ZERO:
        return 0.0, section
    _proved_kind(mode, header)
    step = _read_step(reader)
    return step, memoryview(b"".join((section[:1], UNIT_STEP, section[3:])))


def is_one_sided(section: memoryview) -> bool:
    """Whether sections that were read before say that no element is negative."""
    return section[0] != ALL_ZERO and bool(section[0] & ONE_SIDED_FLAG)


def is_along_trellis(section: memoryview) -> bool:
    """Whether a section says that its numbers go along a trellis; nothing of it is proved."""
    return len(section) > 0 and section[0] & TRELLIS_MODE == TRELLIS_MODE


def _proved_kind(mode: int, header: Header) -> tuple[int, list[int]]:
    """The family of contexts, and the segments' bounds, of a mode byte that is not that of zeros and suits the frame."""
    kind = _kind_of(mode)
    _check_kind_of_form(kind, header)
    if header.num_elements == 0:
        raise InconsistentFrame("an empty tensor is coded as zeros")
    if layout_of_kind(kind) is Layout.PLANES and bool(mode & ONE_SIDED_FLAG) != is_one_sided_kind(kind):
        raise InconsistentFrame(f"kind {kind} of context contradicts the sign flag")
    _, bounds = segments_of(header.shape, kind)
    if mode & 7 >= SHORT_KINDS and len(bounds) > 2 and kind != tables.TRELLIS:
        raise InconsistentFrame(f"a short section of {len(bounds) - 1} segments; only one has such")
    return kind, bounds


def _kind_of(mode: int) -> int:
    """The family of contexts of a mode byte that is not that of zeros."""
    number = mode & 7
    if number < SHORT_KINDS:
        return number
    if mode & TRELLIS_MODE == TRELLIS_MODE:
        return tables.TRELLIS
    if number == ALL_ZERO:
        raise UnsupportedFeature(f"mode byte 0x{mode:02x} has an unknown kind of context")
    return kind_of(Layout(number - SHORT_KINDS), bool(mode & ONE_SIDED_FLAG))


def _check_kind_of_form(kind: int, header: Header) -> None:
    is_planes = kind in (tables.ONE_SIDED_PLANES, tables.SIGNED_PLANES)
    if (header.basis or header.cosine) and is_planes:
        raise InconsistentFrame("contexts of planes for coefficients, which are no planes")
    if header.corrected and not is_planes:
        raise InconsistentFrame("a bias correction, and contexts of something else than planes")


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


def _read_model(reader: Reader, kind: int, is_short: bool) -> tuple[bytes, Ints]:
    levels = np.empty((tables.NUM_CONTEXTS[kind], tables.NUM_DECISIONS), np.int64)
    data = np.frombuffer(reader.peek(MAX_MODEL_BYTES), np.uint8)
    size = parameters.unpack_model(data, tables.DEFAULT_LEVELS[kind], is_one_sided_kind(kind), is_short, levels)
    if size < 0:
        error, why = MODEL_ERRORS[size]
        raise error(f"model: {why}")
    return bytes(reader.take(size, "model")), levels


def _has_one_length(is_short: bool, num_segments: int) -> bool:
    """Whether only the number of escape bytes is sent: all that lies before them is words."""
    return is_short and num_segments == 1


def _read_lengths(reader: Reader, num_segments: int, is_short: bool) -> tuple[Ints, Ints]:
    """Numbers of words and of escape bytes, by segment."""
    if not _has_one_length(is_short, num_segments):
        num_words, num_escapes = reader.varints(2 * num_segments, "segments").reshape(-1, 2).T
        return num_words, num_escapes
    escape_bytes = reader.varint("segments")
    word_bytes = reader.num_left - escape_bytes
    if word_bytes < 0:
        raise FrameTooShort(f"escapes: needs {escape_bytes} bytes, {reader.num_left} left")
    if word_bytes % 2:
        raise InconsistentFrame(f"symbols: {word_bytes} bytes are no whole number of words")
    return np.array([word_bytes // 2]), np.array([escape_bytes])


def _read_streams(reader: Reader, num_words: Ints, num_escapes: Ints) -> Streams:
    words = np.frombuffer(reader.take(2 * int(num_words.sum()), "symbols"), "<u2")
    escapes = np.frombuffer(reader.take(int(num_escapes.sum()), "escapes"), np.uint8)
    return Streams(
        num_words=num_words, num_escapes=num_escapes, words=words.astype(np.uint16, copy=False), escapes=escapes
    )
