"""Head and tail of a trained Llama write the text that the uncut model writes."""

from __future__ import annotations

import pathlib

import pytest
import torch

transformers = pytest.importorskip("transformers")

import serverlight as sl  # noqa: E402
from serverlight.partition.kv_cache import move_cut  # noqa: E402

NEW_TOKENS = 200


@pytest.fixture(scope="module")
def folder(shared_data: pathlib.Path) -> pathlib.Path:
    path = shared_data / "lm" / "stories260K_llama"
    if not path.is_dir():
        pytest.skip("needs lm/stories260K_llama of the shared data")
    return path


def test_greedy_text_is_that_of_the_uncut_model(folder: pathlib.Path) -> None:
    """200 greedy tokens, the prompt in two chunks, the cut moving now and then: token by token what generate() gives."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("Once upon a time, there was a little girl", return_tensors="pt").input_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = model.generate(
        prompt, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
        attention_mask=torch.ones_like(prompt), pad_token_id=0,
    )[0, prompt.shape[1] :].tolist()  # fmt: skip
    head = sl.load_head(str(folder), layers=4, dtype=torch.float32)
    tail = sl.load_tail(str(folder), layers=1, dtype=torch.float32)
    front, back = head.new_cache(last=3), tail.new_cache(first=3)
    tail(head(prompt[:, :4], front), back)
    ids, written = prompt[:, 4:], []
    for step in range(NEW_TOKENS):
        if step % 50 == 25:
            move_cut(front, back, (1, 4, 2, 3)[step // 50])
        logits = tail(head(ids, front), back, num_logits=1)
        logits[..., model.generation_config.eos_token_id] = -torch.inf  # as min_new_tokens does
        ids = logits[:, -1:].argmax(-1)
        written.append(ids.item())
    assert written == expected
    assert "Lily" in tokenizer.decode(written)
