"""A server watched over HTTP: routes, events, what a browser may do, the dashboard in Chromium, and logs as JSON."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

for package in ("prometheus_client", "starlette", "uvicorn"):
    pytest.importorskip(package)

import serverlight as sl  # noqa: E402
from serverlight.apps import watch_http  # noqa: E402
from serverlight.apps.json_logs import JsonFormatter  # noqa: E402
from serverlight.apps.watch_options import WatchOptions  # noqa: E402
from serverlight.errors import AddressInUse  # noqa: E402

WAIT_S = 20
FACTS = {"model": "net", "revision": "1", "cuts": ["1"]}


class Site:
    """A server that is watched, in this process."""

    def __init__(self, server: sl.Server, model: sl.LoadedModel, parts: sl.Partition, url: str) -> None:
        self.server, self.model, self.parts, self.url = server, model, parts, url
        self.address = url.removeprefix("http://").rstrip("/")

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=WAIT_S)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()

    def connect(self) -> sl.Client:
        plan = sl.Plan(model=self.model.name, revision=self.model.revision, cut="1")
        return sl.connect(self.server.address, plan=plan, model=self.parts)


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what is sent by OTLP over HTTP."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Where the standard variables send spans."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.heard = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.shutdown()


def test_spans_leave_by_otlp(net: tuple[sl.LoadedModel, sl.Partition], collector: Any) -> None:
    """With --trace each request's span, and those of its parts, go where the standard variables say, before it ends."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    model, parts = net
    server = sl.Server(model, ["1"], parts=parts)
    plan = sl.Plan(model=model.name, revision=model.revision, cut="1")
    with WatchOptions(trace=True).watching(server, FACTS) as url, server:
        assert url is None
        with sl.connect(server.address, plan=plan, model=parts) as client:
            client.infer(torch.zeros(1, 6))
    assert {path for path, _ in collector.heard} == {"/v1/traces"}
    sent = [ExportTraceServiceRequest.FromString(body).resource_spans[0] for _, body in collector.heard]
    names = [span.name for resource in sent for span in resource.scope_spans[0].spans]
    assert sorted(names) == sorted(["serverlight infer", "queue", "decode", "tail", "sample"])
    assert ("service.name", "serverlight") in [(one.key, one.value.string_value) for one in sent[0].resource.attributes]


@pytest.fixture(scope="module")
def net() -> tuple[sl.LoadedModel, sl.Partition]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))
    model = sl.LoadedModel.of("net", module, torch.zeros(2, 6))
    return model, sl.partition(model.module, model.example_inputs)


@pytest.fixture
def site(net: tuple[sl.LoadedModel, sl.Partition]) -> Iterator[Site]:
    server = sl.Server(net[0], ["1"], parts=net[1])
    with WatchOptions(http=0).watching(server, FACTS) as url:
        assert url
        with server:
            yield Site(server, *net, url)


