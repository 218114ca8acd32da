"""The layers of a Llama, from the weights of a Hugging Face folder: just enough to run one half after the other."""

# Shapes: N = sequences, T = tokens, D = width, H = heads, K = key and value heads, E = width of a head, V = vocabulary.

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from serverlight.errors import ModelError

__all__ = ["Llama"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama:
    """Weights and sizes; whole sequences in, no cache."""

    weights: Mapping[str, Tensor]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    norm_eps: float
    rope_theta: float

    @classmethod
    def load(cls, folder: pathlib.Path) -> Llama:
        """Reads ``config.json`` and ``model.safetensors``; raises :class:`ModelError` for anything but a plain Llama."""
        try:
            config = json.loads((folder / "config.json").read_text())
            weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
        except OSError as exc:
            raise ModelError(
                f"no model in {folder.name!r}: {exc.strerror}; give a folder written by save_pretrained"
            ) from None
        rope = config.get("rope_parameters") or {
            **(config.get("rope_scaling") or {}),
            "rope_theta": config.get("rope_theta"),
        }
        if config.get("model_type") != "llama" or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ModelError(f"{folder.name!r} is not a plain Llama; give a folder of one")
        return cls(
            weights=weights,
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            norm_eps=config["rms_norm_eps"],
            rope_theta=rope["rope_theta"],
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) to states (N, T, D)."""
        return F.embedding(ids, self.weights["model.embed_tokens.weight"])

    def run(self, x: Tensor, layers: range) -> Tensor:
        """States (N, T, D) through some of the layers."""
        for layer in layers:
            prefix = f"model.layers.{layer}."
            x = x + self._attend(self._norm(x, f"{prefix}input_layernorm"), f"{prefix}self_attn.")
            x = x + self._feed_forward(self._norm(x, f"{prefix}post_attention_layernorm"), f"{prefix}mlp.")
        return x

    def logits(self, x: Tensor) -> Tensor:
        """States (N, T, D) behind the last layer to logits (N, T, V)."""
        tied = self.weights["model.embed_tokens.weight"]
        return F.linear(self._norm(x, "model.norm"), self.weights.get("lm_head.weight", tied))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.norm_eps)

    def _project(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def _attend(self, x: Tensor, prefix: str) -> Tensor:
        q, k, v = (self._heads(self._project(x, f"{prefix}{name}_proj")) for name in "qkv")
        mixed = F.scaled_dot_product_attention(
            _rotate(q, self.rope_theta), _rotate(k, self.rope_theta), v, is_causal=True, enable_gqa=True
        )
        return self._project(mixed.transpose(1, 2).flatten(2), f"{prefix}o_proj")

    def _heads(self, x: Tensor) -> Tensor:
        """(N, T, heads * E) to (N, heads, T, E); the queries' width tells how wide a head is."""
        width = self.weights["model.layers.0.self_attn.q_proj.weight"].shape[0] // self.num_heads
        return x.view(*x.shape[:2], -1, width).transpose(1, 2)

    def _feed_forward(self, x: Tensor, prefix: str) -> Tensor:
        gate = F.silu(self._project(x, f"{prefix}gate_proj"))
        return self._project(gate * self._project(x, f"{prefix}up_proj"), f"{prefix}down_proj")


def _rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of (N, heads, T, E): coordinate i turns with coordinate i + E / 2."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
