"""A language model of transformers that is really a cut one: ``generate``, streamers, pipelines and chats work over the cut."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError, LogitsNotSent
from serverlight.generation import LANGUAGE_CODEC, DecoderLoopback, LoadedDecoder
from serverlight.huggingface import (
    GenerativeModel,
    causal_lm_output,
    generate_output,
    generation_config,
    register_causal_lm,
    stopping_criteria,
)
from serverlight.plan import Plan
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.sampling import Sampling

__all__ = ["SplitCausalLM"]

HONOURED = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "max_length",
    "max_time", "stop_strings", "eos_token_id", "pad_token_id", "bos_token_id", "num_return_sequences",
    "return_dict_in_generate",
}  # fmt: skip
"""Options of a generation config that :meth:`SplitCausalLM.generate` follows."""

WITHOUT_EFFECT = {
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config",
    "disable_compile", "transformers_version", "low_memory", "renormalize_logits", "remove_invalid_values",
    "decoder_start_token_id", "early_stopping", "length_penalty", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
}  # fmt: skip
"""Options that change no token here: caches belong to the parts, and some mean something only beside an option that is refused."""

NEUTRAL = {
    "min_length": 0, "min_new_tokens": 0, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "penalty_alpha": 0.0,
}  # fmt: skip
"""Values with which an option that is not followed asks for nothing; besides ``None``, ``False`` and empty lists."""

REFUSED = {"past_key_values", "inputs_embeds", "logits_to_keep", "output_hidden_states", "output_attentions"}
"""Options of :meth:`SplitCausalLM.forward` that nothing here could follow."""

DEFAULT_NEW_TOKENS = 20
"""As many as transformers makes where neither call nor checkpoint says."""


class SplitCausalLM(GenerativeModel):
    """A cut language model in the shape of one of transformers; it holds no parameters of its own.

    Each sequence crosses by itself, so a batch takes as long as its rows one after the other. One call at a time.

    Args:
        generator: what makes the tokens: a client of servers, or head and tail in one process.
        model: folder or hub id whose ``generation_config.json`` holds, by default the plan's model.

    Raises:
        ModelError: the folder is not found.
    """

    def __init__(self, generator: DecoderClient | DecoderLoopback, *, model: str | None = None) -> None:
        config = copy.deepcopy(generator.head.model.config)
        super().__init__(config)
        self.generation_config = generation_config(model or generator.plan.model, config)
        self.loss_type = "ForCausalLM"
        self.generator = generator
        """What makes the tokens."""
        self.eval()

    @classmethod
    def connect(
        cls,
        model: str,
        addresses: Sequence[str],
        *,
        cut: str,
        codec: CodecConfig | None = None,
        dtype: torch.dtype | None = None,
        credentials: Credentials | None = None,
    ) -> SplitCausalLM:
        """Loads the head only; servers have the tail.

        Args:
            model: Folder or hub id.
            addresses: ``HOST:PORT`` of servers, in the order of preference; they are called when something is generated.
            cut: Such as ``layers.8``.
            codec: How hidden states are compressed on their way up; by default as suits language models.
            dtype: Of the weights; by default as stored.
            credentials: Whom to trust and who the client is; by default nothing is encrypted.

        Raises what :func:`~serverlight.load_head` and :class:`~serverlight.runtime.decoder_client.DecoderClient` raise.
        """
        head = LoadedDecoder.head(model, cut, dtype=dtype)
        client = DecoderClient(addresses, plan=_plan(head, cut, codec), head=head, credentials=credentials)
        return cls(client, model=model)

    @classmethod
    def local(
        cls, model: str, *, cut: str, codec: CodecConfig | None = None, dtype: torch.dtype | None = None
    ) -> SplitCausalLM:
        """Loads both sides into this process: what an answer over the cut would be, and the only way to logits.

        Arguments and errors are those of :meth:`connect`.
        """
        head, tail = LoadedDecoder.head(model, cut, dtype=dtype), LoadedDecoder.tail(model, cut, dtype=dtype)
        return cls(DecoderLoopback(_plan(head, cut, codec), head, tail), model=model)

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self.generator.head.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the head's weights."""
        return self.generator.head.dtype

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        stopping_criteria: Sequence[Any] | None = None,
        streamer: Any = None,
        attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
        **options: Any,
    ) -> Any:
        """The tokens that follow each row, as ``generate`` of transformers returns them.

        Args:
            inputs: Token ids int64 ``[batch, tokens]``, padded on the left; also called ``input_ids``. By default the
                token that begins a text.
            generation_config: Options that come before those of the checkpoint.
            stopping_criteria: Asked after each token, with the row's ids ``[1, tokens]`` and ``None`` for the scores.
            streamer: Hears the prompt, then each token, then the end. For a single sequence.
            attention_mask: 0 for padding, ``[batch, tokens]``; by default padding is what begins with ``pad_token_id``.
            tokenizer: Needed for the option ``stop_strings``.
            seed: Chance of the first sequence, one more for each next; by default drawn from torch's global generator.
            options: Those of ``transformers.GenerationConfig``; they come before all others.

        Returns:
            Token ids ``[batch, tokens]`` on the device of ``inputs``, prompts included and padded on the right; with
            ``return_dict_in_generate`` in an object with ``sequences``.

        Raises:
            ConfigError: an option that cannot be followed over a cut, or a value out of range; ``field`` names it.
            ServerlightError: what the generator's ``stream`` raises.
        """
        inputs = options.pop("input_ids", None) if inputs is None else inputs
        has_max_length = any(
            settings is not None and getattr(settings, "max_length", None) is not None
            for settings in (generation_config, self.generation_config)
        )
        has_max_length |= options.get("max_length") is not None
        settings, rest = self._prepare_generation_config(generation_config, **options)
        _check_options(settings, rest)
        inputs = _inputs(inputs, settings)
        prompts = _prompts(inputs, attention_mask, settings)
        prompts = [prompt for prompt in prompts for _ in range(settings.num_return_sequences or 1)]
        if streamer is not None and len(prompts) != 1:
            raise ConfigError("streamer", f"hears one sequence, here are {len(prompts)}; generate them one by one")
        run = _Run(
            generator=self.generator,
            settings=settings,
            max_new_tokens=_max_new_tokens(settings, inputs.shape[1], self.config, has_max_length=has_max_length),
            criteria=_criteria(settings, stopping_criteria, tokenizer),
            streamer=streamer,
        )
        answers = [run.answer(*pair) for pair in zip(prompts, _seeds(settings, seed, len(prompts)), strict=True)]
        repeated = inputs.repeat_interleave(settings.num_return_sequences or 1, 0)
        sequences = torch.cat([repeated, _padded(answers, settings).to(inputs.device)], dim=1)
        return generate_output(sequences) if settings.return_dict_in_generate else sequences

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Logits after each token of given texts, each of which crosses as a prompt does: for scoring, as evaluations do it.

        Args:
            input_ids: Token ids int64 ``[batch, tokens]``.
            attention_mask: 0 for padding on the left or on the right, ``[batch, tokens]``. Without it padding is text,
                and being compressed together with the rest changes it a little.
            labels: Token ids whose loss is wanted as well, -100 for those that do not count.
            options: Those of models of transformers that change nothing here, such as ``use_cache``; nothing is remembered
                between calls, and positions are counted from the first token.

        Returns:
            ``logits`` float ``[batch, tokens, vocabulary]``, zero at padding, and ``loss`` where there are labels.

        Raises:
            LogitsNotSent: a server has the tail.
            ConfigError: an option that asks for more than logits and loss, or for fewer; or padding within a text.
        """
        if not isinstance(self.generator, DecoderLoopback):
            raise LogitsNotSent(
                "a server answers with tokens, not with logits; call generate(), or score with SplitCausalLM.local(...)"
            )
        for name in sorted(REFUSED & options.keys()):
            if options[name] is not None and options[name] is not False:
                raise ConfigError(name, "does not go over a cut; give whole texts in input_ids, and take all logits")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = torch.zeros(
            *input_ids.shape, self.generator.head.vocab_size, dtype=self.dtype, device=input_ids.device
        )
        for row, ids in enumerate(input_ids):
            start, stop = _extent(mask[row])
            logits[row, start:stop] = self.generator.score(ids[start:stop].tolist()).to(logits)
        loss = None if labels is None else self.loss_function(logits, labels, self.generator.head.vocab_size)
        return causal_lm_output(logits, loss)


register_causal_lm(SplitCausalLM)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """One call of generate."""

    generator: DecoderClient | DecoderLoopback
    settings: Any
    max_new_tokens: int
    criteria: Any
    streamer: Any

    def answer(self, prompt: list[int], seed: int) -> list[int]:
        """The tokens that follow a prompt."""
        ids = list(prompt)
        with self._heard(prompt), contextlib.closing(self._stream(prompt, seed)) as stream:
            for token in stream:
                ids.append(token.token_id)
                if self.streamer is not None:
                    self.streamer.put(torch.tensor([token.token_id]))
                if self.criteria and bool(self.criteria(torch.tensor([ids]), None).all()):
                    break
        return ids[len(prompt) :]

    def _stream(self, prompt: list[int], seed: int) -> Any:
        return self.generator.stream(
            prompt,
            max_new_tokens=self.max_new_tokens,
            sampling=_sampling(self.settings, seed),
            stop_ids=_stop_ids(self.settings),
        )

    @contextlib.contextmanager
    def _heard(self, prompt: list[int]) -> Iterator[None]:
        """Whoever reads from the streamer is not left waiting, whatever happens."""
        if self.streamer is None:
            yield
            return
        self.streamer.put(torch.tensor([prompt]))
        try:
            yield
        finally:
            self.streamer.end()


# -- options ---------------------------------------------------------------------------------------


def _plan(head: LoadedDecoder, cut: str, codec: CodecConfig | None) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=cut, codec=codec or LANGUAGE_CODEC)


def _check_options(settings: Any, rest: dict[str, Any]) -> None:
    """Raises :class:`ConfigError` for what would have to be ignored."""
    asked = {name: value for name, value in vars(settings).items() if not name.startswith("_")} | rest
    for name, value in sorted(asked.items()):
        if name in HONOURED or name in WITHOUT_EFFECT or value is None or value is False:
            continue
        if (isinstance(value, Sequence | dict) and not value) or (name in NEUTRAL and value == NEUTRAL[name]):
            continue
        raise ConfigError(
            name, f"{_shown(value)} cannot be followed over a cut, where tokens are chosen beside the tail; "
            "leave it away, or run the model whole"
        )  # fmt: skip


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str) else type(value).__name__


def _max_new_tokens(settings: Any, num_inputs: int, config: Any, *, has_max_length: bool) -> int:
    """How long an answer may be; ``max_length`` counts the inputs, padding included, as it does in transformers."""
    if settings.max_new_tokens is not None:
        return int(settings.max_new_tokens)
    if has_max_length:
        if settings.max_length <= num_inputs:
            raise ConfigError(
                "max_length", f"is {settings.max_length}, but the prompt has {num_inputs} tokens; give max_new_tokens"
            )
        return int(settings.max_length) - num_inputs
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return DEFAULT_NEW_TOKENS if context is None else min(DEFAULT_NEW_TOKENS, max(1, context - num_inputs))


def _criteria(settings: Any, more: Sequence[Any] | None, tokenizer: Any) -> Any:
    return stopping_criteria(settings, list(more or ()), tokenizer)


def _sampling(settings: Any, seed: int) -> Sampling:
    penalty = settings.repetition_penalty
    if not settings.do_sample:
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p or 0.0,
        repetition_penalty=penalty,
        seed=seed,
    )


def _seeds(settings: Any, seed: int | None, count: int) -> list[int]:
    """One for each sequence; torch's generator is touched only where chance plays a part."""
    if seed is not None:
        return [(seed + index) % 2**64 for index in range(count)]
    if not settings.do_sample:
        return [0] * count
    drawn: list[int] = torch.randint(2**63 - 1, (count,)).tolist()
    return drawn


