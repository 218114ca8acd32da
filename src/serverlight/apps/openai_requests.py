"""Requests in the shape of OpenAI's API, read and checked: plain dicts in, questions out.

The fields are those of https://platform.openai.com/docs/api-reference, with ``top_k``, ``min_p`` and ``repetition_penalty``
beside them. What would change the answer and cannot be done is refused, by its name.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from serverlight.apps.answers import Question
from serverlight.errors import ConfigError
from serverlight.sampling import MAX_LOGPROBS, Sampling

__all__ = ["OpenAIRequest", "parse_body", "read_request"]

MAX_STOPS = 4

IGNORED = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
}  # fmt: skip
"""Fields that are about the asker, and change no answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
}
"""Fields that are known, and the values with which they ask for nothing; so does null."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIRequest:
    """A question, and how the answer is to be sent."""

    model: str
    """The model that is to answer."""

    question: Question
    """What it is asked."""

    stream: bool
    """Whether the answer is sent while it is made."""

    include_usage: bool
    """Whether a last chunk of a stream says what it took."""


def parse_body(data: bytes) -> dict[str, Any]:
    """A request's JSON object; raises :class:`ConfigError` for anything else.

    >>> parse_body(b'{"n": 1}')
    {'n': 1}
    """
    try:
        body = json.loads(data)
        json.dumps(
            body, ensure_ascii=False
        ).encode()  # halves of a surrogate pair are no text, and tokenizers choke on them
    except (ValueError, RecursionError) as error:
        raise ConfigError("body", f"cannot be read as JSON in UTF-8: {error}; send a JSON object") from None
    if not isinstance(body, dict):
        raise ConfigError("body", f"is JSON, but no object: {type(body).__name__}; send a JSON object")
    return body


def read_request(body: Mapping[str, Any], *, is_chat: bool) -> OpenAIRequest:
    """Reads the body of a request for a chat completion or for a completion.

    Raises :class:`ConfigError` with the field's name for what is missing, malformed, unknown, or not offered here.

    >>> read_request({"model": "m", "prompt": "Once"}, is_chat=False).question.prompt
    'Once'
    """
    fields = _Fields(body)
    request = OpenAIRequest(
        model=fields.text("model"),
        question=Question(
            prompt=_messages(fields.take("messages")) if is_chat else _prompt(fields.take("prompt")),
            is_chat=is_chat,
            sampling=_sampling(fields, _num_logprobs(fields, is_chat)),
            max_tokens=_max_tokens(fields),
            stops=_stops(fields.take("stop")),
        ),
        stream=fields.flag("stream"),
        include_usage=_include_usage(fields.take("stream_options")),
    )
    fields.check_rest()
    return request


class _Fields:
    """Fields of a request, taken one by one; null is the same as not given."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        """As it is."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str:
        """One that must be there."""
        value = self.take(name)
        if not isinstance(value, str):
            raise ConfigError(name, "must be given, as a string")
        return value

    def flag(self, name: str) -> bool:
        """False where not given."""
        return bool(self._typed(name, bool, "true or false", False))

    def whole(self, name: str, default: _T) -> int | _T:
        """A whole number."""
        value: int | _T = self._typed(name, int, "a whole number", default)
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self._typed(name, (int, float), "a number", default)
        try:
            return float(value)
        except OverflowError:
            return math.inf

    def check_rest(self) -> None:
        """Raises :class:`ConfigError` for a field that asks for what is not offered."""
        for name, value in self._left.items():
            if name in IGNORED:
                continue
            if name not in NEUTRAL:
                raise ConfigError(name, "is not known here; leave it away")
            if value not in NEUTRAL[name]:
                raise ConfigError(name, f"{json.dumps(value)[:80]} is not offered here; leave it away")

    def _typed(self, name: str, kind: Any, what: str, default: Any) -> Any:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(name, f"must be {what}, got {json.dumps(value)[:80]}")
        return value


def _sampling(fields: _Fields, logprobs: int | None) -> Sampling:
    seed = fields.whole("seed", None)
    return Sampling(
        temperature=fields.number("temperature", 1.0),
        top_k=max(0, fields.whole("top_k", 0)),  # other servers write -1 for all
        top_p=fields.number("top_p", 1.0),
        min_p=fields.number("min_p", 0.0),
        seed=secrets.randbits(64) if seed is None else seed % 2**64,  # theirs are signed
        repetition_penalty=fields.number("repetition_penalty", 1.0),
        logprobs=logprobs,
    )


def _num_logprobs(fields: _Fields, is_chat: bool) -> int | None:
    """Chats ask by a flag, and for the likeliest ones by a number; completions by a number for both."""
    if not is_chat:
        return _checked_logprobs("logprobs", fields.whole("logprobs", None))
    wanted, top = fields.flag("logprobs"), _checked_logprobs("top_logprobs", fields.whole("top_logprobs", None))
    if top and not wanted:
        raise ConfigError("top_logprobs", 'is given without logprobs; add "logprobs": true')
    return (top or 0) if wanted else None


def _checked_logprobs(field: str, number: int | None) -> int | None:
    if number is not None and not 0 <= number <= MAX_LOGPROBS:
        raise ConfigError(field, f"must be from 0 to {MAX_LOGPROBS}, got {number}")
    return number


def _max_tokens(fields: _Fields) -> int | None:
    given = {name: fields.whole(name, None) for name in ("max_tokens", "max_completion_tokens")}
    for name, number in given.items():
        if number is not None and number < 1:
            raise ConfigError(name, f"must be at least 1, got {number}")
    return given["max_completion_tokens"] or given["max_tokens"]


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise ConfigError("stop", f"must be a string, or a list of {MAX_STOPS} at most, none of them empty")
    return tuple(stops)


def _include_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise ConfigError("stream_options", "must be an object")
    fields = _Fields(options)
    wanted = fields.flag("include_usage")
    fields.flag("include_obfuscation")  # pads chunks against listeners; nothing here needs it
    fields.check_rest()
    return wanted


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(token_id) is int for token_id in value):
        return tuple(value)
    raise ConfigError("prompt", "must be a string or a list of token ids; send several prompts one by one")


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError("messages", "must be a list of at least one message")
    return tuple(_message(f"messages[{i}]", message) for i, message in enumerate(value))


def _message(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(role := value.get("role"), str):
        raise ConfigError(field, "must be an object with a role")
    if value.get("tool_calls") or role == "tool":
        raise ConfigError(field, "speaks of tools, which are not offered here; leave them away")
    # OpenAI renamed the role; templates know the older name.
    return {"role": "system" if role == "developer" else role, "content": _content(field, value.get("content"))}


def _content(field: str, value: Any) -> str:
    """A text, or texts in parts."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [None]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{field}.content", "must be a string, or a list of text parts; only text is read here")
    return "".join(map(str, texts))
