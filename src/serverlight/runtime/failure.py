"""Errors that travel: from an exception to the three fields of an Error message, and back."""

from __future__ import annotations

import inspect
import json
from typing import Any

from serverlight import errors
from serverlight.errors import RemoteError, ServerlightError

__all__ = ["describe", "rebuild"]

MAX_MESSAGE_CHARS = 2000
"""An error is read by people; what is longer is cut."""

_KINDS: dict[str, type] = {"int": int, "str": str, "tuple[int, ...]": list, "tuple[str, ...]": list}
"""Types of facts -> what JSON has for them; a fact of another type is left out, since programs act on facts."""

_CLASSES: dict[str, type[ServerlightError]] = {name: getattr(errors, name) for name in errors.__all__}


def describe(error: ServerlightError) -> tuple[str, str, str]:
    """The code, message and attributes (a JSON object) that :func:`rebuild` makes the same error of.

    >>> from serverlight.errors import ServerBusy
    >>> describe(ServerBusy(250))
    ('ServerBusy', 'the server is busy; try again in 250 ms', '{"retry_after_ms": 250}')
    """
    cls = next(c for c in type(error).__mro__ if _CLASSES.get(c.__name__) is c)
    known = {name: value for name, value in vars(error).items() if name in _attributes(cls)}
    return cls.__name__, str(error)[:MAX_MESSAGE_CHARS], json.dumps(known, default=str)


def rebuild(code: str, message: str, attributes_json: str) -> ServerlightError:
    """The error that the other side described; a code that we do not know becomes a :class:`RemoteError`.

    >>> rebuild("ServerBusy", "come back later", '{"retry_after_ms": 250}').retry_after_ms
    250
    """
    cls = _CLASSES.get(code)
    if cls is None:
        return RemoteError(f"{code[:80]}: {message[:MAX_MESSAGE_CHARS]}")
    # The constructors make the message out of the attributes; here both are given.
    error = cls.__new__(cls, message[:MAX_MESSAGE_CHARS])
    expected = _attributes(cls)
    for name, value in _parse(attributes_json).items():
        if name in expected and _fits(value, expected[name]):
            setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error


def _fits(value: Any, annotation: str) -> bool:
    if type(value) is int and abs(value) >> 63:  # no fact of ours, and more than a float holds
        return False
    return type(value) is _KINDS.get(annotation, type(value))


def _attributes(cls: type[ServerlightError]) -> dict[str, str]:
    """The facts that an error carries, and their types, are those of its constructor's parameters."""
    if cls.__init__ is Exception.__init__:
        return {}
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {parameter.name: parameter.annotation for parameter in parameters if parameter.name != "self"}


def _parse(attributes_json: str) -> dict[str, Any]:
    try:
        parsed = json.loads(attributes_json or "{}")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
