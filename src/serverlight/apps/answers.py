"""What is asked of a language model, and its answer piece by piece, while it is being made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serverlight.errors import ConfigError
from serverlight.partition.decoder import DecoderPart
from serverlight.runtime.decoder_client import Token
from serverlight.runtime.exits import Exit
from serverlight.sampling import Sampling
from serverlight.text import TextStream, Tokenizer

__all__ = ["Answers", "Piece", "Question", "TokenNote", "TokenSource", "Usage"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked, and how it is to be answered."""

    prompt: str | tuple[int, ...] | tuple[Mapping[str, Any], ...]
    """A text, its token ids, or a conversation."""

    is_chat: bool
    """Whether it is a conversation."""

    sampling: Sampling
    """How tokens are chosen; its ``logprobs`` asks for notes on them."""

    max_tokens: int | None = None
    """The most tokens of the answer; ``None`` where the asker does not mind."""

    stops: tuple[str, ...] = ()
    """Strings that end the answer, and are no part of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenNote:
    """A token of the answer, and how likely the model found it."""

    text: str
    """Its own text; a replacement character where it is only part of one."""

    offset: int
    """Characters of the answer before it; behind a character that is not complete yet, those before that one."""

    logprob: float
    """Natural logarithm of its probability."""

    top: tuple[tuple[str, float], ...]
    """The likeliest tokens with theirs, likeliest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    """With those that ended the answer, and are no part of its text."""
    uplink_bytes: int
    """As :attr:`serverlight.runtime.decoder_client.StepCost.uplink_bytes`, of all steps."""
    downlink_bytes: int
    bits_per_element: float
    """All bits that went up, over the elements of the hidden states that they carried."""
    server_ms: float
    """From reading a step to its reply, of every step's last frame."""
    num_recoveries: int
    exits: tuple[Exit, ...] = ()
    """How the cut moved to keep the device's caps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The next of an answer; the last one has ``finish_reason`` and ``usage``."""

    text: str = ""
    """What is certain with one token more; often empty."""

    notes: tuple[TokenNote, ...] = ()
    """Of the tokens that begin within the text so far, each once."""

    finish_reason: str | None = None
    """``stop`` where the model or a stop string ended it, ``length`` where there was no more room, on the device either."""

    usage: Usage | None = None
    """What all of it took."""


class TokenSource(Protocol):
    """What an answer's tokens come from: a :class:`~serverlight.runtime.decoder_client.DecoderClient`."""

    def stream(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None,
        stop_ids: Collection[int],
        on_exit: Callable[[Exit], None],
    ) -> Generator[Token, None, None]:
        """The tokens that follow the prompt."""


class Answers:
    """Answers questions with one language model; one at a time.

    Args:
        source: makes the tokens.
        tokenizer: the model's.
        part: any part of the model; its sizes are looked at.
        max_tokens: the most tokens of an answer whose question sets no limit.
    """

    def __init__(self, source: TokenSource, tokenizer: Tokenizer, part: DecoderPart, *, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._source, self._max_tokens = source, max_tokens
        self._vocab_size, self._context_length = part.vocab_size, part.context_length
        self._hidden_size = part.hidden_size

    def pieces(self, question: Question) -> Generator[Piece, None, None]:
        """The answer, a piece for each token and the last one. Closing the generator ends the session.

        Raises:
            ConfigError: a prompt without tokens, or with tokens that the model does not have.
            ModelError: the chat template refuses the conversation.
            ServerlightError: as :meth:`serverlight.runtime.decoder_client.DecoderClient.stream`.
        """
        prompt_ids = self._encode(question)
        meter = _Meter(len(prompt_ids), self._hidden_size)
        text = self.tokenizer.stream(prompt_ids, question.stops)
        notes, is_over = _Notes(self.tokenizer, text), False
        tokens = self._source.stream(
            prompt_ids,
            max_new_tokens=self._room(len(prompt_ids), question.max_tokens),
            sampling=question.sampling,
            stop_ids=self.tokenizer.stop_ids,
            on_exit=meter.exits.append,
        )
        with contextlib.closing(tokens):
            for token in tokens:
                meter.add(token)
                if is_over := token.token_id in self.tokenizer.stop_ids:
                    break
                notes.add(token)
                certain = text.push(token.token_id)
                yield Piece(text=certain, notes=notes.certain())
                if text.is_stopped:
                    break
        rest = text.finish()
        reason = "stop" if is_over or text.is_stopped else "length"
        yield Piece(text=rest, notes=notes.certain(), finish_reason=reason, usage=meter.usage())

    def _encode(self, question: Question) -> list[int]:
        prompt: Any = question.prompt
        if question.is_chat:
            ids = self.tokenizer.encode_chat(prompt)
        else:
            ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ConfigError("prompt", "holds no tokens; write something")
        if not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise ConfigError("prompt", f"token ids must be from 0 to {self._vocab_size - 1}")
        return ids

    def _room(self, num_prompt: int, wanted: int | None) -> int:
        """The most tokens of the answer: as many as are asked for, else as many as the context leaves room for."""
        if wanted is not None or self._context_length is None:
            return wanted or self._max_tokens
        left = self._context_length - num_prompt + 1  # the last token is never fed back
        return max(1, min(self._max_tokens, left))


class _Meter:
    """Adds up what tokens cost."""

    def __init__(self, num_prompt: int, hidden_size: int) -> None:
        self._num_prompt, self._hidden_size, self.exits = num_prompt, hidden_size, list[Exit]()
        self._num_tokens = self._uplink_bytes = self._downlink_bytes = self._num_recoveries = 0
        self._server_ms = 0.0

    def add(self, token: Token) -> None:
        """One token more."""
        cost = token.cost
        self._num_tokens += 1
        self._uplink_bytes += cost.uplink_bytes
        self._downlink_bytes += cost.downlink_bytes
        self._server_ms += cost.server.total_ms
        self._num_recoveries = token.num_recoveries

    def usage(self) -> Usage:
        """All until now."""
        num_sent = self._num_prompt + max(0, self._num_tokens - 1)  # the last token is never fed back
        return Usage(
            prompt_tokens=self._num_prompt,
            completion_tokens=self._num_tokens,
            uplink_bytes=self._uplink_bytes,
            downlink_bytes=self._downlink_bytes,
            bits_per_element=8 * self._uplink_bytes / (num_sent * self._hidden_size),
            server_ms=self._server_ms,
            num_recoveries=self._num_recoveries,
            exits=tuple(self.exits),
        )


class _Notes:
    """Notes on tokens, kept until it is certain that they are part of the text."""

    def __init__(self, tokenizer: Tokenizer, text: TextStream) -> None:
        self._tokenizer, self._text = tokenizer, text
        self._kept: list[TokenNote] = []

    def add(self, token: Token) -> None:
        """Before the text has read the token."""
        if token.logprob is None:
            return
        self._kept.append(
            TokenNote(
                text=self._tokenizer.token_text(token.token_id),
                offset=self._text.num_characters,
                logprob=token.logprob,
                top=tuple((self._tokenizer.token_text(i), logprob) for i, logprob in token.top_logprobs),
            )
        )

    def certain(self) -> tuple[TokenNote, ...]:
        """Notes of the tokens that begin before the end of what has been given out."""
        certain = tuple(note for note in self._kept if note.offset < self._text.num_given)
        self._kept = self._kept[len(certain) :]
        return certain
