"""Shared fixtures."""

from __future__ import annotations

import os
import pathlib
import socketserver
import threading
from collections.abc import Generator, Iterator

import pytest
from _pytest.doctest import DoctestModule

REPO = pathlib.Path(__file__).parents[1]


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """No doctests of tests: one whose import fails would be left out of them, and then found, half imported and empty, as a
    module without tests.
    """
    found = yield
    return [collector for collector in found if not isinstance(collector, DoctestModule)]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real models and data beside the checkout; tests that need it skip without it."""
    folder = pathlib.Path(os.environ.get("SERVERLIGHT_SHARED", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the shared models and data beside the checkout (../shared/data or SERVERLIGHT_SHARED)")
    return folder


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


@pytest.fixture
def echo() -> Iterator[str]:
    """Address of a server that sends back what it gets."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A connection that the proxy broke is no news."""

    with Server(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
