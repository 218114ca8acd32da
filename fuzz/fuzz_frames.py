"""Coverage-guided fuzzing of the frame reader: whatever the bytes, it decodes or raises a FrameError, within its limits.

    make fuzz ARGS="-runs=10000000"      # any libFuzzer option; a corpus folder may be named too
    make fuzz FUZZ_SEGMENT_ELEMENTS=64   # with segments so small that frames of some hundred elements have several

Every input is decoded by the fastest backend, its compiled loops built with bounds checks, so that a read or write beyond an array
is an error and not luck. One small frame in sixteen is decoded by the reference as well, which must come to the same end; and what
kernels of a device would be told of it is made, too. An input is taken as it is, or repaired (magic, version, profile and checksum
made good), or only filled into the sections of a frame of profile ``serverlight``, so that its streams meet the entropy decoder.
"""

from __future__ import annotations

import os
import pathlib
import sys
import zlib
from typing import Any

import atheris
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
os.environ["NUMBA_BOUNDSCHECK"] = "1"
SEGMENT_ELEMENTS = int(os.environ.get("FUZZ_SEGMENT_ELEMENTS", "0"))
# Numba's cache does not tell checked from unchecked code, nor constants from others: a folder of its own.
os.environ["NUMBA_CACHE_DIR"] = str(ROOT / "out" / f"numba-checked-{SEGMENT_ELEMENTS}")

# Numba compiles these from their bytecode, which must stay as it was written.
LOOPS = "serverlight.codec.backends.cpu"
COMPILED = [f"{LOOPS}.{path.stem}" for path in (ROOT / "src" / LOOPS.replace(".", "/")).glob("*.py")]
COMPILED += [f"serverlight.codec.{name}" for name in ("layout", "parameters", "tables")]
with atheris.instrument_imports(include=["serverlight"], exclude=COMPILED):
    from serverlight.codec import Codec, CodecConfig, decode, inspect, layout
    from serverlight.codec.backends.gpu.outline import MAX_ROWS, outline
    from serverlight.codec.backends.reference import kernels as reference
    from serverlight.codec.contextual import is_along_trellis
    from serverlight.codec.wire import Reader
    from serverlight.errors import FrameError, InconsistentFrame, UnknownBasis

layout.SEGMENT_ELEMENTS = SEGMENT_ELEMENTS or layout.SEGMENT_ELEMENTS  # before anything is compiled

MAX_ELEMENTS = 1 << 14
COMPARED_ELEMENTS = 1 << 8
CHECKSUM_FLAG, BASIS_FLAG, COSINE_FLAG, CORRECTED_FLAGS = 0x10, 0x20, 0x40, 0x60
MEMORY = ("-malloc_limit_mb=2048", "-rss_limit_mb=8192")
"""No single allocation above the first; the second leaves room for some 300 bytes an execution that atheris keeps of instrumented
code (without its instrumentation the same loop holds its memory)."""


def one_input(data: bytes) -> None:
    """One execution: all readers of frames agree on what is a frame and what it holds, and keep the limits."""
    if len(data) > 32 and data[-1] & 2:
        data = filled(data)
    elif len(data) > 8 and data[-1] & 1:
        data = repaired(data)
    seen = outcome(inspect, data)
    decoded = outcome(decode, data, like="numpy")
    outlined = outcome(fault_in_outline, data)
    if isinstance(outlined, type) and decoded is not UnknownBasis:
        expect(outlined is decoded, f"what is told to kernels of a device came to {outlined}, decode to {decoded}")
    if decoded is UnknownBasis:
        expect(not isinstance(seen, type) and "basis" in seen.config, "a basis that the frame does not name is missing")
        return
    if isinstance(seen, type):
        expect(outlined is not True, f"inspect raised {seen.__name__}, kernels of a device would be told of the frame")
        expect(decoded is seen, f"inspect raised {seen.__name__}, decode came to {decoded}")
        return
    if isinstance(decoded, type):
        # Symbols are read by decode only; nothing but profile `serverlight` has any.
        expect(decoded is InconsistentFrame and seen.config["profile"] == "serverlight", f"decode raised {decoded}")
    else:
        expect(decoded.shape == seen.shape, f"decoded {decoded.shape}, the frame says {seen.shape}")
        expect(decoded.size <= MAX_ELEMENTS, f"decoded {decoded.size} elements")
    num_elements = 1
    for size in seen.shape:
        num_elements *= size
    if num_elements <= COMPARED_ELEMENTS and zlib.crc32(data) & 15 == 0:
        compare(decoded, outcome(decode, data, like="numpy", backend="reference"))


