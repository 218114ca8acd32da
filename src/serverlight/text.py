"""Text to token ids and back: the tokenizer beside a model, and answers that are read while they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.errors import ConfigError, ModelError
from serverlight.huggingface import load_tokenizer, stop_ids

__all__ = ["TextStream", "Tokenizer"]

_CONTEXT_TOKENS = 8
"""Tokens of the prompt that the first ones of the answer are decoded with: what a space is depends on what comes before."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """The tokenizer of a language model, and where its answers end."""

    name: str
    """The model that it belongs to."""

    raw: Any
    """What transformers loads."""

    stop_ids: frozenset[int]
    """Tokens that end an answer; they are no part of its text."""

    @classmethod
    def load(cls, spec: str, vocab_size: int) -> Tokenizer:
        """The tokenizer beside a model that takes ids below ``vocab_size``; raises :class:`ModelError`."""
        raw = load_tokenizer(spec, vocab_size)
        return cls(name=spec, raw=raw, stop_ids=stop_ids(spec, raw))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return bool(self.raw.chat_template)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special ones that the model wants around it."""
        ids: list[int] = self.raw(text)["input_ids"]
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant is to speak.

        Raises :class:`ModelError` where the model has no chat template, or where its template refuses the messages.
        """
        if not self.has_chat_template:
            raise ModelError(f"{self.name!r} has no chat template; send a plain prompt instead")
        try:
            text = self.raw.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as exc:  # templates are programs, and raise what they like
            raise ModelError(f"the chat template of {self.name!r} refuses this: {exc}; change the messages") from exc
        ids: list[int] = self.raw(text, add_special_tokens=False)["input_ids"]  # the template has written them
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special ones left out."""
        text: str = self.raw.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token within a text, special ones by their names; part of a character is a replacement character."""
        # Many tokenizers drop the space before the first token, so that the second one is the true one.
        once, twice = (self.raw.decode([token_id] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
        text: str = twice[len(once) :]
        return text

    def stream(self, prompt_ids: Sequence[int], stops: Sequence[str] = ()) -> TextStream:
        """Where the tokens that follow a prompt become text."""
        return TextStream(self.decode, prompt_ids, stops)


class TextStream:
    """Text from tokens that come one by one: what has been given out never changes.

    A character of several tokens is given out with the last of them, and text that may be the beginning of a stop string is
    kept until that is known.

    Args:
        decode: from token ids to text.
        prompt_ids: what came before; only the first space of the text depends on it.
        stops: strings that end the text, none of them empty; the text ends before the earliest.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int] = (), stops: Sequence[str] = ()
    ) -> None:
        if not all(stops):
            raise ConfigError("stop", "an empty string stops everything; leave it away")
        self._decode, self._stops = decode, tuple(stops)
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._first, self._read = (
            0,
            len(self._ids),
        )  # where the context begins, and where what is not given out yet does
        self._held = ""
        self.num_given = 0
        """Characters that were given out."""
        self.is_stopped = False
        """Whether a stop string was met; what comes later is not read."""

    @property
    def num_characters(self) -> int:
        """Length of the text so far, with what is still kept."""
        return self.num_given + len(self._held)

    def push(self, token_id: int) -> str:
        """The text that is certain with one token more; may be empty."""
        self._ids.append(token_id)
        text = self._unread()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._first, self._read = self._read, len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """The text that was still kept, where no more tokens come."""
        rest = self._release(self._unread())
        self.num_given += len(self._held)
        rest, self._held = rest + self._held, ""
        self._first = self._read = len(self._ids)
        return rest

    def _unread(self) -> str:
        before = self._decode(self._ids[self._first : self._read])
        return self._decode(self._ids[self._first :])[len(before) :]

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.is_stopped, self._held = True, ""
            self.num_given += found
            return text[:found]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        self.num_given += len(text) - num_held
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``.

    >>> _overlap("once upon", "on the")
    2
    """
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
