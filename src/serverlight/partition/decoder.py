"""Decoder language models in parts: head, middle and tail, which together compute exactly what the model computes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from serverlight.errors import ConfigError, ContextExceeded, InputMismatch
from serverlight.partition.driver import Driver, Span
from serverlight.partition.kv_cache import ROLLBACK_TOKENS, KVCache

__all__ = ["DecoderHead", "DecoderMiddle", "DecoderPart", "DecoderTail", "DecoderWhole"]


class DecoderPart(nn.Module):
    """Some layers of a causal language model; use one of the four kinds.

    ``part.model`` holds the parameters, under the names that they have in the whole model. Layers are counted from 0,
    the same on all sides. Threads may share a part, but no cache.
    """

    embeds: ClassVar[bool] = False
    """Whether a part of this kind takes token ids."""

    finishes: ClassVar[bool] = False
    """Whether a part of this kind makes logits."""

    def __init__(self, driver: Driver, first: int, last: int) -> None:
        super().__init__()
        check_layers(first, last, driver.num_layers)
        self.model: Any = driver.model
        self.first, self.last = first, last
        """The layers that the part can run: from ``first`` up to, but without, ``last``."""
        self.num_layers = driver.num_layers
        """Layers of the whole model."""
        config = driver.model.config.get_text_config(decoder=True)
        self.hidden_size: int = config.hidden_size
        """Elements of the hidden state of one token, which is what crosses a cut."""
        self.vocab_size: int = config.vocab_size
        """How many token ids there are."""
        self.context_length: int | None = getattr(config, "max_position_embeddings", None)
        """The most tokens of a sequence; ``None`` where the model sets no limit (ALiBi)."""
        self.driver = driver
        """What runs the layers."""
        self.eval().requires_grad_(False)

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"{type(self).__name__}({name}, layers {self.first} to {self.last} of {self.num_layers})"

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights, and so of what crosses."""
        weights = (parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        return next(weights, self.model.config.dtype or torch.float32)  # a middle part may have no layers

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def new_cache(
        self, first: int | None = None, last: int | None = None, *, rollback_tokens: int = ROLLBACK_TOKENS
    ) -> KVCache:
        """An empty cache for one sequence or batch; the layers that it covers are those that its steps run.

        Args:
            first: First layer to run, by default the part's. Only a tail may start later, where a head ends later.
            last: Layer to stop before, by default the part's. Only a head may stop earlier.
            rollback_tokens: How many tokens beyond its window a windowed layer remembers, for :meth:`KVCache.crop`.

        Raises:
            ConfigError: the part has no such layers.
        """
        first, last = self.first if first is None else first, self.last if last is None else last
        cache = KVCache(self.model.config, first, last, rollback_tokens=rollback_tokens)
        self._check_range(cache)
        return cache

    def _step(
        self,
        inputs: Tensor,
        cache: KVCache | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        num_logits: int | None = None,
    ) -> Tensor:
        cache = self.new_cache() if cache is None else cache
        self._check_range(cache)
        batch_size, num_tokens = inputs.shape[:2]
        length = cache.num_tokens + num_tokens
        if self.context_length is not None and length > self.context_length:
            raise ContextExceeded(length, self.context_length)
        if attention_mask is not None:
            _check_shape("attention_mask", attention_mask, (batch_size, length))
        if position_ids is None:
            position_ids = _positions(attention_mask, batch_size, cache.num_tokens, length)
        _check_shape("position_ids", position_ids, (batch_size, num_tokens))
        span = Span(first=cache.first, last=cache.last, finishes=self.finishes)
        with cache.step(batch_size, num_tokens) as raw:
            return self.driver.run(
                span,
                inputs.to(self.device),
                raw,
                attention_mask=None if attention_mask is None else attention_mask.to(self.device),
                position_ids=position_ids.to(self.device),
                num_logits=num_logits,
            )

    def _check_range(self, cache: KVCache) -> None:
        first, last = cache.first, cache.last
        fits = self.first <= first <= last <= self.last
        needs_first = self.embeds and not self.finishes  # all of a model takes hidden states as well
        if not fits or (needs_first and first != 0) or (self.finishes and last != self.num_layers):
            raise ConfigError(
                "layers", f"this {type(self).__name__} has layers {self.first} to {self.last} and cannot run "
                f"{first} to {last}; load a part that holds them"
            )  # fmt: skip

    def _check_hidden(self, hidden: Tensor) -> Tensor:
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden_size or not hidden.is_floating_point():
            raise InputMismatch(
                f"the hidden state must be floating point of shape [batch, tokens, {self.hidden_size}], "
                f"got {hidden.dtype} and {list(hidden.shape)}; pass what the part before returned"
            )
        _check_not_empty(hidden)
        return hidden.to(self.dtype)


class DecoderHead(DecoderPart):
    """The embeddings and the first layers of a causal language model, for the device."""

    embeds = True

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Runs a prompt, a chunk of one, or the next token, up to the cut.

        Args:
            input_ids: The new tokens, int64 ``[batch, tokens]``.
            cache: What was seen before, which grows; by default nothing, and nothing is remembered.
            attention_mask: 1 for tokens and 0 for padding, ``[batch, tokens seen before + new]``; needed only with
                padding, and then in every step.
            position_ids: ``[batch, tokens]``; by default counted from the first token that is no padding.

        Returns:
            The hidden state at the cut, ``[batch, tokens, hidden]``.

        Raises:
            ConfigError: the cache covers layers that this part does not have.
            ContextExceeded: more tokens than the model's context holds.
            InputMismatch: a tensor has the wrong shape or dtype, or a token id is not in the vocabulary.
        """
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise InputMismatch(
                "the token ids must be int64 of shape [batch, tokens], "
                f"got {input_ids.dtype} and {list(input_ids.shape)}; pass what the tokenizer returns"
            )
        _check_not_empty(input_ids)
        least, most = int(input_ids.min()), int(input_ids.max())
        if least < 0 or most >= self.vocab_size:
            raise InputMismatch(
                f"token ids from {least} to {most}, but the vocabulary has {self.vocab_size} entries; "
                "use the tokenizer that belongs to the model"
            )
        return self._step(input_ids, cache, attention_mask, position_ids)


class DecoderMiddle(DecoderPart):
    """Layers between two cuts, for a server that is to see neither the prompt nor the answer."""

    def forward(
        self,
        hidden: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Runs from one cut to the next.

        Arguments and errors are those of :meth:`DecoderHead.forward`, but for what crosses: a hidden state
        ``[batch, tokens, hidden]`` comes in, and one leaves.
        """
        return self._step(self._check_hidden(hidden), cache, attention_mask, position_ids)


class DecoderTail(DecoderPart):
    """The last layers, the final norm and the language-model head of a causal language model, for the server."""

    finishes = True

    def forward(
        self,
        hidden: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_logits: int | None = None,
    ) -> Tensor:
        """Runs from the cut to the logits.

        Arguments and errors are those of :meth:`DecoderHead.forward`, but for:

        Args:
            hidden: What the head returned, ``[batch, tokens, hidden]``.
            cache: As for the head; each side has its own.
            attention_mask: As for the head.
            position_ids: As for the head.
            num_logits: Logits of so many last tokens only: generation needs one, and a prompt's would take much memory.

        Returns:
            Logits ``[batch, tokens, vocabulary]``.
        """
        if num_logits is not None and num_logits < 1:
            raise ConfigError("num_logits", f"must be at least 1, got {num_logits}; None is all")
        return self._step(self._check_hidden(hidden), cache, attention_mask, position_ids, num_logits)


class DecoderWhole(DecoderTail):
    """All of a causal language model, for a server that gets token ids from some, and from others what their heads returned."""

    embeds = True

    def __init__(self, driver: Driver, first: int, last: int) -> None:
        super().__init__(driver, first, last)
        self.front = DecoderHead(driver, 0, 0)
        """The embeddings, over the same weights."""


def check_layers(first: int, last: int, num_layers: int) -> None:
    """Raises :class:`ConfigError` where a model of ``num_layers`` has no layers from ``first`` up to ``last``."""
    for layer in (first, last):
        if not 0 <= layer <= num_layers:
            raise ConfigError("layers", f"must be 0 to {num_layers}, as many as the model has; got {layer}")
    if first > last:
        raise ConfigError("layers", f"{first} to {last} runs backwards; give the first layer first")


def _positions(attention_mask: Tensor | None, batch_size: int, seen: int, length: int) -> Tensor:
    if attention_mask is None:
        return torch.arange(seen, length).expand(batch_size, -1)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, seen:]


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, int]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputMismatch(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}; see the docstring")


def _check_not_empty(tensor: Tensor) -> None:
    if not tensor.shape[0] or not tensor.shape[1]:
        raise InputMismatch(f"no tokens: got shape {list(tensor.shape)}; give at least one token of one sequence")
