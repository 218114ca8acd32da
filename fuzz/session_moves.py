"""What clients say and do, from the bytes of one input of the fuzzer of sessions: orderly, out of order, or damaged."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from session_worlds import LATER, VOCABULARY, World

from serverlight.errors import ConfigError
from serverlight.runtime.messages import (
    ClientMessage,
    CloseSession,
    Hello,
    InferRequest,
    MoveCut,
    OpenSession,
    Ping,
    Step,
)
from serverlight.sampling import Sampling

JSON_VALUES: list[Any] = [None, True, 0, -1, 1e308, 10**30, "", "x", "layers.9", LATER, [], [0], {}, {"a": 1}]
PLAN_FIELDS = ["model", "revision", "cut", "codec", "basis", "return_cut", "sends", "more"]
CODEC_FIELDS = ["profile", "sparsity", "asymmetry", "num_groups", "distortion", "positions", "checksum", "more"]


class Choices:
    """Reads an input byte by byte; after its end all choices are the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_over(self) -> bool:
        """Whether all is read."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """The next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, bits: int = 32) -> int:
        """A small number, or one near a power of two, of so many bits at most."""
        byte = self.byte()
        return byte if byte < 192 else (1 << (byte - 191) % bits) - (byte & 1)

    def of(self, options: Any) -> Any:
        """One of a sequence."""
        return options[self.byte() % len(options)]

    def rest(self, most: int) -> bytes:
        """Bytes as they are."""
        start, self._at = self._at, self._at + most
        return self._data[start : self._at]


class Speaker:
    """One client: what it said last, and which number is next."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next_id = 1

    def hello(self, choices: Choices) -> ClientMessage:
        """With a plan that is served, or is not."""
        plan = choices.of(self._world.plans)
        byte = choices.byte()
        if byte < 160:
            return Hello(plan_json=plan.to_json())
        if byte < 176:
            return Hello(plan_json=plan.to_json(), protocol_version=choices.number())
        fields = plan.to_dict()
        if byte < 208:
            fields[choices.of(PLAN_FIELDS)] = choices.of(JSON_VALUES)
        elif byte < 240:
            fields["codec"][choices.of(CODEC_FIELDS)] = choices.of(JSON_VALUES)
        else:
            return Hello(plan_json="[" * (300 * choices.byte()) + choices.rest(choices.byte()).decode(errors="replace"))
        return Hello(plan_json=json.dumps(fields))

    def open(self, choices: Choices) -> ClientMessage:
        """A session; its steps begin at 1 again."""
        self._next_id = 1
        byte, sampling = choices.byte(), Sampling()
        if byte & 1:
            with contextlib.suppress(ConfigError):
                sampling = Sampling(
                    temperature=choices.byte() / 64,
                    top_k=choices.byte() & 7,
                    top_p=(choices.byte() + 1) / 256,
                    seed=choices.number(),
                    repetition_penalty=(choices.byte() + 1) / 64,
                    logprobs=choices.of([None, 0, 3, 20]),
                )
        cut = choices.of([*(plan.cut for plan in self._world.plans), "layers.0", "nowhere"]) if byte & 2 else ""
        seen = tuple(choices.byte() % (VOCABULARY + 1) for _ in range(choices.byte() & 7)) if byte & 4 else ()
        return OpenSession(sampling=sampling, cut=cut, seen=seen)

    def step(self, choices: Choices) -> ClientMessage:
        """Tokens of a sequence, or more or fewer of them."""
        byte = choices.byte()
        frames, ids = tuple[bytes, ...](), tuple[int, ...]()
        if byte & 4:
            ids = tuple(choices.number() for _ in range(choices.byte() & 15))
        if byte & 8 or not byte & 4:
            frames = tuple(self._frame(choices) for _ in range(choices.byte() & 7 if byte & 8 else 1))
        number = self._number(choices, byte)
        return Step(step=number, frames=frames, token_ids=ids, more=bool(byte & 1), quiet=bool(byte & 2))

    def move(self, choices: Choices) -> ClientMessage:
        """A layer that the server is to take over."""
        byte = choices.byte()
        layer = choices.number() if byte & 1 else 1
        number = self._number(choices, byte)
        return MoveCut(step=number, layer=layer, keys=self._frame(choices), values=self._frame(choices))

    def infer(self, choices: Choices) -> ClientMessage:
        """A request with as many payloads as the cut takes, or not."""
        byte = choices.byte()
        payloads = tuple(choices.of(self._world.payloads) for _ in range(choices.byte() & 7 if byte & 8 else 1))
        return InferRequest(
            request_id=self._number(choices, byte),
            payloads=payloads,
            deadline_ms=choices.number() if byte & 1 else None,
        )

    def talk(self, choices: Choices) -> ClientMessage:
        """What has no number."""
        return choices.of([CloseSession(), Ping()])

    def _number(self, choices: Choices, byte: int) -> int:
        if byte >= 224:
            return int(choices.number())
        self._next_id += 1
        return self._next_id - 1

    def _frame(self, choices: Choices) -> bytes:
        byte = choices.byte()
        if byte < 128:  # mostly one or more tokens
            return self._world.frames[byte & 3]
        frame = choices.of(self._world.frames)
        return altered(frame, choices) if byte >= 224 else frame


def altered(data: bytes, choices: Choices) -> bytes:
    """With some bytes replaced, taken out or put in."""
    changed = bytearray(data)
    for _ in range(1 + (choices.byte() & 3)):
        start, size = choices.byte() % (len(changed) + 1), choices.byte() & 7
        changed[start : start + size] = choices.rest(choices.byte() & 7)
    return bytes(changed)
