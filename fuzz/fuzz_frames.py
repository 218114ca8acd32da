"""Coverage-guided fuzzing of the frame reader: whatever the bytes, it decodes or raises a FrameError, within its limits.

    make fuzz ARGS="-runs=10000000"      # any libFuzzer option; a corpus folder may be named too

Every fourth input is repaired (its checksum recomputed), so that the fuzzer gets behind the checksum.
"""

from __future__ import annotations

import pathlib
import sys
import zlib

import atheris

with atheris.instrument_imports(include=["serverlight"]):
    from serverlight.codec import decode, inspect
    from serverlight.errors import FrameError

MAX_ELEMENTS = 1 << 14
CHECKSUM_FLAG = 0x10


def one_input(data: bytes) -> None:
    """One execution: both readers of frames agree on what is a frame, and keep the limits."""
    if len(data) > 8 and data[-1] & 3 == 0 and data[4] & CHECKSUM_FLAG:
        data = data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")
    try:
        info = inspect(data, max_elements=MAX_ELEMENTS)
    except FrameError as error:
        expect_refusal(data, type(error))
        return
    tensor = decode(data, "numpy", max_elements=MAX_ELEMENTS)
    if tensor.shape != info.shape or tensor.size > MAX_ELEMENTS:
        raise AssertionError(f"decoded {tensor.shape}, the frame says {info.shape}")


def expect_refusal(data: bytes, wanted: type[FrameError]) -> None:
    """What one reader refuses the other refuses for the same reason."""
    try:
        decode(data, "numpy", max_elements=MAX_ELEMENTS)
    except wanted:
        return
    raise AssertionError(f"inspect raised {wanted.__name__}, decode did not")


def main() -> None:
    """Runs libFuzzer with the golden frames as seeds."""
    seeds = pathlib.Path(__file__).parent / "seeds"
    seeds.mkdir(exist_ok=True)
    for frame in (pathlib.Path(__file__).parents[1] / "tests" / "vectors").rglob("frame.bin"):
        (seeds / frame.parent.name).write_bytes(frame.read_bytes())
    atheris.Setup([sys.argv[0], "-max_len=4096", *sys.argv[1:], str(seeds)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