def repaired(data: bytes) -> bytes:
    """The same with a front that every reader accepts, and the checksum that it says it has."""
    if data[0] & 0x80:
        known = data[1] & (0x1F if data[1] & CORRECTED_FLAGS == BASIS_FLAG else 0x7F)
        data = bytes((0xA0 | data[0] & 7, known)) + data[2:]
        has_checksum = data[1] & CHECKSUM_FLAG
    else:
        data = b"SL\x01" + bytes((data[3] & 3,)) + data[4:]
        has_checksum = data[4] & CHECKSUM_FLAG
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little") if has_checksum else data


def filled(data: bytes) -> bytes:
    """A frame with well-formed sections up to the streams (section 6), long or short, which are the rest of the data."""
    kind, one_sided, is_short, flag = data[0] & 3, data[0] & 8, data[0] & 4, data[0] & 64
    one_sided = 8 if kind == 2 else 0 if kind == 3 else one_sided
    sides = (data[1] % 9 + 1, data[2] % 9 + 1, data[3] % 17 + 1)
    mode = (4 + min(kind, 2) if is_short else kind) | one_sided | data[0] & 0xB0 | flag
    form = COSINE_FLAG if kind < 2 and data[7] & 6 == 6 else 0
    block = b""
    if kind >= 2 and data[7] & 6 == 6:
        form, block = CORRECTED_FLAGS, corrections(data, sides[0])
    if kind == 1 and is_short and data[7] & 1:  # along a trellis
        mode, one_sided = mode | 15, 0
    activity = bytes((data[6] % 160,)) * (kind == 1)
    num_shifts = 10 if kind == 2 else 9 if kind == 3 else 4 if one_sided else 3
    body, num_escapes = data[24:], data[23] & 15
    if is_short:
        front = bytes((0xA3, 8 | data[1] % 3 | form, *sides)) + block
        front += bytes((mode, data[4], data[5] % 127 + 1)) + activity
        return (
            front
            + short_model(data[8:13], kind)
            + data[13 : 13 + num_shifts * (flag > 0)]
            + bytes((num_escapes,))
            + body
        )
    front = bytes((*b"SL\x01\x02", data[1] % 3 | form, 3, *sides)) + block
    front += bytes((mode, data[4], data[5] % 127 + 1)) + activity
    raw_bits = bytes((data[7] % 26 + 1,)) * (flag > 0)
    num_raw = data[22] & 31 if flag else 0
    num_words = max(len(body) - num_escapes - num_raw, 0) // 2
    body = body[: 2 * num_words + num_escapes + num_raw]
    lengths = bytes((num_words & 127 | 128, num_words >> 7)) if num_words > 127 else bytes((num_words,))
    model = long_model(data[8:13], kind)
    return front + raw_bits + model + data[13 : 13 + num_shifts] + lengths + bytes((num_escapes,)) + body


