"""A cut language model where one of transformers is expected: generate, streamers, pipelines, chats, scores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import serverlight as sl  # noqa: E402
from serverlight.errors import ConfigError, ContextExceeded, LogitsNotSent, ModelError  # noqa: E402
from serverlight.generation import LoadedDecoder  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402

CUT = "layers.2"
HALVES = sl.CodecConfig(profile="fp16")
CHARACTERS = [chr(code) for code in range(32, 125)]
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2} | {character: 3 + i for i, character in enumerate(CHARACTERS)}
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
PROMPT = torch.tensor([[1, 17, 40, 9, 33, 71, 5]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Llama, with weights large enough that halves do not change which token is likeliest."""
    config = transformers.LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    model.save_pretrained(path)
    model.folder = str(path)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token for each character."""
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="<pad>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    raw.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        chat_template=TEMPLATE, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def split(whole: Any) -> sl.SplitCausalLM:
    return sl.SplitCausalLM.local(whole.folder, cut=CUT, codec=HALVES, dtype=torch.float32)


@pytest.fixture(scope="module")
def remote(whole: Any) -> Iterator[sl.SplitCausalLM]:
    """The same over a true socket."""
    with Server(LoadedDecoder.tail(whole.folder, CUT, dtype=torch.float32), [CUT]) as server:
        yield sl.SplitCausalLM.connect(whole.folder, [server.address], cut=CUT, codec=HALVES, dtype=torch.float32)


# -- generate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 40},
        {"max_length": 20},
        {},
        {"max_new_tokens": 40, "repetition_penalty": 1.7},
        {"max_new_tokens": 30, "eos_token_id": [66, 2]},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=12, pad_token_id=0)},
        {"max_new_tokens": 12, "do_sample": True, "top_k": 1},
    ],
)
@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_answers_are_those_of_the_whole_model(whole: Any, split: Any, options: dict[str, Any]) -> None:
    """Nearly lossless, a cut model answers as the whole one does, and reads the same options."""
    assert split.generate(PROMPT, **options).tolist() == whole.generate(PROMPT, **options).tolist()


def test_an_answer_ends_at_a_stop_token(whole: Any, split: Any) -> None:
    """The stop token is the last of an answer that is shorter than it could be."""
    stop = whole.generate(PROMPT, max_new_tokens=10)[0, 11].item()
    ids = split.generate(PROMPT, max_new_tokens=10, eos_token_id=stop)
    assert ids[0, -1] == stop
    assert ids.shape[1] <= 12


def test_a_batch(whole: Any, split: Any, tokenizer: Any) -> None:
    """Rows of unequal length, padded on the left, answer as in the whole model, those that end early padded on the right."""
    batch = tokenizer(["what?", "a longer prompt", "z"], padding=True, return_tensors="pt")
    stop = whole.generate(**batch, max_new_tokens=8)[1, -4].item()
    options = {"max_new_tokens": 8, "eos_token_id": stop}
    expected = whole.generate(**batch, **options).tolist()
    assert split.generate(**batch, **options).tolist() == expected
    assert split.generate(batch["input_ids"], **options).tolist() == expected  # padding is known by its token


def test_the_checkpoint_says_how_to_generate(whole: Any, tmp_path: Any) -> None:
    """A generation_config.json beside the weights holds where a call says nothing else."""
    whole.save_pretrained(tmp_path)
    transformers.GenerationConfig(max_new_tokens=3, eos_token_id=2, pad_token_id=0).save_pretrained(tmp_path)
    split = sl.SplitCausalLM.local(str(tmp_path), cut=CUT, codec=HALVES, dtype=torch.float32)
    assert split.generate(PROMPT).shape[1] == PROMPT.shape[1] + 3
    assert split.generate(PROMPT, max_new_tokens=5).shape[1] == PROMPT.shape[1] + 5
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="generation_config"):
        sl.SplitCausalLM(split.generator)


def test_chance_is_torchs(split: Any) -> None:
    """torch.manual_seed makes sampling repeat itself, as it does in transformers; so does a seed of one's own."""

    def sample(**options: Any) -> list[list[int]]:
        ids: list[list[int]] = split.generate(PROMPT, do_sample=True, max_new_tokens=12, **options).tolist()
        return ids

    with torch.random.fork_rng():
        torch.manual_seed(5)
        first, second = sample(), sample(num_return_sequences=3)
        torch.manual_seed(5)
        assert (sample(), sample(num_return_sequences=3)) == (first, second)
    assert len({tuple(row) for row in [*first, *second]}) == 4
    assert sample(seed=7, num_return_sequences=2) == sample(seed=7) + sample(seed=8)


