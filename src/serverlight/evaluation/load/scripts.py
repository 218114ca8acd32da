"""What a device sends, prepared once: real features of a real head, encoded by the real codec.

So a load generator measures the server: its devices have nothing to compute, and leave the processor to it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from serverlight.codec import Codec, CodecConfig
from serverlight.errors import ConfigError
from serverlight.generation import CHUNK_TOKENS, LoadedDecoder, chunks, layer_of
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.partition.decoder import DecoderHead
from serverlight.plan import Plan
from serverlight.runtime.device import Device
from serverlight.runtime.messages import Frame, Image, Payload

__all__ = ["Requests", "Script", "Text", "record_features", "record_files", "record_text"]

TIMED_RUNS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Requests to a single-shot model, to be sent one after the other and again from the start."""

    plan: Plan
    payloads: tuple[tuple[Payload, ...], ...]
    """Of each request."""

    device_ms: float = 0.0
    """What the device spends on one of them: head and codec."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One text of a language model: a prompt, then token by token what is really written there."""

    plan: Plan
    prompt: tuple[bytes, ...]
    """Frames of a chunk each."""

    steps: tuple[bytes, ...]
    """Frames of a token each."""

    prompt_tokens: int
    device_ms: float = 0.0
    """What the device spends on a token: head and codec."""

    bytes_per_token: int | None = None
    """What counts as sent for each token, where it is not the frames."""


Script = Requests | Text


def record_features(
    model: LoadedModel, parts: Partition, cut: str, codec: CodecConfig, images: NDArray[np.uint8]
) -> Requests:
    """A request for each image, uint8 (N, H, W, C), in features at a cut.

    Raises :class:`ConfigError` where side inputs would cross, which images have none of.
    """
    point = parts.cut(cut)
    if model.preprocess is None or not all(spec.is_feature for spec in point.tensors):
        raise ConfigError("cut", f"{cut!r} of {model.name!r} is not crossed by features of images alone; name another")
    preprocess, (head, _), encoder = model.preprocess, parts.split(point), Codec(codec)

    @torch.inference_mode()
    def encode(image: NDArray[np.uint8]) -> tuple[Payload, ...]:
        return tuple(Frame(data=encoder.encode(tensor)) for tensor in head(preprocess(image[None])))

    payloads = tuple(encode(image) for image in images)
    plan = Plan(model=model.name, revision=model.revision, cut=point.name, codec=codec)
    return Requests(plan=plan, payloads=payloads, device_ms=_median_ms(lambda: encode(images[0])))


def record_files(model: LoadedModel, parts: Partition, files: Sequence[bytes]) -> Requests:
    """A request for each PNG or JPEG file, for a server that has the whole model."""
    plan = Plan(model=model.name, revision=model.revision, cut=parts.cuts[0].name)
    return Requests(plan=plan, payloads=tuple((Image(data=file),) for file in files))


def record_text(
    head: LoadedDecoder, cut: str, codec: CodecConfig, token_ids: Sequence[int], prompt_tokens: int
) -> Text:
    """A text cut in two: the first ``prompt_tokens`` cross as a prompt does, the others as steps.

    Raises :class:`ConfigError` unless there are tokens for both.
    """
    if not 0 < prompt_tokens < len(token_ids):
        raise ConfigError("prompt_tokens", f"must leave a step of {len(token_ids)} tokens, got {prompt_tokens}")
    assert isinstance(head.part, DecoderHead)
    plan = Plan(model=head.name, revision=head.revision, cut=cut, codec=codec)
    encoder, cache, hidden = Codec(codec), head.part.new_cache(last=layer_of(cut)), list[torch.Tensor]()
    with torch.inference_mode():
        for piece, _ in chunks(list(token_ids), CHUNK_TOKENS):
            hidden.append(head.part(piece, cache))
    states = torch.cat(hidden, dim=1)
    ends = [*range(CHUNK_TOKENS, prompt_tokens, CHUNK_TOKENS), *range(prompt_tokens, states.shape[1])]
    frames = [encoder.encode(part.contiguous()) for part in torch.tensor_split(states, ends, dim=1)]
    num_chunks = -(-prompt_tokens // CHUNK_TOKENS)
    return Text(
        plan=plan,
        prompt=tuple(frames[:num_chunks]),
        steps=tuple(frames[num_chunks:]),
        prompt_tokens=prompt_tokens,
        device_ms=_step_ms(plan, head.part, token_ids),
    )


def _step_ms(plan: Plan, head: DecoderHead, token_ids: Sequence[int]) -> float:
    device = Device(plan, head, None)
    ids = iter(list(token_ids) * (TIMED_RUNS + 1))
    return _median_ms(lambda: device.run(torch.tensor([[next(ids)]])))


def _median_ms(work: Callable[[], object]) -> float:
    work()
    times_ms = list[float]()
    for _ in range(TIMED_RUNS):
        started_s = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    return statistics.median(times_ms)