def corrections(data: bytes, planes: int) -> bytes:
    """Quotients of zero and one, and remainders, of each plane (section 6.11)."""
    parameter, unary, num_bits = data[14] & 15, 0, 0
    for plane in range(planes):
        quotient = data[15] >> (plane & 7) & 1
        unary |= 1 << (num_bits + quotient)
        num_bits += quotient + 1
    remainders = int.from_bytes(data[16:24], "little") & (1 << parameter * planes) - 1
    length = (parameter * planes + 7) // 8
    return (
        bytes((parameter, num_bits))
        + unary.to_bytes((num_bits + 7) // 8, "little")
        + remainders.to_bytes(length, "little")
    )


def long_model(data: bytes, kind: int) -> bytes:
    """Parameters without corrections, in fields of seven bits."""
    num_levels = 28 if kind == 2 else 35
    no_corrections = (1 << num_levels) - 1 - sum(1 << i for i in range(6, num_levels, 7))
    return (int.from_bytes(data, "little") & no_corrections).to_bytes((num_levels + 7) // 8, "little")


def short_model(data: bytes, kind: int) -> bytes:
    """The same as codes of five bits (section 1.5: none or one zero bit, a one, and the rest)."""
    number, length = 0, 0
    for i in range(4 if kind == 2 else 5):
        code, width = (data[i] >> 1 & 3) << 1 | 1, 3
        if data[i] & 1:
            code, width = (data[i] >> 1 & 7) << 2 | 2, 5
        number, length = number | code << length, length + width + (kind > 0)
    return number.to_bytes((length + 7) // 8, "little")


def outcome(read: Any, data: bytes, **choices: Any) -> Any:
    """What a reader returns, or the type of the error that it raises."""
    try:
        return read(data, max_elements=MAX_ELEMENTS, **choices)
    except FrameError as error:
        return type(error)


def fault_in_outline(data: bytes, max_elements: int) -> bool:
    """Raises what is wrong with a frame that a device is to read, as far as the host proves it; returns whether it is one."""
    reader = Reader(data)
    header, section = reader.header(max_elements), reader.rest("sections")
    if header.profile != "serverlight" or header.is_turned or is_along_trellis(section):
        return False
    known = outline([section], np.frombuffer(section, np.uint8), header)
    expect(len(known.entries) <= MAX_ROWS, f"{len(known.entries)} rows of tables")
    if known.fault is not None:
        raise known.fault[1]
    return True


def compare(decoded: Any, expected: Any) -> None:
    """Two backends came to the same end."""
    if isinstance(decoded, type) or isinstance(expected, type):
        expect(decoded is expected, f"one backend came to {decoded}, the reference to {expected}")
    else:
        expect(decoded.tobytes() == expected.tobytes(), "the backends decoded different bits")


def expect(holds: bool, otherwise: str) -> None:
    """Fails the execution if something does not hold."""
    if not holds:
        raise AssertionError(otherwise)


def write_segmented(folder: pathlib.Path) -> None:
    """Small tensors of every layout in several segments, with one lane and with eight, as no writer would choose."""
    rng = np.random.default_rng(0)
    for lanes in (1, 8):
        reference.lanes_for = lambda *_, lanes=lanes: lanes
        for shape in ((1, 24, 3, 3), (1, 32, 2, 4), (1, 20, 4, 3), (8, 32), (7, 36), (1, 255)):
            x = rng.standard_t(3, shape).astype(np.float32)
            for name, feature in (
                ("signed", x),
                ("one-sided", np.abs(x)),
                ("trellis", x),
                ("cosine", x),
                ("corrected", x),
            ):
                config = CodecConfig(
                    sparsity=0.4,
                    trellis=name == "trellis",
                    transform="cosine" if name == "cosine" else "none",
                    bias_correction=name == "corrected",
                )
                frame = Codec(config, backend="reference").encode(feature)
                (folder / f"{name}-{'x'.join(map(str, shape))}-{lanes}").write_bytes(frame)


def main() -> None:
    """Runs libFuzzer with the golden frames as seeds, or with frames of several segments."""
    seeds = pathlib.Path(__file__).parent / ("seeds-segments" if SEGMENT_ELEMENTS else "seeds")
    seeds.mkdir(exist_ok=True)
    if SEGMENT_ELEMENTS:
        write_segmented(seeds)
    for frame in (ROOT / "tests" / "vectors").rglob("frame.bin"):
        (seeds / "-".join(frame.parts[-3:-1])).write_bytes(frame.read_bytes())
    for frame in (ROOT / "tests" / "vectors" / "cosine").glob("*.bin"):
        (seeds / f"cosine-{frame.stem}").write_bytes(frame.read_bytes())
    atheris.Setup([sys.argv[0], "-max_len=4096", *MEMORY, *sys.argv[1:], str(seeds)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
