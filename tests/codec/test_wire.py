"""Many integers at once are the same as one after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serverlight.codec.wire import Reader, Writer, varint_bytes
from serverlight.errors import FrameError

INTEGERS = st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1), st.sampled_from([127, 128, (1 << 32) - 1]))


@given(values=st.lists(INTEGERS, min_size=1, max_size=40), behind=st.binary(max_size=6))
def test_varints_are_written_and_read(values: list[int], behind: bytes) -> None:
    """As ``varint_bytes`` has each, and what follows them stays."""
    writer = Writer()
    writer.varints(np.array(values), "lengths")
    written = b"".join(writer.parts)
    assert written == b"".join(map(varint_bytes, values))
    reader = Reader(written + behind)
    assert reader.varints(len(values), "lengths").tolist() == values
    assert reader.part_bytes == {"lengths": len(written)}
    assert bytes(reader.rest("behind")) == behind


@given(data=st.binary(max_size=24), count=st.integers(1, 6))
def test_any_bytes_come_to_the_same_end(data: bytes, count: int) -> None:
    """The same integers and the same rest, or the same error."""
    assert end_of(data, count, at_once=True) == end_of(data, count, at_once=False)


def end_of(data: bytes, count: int, *, at_once: bool) -> tuple[object, ...]:
    reader = Reader(data)
    try:
        values = reader.varints(count, "x").tolist() if at_once else [reader.varint("x") for _ in range(count)]
    except FrameError as error:
        return type(error), str(error)
    return values, bytes(reader.rest("rest"))
