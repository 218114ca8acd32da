"""Makes Markdown of docstrings for the reference page: doctests become code blocks, roles become plain names."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
DOCTEST = re.compile(r"^(?P<indent> *)>>> .*\n?(?:(?P=indent)\S.*\n?)*", re.MULTILINE)


def to_markdown(docstring: str) -> str:
    """Rewrites one docstring."""
    text = ROLE.sub(r"`\1`", docstring)
    return DOCTEST.sub(_fence, text)


def _fence(match: re.Match[str]) -> str:
    indent = match["indent"]
    return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"


class MarkdownDocstrings(griffe.Extension):
    """Applies :func:`to_markdown` to every docstring that is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object once it is known."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
