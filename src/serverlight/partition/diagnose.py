"""Why torch.export could not trace a module, in the words of the model's source."""

from __future__ import annotations

import contextlib
import linecache
import logging
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType

import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

from serverlight.errors import NotExportable

__all__ = ["explain", "shape_log"]

_SHAPE_LOG = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_LIMITS_A_SIZE = re.compile(r"\bs\d+\b.*\[guard added\]")
_OURS = str(pathlib.Path(__file__).parent)
_MACHINERY = (str(pathlib.Path(torch.__file__).parent), str(pathlib.Path(sympy.__file__).parent), logging.__file__, "<")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A line of the model's source, and the modules whose forward it was reached through."""

    path: str
    line: int
    function: str
    modules: tuple[nn.Module, ...]

    def __str__(self) -> str:
        code = linecache.getline(self.path, self.line).strip()
        return f"{self.path}:{self.line} in {self.function}: `{code}`"


def explain(module: nn.Module, failure: Exception, retry: Callable[[], object]) -> NotExportable:
    """The error to raise for a failed trace; ``retry`` repeats the trace where the cause has to be watched for."""
    name = type(module).__name__
    if _concerns_batch(failure):
        place = _find_limited_size(retry)
        message = (
            f"{name} does not take every batch size{_at(place)}; write sizes that follow the batch as x.shape[0] or -1 "
            "and do not branch on them"
        )
    else:
        place = _innermost(traceback.walk_tb(failure.__traceback__))
        if isinstance(failure, GuardOnDataDependentSymNode):
            message = (
                f"{name} branches on the values of a tensor{_at(place)}; a cut model needs the same operations for "
                "every input: choose with torch.where instead"
            )
        else:
            message = f"{name} cannot be traced{_at(place)} ({_summary(failure)}); use tensor operations instead"
    return NotExportable(f"{message}, or partition a submodule that does not contain it{_suggestion(module, place)}")


def _at(place: _Place | None) -> str:
    return f" because of {place}" if place else ""


def _suggestion(module: nn.Module, place: _Place | None) -> str:
    """Names a child that holds parameters and is not on the way to the place."""
    avoid = place.modules if place else ()
    for path, child in module.named_children():
        if not any(child is other for other in avoid) and any(True for _ in child.parameters()):
            return f", such as {path!r}"
    return ""


def _summary(failure: Exception) -> str:
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0][:200]}" if text else type(failure).__name__


def _concerns_batch(failure: Exception) -> bool:
    return isinstance(failure, ConstraintViolationError) or isinstance(failure.__context__, ConstraintViolationError)


def _find_limited_size(retry: Callable[[], object]) -> _Place | None:
    """Repeats the trace and notes the first line that makes the shape solver limit the batch, or fix it."""
    watcher = _Watcher()
    with shape_log(watcher, logging.INFO), contextlib.suppress(Exception):
        retry()
    return watcher.places[0] if watcher.places else None


@contextlib.contextmanager
def shape_log(handler: logging.Handler, level: int) -> Iterator[None]:
    """Sends the shape solver's log to one handler and nowhere else."""
    before = _SHAPE_LOG.handlers, _SHAPE_LOG.level, _SHAPE_LOG.propagate
    _SHAPE_LOG.handlers, _SHAPE_LOG.propagate = [handler], False
    _SHAPE_LOG.setLevel(level)
    try:
        yield
    finally:
        _SHAPE_LOG.handlers, level, _SHAPE_LOG.propagate = before
        _SHAPE_LOG.setLevel(level)


class _Watcher(logging.Handler):
    """Notes the model's line whenever the log says that a size was limited."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[_Place] = []

    def emit(self, record: logging.LogRecord) -> None:
        if _LIMITS_A_SIZE.search(record.getMessage()):
            callers = list(traceback.walk_stack(sys._getframe(1)))
            if place := _innermost(reversed(callers)):
                self.places.append(place)


def _innermost(frames: Iterable[tuple[FrameType, int]]) -> _Place | None:
    """The deepest line of the model, given frames from the outermost on; what called this package does not count."""
    place = None
    modules: tuple[nn.Module, ...] = ()
    for frame, line in frames:
        path = frame.f_code.co_filename
        if path.startswith(_OURS):
            place, modules = None, ()
        elif not path.startswith(_MACHINERY):
            owner = frame.f_locals.get("self")
            modules = (*modules, owner) if isinstance(owner, nn.Module) else modules
            place = _Place(path=path, line=line, function=frame.f_code.co_name, modules=modules)
    return place
