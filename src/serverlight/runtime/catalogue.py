"""Which models a server has, which are loaded, and which make room for others: a plain state machine; the clock is an argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from serverlight.codec.config import CodecConfig
from serverlight.errors import ConfigError, ModelLoading, PlanMismatch, RemoteError, ServerBusy
from serverlight.plan import Plan, model_key

if TYPE_CHECKING:
    from serverlight.runtime.messages import OpenSession
    from serverlight.runtime.scheduler import Answer, Job
    from serverlight.runtime.sessions import Session

__all__ = ["Catalogue", "Engine", "Offer", "Runner"]

_COME_BACK_MS = 500
"""When to ask again for a model that is being loaded."""

_FULL_RETRY_MS = 2_000
"""When to ask again for one that has no room beside those in use."""

_FAILED_S = 30.0
"""How long a model that could not be loaded is not tried again."""


class Runner(Protocol):
    """What the compute thread calls; :class:`serverlight.runtime.worker.Worker` is one."""

    def prepare(self, job: Job) -> None:
        """Is called while nothing else is to do, for a job that waits for others to join it; does not raise."""

    def run(self, jobs: Sequence[Job], *, is_shared: bool) -> Iterator[tuple[Job, Answer]]:
        """Runs requests together and gives out each one's answer as soon as it is there; an error is the request's own.

        ``is_shared`` says that other clients have work, too: then nothing should keep the thread for long.
        """

    def open_session(self, plan: Plan, opened: OpenSession) -> Session:
        """Begins a sequence; raises :class:`ProtocolError` where the model is no language model."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Engine:
    """One model that is loaded, and what runs it."""

    plans: Mapping[str, Plan]
    """One for each cut that is served; all name the model."""

    runner: Runner
    """Runs its requests, on the compute thread."""

    codec: CodecConfig | None = None
    """If given, clients must use exactly these settings; otherwise any, since a frame describes itself."""

    head_shares: Mapping[str, float] = field(default_factory=dict)
    """By cut the device's part of the whole model's work, where it is known."""

    num_bytes: int = 0
    """Of its weights."""

    most_bytes: Mapping[str, int] = field(default_factory=dict)
    """By cut the largest message that can have a meaning there, where that is known: larger ones are not even read."""

    @property
    def model(self) -> str:
        """Its name, as the plans have it."""
        return next(iter(self.plans.values())).model

    def agree(self, plan: Plan) -> None:
        """Raises :class:`PlanMismatch`, worded for the client, unless its plan is one of these."""
        anyones = next(iter(self.plans.values()))
        plan.check_compatible(self.plans.get(plan.cut, dataclasses.replace(anyones, cut=plan.cut)))
        if plan.cut not in self.plans:
            raise PlanMismatch("cut", plan.cut, ", ".join(self.plans))
        for setting in dataclasses.fields(CodecConfig) if self.codec else ():
            ours, theirs = getattr(plan.codec, setting.name), getattr(self.codec, setting.name)
            if ours != theirs:
                raise PlanMismatch(f"codec.{setting.name}", ours, theirs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A model that a server can load."""

    name: str
    """As the user wrote it; clients know it by what stands behind its last slash."""

    load: Callable[[], Engine]
    """Takes seconds, and may raise anything."""

    num_bytes: int = 0
    """Of its weights, as far as that is known beforehand."""


@dataclass(kw_only=True, slots=True)
class _Entry:
    offer: Offer
    num_bytes: int
    engine: Engine | None = None
    num_streams: int = 0
    used_s: float = 0.0
    failed_s: float | None = None


class Catalogue:
    """Models by name. Those that nobody uses make room for others, the one first that was used longest ago.

    Args:
        offers: the models; none is loaded yet.
        memory_bytes: what the weights of all that are loaded may take; by default anything.
        keep_s: how long a model stays at least when its last client has left, and when it was loaded, so that the client
            that asked for it finds it.

    Raises :class:`ConfigError` where clients could not tell two models apart.
    """

    def __init__(self, offers: Sequence[Offer], *, memory_bytes: int | None = None, keep_s: float = 5.0) -> None:
        self._memory_bytes, self._keep_s = memory_bytes, keep_s
        self.tells_names = True  # to a client that asks for another model
        self._entries: dict[str, _Entry] = {}
        self._wanted: list[str] = []  # the first is next, or is being loaded
        for offer in offers:
            if (key := model_key(offer.name)) in self._entries:
                raise ConfigError("model", f"{key!r} is there twice, and clients know models by that name; rename one")
            self._entries[key] = _Entry(offer=offer, num_bytes=offer.num_bytes)

    @classmethod
    def of(cls, engine: Engine) -> Catalogue:
        """One model, which is loaded."""
        offer = Offer(name=engine.model, load=lambda: engine, num_bytes=engine.num_bytes)
        catalogue = cls([offer])
        catalogue.add(offer, engine, now_s=0.0)
        return catalogue

    @property
    def offers(self) -> tuple[Offer, ...]:
        """All models."""
        return tuple(entry.offer for entry in self._entries.values())

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Those that are loaded."""
        return tuple(entry.engine for entry in self._entries.values() if entry.engine is not None)

    @property
    def state(self) -> list[tuple[str, Engine | None]]:
        """Each model's name, and the model itself where it is loaded."""
        return [(entry.offer.name, entry.engine) for entry in self._entries.values()]

    @property
    def num_bytes(self) -> int:
        """Weights of those that are loaded."""
        return sum(engine.num_bytes for engine in self.engines)

    def load_all(self, on_loaded: Callable[[Engine], None] = lambda engine: None) -> None:
        """Loads all models here and now; raises what loading raises, and :class:`ConfigError` where they do not fit."""
        for offer in self.offers:
            engine = offer.load()
            if self._memory_bytes is not None and self.num_bytes + engine.num_bytes > self._memory_bytes:
                need, have = self.num_bytes + engine.num_bytes, self._memory_bytes
                raise ConfigError(
                    "memory",
                    f"the weights up to {offer.name!r} take {need / 2**20:.1f} MiB, and there are {have / 2**20:.1f}; "
                    "allow more, serve fewer models, or load them on demand",
                )
            self.add(offer, engine, now_s=0.0)
            on_loaded(engine)

    # -- streams ---------------------------------------------------------------------------------

    def hold(self, model: str, now_s: float) -> Engine:
        """The model for one stream more, which keeps it until :meth:`release`.

        Raises:
            PlanMismatch: there is no such model.
            ModelLoading: it is not loaded; from now on it is wanted.
            ServerBusy: it is not loaded, and those that are in use leave no room for it.
            RemoteError: it cannot be loaded.
        """
        if (entry := self._entries.get(model_key(model))) is None:
            names = ", ".join(offer.name for offer in self.offers)
            raise PlanMismatch("model", model, names if self.tells_names else "no model of that name")
        if entry.engine is None:
            self._want(entry, now_s)
            raise ModelLoading(_COME_BACK_MS)
        entry.num_streams, entry.used_s = entry.num_streams + 1, now_s
        return entry.engine

    def release(self, engine: Engine, now_s: float) -> None:
        """A stream is gone."""
        entry = next(entry for entry in self._entries.values() if entry.engine is engine)
        entry.num_streams, entry.used_s = entry.num_streams - 1, now_s

    def _want(self, entry: _Entry, now_s: float) -> None:
        name = entry.offer.name
        if (key := model_key(name)) in self._wanted:
            return
        if entry.failed_s is not None and now_s - entry.failed_s < _FAILED_S:
            raise RemoteError(f"the server could not load {key!r}; its log says why")
        if self._memory_bytes is not None and entry.num_bytes > self._memory_bytes:
            raise RemoteError(f"{key!r} does not fit into the memory that the server has for models; allow it more")
        if self._unused(entry.num_bytes, now_s) is None:
            raise ServerBusy(_FULL_RETRY_MS)
        self._wanted.append(key)

    # -- loading ---------------------------------------------------------------------------------

    def begin(self, now_s: float) -> Offer | None:
        """The model to load next, for which room has been made; ``None`` where none is wanted."""
        while self._wanted:
            entry = self._entries[self._wanted[0]]
            if self._make_room(entry.num_bytes, now_s):
                return entry.offer
            del self._wanted[0]  # its room went to another; the next client that asks is told
        return None

    def add(self, offer: Offer, engine: Engine, now_s: float) -> bool:
        """A model has been loaded. Where it is larger than was known and there is no room, it is not taken: ``False``."""
        entry = self._entries[key := model_key(offer.name)]
        self._wanted = [other for other in self._wanted if other != key]
        entry.num_bytes, entry.used_s, entry.failed_s = engine.num_bytes, now_s, None
        if self._make_room(engine.num_bytes, now_s):
            entry.engine = engine
        return entry.engine is engine

    def fail(self, offer: Offer, now_s: float) -> None:
        """A model could not be loaded."""
        key = model_key(offer.name)
        self._wanted = [other for other in self._wanted if other != key]
        self._entries[key].failed_s = now_s

    def _make_room(self, num_bytes: int, now_s: float) -> bool:
        if (unused := self._unused(num_bytes, now_s)) is None:
            return False
        for entry in unused:
            entry.engine = None
        return True

    def _unused(self, num_bytes: int, now_s: float) -> list[_Entry] | None:
        """What has to go for so many bytes; ``None`` where all that may go is not enough."""
        missing, chosen = self.num_bytes + num_bytes - (self._memory_bytes or 0), list[_Entry]()
        if self._memory_bytes is None:
            return chosen
        for entry in sorted(self._entries.values(), key=lambda entry: entry.used_s):
            if missing > 0 and entry.engine and not entry.num_streams and now_s - entry.used_s >= self._keep_s:
                chosen.append(entry)
                missing -= entry.engine.num_bytes
        return None if missing > 0 else chosen
