"""What a server is made of, in plain values, so that another process can make the same one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serverlight.apps.options import read_dtype
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.faults import FaultPlan
    from serverlight.generation import LoadedDecoder
    from serverlight.models import LoadedModel
    from serverlight.runtime import Server, ServerConfig
    from serverlight.runtime.security import Security

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The server that ``serverlight serve`` is asked for."""

    model: str
    """As the user wrote it."""

    cuts: tuple[str, ...] = ()
    """Those of the plan where there is one; none: every one where a device may cut."""

    plan: str | None = None
    """File with the plan that clients must have."""

    basis: str | None = None
    """File with the basis that clients of all cuts may send features in."""

    return_cut: str | None = None
    """Second cut of a language model; by default the plan's."""

    dtype: str = "auto"
    """Numbers of a language model's weights."""

    threads: int = 1
    """Threads that PyTorch may use, for the whole process."""

    config: ServerConfig | None = None
    """Limits; by default the server's own."""

    security: Security | None = None
    """Who may connect; by default whoever reaches loopback. Its files must lie where the server runs."""

    faults: FaultPlan | None = None
    """What its streams shall suffer, for drills."""

    def make(self, host: str, port: int) -> Server:
        """Loads the model and makes the server, which does not listen yet.

        Raises:
            ConfigError: the files or settings do not fit each other, or the model.
            ModelError: the model cannot be found.
            PlanMismatch: the plan is for another model or other weights.
            CutNotFound: the model has no such cut.
        """
        import torch

        from serverlight.codec import Basis
        from serverlight.plan import Plan
        from serverlight.runtime import Server

        numbers = read_dtype(self.dtype)
        agreed = Plan.load(self.plan) if self.plan else None
        torch.set_num_threads(self.threads)
        cuts = [agreed.cut] if agreed else list(self.cuts)
        return_cut = self.return_cut or (agreed.return_cut if agreed else None)
        cuts = cuts or every_cut(self.model)
        loaded = _load(self.model, cuts, return_cut, numbers)
        if agreed:
            dataclasses.replace(agreed, model=loaded.name, revision=loaded.revision).check_compatible(agreed)
        codec = agreed.codec if agreed else None
        turned = Basis.load(self.basis) if self.basis else None
        if agreed:
            agreed.check_basis(turned)
        bases = dict.fromkeys(cuts, turned) if turned else {}
        return Server(
            loaded,
            cuts,
            codec=codec,
            bases=bases,
            host=host,
            port=port,
            config=self.config,
            security=self.security,
            faults=self.faults,
        )


def _load(spec: str, cuts: list[str], return_cut: str | None, dtype: Any) -> LoadedModel | LoadedDecoder:
    from serverlight.models import is_language_model, load_model

    if not is_language_model(spec):
        for name, value in {"return_cut": return_cut, "dtype": dtype}.items():
            if value is not None:
                raise ConfigError(name, f"is for language models, and {spec!r} is none; leave it away")
        return load_model(spec)
    from serverlight.generation import LoadedDecoder, layer_of  # brings transformers, which takes seconds

    first = min(cuts, key=layer_of)
    if return_cut:
        return LoadedDecoder.middle(spec, first, return_cut, dtype=dtype)
    return LoadedDecoder.tail(spec, first, dtype=dtype)


def every_cut(spec: str) -> list[str]:
    """Where `serverlight search` may cut a model, the output aside; raises :class:`ModelError`."""
    from serverlight.models import is_language_model, load_model
    from serverlight.partition import partition
    from serverlight.partition.names import OUTPUT

    if is_language_model(spec):
        from serverlight.huggingface import SETTINGS_FILES, find_folder, read_config

        config = read_config(spec, find_folder(spec, SETTINGS_FILES))
        return [f"layers.{layer}" for layer in range(config.get_text_config().num_hidden_layers + 1)]
    from serverlight.search.single_shot import candidate_cuts

    loaded = load_model(spec)
    return [cut.name for cut in candidate_cuts(partition(loaded.module, loaded.example_inputs)) if cut.name != OUTPUT]
