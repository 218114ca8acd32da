"""A tiny language model that chats: bytes and a few words, random weights, a chat template."""

from __future__ import annotations

import pathlib

import torch
import transformers

__all__ = ["CONTEXT", "TEMPLATE", "save_model", "save_tokenizer"]

CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
)


def save_tokenizer(path: pathlib.Path, *, template: str | None = TEMPLATE) -> int:
    """Bytes and a few words; returns the size of the vocabulary."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models, pre_tokenizers, trainers

    raw = Raw(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["once upon a time there was a little girl and a big dog"] * 3, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return len(tokenizer)


def save_model(path: pathlib.Path, *, template: str | None = TEMPLATE) -> str:
    vocab_size = save_tokenizer(path, template=template)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)
