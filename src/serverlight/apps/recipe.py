"""What a server is made of, in plain values, so that another process can make the same one."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serverlight.apps.offers import check_cuts, cuts_of, first_layer, weight_bytes
from serverlight.apps.options import read_dtype
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.faults import FaultPlan
    from serverlight.generation import LoadedDecoder
    from serverlight.models import LoadedModel
    from serverlight.runtime import Server, ServerConfig
    from serverlight.runtime.catalogue import Engine, Offer
    from serverlight.runtime.security import Security

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The server that ``serverlight serve`` is asked for."""

    model: str
    """As the user wrote it."""

    cuts: tuple[str, ...] = ()
    """Those of the plan where there is one; without any, all that the model offers."""

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

    others: tuple[str, ...] = ()
    """Further models. Cuts are then every model's, or one's where they are written ``MODEL=NAME``."""

    preload: bool = False
    """Whether all models are loaded before the server starts; one alone always is, several otherwise when they are asked for."""

    memory_bytes: int | None = None
    """What weights may take, and the keys and values of sequences; by default anything."""

    def make(self, host: str, port: int) -> Server:
        """Loads the models that are to be there from the start, and makes the server, which does not listen yet.

        Raises:
            ConfigError: the files or settings do not fit each other, or the model; or there is no memory for it.
            ModelError: the model cannot be found.
            PlanMismatch: the plan is for another model or other weights.
            CutNotFound: the model has no such cut.
        """
        import torch

        from serverlight.runtime import Server
        from serverlight.runtime.catalogue import Catalogue
        from serverlight.runtime.memory import keep_freed_memory

        keep_freed_memory()
        read_dtype(self.dtype)
        torch.set_num_threads(self.threads)
        catalogue = Catalogue(self._offers(), memory_bytes=self._bytes_for_weights())
        if self.preload or not self.others:
            catalogue.load_all()
        return Server(catalogue, host=host, port=port, config=self.config, security=self.security, faults=self.faults)

    def _offers(self) -> list[Offer]:
        from serverlight.runtime.catalogue import Offer

        models = (self.model, *self.others)
        check_cuts(models, self.cuts if self.others else ())
        if not self.others:
            return [Offer(name=self.model, load=lambda: self._load(self.model))]
        for name, value in {"plan": self.plan, "basis": self.basis, "return_cut": self.return_cut}.items():
            if value is not None:
                raise ConfigError(name, "is for one model; serve the others from another server, or leave it away")
        return [Offer(name=m, load=functools.partial(self._load, m), num_bytes=self._weight_bytes(m)) for m in models]

    def _weight_bytes(self, model: str) -> int:
        return weight_bytes(model, self._cuts_of(model), read_dtype(self.dtype))

    def _bytes_for_weights(self) -> int | None:
        """What keys and values leave, of which all is set aside for them where there is a language model."""
        from serverlight.models import is_language_model
        from serverlight.runtime import ServerConfig

        if self.memory_bytes is None:
            return None
        kv_bytes = (self.config or ServerConfig()).max_kv_bytes
        left = self.memory_bytes - (kv_bytes if any(map(is_language_model, (self.model, *self.others))) else 0)
        if left <= 0:
            raise ConfigError(
                "memory",
                f"keys and values may take {kv_bytes / 2**20:g} MiB (--kv-memory), which leaves nothing for weights; "
                "allow more, or fewer of these",
            )
        return left

    def _cuts_of(self, model: str) -> tuple[str, ...] | None:
        return cuts_of(model, self.cuts) if self.others else self.cuts or None

    def _load(self, model: str) -> Engine:
        from serverlight.codec import Basis
        from serverlight.plan import Plan
        from serverlight.runtime.assemble import make_engine

        agreed = Plan.load(self.plan) if self.plan else None
        cuts = (agreed.cut,) if agreed else self._cuts_of(model)
        return_cut = self.return_cut or (agreed.return_cut if agreed else None)
        loaded = self._load_part(model, cuts, return_cut)
        turned = Basis.load(self.basis) if self.basis else None
        if agreed:
            dataclasses.replace(agreed, model=loaded.name, revision=loaded.revision).check_compatible(agreed)
            agreed.check_basis(turned)
        bases = dict.fromkeys(cuts or (), turned) if turned else {}
        return make_engine(loaded, cuts, codec=agreed.codec if agreed else None, bases=bases, config=self.config)

    def _load_part(
        self, model: str, cuts: tuple[str, ...] | None, return_cut: str | None
    ) -> LoadedModel | LoadedDecoder:
        from serverlight.models import is_language_model, load_model

        dtype = read_dtype(self.dtype)
        if not is_language_model(model):
            for name, value in {"return_cut": return_cut, "dtype": None if self.others else dtype}.items():
                if value is not None:
                    raise ConfigError(name, f"is for language models, and {model!r} is none; leave it away")
            return load_model(model)
        from serverlight.generation import LoadedDecoder  # brings transformers, which takes seconds

        first = f"layers.{first_layer(cuts)}"
        if return_cut:
            return LoadedDecoder.middle(model, first, return_cut, dtype=dtype)
        if first == "layers.0":  # devices that cut there may send token ids
            return LoadedDecoder.whole(model, dtype=dtype)
        return LoadedDecoder.tail(model, first, dtype=dtype)
