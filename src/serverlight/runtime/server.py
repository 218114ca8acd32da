"""The server: start, serve until stopped, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from serverlight.codec import Basis, CodecConfig, warm_up
from serverlight.faults import FaultPlan
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.runtime.assemble import make_engine
from serverlight.runtime.catalogue import Catalogue
from serverlight.runtime.core import ServerConfig, ServerCore
from serverlight.runtime.grpc_transport import GrpcServer
from serverlight.runtime.health import Health, watch_over
from serverlight.runtime.injection import InjectingServer
from serverlight.runtime.loops import run_on_loop
from serverlight.runtime.quotas import Quotas
from serverlight.runtime.security import Security

if TYPE_CHECKING:
    from serverlight.generation import LoadedDecoder

__all__ = ["Server", "make_core"]

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 1.0
"""Time for replies that are written to leave the machine when the server stops."""


def make_core(
    model: LoadedModel | LoadedDecoder,
    cuts: Sequence[str],
    *,
    codec: CodecConfig | None = None,
    bases: Mapping[str, Basis] | None = None,
    config: ServerConfig | None = None,
    parts: Partition | None = None,
    quotas: Quotas | None = None,
) -> ServerCore:
    """A server without a socket, for :class:`~serverlight.runtime.transport.InProcessTransport`; the arguments are
    :class:`Server`'s.
    """
    engine = make_engine(model, cuts, codec=codec, bases=bases, config=config, parts=parts)
    return ServerCore(Catalogue.of(engine), config=config, quotas=quotas)


class Server:
    """Runs the tails of a model, or of several, for many clients.

    A context manager for notebooks and tests; ``serve_until_stopped`` for a process of its own.

    Args:
        model: what to serve; of a language model its tail, or the middle for devices with both ends. Or a catalogue of
            models, which has what ``cuts``, ``codec``, ``bases`` and ``parts`` say of one.
        cuts: names of the cuts at which clients may have cut it.
        codec: if given, clients must use exactly these settings; otherwise each may choose its own.
        bases: the basis of each cut that has one; clients may send frames under it.
        host: where to listen; loopback unless told otherwise, and elsewhere only with ``security``.
        port: where to listen; 0 for any free port.
        config: limits.
        parts: the model's partition, if it has been made already.
        security: who may connect, and how.
        faults: what its streams shall suffer, for drills.

    Raises:
        ConfigError: others can reach ``host``, and ``security`` does not keep them out.
        CutNotFound: the model has no such cut.
        NotExportable: the model cannot be cut at all.
    """

    def __init__(
        self,
        model: LoadedModel | LoadedDecoder | Catalogue,
        cuts: Sequence[str] = (),
        *,
        codec: CodecConfig | None = None,
        bases: Mapping[str, Basis] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        config: ServerConfig | None = None,
        parts: Partition | None = None,
        security: Security | None = None,
        faults: FaultPlan | None = None,
    ) -> None:
        self._security = security or Security()
        self._security.check_host(host)
        self._tokens = self._security.read_tokens()
        quotas = Quotas(self._tokens.quota_of if self._tokens else None)
        if not isinstance(model, Catalogue):
            model = Catalogue.of(make_engine(model, cuts, codec=codec, bases=bases, config=config, parts=parts))
        warm_up()  # before the loading thread traces anything: that replaces functions that Numba looks up
        model.tells_names = self._tokens is None
        self._core = ServerCore(model, config=config, quotas=quotas)
        self._open_to = InjectingServer(self._core, faults) if faults else self._core
        self._host, self._port = host, port
        self._thread = threading.Thread(target=self._serve, name="serverlight-server", daemon=True)
        self._started: Future[None] = Future()
        self._is_running = False
        self._health = Health.OK

    @property
    def address(self) -> str:
        """``HOST:PORT`` for clients; the true port once started."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def core(self) -> ServerCore:
        """The server without its socket; it tells how much is waiting."""
        return self._core

    @property
    def health(self) -> Health:
        """Whether the compute thread lives and gets on, as it was found half a second ago at most."""
        return self._health

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken; not while it drains, nor when it is not healthy."""
        return self._is_running and self._health is Health.OK

    def start(self) -> Self:
        """Listens, and returns when clients can connect; raises :class:`AddressInUse`."""
        self._thread.start()
        self._started.result()
        self._core.start()
        self._is_running = True
        return self

    def serve_until_stopped(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. To be called on the main thread."""
        stopped = threading.Event()

        def stop(signum: int, _: FrameType | None) -> None:
            _log.info("%s: finishing what was accepted", signal.Signals(signum).name)
            stopped.set()

        previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            if not self._is_running:
                self.start()
            stopped.wait()
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)  # a second signal ends the process at once
            self.drain()

    def drain(self, timeout_s: float | None = None) -> int:
        """Stops well: health says NOT_SERVING, accepted requests finish (within ``timeout_s``, or the config's
        ``drain_s``), streams end, the socket closes. Returns how many requests were given up.
        """
        if not self._is_running:
            return 0
        self._is_running = False
        self._on_loop(self._grpc.set_serving(False))
        given_up = self._core.drain(self._core.config.drain_s if timeout_s is None else timeout_s)
        self._on_loop(self._grpc.stop(_LAST_WORDS_S))
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._core.stop()
        if given_up:
            _log.warning("gave up %d requests when the time to drain was over", given_up)
        return given_up

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drain()

    def _serve(self) -> None:
        run_on_loop(self._serve_on_loop())

    async def _serve_on_loop(self) -> None:
        config = self._core.config
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._grpc = GrpcServer(
            self._open_to,
            max_message_bytes=config.max_message_bytes,
            max_in_flight=config.max_in_flight,
            hello_timeout_s=config.hello_timeout_s,
            security=self._security,
            tokens=self._tokens,
        )
        try:
            self._port = await self._grpc.start(self._host, self._port)
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        await watch_over(self._core, stall_s=config.stall_s, on_change=self._on_health, until=self._stopping)

    async def _on_health(self, health: Health) -> None:
        self._health = health
        await self._grpc.set_serving(self.is_ready)

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
