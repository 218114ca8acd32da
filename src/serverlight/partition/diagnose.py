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

__all__ = ["explain"]

_SHAPES_LOG = "torch.fx.experimental.symbolic_shapes"
_FIXES_A_SIZE = re.compile(r"set_replacement s\d+ = \d+|eval Eq\([^,]*\bs\d+, \d+\) ")
_OURS = str(pathlib.Path(__file__).parent)
_MACHINERY = (str(pathlib.Path(torch.__file__).parent), str(pathlib.Path(sympy.__file__).parent), logging.__file__, "<")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A line of source."""

    path: str
    line: int
    function: str

    def __str__(self) -> str:
        code = linecache.getline(self.path, self.line).strip()
        return f"{self.path}:{self.line} in {self.function}: `{code}`"


def explain(module: nn.Module, failure: Exception, retry: Callable[[], object]) -> NotExportable:
    """The error to raise for a failed trace; ``retry`` repeats the trace where the cause has to be watched for."""
    name = type(module).__name__
    elsewhere = f"or partition a submodule that does not contain it{_example(module)}"
    if _fixes_batch(failure):
        place = _find_fixed_size(retry)
        where = f" at {place}" if place else ""
        return NotExportable(
            f"{name} works for one batch size only: it is fixed{where}; write sizes that follow the batch as "
            f"x.shape[0] or -1 and do not branch on them, {elsewhere}"
        )
    place = _innermost(traceback.walk_tb(failure.__traceback__))
    where = f" at {place}" if place else ""
    if isinstance(failure, GuardOnDataDependentSymNode):
        return NotExportable(
            f"{name} branches on the values of a tensor{where}; a cut model needs the same operations for every "
            f"input: select with torch.where instead, {elsewhere}"
        )
    return NotExportable(
        f"{name} cannot be traced{where} ({_summary(failure)}); rewrite the line with tensor operations, {elsewhere}"
    )


def _example(module: nn.Module) -> str:
    children = [path for path, child in module.named_children() if any(True for _ in child.parameters())]
    return f", for instance its {children[0]!r}" if children else ""


def _summary(failure: Exception) -> str:
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0][:200]}" if text else type(failure).__name__


def _fixes_batch(failure: BaseException) -> bool:
    chain = (failure, failure.__cause__, failure.__context__)
    return any(isinstance(exc, ConstraintViolationError) for exc in chain)


def _find_fixed_size(retry: Callable[[], object]) -> _Place | None:
    """Repeats the trace and notes which line makes the shape solver replace a free size by a number."""
    with _watching() as places, contextlib.suppress(Exception):
        retry()
    return places[0] if places else None


@contextlib.contextmanager
def _watching() -> Iterator[list[_Place]]:
    log = logging.getLogger(_SHAPES_LOG)
    watcher = _Watcher()
    level, propagate = log.level, log.propagate
    log.addHandler(watcher)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield watcher.places
    finally:
        log.removeHandler(watcher)
        log.setLevel(level)
        log.propagate = propagate


class _Watcher(logging.Handler):
    """Notes the model's line whenever a log record says that a size was fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[_Place] = []

    def emit(self, record: logging.LogRecord) -> None:
        if _FIXES_A_SIZE.search(record.getMessage()):
            callers = list(traceback.walk_stack(sys._getframe(1)))
            if place := _innermost(reversed(callers)):
                self.places.append(place)


def _innermost(frames: Iterable[tuple[FrameType, int]]) -> _Place | None:
    """The deepest line of the model, given frames from the outermost on; what called this package does not count."""
    place = None
    for frame, line in frames:
        path = frame.f_code.co_filename
        if path.startswith(_OURS):
            place = None
        elif not path.startswith(_MACHINERY):
            place = _Place(path=path, line=line, function=frame.f_code.co_name)
    return place
