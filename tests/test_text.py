"""Token ids and text: what is given out while an answer is written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from serverlight.errors import ConfigError
from serverlight.text import TextStream


def decode_bytes(token_ids: Sequence[int]) -> str:
    """The plainest tokenizer: a token is a byte."""
    return bytes(token_ids).decode(errors="replace")


def read(stream: TextStream, token_ids: Sequence[int]) -> list[str]:
    """The pieces that a stream gives out."""
    pieces = []
    for token_id in token_ids:
        pieces.append(stream.push(token_id))
        if stream.is_stopped:
            return pieces
    return [*pieces, stream.finish()]


@given(st.text(alphabet=st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_pieces_make_up_the_text(text: str) -> None:
    """Characters of several tokens come whole, and nothing is lost or said twice."""
    pieces = read(TextStream(decode_bytes, b"Before: "), text.encode())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.text(alphabet="abc", max_size=30), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_earliest_stop(text: str, stops: list[str]) -> None:
    """Stop strings cut exactly, also across tokens, and what could be their beginning is kept back until it is known."""
    stream = TextStream(decode_bytes, (), stops)
    given_out = "".join(read(stream, text.encode()))
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    # The one that is complete first stops the text; of those that are complete together, the longest was begun first.
    assert given_out == (text[: min(ends)[1]] if ends else text)
    assert stream.is_stopped == bool(ends)


def test_an_unfinished_character_is_given_out_at_the_end() -> None:
    """Where the tokens end within a character, the text says so."""
    assert "".join(read(TextStream(decode_bytes), "é".encode()[:1])) == "\ufffd"


def test_an_empty_stop() -> None:
    """A stop string that is everywhere is refused, by name."""
    with pytest.raises(ConfigError, match="stop"):
        TextStream(decode_bytes, (), [""])
