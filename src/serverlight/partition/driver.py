"""Runs some layers of a decoder model through the model's own forward.

The forward of transformers prepares masks, positions and rotary tables, then calls one layer after the other. It is
run as it is, on either side of a cut; only the layers are made to listen. A layer before the part hands its input on.
The part's first layer takes the feature that came from the other side instead of what the model computed. After the
part's last layer the hidden state leaves by an exception, or, in the last part, runs on into the model's own end.
No code is written for any architecture.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from serverlight.partition.layout import Layout

__all__ = ["Driver", "Pass", "Span", "Stop", "hidden_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Which layers a call runs, and what comes before and after them."""

    first: int
    """First layer."""

    last: int
    """The layer after the last; equal to ``first`` where there is none."""

    finishes: bool
    """Whether the model's end runs too: final norm and language-model head."""


class Stop(Exception):
    """Carries the hidden state out of the model's forward."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Pass(Protocol):
    """What a call in progress does at the layers."""

    def at(self, index: int, run: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: Any) -> Any:
        """What layer ``index`` returns, ``run`` being its own forward; may raise :class:`Stop`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _SpanPass:
    """Runs the layers of a span."""

    span: Span
    received: Tensor | None
    layout: Layout
    num_layers: int

    def at(self, index: int, run: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: Any) -> Any:
        span, received = self.span, self.received
        if index < span.first:
            if index == self.num_layers - 1 and received is not None:  # a part without layers: only the model's end
                hidden = received
            return self.layout.returned(hidden)
        if index == span.first and received is not None:
            hidden = received
        if index >= span.last:
            raise Stop(hidden)
        output = run(hidden, *args, **kwargs)
        if index == span.last - 1 and not span.finishes:
            raise Stop(hidden_of(output))
        return output


def hidden_of(output: Any) -> Tensor:
    """The hidden state in what a layer returned."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


class _Switch(threading.local):
    """The call in progress on this thread; none while the model is called as usual."""

    current: Pass | None = None


class _Slot:
    """Stands where a layer's forward was."""

    def __init__(self, switch: _Switch, layer: nn.Module, index: int) -> None:
        self._switch, self._index = switch, index
        self._layer = weakref.ref(layer)  # the layer holds the slot: a cycle would keep weights alive

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (current := self._switch.current) is None:
            return self._run(hidden_states, *args, **kwargs)
        return current.at(self._index, self._run, hidden_states, args, kwargs)

    def _run(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self._layer()
        return type(layer).forward(layer, hidden, *args, **kwargs)


class Driver:
    """Makes a causal language model run in parts; the model itself can still be called as usual.

    Threads may share it, each with caches of its own: which call is in progress is each thread's own business.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        self.embedding_size = int(model.get_input_embeddings().embedding_dim)
        self._switch = _Switch()
        layers = model.get_submodule(layout.layers)
        self.num_layers = len(layers)
        self.argument_names = tuple(inspect.signature(type(layers[0]).forward).parameters)[2:]
        """Of a layer's forward, after the hidden state."""
        for index, layer in enumerate(layers):
            layer.forward = _Slot(self._switch, layer, index)

    def run(self, span: Span, inputs: Tensor, cache: Any, *, num_logits: int | None = None, **kwargs: Any) -> Tensor:
        """Runs a span.

        Args:
            span: What to run.
            inputs: Token ids int64 ``[batch, tokens]``, or the feature ``[batch, tokens, hidden]``.
            cache: The transformers cache, with as many layers as the model.
            num_logits: Logits of so many last tokens only; all by default.
            kwargs: ``attention_mask`` and ``position_ids``.

        Returns:
            Logits ``[batch, tokens, vocabulary]`` where the span finishes, else hidden states
            ``[batch, tokens, hidden]``.
        """
        if span.first == span.last and inputs.is_floating_point() and not span.finishes:
            return inputs
        wanted = {"attention_mask": kwargs["attention_mask"]}
        if "position_ids" in self.layout.arguments:
            wanted["position_ids"] = kwargs["position_ids"]
        if num_logits is not None and "logits_to_keep" in self.layout.arguments:
            wanted["logits_to_keep"] = num_logits
        received = inputs if inputs.is_floating_point() else None
        if received is None:
            wanted["input_ids"] = inputs
        else:
            wanted["inputs_embeds"] = self.stand_in(received)
        current = _SpanPass(span=span, received=received, layout=self.layout, num_layers=self.num_layers)
        output = self.call(current, past_key_values=cache, **wanted)
        return output if num_logits is None or not span.finishes else output[:, -num_logits:]

    def stand_in(self, received: Tensor) -> Tensor:
        """What stands in for the embeddings and gives the model's forward its sizes; the values are never used."""
        return received.new_zeros(*received.shape[:2], self.embedding_size)

    def call(self, current: Pass, **wanted: Any) -> Tensor:
        """Calls the model's forward with a pass at its layers; returns logits, or the hidden state of a :class:`Stop`."""
        self._switch.current = current
        try:
            with torch.no_grad():
                logits: Tensor = self.model(use_cache=True, **wanted).logits
        except Stop as stop:
            return stop.hidden
        finally:
            self._switch.current = None
        return logits
