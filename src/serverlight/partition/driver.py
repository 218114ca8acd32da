"""Runs some layers of a decoder model through the model's own forward.

The forward of transformers prepares masks, positions and rotary tables, then calls one layer after the other. It is
run as it is, on either side of a cut; only the layers are made to listen. A layer before the part hands its input on.
The part's first layer takes the feature that came from the other side instead of what the model computed. After the
part's last layer the hidden state leaves by an exception, or, in the last part, runs on into the model's own end.
No code is written for any architecture.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serverlight.partition.layout import Layout

__all__ = ["Driver", "Span"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Which layers a call runs, and what comes before and after them."""

    first: int
    """First layer."""

    last: int
    """The layer after the last; equal to ``first`` where there is none."""

    finishes: bool
    """Whether the model's end runs too: final norm and language-model head."""


class _Stop(Exception):  # it is no error: carries the hidden state out of the model's forward
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Switch:
    """What the call in progress wants of the layers; nothing while the model is called as usual."""

    span: Span | None = None
    received: Tensor | None = None


class _Slot:
    """Stands where a layer's forward was."""

    def __init__(self, switch: _Switch, layer: nn.Module, index: int, count: int, *, returns_tuple: bool) -> None:
        self._switch = switch
        self._layer = weakref.ref(layer)  # the layer holds the slot: a cycle would keep weights alive
        self._index, self._is_last = index, index == count - 1
        self._returns_tuple = returns_tuple

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        span, received = self._switch.span, self._switch.received
        if span is None:
            return self._run(hidden_states, *args, **kwargs)
        if self._index < span.first:
            if self._is_last and received is not None:  # a part without layers: only the model's end
                hidden_states = received
            return (hidden_states,) if self._returns_tuple else hidden_states
        if self._index == span.first and received is not None:
            hidden_states = received
        if self._index >= span.last:
            raise _Stop(hidden_states)
        output = self._run(hidden_states, *args, **kwargs)
        if self._index == span.last - 1 and not span.finishes:
            raise _Stop(output[0] if isinstance(output, tuple) else output)
        return output

    def _run(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self._layer()
        return type(layer).forward(layer, hidden, *args, **kwargs)


class Driver:
    """Makes a causal language model run in parts; the model itself can still be called as usual.

    One call at a time: a driver is not for several threads.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        self.embedding_size = int(model.get_input_embeddings().embedding_dim)
        self._switch = _Switch()
        layers = model.get_submodule(layout.layers)
        self.num_layers = len(layers)
        for index, layer in enumerate(layers):
            slot = _Slot(self._switch, layer, index, len(layers), returns_tuple=layout.returns_tuple)
            layer.forward = slot

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
        if inputs.is_floating_point():
            self._switch.received = inputs
            # What stands in for the embeddings gives the model's forward its sizes; the values are never used.
            wanted["inputs_embeds"] = inputs.new_zeros(*inputs.shape[:2], self.embedding_size)
        else:
            wanted["input_ids"] = inputs
        self._switch.span = span
        try:
            with torch.no_grad():
                logits: Tensor = self.model(past_key_values=cache, use_cache=True, **wanted).logits
        except _Stop as stop:
            return stop.hidden
        finally:
            self._switch.span = self._switch.received = None
        return logits if num_logits is None else logits[:, -num_logits:]
