"""Language models on the server: the tail of a loaded decoder, and the sequences that it goes on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from serverlight.codec import decode
from serverlight.errors import ConfigError, ContextExceeded, CutNotFound, InputMismatch, ProtocolError
from serverlight.generation import LoadedDecoder, layer_of
from serverlight.partition.decoder import DecoderTail
from serverlight.runtime.messages import InferReply, InferRequest, Step, StepReply, Timing
from serverlight.runtime.sessions import Session
from serverlight.sampling import Sampling, choose_token

__all__ = ["DecoderSession", "DecoderWorker", "LoadedDecoder"]


class DecoderWorker:
    """The tail of one language model at the cuts that are served; they share their parameters.

    Raises :class:`ConfigError` where the part is no tail, :class:`CutNotFound` for a cut that it does not reach.
    """

    def __init__(self, model: LoadedDecoder, cuts: Sequence[str], *, max_tokens: int, max_kv_bytes: int) -> None:
        if not isinstance(model.part, DecoderTail):
            raise ConfigError("model", f"a server runs the tail of a language model, got a {type(model.part).__name__}")
        self._tail, self._name = model.part, model.name
        self._layers = {cut: layer_of(cut) for cut in cuts}
        for cut, layer in self._layers.items():
            if not self._tail.first <= layer <= self._tail.num_layers:
                raise CutNotFound(cut, tuple(f"layers.{i}" for i in (self._tail.first, self._tail.num_layers)))
        self._token_bytes = {cut: self._measure(layer) for cut, layer in self._layers.items()}
        context = self._tail.context_length or max_tokens
        self._max_tokens = {
            cut: min(max_tokens, context, max_kv_bytes // max(1, size)) for cut, size in self._token_bytes.items()
        }

    def run(self, cut: str, request: InferRequest, *, queue_ms: float) -> InferReply:
        """Refuses: a language model is run in sessions."""
        raise ProtocolError(f"{self._name!r} is a language model; open a session and send steps")

    def open_session(self, cut: str, sampling: Sampling) -> Session:
        """Begins a sequence."""
        return DecoderSession(
            self._tail,
            self._layers[cut],
            sampling,
            max_tokens=self._max_tokens[cut],
            token_bytes=self._token_bytes[cut],
        )

    def _measure(self, layer: int) -> int:
        """Bytes that one token takes in the layers from ``layer``; a windowed layer takes no more."""
        cache = self._tail.new_cache(first=layer)
        with torch.inference_mode():
            self._tail(torch.zeros(1, 1, self._tail.hidden_size, dtype=self._tail.dtype), cache)
        return cache.num_bytes


class DecoderSession:
    """One sequence: keys and values, and the last answer, which is given again when its step comes again."""

    def __init__(self, tail: DecoderTail, layer: int, sampling: Sampling, *, max_tokens: int, token_bytes: int) -> None:
        self._tail, self._sampling = tail, sampling
        self._cache = tail.new_cache(first=layer)
        self._max_tokens, self._token_bytes = max_tokens, token_bytes
        self._last: StepReply | None = None

    def run(self, step: Step, reserve: Callable[[int], None], *, queue_ms: float) -> StepReply:
        """Goes on by a step; one that fails leaves the sequence as it was.

        Raises:
            ContextExceeded: more tokens than the server or the model takes.
            FrameError: a frame is damaged.
            InputMismatch: a frame holds no hidden state of this model.
            ProtocolError: a step is missing before this one, or it is an old one.
            ServerBusy: there is no memory for more keys and values.
        """
        done = 0 if self._last is None else self._last.step
        if self._last is not None and step.step == done:
            return self._last
        if step.step != done + 1:
            raise ProtocolError(f"step {step.step} came, step {done + 1} was expected; send the steps in order")
        started_s, started_cpu_s = time.perf_counter(), time.thread_time()
        with torch.inference_mode():
            hidden = self._decode(step.frames)
            num_tokens = self._cache.num_tokens + hidden.shape[1]
            reserve(num_tokens * self._token_bytes)
            decoded_s = time.perf_counter()
            logits = self._tail(hidden, self._cache, num_logits=1)[0, -1]
            token = None if step.more else choose_token(logits.float().cpu().numpy(), self._sampling, num_tokens)
        timing = Timing(
            queue_ms=queue_ms,
            decode_ms=(decoded_s - started_s) * 1e3,
            tail_ms=(time.perf_counter() - decoded_s) * 1e3,
            cpu_ms=(time.thread_time() - started_cpu_s) * 1e3,
            process_cpu_ms=time.process_time() * 1e3,
        )
        self._last = StepReply(step=step.step, token_id=token, timing=timing)
        return self._last

    def _decode(self, frames: Sequence[bytes]) -> torch.Tensor:
        left, parts = self._max_tokens - self._cache.num_tokens, []
        for frame in frames:
            if left < 1:
                raise ContextExceeded(self._max_tokens + 1, self._max_tokens)
            tensor: torch.Tensor = decode(frame, max_elements=left * self._tail.hidden_size)
            fits = tensor.ndim == 3 and tensor.shape[0] == 1 and tensor.shape[2] == self._tail.hidden_size
            if not fits or not tensor.shape[1]:
                raise InputMismatch(
                    f"a frame of shape {list(tensor.shape)}; expected [1, tokens, {self._tail.hidden_size}]"
                )
            parts.append(tensor)
            left -= tensor.shape[1]
        return torch.cat(parts, dim=1)
