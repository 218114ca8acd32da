"""Who reads events, and the figures in them, without a server or a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

for package in ("prometheus_client", "starlette", "uvicorn"):
    pytest.importorskip(package)

from serverlight.apps.event_hub import Hub  # noqa: E402
from serverlight.apps.figures import Figures, Gauges  # noqa: E402
from serverlight.apps.watch_http import Watched, make_app  # noqa: E402
from serverlight.runtime.tally import Series, Tally, Work  # noqa: E402


def quiet(hub: Hub) -> Any:
    """The routes with nothing behind them."""
    watched = Watched(
        metrics=lambda _: (b"", "text/plain"), health=lambda: "ok", is_ready=lambda: True, start=lambda: b"data: 0\n\n"
    )
    return make_app(watched, hub)


class Browser:
    """Reads events of an application without a socket between; how far, is up to ``may_take``."""

    def __init__(self, app: Any) -> None:
        self.heard: list[dict[str, Any]] = []
        self.may_take, self.hung_up = asyncio.Event(), asyncio.Event()
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/events",
            "raw_path": b"/events",
            "headers": [],
            "query_string": b"",
        }
        self.task = asyncio.ensure_future(app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, str]:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.heard.append(message)
        if message["type"] == "http.response.body":
            await self.may_take.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_slow_reader_is_dropped() -> None:
    """Who takes no events is dropped once a few wait for it; others get them all, and the server never waits."""

    async def run() -> None:
        hub = Hub(max_waiting=3)
        hub.run_on(asyncio.get_running_loop())
        app = quiet(hub)
        slow, quick = Browser(app), Browser(app)
        quick.may_take.set()
        await settle()
        for i in range(8):
            hub.publish(b"data: %d\n\n" % i)
            await settle()
        assert slow.task.done()
        assert (hub.num_readers, hub.num_dropped) == (1, 1)
        assert [message["body"] for message in quick.heard[1:]] == [
            b"data: 0\n\n",
            *(b"data: %d\n\n" % i for i in range(8)),
        ]
        quick.hung_up.set()
        await settle()
        assert quick.task.done()
        assert hub.num_readers == 0

    asyncio.run(run())


def test_readers_are_counted() -> None:
    """Beyond the limit a reader is told to come back later, and one that leaves makes room."""

    async def run() -> None:
        hub = Hub(max_readers=2)
        app = quiet(hub)
        first, second, third = Browser(app), Browser(app), Browser(app)
        third.may_take.set()
        await settle()
        assert [browser.heard[0]["status"] for browser in (first, second, third)] == [200, 200, 503]
        first.may_take.set()
        first.hung_up.set()
        await settle()
        fourth = Browser(app)
        await settle()
        assert fourth.heard[0]["status"] == 200
        for browser in (second, fourth):
            browser.task.cancel()
        await settle()
        assert hub.num_readers == 0

    asyncio.run(run())


def test_first_seconds_without_requests() -> None:
    """Before anything has happened there are figures, and nothing is divided by nothing."""
    figures = Figures(Tally(), lambda: Gauges(status="ok", queue=0, streams=0, kv_bytes=0), {})
    ticks = [figures.tick(now_s) for now_s in (100.0, 101.0)]
    assert ticks[1]["point"]["batch"] is None
    assert ticks[1]["saved"] == {"uplink": None, "server": None}
    assert len(figures.points) == 2
    json.dumps(ticks, allow_nan=False)


def test_saved_time_of_two_models() -> None:
    """Cuts of two models may have the same name, and save unlike much: each has the share of its own model."""
    tally, shares = Tally(), {("small", "layers.4"): 0.5}
    figures = Figures(tally, lambda: Gauges(status="ok", queue=0, streams=0, kv_bytes=0), shares)
    for model in ("small", "large"):
        work = tally.work[Series(model, "layers.4", "step")] = Work()
        work.seconds["tail"] = 1.0
    assert figures.tick(100.0)["saved"]["server"] == {"ours_s": 1.0, "full_s": 2.0}
    shares["large", "layers.4"] = 0.2  # it is loaded while the server runs
    assert figures.tick(101.0)["saved"]["server"] == {"ours_s": 2.0, "full_s": 3.25}
