"""Tests of serverlight.partition.self_check: what cannot be cut exactly is refused, by name and with the reason."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import serverlight as sl  # noqa: E402
from decoder_models import LAYERS, PLAIN, build  # noqa: E402
from serverlight.errors import NotPartitionable  # noqa: E402
from serverlight.partition import self_check  # noqa: E402
from serverlight.partition.self_check import check_architecture  # noqa: E402
from serverlight.partition.tiny_config import tiny_config  # noqa: E402


def gemma3n() -> Any:
    return transformers.Gemma3nForCausalLM, transformers.Gemma3nTextConfig()


def mamba2() -> Any:
    return transformers.Mamba2ForCausalLM, transformers.Mamba2Config()


def qwen3_next() -> Any:
    return transformers.Qwen3NextForCausalLM, transformers.Qwen3NextConfig()


class NumbersOfTokensLlama(transformers.LlamaForCausalLM):
    """Adds to the logits something that only the token ids tell, and the tail does not get them."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids, **kwargs)
        if input_ids is not None:
            output.logits = output.logits + input_ids[..., None]
        return output


class WiderLlama(transformers.LlamaForCausalLM):
    """Has more parameters than its config tells."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.extra = torch.nn.Linear(10_000, 10_000)


class OneLoopLlama(transformers.LlamaForCausalLM):
    """Keeps its layers in a list of another kind."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers = torch.nn.Sequential(*self.model.layers)


def own(model_class: Any) -> Any:
    return lambda: (model_class, transformers.LlamaConfig(**PLAIN))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gemma3n, "Gemma3nForCausalLM cannot be cut: .*; run it whole, or choose a plain decoder"),
        (mamba2, "Mamba2ForCausalLM cannot be cut: it has no attention"),
        (qwen3_next, "Qwen3NextForCausalLM cannot be cut: layer 0 keeps a LinearAttentionLayer, not keys and values"),
        (own(NumbersOfTokensLlama), "NumbersOfTokensLlama cannot be cut: cut at layer 2, step 0 of a test differs by"),
        (own(WiderLlama), "WiderLlama cannot be cut: a tiny one still has 1001.* parameters"),
        (own(OneLoopLlama), "OneLoopLlama cannot be cut: no list of 4 layers"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    """The message names the class and what was seen."""
    model_class, config = make()
    with pytest.raises(NotPartitionable, match=message):
        check_architecture(model_class, config)


def test_loading_refuses_too(tmp_path: pathlib.Path) -> None:
    """Nothing is loaded of a model that cannot be cut."""
    transformers.Mamba2Config(architectures=["Mamba2ForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(NotPartitionable, match="Mamba2ForCausalLM"):
        sl.load_head(str(tmp_path), layers=1)


def test_checked_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that differ in size only are checked together; another setting is another check."""
    checked: list[str] = []
    monkeypatch.setattr(self_check, "_known", {})
    monkeypatch.setattr(self_check, "_check", lambda model_class, config: checked.append(model_class.__name__))
    for changes in ({}, {"hidden_size": 64}, {"vocab_size": 200}, {"attention_bias": True}):
        check_architecture(transformers.LlamaForCausalLM, transformers.LlamaConfig(**PLAIN | changes))
    assert len(checked) == 2


def test_random_numbers_of_others_are_left_alone() -> None:
    """A seed that a user has set gives what it would without the check."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_architecture(transformers.LlamaForCausalLM, transformers.LlamaConfig(**PLAIN | {"rms_norm_eps": 1e-4}))
    assert torch.equal(torch.rand(1), expected)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """The check is silent."""
    check_architecture(transformers.LlamaForCausalLM, transformers.LlamaConfig(**PLAIN | {"rms_norm_eps": 1e-3}))
    assert capfd.readouterr() == ("", "")


def test_tiny_config_keeps_what_matters() -> None:
    """Kinds of layers, windows, tying and grouping of heads survive; sizes do not."""
    tiny = tiny_config(transformers.Gemma3TextConfig())
    assert tiny.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert (tiny.num_hidden_layers, tiny.hidden_size, tiny.sliding_window) == (6, 64, 6)
    assert tiny.tie_word_embeddings
    tiny = tiny_config(transformers.LlamaConfig(num_attention_heads=32, num_key_value_heads=1))
    assert (tiny.num_attention_heads, tiny.num_key_value_heads) == (4, 1)


def test_model_still_runs_whole() -> None:
    """A model that was cut in memory can be called as before."""
    from serverlight.partition.decoder import DecoderHead
    from serverlight.partition.driver import Driver

    model = build("Llama")
    ids = torch.tensor([[5, 6, 7]])
    expected = model(ids).logits
    copied = transformers.LlamaForCausalLM(model.config).eval()
    copied.load_state_dict(model.state_dict())
    layout = check_architecture(type(model), model.config)
    head = DecoderHead(Driver(copied, layout), 0, 3)
    head(ids)
    assert torch.equal(copied(ids).logits, expected)
    assert re.search(r"layers 0 to 3 of 6", repr(head))
    assert head.num_layers == LAYERS
