"""What attacks on frames of profile ``serverlight`` have in common."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from serverlight.codec import decode, inspect
from serverlight.errors import FrameError

BACKENDS = ["reference"] + ["cpu"] * (importlib.util.find_spec("numba") is not None)
KINDS = range(4)
"""Of long sections; of short ones, see ``test_contextual_short.py``."""


def rejects(error: type[FrameError], frame: bytes, *, unseen: bool = False, **limits: Any) -> None:
    """Every backend refuses it with exactly this error; so does ``inspect``, unless only the entropy decoder can see it."""
    for backend in BACKENDS:
        with pytest.raises(FrameError) as caught:
            decode(frame, "numpy", backend=backend, **limits)
        assert type(caught.value) is error, caught.value
        assert str(caught.value)
    if not unseen:
        with pytest.raises(error):
            inspect(frame, **limits)
