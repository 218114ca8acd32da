"""Options that several commands share, as dataclasses: a command takes one as an argument, and typer shows its fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

__all__ = ["takes_options"]


def takes_options(**groups: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the fields of dataclasses as options; each group reaches it as the argument of that name.

    >>> @dataclasses.dataclass
    ... class Size:
    ...     width: int = 80
    >>> @takes_options(size=Size)
    ... def draw(text: str, size: Size) -> None:
    ...     print(text, size)
    >>> draw(text="a box", width=3)
    a box Size(width=3)
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {
                name: group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
                for name, group in groups.items()
            }
            command(**given, **made)

        hints = typing.get_type_hints(command, include_extras=True)
        # Typer reads the signature and the annotations, and shows options in their order.
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            group = groups.get(parameter.name)
            parameters.extend([parameter] if group is None else inspect.signature(group).parameters.values())
            hints |= {} if group is None else typing.get_type_hints(group, include_extras=True)
        run.__annotations__ = {parameter.name: hints[parameter.name] for parameter in parameters}
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        return run

    return decorate
