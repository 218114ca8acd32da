"""A config like a given one, but so small that a model of random weights is built and run in a moment."""

from __future__ import annotations

from typing import Any

__all__ = ["tiny_config"]

HIDDEN, HEADS, HEAD_SIZE = 64, 4, 16
LEAST_LAYERS = 4

VOCABULARY = 128
"""Special tokens get the last ids."""

SIZES = {  # by the names that the configs of transformers use
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), HEADS),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), HEAD_SIZE),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "intermediate_size_mlp"), 32),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), 6),
    "qk_head_dim": 2 * HEAD_SIZE,
    "rotary_dim": HEAD_SIZE // 2,
    "vocab_size": VOCABULARY,
}
COUNTS = {  # where there are fewer, it stays so
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "n_group"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "topk_group", "first_k_dense_replace"), 1),
    "num_kv_shared_layers": 1,
}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
LEFT_OUT = ("architectures", "dtype", "torch_dtype", "quantization_config", "transformers_version", "_name_or_path")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def tiny_config(config: Any) -> Any:
    """Shrinks widths, counts and the vocabulary, and keeps everything that decides how the model's code runs.

    There are enough layers to have one of each kind in the order of the original.
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in LEFT_OUT}
    layers = config.num_hidden_layers
    kept = min(layers, _count_layers(fields.get("layer_types")))
    heads, hidden = config.num_attention_heads, config.hidden_size
    for name, value in fields.items():
        if name in LAYER_COUNTS:
            fields[name] = kept
        elif name in KEY_VALUE_HEADS and value:
            fields[name] = HEADS if value == heads else 1 if value == 1 else HEADS // 2
        elif name == "word_embed_proj_dim":
            fields[name] = HIDDEN if value == hidden else HIDDEN // 2
        elif name in TOKENS and value is not None:
            fields[name] = VOCABULARY - 1 - TOKENS.index(name)
        elif name in SIZES and isinstance(value, int):
            fields[name] = SIZES[name]
        elif name in COUNTS and isinstance(value, int):
            fields[name] = min(COUNTS[name], value)
        elif isinstance(value, list):
            fields[name] = _shorten(value, layers, kept)
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            fields[name] = _shrink_rope(value, fields)
    return type(config).from_dict(fields)


def _count_layers(kinds: list[str] | None) -> int:
    if not kinds:
        return LEAST_LAYERS
    return max(LEAST_LAYERS, *(kinds.index(kind) + 1 for kind in kinds))


def _shorten(values: list[Any], layers: int, kept: int) -> list[Any]:
    """A list with an entry for each layer, or with numbers of layers."""
    if len(values) == layers:
        return values[:kept]
    return [value for value in values if not isinstance(value, int) or value < kept]


def _shrink_rope(rope: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings may have one factor for each pair of rotated elements."""
    share = rope.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0
    pairs = int(HEAD_SIZE * share) // 2
    return {
        name: _shrink_rope(value, fields)
        if isinstance(value, dict)
        else value[:pairs]
        if isinstance(value, list)
        else value
        for name, value in rope.items()
    }
