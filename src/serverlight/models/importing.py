"""Models of the user's own, named as ``package.module:function``."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from serverlight.errors import ModelError
from serverlight.models.loaded import LoadedModel

__all__ = ["import_model", "is_import_spec"]

SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_import_spec(spec: str) -> bool:
    """Whether the spec reads as ``package.module:function``.

    >>> is_import_spec("shop.models:make_detector"), is_import_spec("google/vit-base-patch16-224")
    (True, False)
    """
    return SPEC.fullmatch(spec) is not None


def import_model(spec: str) -> LoadedModel:
    """Imports the module and calls the function without arguments.

    The function returns ``(module, example_inputs)``, a :class:`torch.nn.Module` and inputs of batch 2 for it, or a
    :class:`LoadedModel`. Raises :class:`ModelError` when the module or the function is not there or returns something
    else; what the user's own code raises is passed on as it is.
    """
    function = _find(spec)
    with contextlib.suppress(ValueError):  # some built-in functions have no signature to check
        _check_takes_nothing(spec, function)
    result = function()
    if isinstance(result, LoadedModel):
        return dataclasses.replace(result, name=spec)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module):
        return LoadedModel.of(spec, result[0], result[1])
    got = type(result).__name__
    raise ModelError(f"{spec} returned {got}; return (module, example_inputs) or a serverlight.models.LoadedModel")


def _find(spec: str) -> Callable[[], Any]:
    module_name, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name != module_name and not module_name.startswith(f"{exc.name}."):
            raise  # the module is there, and something that it imports is not
        raise ModelError(
            f"no module {exc.name!r} for model {spec!r}; install it, or put its folder on PYTHONPATH"
        ) from None
    for name in path.split("."):
        if not hasattr(found, name):
            raise ModelError(f"module {module_name!r} has no {path!r}; check the part after the colon")
        found = getattr(found, name)
    if not callable(found) or isinstance(found, nn.Module):
        raise ModelError(
            f"{spec} is {type(found).__name__}, not a function; wrap it: def {path}(): return module, inputs"
        )
    function: Callable[[], Any] = found
    return function


def _check_takes_nothing(spec: str, function: Callable[[], Any]) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError as exc:
        raise ModelError(f"{spec} needs arguments ({exc}); give a function that is called without any") from None
