"""Many servers of one model under Ray Serve; the only file that imports ray.

Ray holds the reins and carries no data: it starts replicas, asks whether they are well, adds and removes some. Each
replica is a whole :class:`~serverlight.runtime.Server` with a port of its own. Clients ask the directory for its
address, and then speak to it directly. What brings PyTorch is imported where it is used: the directory does without.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray import serve
from ray.serve import exceptions
from starlette.requests import Request
from starlette.responses import JSONResponse

from serverlight.apps.recipe import Recipe
from serverlight.apps.replicas import load_of, rank, read_ports
from serverlight.errors import AddressInUse, ConfigError, ModelError, PeerUnavailable

__all__ = ["Cluster", "Directory", "Replica", "Scale", "build"]

APP = "serverlight"

_ANSWER_S = 0.25
"""How long the directory gives the same answer: many devices that come back at once are one question to the replicas."""

_ASK_S = 2.0
"""How long a replica may take to tell about itself."""

_LINGER_S = 20.0
"""How long a replica that is not wanted any more lets its clients finish."""

_OBJECT_STORE_BYTES = 80 * 2**20
"""The least that Ray takes; nothing of ours goes through it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How many replicas, and where."""

    replicas: int = 1
    """The fewest."""

    max_replicas: int | None = None
    """The most; by default as many as the fewest, and no scaling."""

    host: str = "127.0.0.1"
    """What replicas listen on; with a wildcard they are known by the address of their node."""

    ports: str | None = None
    """``FIRST-LAST`` that replicas listen on; by default any free ones."""

    upscale_delay_s: float = 10.0
    """How long they must be too full before one is added."""

    downscale_delay_s: float = 300.0
    """How long they must be too empty before one is taken away."""


class Replica:
    """One server in a process of Ray's. Its errors are Ray's business: it starts another."""

    def __init__(self, recipe: Recipe, scale: Scale) -> None:
        self._server = recipe.make(scale.host, _free_port(scale)).start()

    def report(self) -> dict[str, Any]:
        """Where it listens and how full it is, for the directory."""
        core, plan = self._server.core, self._server.core.plans[0]
        return {
            "address": self._address(),
            "pid": os.getpid(),
            "model": plan.model,
            "revision": plan.revision,
            "cuts": [plan.cut for plan in core.plans],
            "streams": core.num_streams,
            "sessions": core.num_sessions,
            "waiting": core.num_waiting,
            "kv_bytes": core.kv_bytes,
            "load": self._load(),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands to its policy."""
        return {"load": self._load()}

    def check_health(self) -> None:
        """Raises where it should be replaced: its thread is gone or does not get on, or it takes no requests."""
        if not self._server.is_ready:
            raise PeerUnavailable(f"the compute thread is {self._server.health}, or stopping; start another replica")

    def __del__(self) -> None:
        """Serve calls it when the replica is to go, after the directory has forgotten it."""
        server = getattr(self, "_server", None)
        if server is None:
            return
        give_up_s = time.monotonic() + _LINGER_S
        while server.core.num_sessions and time.monotonic() < give_up_s:
            time.sleep(0.05)
        server.drain()

    def _load(self) -> float:
        core, limits = self._server.core, self._server.core.config
        return load_of(
            {
                "waiting": core.num_waiting / limits.max_waiting,
                "sessions": core.num_sessions / limits.max_sessions,
                "kv": core.kv_bytes / limits.max_kv_bytes,
            }
        )

    def _address(self) -> str:
        host, _, port = self._server.address.rpartition(":")
        if host in ("0.0.0.0", "[::]"):
            host = ray.util.get_node_ip_address()
        return f"{host}:{port}"


class Directory:
    """Tells devices where their replica is: ``GET /endpoint?session=NAME``; ``GET /replicas`` tells all about all."""

    def __init__(self, replicas: Any) -> None:
        self._replicas, self._lock = replicas, asyncio.Lock()
        self._reports: list[dict[str, Any]] = []
        self._asked_s = float("-inf")

    async def __call__(self, request: Request) -> JSONResponse:
        """Answers one request."""
        last = request.url.path.rstrip("/").rpartition("/")[2]
        if last not in ("endpoint", "replicas"):
            return JSONResponse({"error": "ask for /endpoint?session=NAME or /replicas"}, status_code=404)
        reports = await self.reports()
        if not reports:
            return JSONResponse({"error": "no replica runs yet; come back"}, status_code=503)
        if last == "replicas":
            return JSONResponse({"replicas": reports})
        found = self._in_order(request.query_params.get("session"), reports)
        return JSONResponse({"address": found[0], "all": found})

    async def endpoint(self, session: str | None = None) -> str:
        """``HOST:PORT`` for programs that have a handle."""
        return self._in_order(session, await self.reports())[0]

    async def reports(self) -> list[dict[str, Any]]:
        """What each replica that runs says about itself."""
        async with self._lock:
            if time.monotonic() - self._asked_s > _ANSWER_S:
                self._reports = await self._ask()
                self._asked_s = time.monotonic()
        return self._reports

    async def _ask(self) -> list[dict[str, Any]]:
        with contextlib.suppress(exceptions.RayServeException, TimeoutError):
            answers = await self._replicas.broadcast("report").results_async(timeout_s=_ASK_S, return_exceptions=True)
            return [answer for answer in answers if isinstance(answer, dict)]
        return []

    def _in_order(self, session: str | None, reports: list[dict[str, Any]]) -> list[str]:
        if session:
            return rank(session, (report["address"] for report in reports))
        return [report["address"] for report in sorted(reports, key=lambda report: report["load"])]