def until(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("waited in vain")


# -- routes -----------------------------------------------------------------------------------------


def test_scrape_after_requests(site: Site) -> None:
    """``/metrics`` has what was answered until then, whichever second it is."""
    with site.connect() as client:
        for _ in range(3):
            client.infer(torch.zeros(1, 6))
        status, headers, text = site.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert 'serverlight_requests_total{code="ok",cut="1",kind="infer",model="net"} 3.0' in text
    assert "serverlight_streams 1.0" in text
    assert "serverlight_ready 1.0" in text


def test_every_metric_is_in_the_guide(site: Site) -> None:
    """The table of docs/operating.md has each metric that a server gives, and no other."""
    with site.connect() as client:
        client.infer(torch.zeros(1, 6))
        text = site.get("/metrics")[2]
    given = set(re.findall(r"^# TYPE (serverlight_\w+)", text, re.MULTILINE))
    guide = (pathlib.Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    table = guide.partition("### Metrics")[2].partition("```yaml")[0]
    assert set(re.findall(r"`(serverlight_\w+)`", table)) == given


def test_probes_while_draining(site: Site) -> None:
    """While accepted requests finish, the server is alive and not ready."""
    assert site.get("/healthz")[::2] == (200, '{"status":"ok"}')
    assert site.get("/readyz")[::2] == (200, '{"ready":true}')
    may_run, has_begun = threading.Event(), threading.Event()
    take_on = site.server.core._deliver
    site.server.core._deliver = lambda *a: (has_begun.set(), may_run.wait(WAIT_S), take_on(*a))[2]  # type: ignore[method-assign]
    with site.connect() as client:
        asking = threading.Thread(target=client.infer, args=(torch.zeros(1, 6),))
        asking.start()
        assert has_begun.wait(WAIT_S)
        draining = threading.Thread(target=site.server.drain)
        draining.start()
        until(lambda: site.server.core.is_draining)
        assert site.get("/readyz")[::2] == (503, '{"ready":false}')
        assert site.get("/healthz")[0] == 200
        may_run.set()
        asking.join()
        draining.join()


def test_probes_after_a_crash(site: Site) -> None:
    """A server whose compute thread has died is neither alive nor ready."""

    def crash(*_: object) -> None:
        raise MemoryError("planted")

    site.server.core._deliver = crash  # type: ignore[method-assign]
    with site.connect() as client, pytest.raises(sl.ServerlightError):
        client.infer(torch.zeros(1, 6))
    until(lambda: site.get("/healthz")[0] == 503)
    assert site.get("/healthz")[2] == '{"status":"crashed"}'
    assert site.get("/readyz")[0] == 503
    assert "serverlight_healthy 0.0" in site.get("/metrics")[2]


def test_browser_may_do_nothing_else(site: Site) -> None:
    """The page runs its own script and style and asks this server: nothing inline beside them, nothing from elsewhere."""
    status, headers, page = site.get("/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"\sstyle=|\son\w+=|<script [^>]*src|<link [^>]*stylesheet|@import", page)
    assert not re.findall(r"https?://(?!www\.w3\.org)", page)
    assert headers["x-content-type-options"] == "nosniff"


def test_foreign_host_is_refused(site: Site) -> None:
    """A page elsewhere whose name leads to this machine reads nothing."""
    assert site.get("/metrics", Host="evil.example:80")[0] == 421
    assert site.get("/metrics", Host="localhost")[0] == 200


def test_taken_port_is_an_error(site: Site) -> None:
    """Two servers never share one."""
    port = int(site.address.rpartition(":")[2])
    with pytest.raises(AddressInUse), WatchOptions(http=port).watching(site.server, FACTS):
        pass


def test_nothing_is_left_running(net: tuple[sl.LoadedModel, sl.Partition]) -> None:
    """When the server has stopped, so have the threads that watched it, with readers of events still there."""
    before = set(threading.enumerate())
    server = sl.Server(net[0], ["1"], parts=net[1])
    with WatchOptions(http=0).watching(server, FACTS) as url, server:
        assert url
        reading = events_of(Site(server, *net, url))
        next(reading)
    assert list(reading)[-1][0] in ("tick", "start")
    assert [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("serverlight")] == []


# -- events -----------------------------------------------------------------------------------------


def events_of(site: Site) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads server-sent events until they end."""
    host, _, port = site.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        connection.sendall(f"GET /events HTTP/1.1\r\nHost: {site.address}\r\n\r\n".encode())
        name = ""
        for line in connection.makefile("r"):
            if line.startswith("event: "):
                name = line[7:].strip()
            elif line.startswith("data: "):
                yield name, json.loads(line[6:])


def test_events_tell_what_happens(site: Site) -> None:
    """A reader gets what is served and the minutes before, then each second what happened in it."""
    events = events_of(site)
    name, start = next(events)
    assert name == "start"
    assert (start["facts"]["model"], start["facts"]["cuts"]) == ("net", ["1"])
    with site.connect() as client:
        result = client.infer_detailed(torch.randn(4, 6))
        name, tick = next(event for event in events if event[1]["totals"]["requests"])
        assert name == "tick"
        (device,) = tick["devices"]
    assert (device["cut"], device["requests"], device["errors"]) == ("1", 1, 0)
    assert device["bits"] == pytest.approx(8 * result.frame_bytes / (4 * 64))
    assert tick["saved"]["uplink"] == {"ours": result.frame_bytes, "fp16": 2 * 4 * 64}
    share = 6 * 64 / (6 * 64 + 64 * 3)
    server = tick["saved"]["server"]
    assert server["full_s"] == pytest.approx(tick["totals"]["tail_s"] / (1 - share))


# -- logs -------------------------------------------------------------------------------------------


def test_log_is_json(start_server: Any) -> None:
    """With ``--log-json`` every line of the log is an object; clients are told apart by their stream."""
    process, ready = start_server("--cut", "layer3.0", "--http", "0", "--log-json")
    assert ready["http"].startswith("http://127.0.0.1:")
    loaded = sl.load_model("demo-vision")
    plan = sl.Plan(model=ready["model"], revision=ready["revision"], cut="layer3.0")
    with sl.connect(ready["address"], plan=plan, model=loaded) as client:
        client.infer(loaded.example_inputs)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in err.splitlines()]
    greeted, closed = (next(line for line in lines if word in line["message"]) for word in ("a client at", "closed"))
    assert greeted["cut"] == "layer3.0"
    assert closed["stream"] == greeted["stream"]
    assert closed["requests"] == 1
    assert "stopped" in lines[-1]["message"]


def test_record_of_a_request_names_it() -> None:
    """A failure has its traceback within the line, and the request that it is about."""
    try:
        raise ValueError("planted\nin two lines")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "request %d failed", (7,), (ValueError, error, None))
    record.request_id, record.stream = 7, 3
    line = JsonFormatter().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert (said["level"], said["message"], said["request_id"], said["stream"]) == ("error", "request 7 failed", 7, 3)
    assert "planted" in said["traceback"]


# -- the dashboard in a browser ---------------------------------------------------------------------


def browser_path() -> str:
    found = os.environ.get("SERVERLIGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: chromium or google-chrome in PATH, or SERVERLIGHT_CHROMIUM")
    return found


@pytest.fixture
def page(site: Site) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(site.url)
        yield page
        browser.close()


@contextlib.contextmanager
def load_on(site: Site) -> Iterator[None]:
    stopping = threading.Event()

    def ask() -> None:
        with site.connect() as client:
            for seed in itertools.count():
                if stopping.wait(0.02):
                    return
                client.infer(torch.full((2, 6), float(seed % 7)))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        stopping.set()
        asking.join()


def see(page: Any, condition: Callable[[], Any]) -> None:
    """Waits until the page shows something; its policy forbids what playwright would wait with."""
    for _ in range(WAIT_S * 20):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("waited in vain")


def test_dashboard_is_live(site: Site, page: Any) -> None:
    """Figures in the browser change while a load runs; nothing is reported on its console, and a phone need not scroll sideways."""
    page.wait_for_selector("#status.good")
    assert page.inner_text("#what").startswith("net")
    assert page.is_visible("#no-devices")
    with load_on(site):
        page.wait_for_selector("#devices tbody tr")
        see(page, lambda: re.match(r"[1-9]", page.inner_text("#rate")))
        before = page.inner_text("#rate-note")
        see(page, lambda: page.inner_text("#rate-note") != before)
        assert page.inner_text("#devices .chip") == "1"
        assert re.match(r"\d+\s*%", page.inner_text("#saved-up"))
        assert "estimate" in page.inner_text("#saved-server-note")
        page.focus("#chart-rate")
        page.keyboard.press("ArrowLeft")
        assert "requests/s" in page.inner_text("#chart-rate .tip")
        assert page.locator("#devices tbody tr").count() == 1
    page.wait_for_selector("#no-devices", state="visible")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []


def test_dashboard_says_that_a_server_drains(site: Site, page: Any) -> None:
    """Whoever looks sees that the server is on its way out."""
    page.wait_for_selector("#status.good")
    site.server.drain()
    see(page, lambda: page.inner_text("#status") == "draining")


def test_text_can_be_read() -> None:
    """Text and its background differ by 4.5 to 1 at least, lines of charts by 3 to 1, in light and in dark (WCAG AA)."""
    html = pathlib.Path(watch_http.__file__).with_name("dashboard.html").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    )
    for colours in (light, dark):
        for name, least in {
            "ink": 4.5,
            "soft": 4.5,
            "good": 4.5,
            "warn": 4.5,
            "bad": 4.5,
            "a": 3,
            "b": 3,
            "c": 3,
            "d": 3,
        }.items():
            for ground in ("card", "canvas"):
                assert contrast(colours[name], colours[ground]) >= least, (name, ground)


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_server_that_is_not_watched_imports_nothing_for_it() -> None:
    """Neither a web server nor prometheus_client is there unless ``--http`` asks for them."""
    script = "import sys, serverlight.apps.commands.serve, serverlight.runtime.server as s; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not [name for name in ("prometheus_client", "uvicorn", "starlette") if f"'{name}'" in done.stdout]