def test_greedy_answers_leave_torchs_chance_alone(split: Any) -> None:
    """Where nothing is drawn, the global generator stays as it is."""
    before = torch.get_rng_state()
    split.generate(PROMPT, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_criteria_stop_an_answer(split: Any, tokenizer: Any) -> None:
    """Stopping criteria see the ids so far after each token; stop strings and a time limit are such criteria."""
    seen = []

    def enough(ids: torch.Tensor, scores: object, **_: Any) -> torch.Tensor:
        seen.append(ids.tolist())
        return torch.tensor([ids.shape[1] == 9])

    ids = split.generate(PROMPT, max_new_tokens=9, stopping_criteria=[enough])
    assert seen == [ids[:, :8].tolist(), ids.tolist()]
    text = tokenizer.decode(split.generate(PROMPT, max_new_tokens=9)[0, 7:])
    stopped = split.generate(PROMPT, max_new_tokens=9, stop_strings=text[2:4], tokenizer=tokenizer)
    assert tokenizer.decode(stopped[0, 7:]) == text[: text.find(text[2:4]) + 2]
    assert split.generate(PROMPT, max_new_tokens=9, max_time=1e-9).shape[1] == 8
    with pytest.raises(ConfigError, match=r"stop_strings.*tokenizer"):
        split.generate(PROMPT, stop_strings="x")


def test_a_dictionary_on_request(split: Any) -> None:
    """return_dict_in_generate gives an object with the same sequences."""
    output = split.generate(PROMPT, max_new_tokens=4, return_dict_in_generate=True)
    assert torch.equal(output.sequences, split.generate(PROMPT, max_new_tokens=4))


def test_no_prompt(whole: Any, split: Any) -> None:
    """Without a prompt a text begins with the token that begins texts."""
    assert split.generate(max_new_tokens=5).tolist() == whole.generate(max_new_tokens=5).tolist()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("logits_processor", transformers.LogitsProcessorList([transformers.TopKLogitsWarper(3)])),
        ("assistant_model", object()),
        ("penalty_alpha", 0.6),
        ("prompt_lookup_num_tokens", 3),
        ("min_new_tokens", 3),
        ("no_repeat_ngram_size", 2),
        ("bad_words_ids", [[5]]),
        ("output_scores", True),
        ("prefix_allowed_tokens_fn", lambda batch, ids: [5]),
        ("past_key_values", transformers.DynamicCache()),
        ("no_such_option", 1),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(split: Any, name: str, value: object) -> None:
    """No option is ignored that would change the answer."""
    with pytest.raises(ConfigError, match=f"^{name}: .*whole") as caught:
        split.generate(PROMPT, max_new_tokens=2, **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_length": 7}, "max_length"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0]])}, "attention_mask"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1]])}, "attention_mask"),
        ({"attention_mask": torch.zeros_like(PROMPT)}, "attention_mask"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"input_ids": PROMPT[0]}, "input_ids"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"num_return_sequences": 2, "do_sample": True, "streamer": object()}, "streamer"),
    ],
)
def test_wrong_values(split: Any, options: dict[str, Any], field: str) -> None:
    """What makes no sense is refused before anything is computed, and named."""
    with pytest.raises(ConfigError) as caught:
        split.generate(**({"input_ids": PROMPT} | options))
    assert caught.value.field == field


def test_more_than_the_context(split: Any) -> None:
    """An answer that the context cannot hold is refused at once."""
    with pytest.raises(ContextExceeded):
        split.generate(PROMPT, max_new_tokens=200)


# -- streamers, pipelines, chats -------------------------------------------------------------------