def build(args: dict[str, Any]) -> Any:
    """The Serve application, from the ``args`` of a Serve config file: fields of :class:`Recipe` and :class:`Scale`, and
    ``config`` and ``security`` with those of :class:`ServerConfig` and :class:`Security`.

    Raises:
        TypeError: a field is not known.
        ConfigError: a limit cannot be, or others can reach ``host``, and ``security`` does not keep them out.
    """
    from serverlight.runtime import ServerConfig
    from serverlight.runtime.security import Security

    given = dict(args)
    names = {field.name for field in dataclasses.fields(Scale)}
    scale = Scale(**{name: given.pop(name) for name in names & given.keys()})
    config, security = ServerConfig(**given.pop("config", {})), Security(**given.pop("security", {}))
    security.check_host(scale.host)
    cuts = tuple(given.pop("cuts", ()))
    return make_app(Recipe(**given, cuts=cuts, config=config, security=security), scale)


def make_app(recipe: Recipe, scale: Scale) -> Any:
    """The Serve application: replicas, and the directory in front of them."""
    from serverlight.runtime import ServerConfig

    read_ports(scale.ports)
    if recipe.others:
        raise ConfigError("model", "a server under Ray has one model; start one application for each")
    config = recipe.config or ServerConfig()
    options: dict[str, Any] = {"num_replicas": scale.replicas}
    if (most := scale.max_replicas or scale.replicas) > scale.replicas:
        options = {
            "autoscaling_config": {
                "min_replicas": scale.replicas,
                "max_replicas": most,
                "upscale_delay_s": scale.upscale_delay_s,
                "downscale_delay_s": scale.downscale_delay_s,
                "policy": {"policy_function": "serverlight.apps.replicas:wanted_replicas"},
            }
        }
    replicas = serve.deployment(
        name="Replica",
        ray_actor_options={"num_cpus": recipe.threads},
        max_constructor_retry_count=3,
        health_check_period_s=5.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_LINGER_S + config.drain_s + 5.0,
        **options,
    )(Replica)
    directory = serve.deployment(
        name="Directory",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        graceful_shutdown_wait_loop_s=0.1,
    )(Directory)
    return directory.bind(replicas.bind(recipe, scale))


class Cluster:
    """The application on this machine while it is entered, or on the cluster that ``RAY_ADDRESS`` names.

    Args:
        recipe: what each replica serves.
        scale: how many.
        host: where the directory listens.
        port: where the directory listens; 0 for any free port.

    Raises:
        AddressInUse: the port is taken.
        ModelError: no replica could start.
    """

    def __init__(self, recipe: Recipe, scale: Scale, *, host: str, port: int) -> None:
        self._recipe, self._scale = recipe, scale
        self._host, self._port = host, port

    @property
    def address(self) -> str:
        """What clients are told."""
        return f"ray+http://{self._host}:{self._port}"

    def report(self) -> dict[str, Any]:
        """What one of the replicas says about itself."""
        reports: list[dict[str, Any]] = self._directory.reports.remote().result(timeout_s=10.0)
        return reports[0]

    def __enter__(self) -> Self:
        self._port = _take_port(self._host, self._port)
        self._is_ours = not os.environ.get("RAY_ADDRESS")
        self._start_ray()
        try:
            serve.start(http_options={"host": self._host, "port": self._port})
            self._directory = serve.run(make_app(self._recipe, self._scale), name=APP, route_prefix="/")
        except RuntimeError as error:
            self._stop()
            raise ModelError(f"no replica could start: {error}; the same command without --ray may tell more") from None
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start_ray(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a user's server is told to anybody
        quiet = {"log_to_driver": False, "logging_level": "warning"}
        if not self._is_ours:
            ray.init(**quiet)
            return
        most = max(self._scale.replicas, self._scale.max_replicas or 0)
        cpus = max(os.cpu_count() or 1, most * self._recipe.threads)  # the user said how many: share what there is
        store = _OBJECT_STORE_BYTES
        ray.init("local", num_cpus=cpus, object_store_memory=store, include_dashboard=False, **quiet)

    def _stop(self) -> None:
        try:
            with contextlib.suppress(exceptions.RayServeException):  # Serve has not begun
                serve.delete(APP)  # waits until all replicas have drained
            if self._is_ours:
                serve.shutdown()
        finally:
            ray.shutdown()


def _take_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0: Ray would only log that it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise AddressInUse(f"cannot listen on {host} port {port}: {error}; choose another port") from None


def _free_port(scale: Scale) -> int:
    for port in read_ports(scale.ports):
        with contextlib.suppress(AddressInUse):
            return port and _take_port(scale.host, port)
    raise AddressInUse(f"all ports of {scale.ports} on {scale.host} are taken; give replicas more of them")
