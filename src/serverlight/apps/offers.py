"""The models that ``serverlight serve A B`` offers, and what they may take."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from serverlight.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch

    from serverlight.runtime.catalogue import Catalogue, Engine

__all__ = ["as_one", "check_cuts", "cuts_of", "first_layer", "read_memory", "weight_bytes", "what_is_served"]

_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def read_memory(text: str | None) -> int | None:
    """Bytes, from what the user wrote; raises :class:`ConfigError`.

    >>> read_memory("1.5GiB")
    1610612736
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]ib)\s*", text.lower())
    if found is None or not float(found[1]):
        raise ConfigError("memory", f"cannot read {text!r}; write it like 512MiB or 8GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def cuts_of(model: str, cuts: Sequence[str]) -> tuple[str, ...] | None:
    """Which of ``--cut`` are this model's: a bare name is every model's, ``MODEL=NAME`` only that one's; ``None`` for all.

    >>> cuts_of("a", ["a=layer1", "b=layer2"]), cuts_of("c", ["a=layer1"])
    (('layer1',), None)
    """
    pairs = [cut.rpartition("=") for cut in cuts]
    return tuple(name for whose, _, name in pairs if whose in ("", model)) or None


def check_cuts(models: Collection[str], cuts: Sequence[str]) -> None:
    """Raises :class:`ConfigError` for the cut of a model that is not served."""
    for whose in (cut.rpartition("=")[0] for cut in cuts):
        if whose and whose not in models:
            raise ConfigError("cut", f"{whose!r} is not among the models; write MODEL=NAME as it stands before --cut")


def weight_bytes(model: str, cuts: Sequence[str] | None, dtype: torch.dtype | None = None) -> int:
    """Bytes of a model's weights at most, as far as its files tell; raises :class:`ModelError` where there are none."""
    from serverlight.models import is_language_model

    if is_language_model(model):
        from serverlight.partition.stored import stored_bytes

        return stored_bytes(model, first_layer(cuts), finishes=True, dtype=dtype)
    return _file_bytes(model)


def first_layer(cuts: Sequence[str] | None) -> int:
    """The first layer that the server runs of a language model."""
    from serverlight.generation import layer_of

    return min(map(layer_of, cuts)) if cuts else 0


def _file_bytes(model: str) -> int:
    from serverlight.models.demo_vision import DEMO_VISION
    from serverlight.models.importing import is_import_spec

    path = pathlib.Path(model).expanduser()
    if path.is_file():
        return path.stat().st_size
    if model == DEMO_VISION or (is_import_spec(model) and not path.exists()):
        return 0  # found out when it is loaded
    if model.startswith("demo-") or path.suffix == ".safetensors":
        raise ModelError(f"no model {model!r}; check the name, or the path")
    from serverlight.huggingface import SETTINGS_FILES, find_folder

    return sum(file.stat().st_size for file in find_folder(model, SETTINGS_FILES).glob("*.safetensors"))


def what_is_served(catalogue: Catalogue) -> list[dict[str, Any]]:
    """A row for each model: its name, and where it is loaded revision and cuts."""
    return [{"model": name, **_facts(engine)} for name, engine in catalogue.state]


def as_one(served: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of several models in the shape of one, for the dashboard's head; a single one as it is."""
    if len(served) == 1:
        return served[0]
    revisions = ", ".join(row["revision"] or "not loaded" for row in served)
    names = ", ".join(row["model"] for row in served)
    return {"model": names, "revision": revisions, "cuts": [], "num_models": len(served)}


def _facts(engine: Engine | None) -> dict[str, Any]:
    if engine is None:
        return {"revision": None, "cuts": []}
    plans = engine.plans.values()
    return {"revision": next(iter(plans)).revision, "cuts": [plan.cut for plan in plans]}