def test_streamed_text(split: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Streamers of transformers give the text while it is made, in this thread or in another."""
    expected = tokenizer.decode(split.generate(PROMPT, max_new_tokens=12)[0, 7:], skip_special_tokens=True)
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    options = {"max_new_tokens": 12, "streamer": streamer}
    thread = threading.Thread(target=split.generate, args=(PROMPT,), kwargs=options)
    thread.start()
    assert "".join(streamer) == expected
    thread.join()
    printer = transformers.TextStreamer(tokenizer, skip_special_tokens=True)
    split.generate(PROMPT, max_new_tokens=12, streamer=printer)
    printed = capsys.readouterr().out
    assert printed.rstrip("\n") == tokenizer.decode(PROMPT[0], skip_special_tokens=True) + expected


def test_a_reader_is_not_left_waiting(split: Any, tokenizer: Any) -> None:
    """Where an answer fails, its streamer ends."""
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    with pytest.raises(ContextExceeded):
        split.generate(PROMPT, max_new_tokens=200, streamer=streamer)
    assert "".join(streamer) == ""


CONVERSATION = [{"role": "user", "content": "who are you?"}]


@pytest.mark.parametrize("prompt", ["once", ["once", "and again"], CONVERSATION], ids=["text", "texts", "chat"])
def test_pipelines(whole: Any, split: Any, tokenizer: Any, prompt: Any, record: Callable[[], list[str]]) -> None:
    """A pipeline takes the cut model for the whole one, with texts and with conversations, and has nothing to complain of."""
    answers = [
        transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device=-1)(
            prompt, max_new_tokens=16, do_sample=False
        )
        for model in (whole, split)
    ]
    assert answers[1] == answers[0]
    assert not [line for line in record() if "not supported" in line]


@pytest.fixture
def record() -> Iterator[Callable[[], list[str]]]:
    """What transformers logs."""
    import logging

    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    keeper = Keeper()
    logger = logging.getLogger("transformers")
    logger.addHandler(keeper)
    yield lambda: lines
    logger.removeHandler(keeper)


def test_chat_templates(whole: Any, split: Any, tokenizer: Any) -> None:
    """What a chat template makes goes straight into generate."""
    inputs = tokenizer.apply_chat_template(
        CONVERSATION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert split.generate(**inputs, max_new_tokens=9).tolist() == whole.generate(**inputs, max_new_tokens=9).tolist()


# -- over a server ---------------------------------------------------------------------------------


def test_a_server_answers_as_one_process_does(split: Any, remote: Any) -> None:
    """Over a socket the same tokens come, greedy and drawn."""
    for options in ({}, {"do_sample": True, "seed": 4, "repetition_penalty": 1.2}):
        expected = split.generate(PROMPT, max_new_tokens=12, **options)
        assert torch.equal(remote.generate(PROMPT, max_new_tokens=12, **options), expected)


def test_a_server_has_no_logits(remote: Any) -> None:
    """Scoring over a server is refused, and the error names what can score."""
    with pytest.raises(LogitsNotSent, match=r"SplitCausalLM\.local"):
        remote(PROMPT)


# -- scores ----------------------------------------------------------------------------------------


def test_logits_are_those_of_the_loopback(whole: Any, split: Any) -> None:
    """forward gives what the loopback computes for each text, and padding on either side changes nothing."""
    score = split.generator.score(PROMPT[0].tolist())
    assert torch.equal(split(PROMPT).logits[0], score)
    padded = torch.cat([torch.zeros(1, 2), PROMPT, torch.zeros(1, 1)], 1).long()
    logits = split(padded, attention_mask=(padded != 0).long()).logits
    assert torch.equal(logits[0, 2:-1], score)
    torch.testing.assert_close(score, whole(PROMPT).logits[0], atol=0.02, rtol=0.02)


def test_scores_are_those_that_tokens_are_chosen_by(whole: Any) -> None:
    """A text crosses as a prompt does, in the same chunks: the last logits choose the token that generate makes."""
    coarse = sl.SplitCausalLM.local(whole.folder, cut=CUT, codec=sl.CodecConfig(sparsity=0.5), dtype=torch.float32)
    ids = torch.arange(3, 93).repeat(2)[None, :127]
    for length in (5, 40, 127):
        assert (
            coarse.generate(ids[:, :length], max_new_tokens=1)[0, -1] == coarse(ids[:, :length]).logits[0, -1].argmax()
        )


def test_loss(whole: Any, split: Any) -> None:
    """With labels there is the loss of transformers."""
    torch.testing.assert_close(
        split(PROMPT, labels=PROMPT).loss, whole(PROMPT, labels=PROMPT).loss, atol=0.01, rtol=0.01
    )


@pytest.mark.parametrize("name", ["past_key_values", "inputs_embeds", "output_hidden_states", "logits_to_keep"])
def test_forward_refuses_what_it_cannot_give(split: Any, name: str) -> None:
    """Nothing that a caller asks for is left out silently."""
    with pytest.raises(ConfigError, match=name):
        split(PROMPT, **{name: 1})


def test_it_looks_like_a_model(whole: Any, split: Any) -> None:
    """Config, device and element type are the checkpoint's, and there are no parameters."""
    assert isinstance(split, transformers.PreTrainedModel)
    assert split.can_generate()
    assert (split.device, split.dtype) == (whole.device, torch.float32)
    assert split.config.to_dict()["hidden_size"] == 32
    assert list(split.parameters()) == []
