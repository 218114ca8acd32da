"""A tiny server for the fuzzer of sessions, with a language model, a network for images, and one that is never loaded.

A server of the fuzzer has no compute thread of its own: batches run when its input says so, so that an input always does the same.
"""

from __future__ import annotations

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from serverlight.codec import Codec, CodecConfig
from serverlight.generation import LoadedDecoder
from serverlight.models import LoadedModel
from serverlight.models.images import encode_png
from serverlight.models.preprocess import Normalize
from serverlight.partition import partition
from serverlight.plan import TOKEN_IDS, Plan
from serverlight.runtime.catalogue import Catalogue, Engine, Offer
from serverlight.runtime.core import ServerConfig, ServerCore
from serverlight.runtime.decoders import DecoderWorker
from serverlight.runtime.messages import (
    ClientMessage,
    Frame,
    Image,
    InferRequest,
    OpenSession,
    Payload,
    RawTensor,
    Step,
)
from serverlight.runtime.quotas import Quota, Quotas
from serverlight.runtime.worker import Worker
from serverlight.sampling import Sampling

HIDDEN, HEAD_SIZE, VOCABULARY, MOST_TOKENS = 8, 4, 16, 12
TOKEN_BYTES = 2 * HEAD_SIZE * 4
"""Keys and values of a token in one layer of the language model, which has one head of them."""

CONFIG = ServerConfig(
    max_message_bytes=1 << 14,
    max_batch=4,
    max_batch_requests=3,
    max_batch_delay_ms=0.0,  # a window would wait on the clock
    max_waiting=6,
    max_streams=4,
    max_sessions=3,
    max_session_tokens=MOST_TOKENS,
    max_kv_bytes=40 * TOKEN_BYTES,
)
QUOTA = Quota(max_streams=2, max_sessions=1, max_kv_bytes=24 * TOKEN_BYTES, weight=2)

LATER = "later"
"""A model that is always about to be loaded."""

RAW = RawTensor(dtype="float32", shape=(1, 3, 4, 4), data=bytes(192))

LYING = b"SL\x01\x00\x00\x03\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f"
"""A frame of 2^96 elements, and nothing of them."""


class InlineCore(ServerCore):
    """Runs batches on the caller's thread, when it is told to."""

    _left = 0

    def work(self, batches: int) -> None:
        """As the compute thread does, for so many batches at most."""
        self._left = batches
        self._live()

    def read_ahead(self) -> None:
        """As the compute thread does while a batch waits for more."""
        while self._unprepared:
            self.engines.prepare(self._unprepared.popleft())

    def let_go_of_idle(self) -> None:
        """As the compute thread does with sessions that had no step for long; here all of them."""
        for connection in self._sessions.idle(float("inf")):
            connection.expire()

    def _next(self) -> list[Any]:
        if not self._left or not self.num_waiting:
            return []
        self._left -= 1
        return super()._next()


@dataclass(kw_only=True)
class World:
    """A server, and what clients may say to it."""

    engines: list[Engine]
    """Of its models; most clients ask for the first."""

    frames: list[bytes]
    """Whole ones, and some of another shape or another model."""

    payloads: list[Payload]

    questions: list[ClientMessage]
    """Requests whose answers are always the same, after ``Hello`` with the first plan."""

    @property
    def plans(self) -> list[Plan]:
        """All that are served."""
        return [plan for engine in self.engines for plan in engine.plans.values()]

    def new_core(self) -> InlineCore:
        """A server without clients; the models are shared."""
        loaded = [(Offer(name=engine.model, load=_never), engine) for engine in self.engines]
        catalogue = Catalogue([*(offer for offer, _ in loaded), Offer(name=LATER, load=_never)])
        for offer, engine in loaded:
            catalogue.add(offer, engine, now_s=0.0)
        return InlineCore(catalogue, config=CONFIG, quotas=Quotas(lambda name: QUOTA))


def _never() -> Engine:
    raise AssertionError("no thread loads models here")


def make_worlds(folder: pathlib.Path) -> tuple[World, World]:
    """One where most clients write, with the language model's files in ``folder``, and one where most send images."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        frames = _frames()
        language, vision = _language(folder / "tiny"), _vision()
    payloads, (prompt, token) = _payloads(frames), (frames[2], frames[0])
    writes = [OpenSession(sampling=Sampling()), Step(step=1, frames=(prompt,)), Step(step=2, frames=(token, token))]
    feature = next(frame for frame in frames if frame[0] == 0xA4 and frame[2:6] == b"\x01\x03\x04\x04")
    sends = [InferRequest(request_id=1, payloads=(Frame(data=feature),)), InferRequest(request_id=9, payloads=(RAW,))]
    return (
        World(engines=[language, vision], frames=frames, payloads=payloads, questions=writes),
        World(engines=[vision, language], frames=frames, payloads=payloads, questions=sends),
    )


def _frames() -> list[bytes]:
    codecs = [
        Codec(CodecConfig(profile=profile, sparsity=0.5, checksum=checksum))
        for profile in ("fp16", "slicer", "serverlight")
        for checksum in (False, True)
    ]
    shapes = [(1, tokens, HIDDEN) for tokens in (1, 2, 5, 7, MOST_TOKENS + 1)]
    moved = [(1, tokens, HEAD_SIZE) for tokens in (1, 2, 5)]  # keys or values
    images = [(batch, 3, 4, 4) for batch in (1, 4, 5)]
    wrong = [(1, 0, HIDDEN), (2, 1, HIDDEN), (1, HIDDEN), (1, 1, HIDDEN + 1), (), (0,)]
    all_shapes = [*shapes, *moved, *images, *wrong]
    made = [codecs[i % len(codecs)].encode(torch.randn(shape)) for i, shape in enumerate(all_shapes)]
    return [*made, *(codec.encode(torch.randn(shapes[0])) for codec in codecs), LYING, b""]


def _payloads(frames: list[bytes]) -> list[Payload]:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    return [
        *(Frame(data=frame) for frame in frames),
        RAW,
        dataclasses.replace(RAW, shape=(4, 3, 4, 4), data=bytes(768)),
        dataclasses.replace(RAW, dtype="int64", shape=(1, 3, 2, 4)),
        Image(data=encode_png(image)),
        Image(data=encode_png(image[:3])),
    ]


def _language(folder: pathlib.Path) -> Engine:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4 * MOST_TOKENS,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    part = LoadedDecoder.whole(str(folder), dtype=torch.float32)
    plan = Plan(model="tiny", revision=part.revision, cut="layers.2", sends=TOKEN_IDS)
    plans = {cut: dataclasses.replace(plan, cut=cut) for cut in ("layers.2", "layers.1", "layers.0")}
    runner = DecoderWorker(
        part, list(plans), max_tokens=MOST_TOKENS, max_kv_bytes=CONFIG.max_kv_bytes, prefill_tokens=4
    )
    return Engine(plans=plans, runner=runner)


def _vision() -> Engine:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    )
    model = LoadedModel.of_images("net", module, Normalize(image_shape=(4, 4, 3), mean=(0.5,) * 3, std=(1.0,) * 3))
    parts = partition(model.module, model.example_inputs)
    cuts = [parts.cut(name).name for name in ("1", "input")]
    return Engine(
        plans={cut: Plan(model=model.name, revision=model.revision, cut=cut) for cut in cuts},
        runner=Worker(model, parts, cuts, max_batch=CONFIG.max_batch),
    )