def _stop_ids(settings: Any) -> frozenset[int]:
    stops = settings.eos_token_id
    if stops is None:
        return frozenset()
    return frozenset([stops] if isinstance(stops, int) else [int(stop) for stop in stops])


# -- batches ---------------------------------------------------------------------------------------


def _inputs(inputs: Tensor | None, settings: Any) -> Tensor:
    if inputs is None:
        if settings.bos_token_id is None:
            raise ConfigError(
                "input_ids", "an empty prompt, and no bos_token_id to begin with; give at least one token"
            )
        return torch.tensor([[settings.bos_token_id]])
    if inputs.ndim != 2:
        raise ConfigError("input_ids", f"must have shape [batch, tokens], got {list(inputs.shape)}; see the docstring")
    return inputs


def _prompts(inputs: Tensor, mask: Tensor | None, settings: Any) -> list[list[int]]:
    """The rows without their padding."""
    pad = settings.pad_token_id
    if mask is None:
        is_padding = pad is not None and pad not in _stop_ids(settings)
        mask = (inputs != pad).cumsum(1) > 0 if is_padding else torch.ones_like(inputs)
    if mask.shape != inputs.shape:
        raise ConfigError(
            "attention_mask", f"has shape {list(mask.shape)}, input_ids {list(inputs.shape)}; give one for all"
        )
    prompts = []
    for row, ids in enumerate(inputs):
        start, stop = _extent(mask[row])
        if stop != len(ids):
            raise ConfigError("attention_mask", f"row {row} is padded on the right; set tokenizer.padding_side='left'")
        prompts.append(ids[start:].tolist())
    return prompts


def _extent(mask: Tensor) -> tuple[int, int]:
    """Where the text of one row begins and ends; raises :class:`ConfigError` where there is none, or padding in it."""
    kept = mask.nonzero().flatten().tolist()
    if not kept or kept[-1] - kept[0] + 1 != len(kept):
        raise ConfigError(
            "attention_mask", "must have ones in a row in each row; a text has padding only before or after it"
        )
    return kept[0], kept[-1] + 1


def _padded(answers: list[list[int]], settings: Any) -> Tensor:
    """Answers int64 ``[batch, longest]``."""
    longest = max(len(answer) for answer in answers)
    pads = [settings.pad_token_id, *sorted(_stop_ids(settings))]
    pad = next((int(pad) for pad in pads if pad is not None), None)
    if pad is None and any(len(answer) != longest for answer in answers):
        raise ConfigError("pad_token_id", "the answers differ in length and nothing fills them up; give pad_token_id")
    return torch.tensor([answer + [pad or 0] * (longest - len(answer)) for answer in answers])
