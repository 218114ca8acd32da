"""Replies in the shape of OpenAI's API: pieces of an answer and errors in, plain dicts out."""

from __future__ import annotations

import abc
import dataclasses
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serverlight.apps.answers import Piece, TokenNote, Usage
from serverlight.errors import (
    CertificateMismatch,
    ConfigError,
    ConnectTimeout,
    ContextExceeded,
    DeadlineExceeded,
    GenerationInterrupted,
    ModelError,
    PeerUnavailable,
    ServerBusy,
    Unauthenticated,
)

__all__ = ["ChatReply", "CompletionReply", "Problem", "Reply", "problem_of"]


@dataclass(frozen=True, kw_only=True)
class Reply(abc.ABC):
    """What all parts of one reply have in common."""

    model: str
    """Who answers."""

    name: str = field(default_factory=lambda: secrets.token_hex(12))
    """Tells replies apart."""

    created_s: int = field(default_factory=lambda: int(time.time()))
    """When it began, in seconds since 1970."""

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """All of an answer at once."""
        last = pieces[-1]
        text = "".join(piece.text for piece in pieces)
        notes = tuple(note for piece in pieces for note in piece.notes)
        logprobs = self._logprobs(notes) if notes else None
        choice = {"index": 0, **self._text(text), "logprobs": logprobs, "finish_reason": last.finish_reason}
        return self._envelope([choice], is_chunk=False) | {"usage": last.usage and _usage(last.usage)}

    def first(self) -> dict[str, Any] | None:
        """What a stream begins with, if anything."""
        return None

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One piece of a stream."""
        logprobs = self._logprobs(piece.notes) if piece.notes else None
        choice = {"index": 0, **self._delta(piece.text), "logprobs": logprobs, "finish_reason": piece.finish_reason}
        return self._envelope([choice], is_chunk=True)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """What a stream ends with, where that is wanted."""
        return self._envelope([], is_chunk=True) | {"usage": _usage(usage)}

    @abc.abstractmethod
    def _envelope(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _text(self, text: str) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _delta(self, text: str) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _logprobs(self, notes: Sequence[TokenNote]) -> dict[str, Any]: ...

    def _head(self, prefix: str, kind: str) -> dict[str, Any]:
        return {"id": f"{prefix}-{self.name}", "object": kind, "created": self.created_s, "model": self.model}


@dataclass(frozen=True, kw_only=True)
class CompletionReply(Reply):
    """Of ``/v1/completions``."""

    def _envelope(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        return self._head("cmpl", "text_completion") | {"choices": choices}

    def _text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, notes: Sequence[TokenNote]) -> dict[str, Any]:
        return {
            "tokens": [note.text for note in notes],
            "token_logprobs": [note.logprob for note in notes],
            "top_logprobs": [dict(reversed(note.top)) for note in notes],  # of equal texts the likeliest stays
            "text_offset": [note.offset for note in notes],
        }


@dataclass(frozen=True, kw_only=True)
class ChatReply(Reply):
    """Of ``/v1/chat/completions``."""

    def first(self) -> dict[str, Any]:
        """Who speaks."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return self._envelope([choice], is_chunk=True)

    def _envelope(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        return self._head("chatcmpl", f"chat.completion{'.chunk' if is_chunk else ''}") | {"choices": choices}

    def _text(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, notes: Sequence[TokenNote]) -> dict[str, Any]:
        content = [
            _token(note.text, note.logprob) | {"top_logprobs": [_token(*likely) for likely in note.top]}
            for note in notes
        ]
        return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    is_whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}


def _usage(usage: Usage) -> dict[str, Any]:
    ours = dataclasses.asdict(usage)
    theirs = {name: ours.pop(name) for name in ("prompt_tokens", "completion_tokens")}
    return theirs | {"total_tokens": sum(theirs.values()), "serverlight": ours}


# -- errors ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """An error as the API tells it."""

    status: int
    """Of HTTP."""

    message: str
    """For people."""

    code: str
    """For programs."""

    param: str | None = None
    """The field that is wrong."""

    retry_after_s: int | None = None
    """When to come back."""

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """What is sent beside it."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return headers | ({} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)})


def problem_of(error: Exception) -> Problem:
    """What to tell whoever asked; of an error that is not the package's own no more than its kind.

    >>> problem_of(ServerBusy(retry_after_ms=300)).retry_after_s
    1
    """
    message = str(error)
    match error:
        case ContextExceeded():
            return Problem(status=400, message=message, code="context_length_exceeded")
        case ConfigError():
            return Problem(status=400, message=message, code="invalid_value", param=error.field)
        case ModelError():
            return Problem(status=400, message=message, code="invalid_value", param="messages")
        case ServerBusy():
            after_s = math.ceil(error.retry_after_ms / 1000)
            return Problem(status=429, message=message, code="rate_limit_exceeded", retry_after_s=after_s)
        case PeerUnavailable() | ConnectTimeout() | DeadlineExceeded() | GenerationInterrupted():
            return Problem(status=503, message=message, code="server_unavailable")
        case Unauthenticated() | CertificateMismatch():
            return Problem(
                status=502, message="the device may not use its server; its log says why", code="server_refused"
            )
    return Problem(
        status=500, message=f"{type(error).__name__}; the log of the device says more", code="internal_error"
    )
