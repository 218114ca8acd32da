"""Tiny language models of random weights, one of every architecture that is promised to be cut exactly."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers

LAYERS = 6
WINDOW = 8
VOCABULARY = 96

PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SPARSE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}
FALCON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
OPT = {key: value for key, value in PLAIN.items() if key not in ("intermediate_size", "num_key_value_heads")}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", PLAIN),
    "Mistral": ("MistralForCausalLM", PLAIN | {"sliding_window": WINDOW}),
    "Qwen2": (
        "Qwen2ForCausalLM",
        PLAIN | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    ),
    "Qwen3": ("Qwen3ForCausalLM", PLAIN | {"head_dim": 16, "tie_word_embeddings": True}),
    "Gemma2": ("Gemma2ForCausalLM", PLAIN | {"head_dim": 16, "sliding_window": WINDOW}),
    "Gemma3": ("Gemma3ForCausalLM", PLAIN | {"head_dim": 16, "sliding_window": WINDOW}),
    "Phi3": ("Phi3ForCausalLM", PLAIN),
    "GPT-2": ("GPT2LMHeadModel", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", PLAIN),
    "OPT": ("OPTForCausalLM", OPT | {"ffn_dim": 48}),
    "OPT-projected": (
        "OPTForCausalLM",
        OPT | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "Falcon-rotary": ("FalconForCausalLM", FALCON | {"alibi": False}),
    "Falcon-ALiBi": ("FalconForCausalLM", FALCON | {"alibi": True, "multi_query": False}),
    "Bloom": ("BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4}),
    "OLMo2": ("Olmo2ForCausalLM", PLAIN),
    "SmolLM3": ("SmolLM3ForCausalLM", PLAIN | {"tie_word_embeddings": True}),
    "Granite": ("GraniteForCausalLM", PLAIN | {"embedding_multiplier": 12.0, "residual_multiplier": 0.2}),
    "Mixtral": ("MixtralForCausalLM", PLAIN | {"num_local_experts": 4}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", PLAIN | SPARSE | {"num_experts": 4, "head_dim": 16}),
    "DeepSeek-V3": (
        "DeepseekV3ForCausalLM",
        PLAIN | SPARSE | LATENT | {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1},
    ),
    "GPT-OSS": ("GptOssForCausalLM", PLAIN | {"head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 4}),
}
"""Those of the README: the class, and the settings of its config."""

FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "Cohere2": ("Cohere2ForCausalLM", PLAIN | {"sliding_window": WINDOW}),
    "Gemma": ("GemmaForCausalLM", PLAIN | {"head_dim": 16}),
    "GLM-4": ("Glm4ForCausalLM", PLAIN | {"head_dim": 8}),
    "GPT-BigCode": ("GPTBigCodeForCausalLM", GPT2),
    "GPT-J": ("GPTJForCausalLM", GPT2 | {"rotary_dim": 4}),
    "Llama4": (
        "Llama4ForCausalLM",
        PLAIN | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": WINDOW},
    ),
    "MPT": ("MptForCausalLM", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": LAYERS, "n_heads": 4}),
    "Olmo3": ("Olmo3ForCausalLM", PLAIN | {"sliding_window": WINDOW}),
    "OLMoE": ("OlmoeForCausalLM", PLAIN | {"num_experts": 4, "num_experts_per_tok": 2}),
    "Phi": ("PhiForCausalLM", PLAIN),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        PLAIN | SPARSE | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "StableLM": ("StableLmForCausalLM", PLAIN),
    "StarCoder2": ("Starcoder2ForCausalLM", PLAIN | {"sliding_window": WINDOW}),
}
"""More of the kind; tested with the slow ones."""


@functools.cache
def build(name: str) -> Any:
    """The tiny model of an architecture, float32, with weights large enough that every module matters."""
    class_name, settings = (ARCHITECTURES | FURTHER)[name]
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**settings)).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
