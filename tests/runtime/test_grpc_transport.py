from __future__ import annotations

import asyncio
import contextlib
import pathlib
import subprocess
import sys
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serverlight.chaos import ChaosRelay
from serverlight.errors import PeerUnavailable, TransportError
from serverlight.faults import FaultPlan
from serverlight.plan import Plan
from serverlight.runtime.conversion import encode_client
from serverlight.runtime.grpc_stream import AsyncGrpcStream
from serverlight.runtime.grpc_transport import ERROR_OF_STATUS, SERVICE, GrpcTransport, check_health, error_of_status
from serverlight.runtime.messages import Frame, Hello, Ping, Pong, ServerMessage
from serverlight.runtime.stream import ClientStream
from serverlight.runtime.transport import wire_bytes

WAIT_S = 20.0
"""The machine may be busy."""

REPO = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_has_its_error(code: grpc.StatusCode) -> None:
    """Whichever way gRPC ends a stream, the client gets one of our errors with the details and a remedy."""
    error = error_of_status(code, "the details")
    assert isinstance(error, TransportError)
    assert str(error).startswith("the details; ")
    assert str(error_of_status(code, None)).startswith(code.value[1])


def test_status_table_is_complete() -> None:
    """The table has exactly gRPC's codes: a new one must be given its error."""
    assert set(ERROR_OF_STATUS) == set(grpc.StatusCode)


def test_standard_health_service(make_core: Any, serve: Any) -> None:
    """Any gRPC health checker can ask, for the whole server and for our service."""
    thread = serve(make_core())
    address = f"127.0.0.1:{thread.port}"
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert check_health(address)
    thread.run(thread.server.set_serving(False))
    assert not check_health(address)


def test_health_of_nobody() -> None:
    """Asking where nobody listens is PeerUnavailable."""
    with pytest.raises(PeerUnavailable):
        check_health("127.0.0.1:1")


def test_streams_on_an_event_loop(make_core: Any, serve: Any) -> None:
    """Many streams share a loop; each gets the answers to its own messages, and is told their bytes on the wire."""
    address = f"127.0.0.1:{serve(make_core()).port}"

    async def talk() -> tuple[int, ServerMessage]:
        stream = AsyncGrpcStream(address)
        num_bytes = await stream.send(Ping())
        answer = await stream.receive()
        await stream.close()
        return num_bytes, answer

    async def talk_all() -> list[tuple[int, ServerMessage]]:
        return await asyncio.wait_for(asyncio.gather(*(talk() for _ in range(8))), 20)

    assert asyncio.run(talk_all()) == [(wire_bytes(len(encode_client(Ping()))), Pong())] * 8


def test_stream_on_an_event_loop_that_ends(make_core: Any, serve: Any) -> None:
    """A server that is not there, and one that has ended the stream, are PeerUnavailable, whoever notices it."""
    address = f"127.0.0.1:{serve(make_core()).port}"

    async def use(address: str) -> None:
        stream = AsyncGrpcStream(address)
        try:
            await stream.send(Hello(plan_json="no plan"))
            while True:
                await stream.receive()  # first the reason, then the end
        finally:
            await stream.close()

    for where in (address, "127.0.0.1:1"):
        with pytest.raises(PeerUnavailable):
            asyncio.run(asyncio.wait_for(use(where), 20))


def test_generated_code_is_up_to_date(tmp_path: pathlib.Path) -> None:
    """The committed protobuf code is what `make proto` makes of proto/serverlight.proto."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-Iproto",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
    ]
    subprocess.run([*command, "proto/serverlight.proto"], cwd=REPO, check=True)
    for name in ("serverlight_pb2.py", "serverlight_pb2.pyi"):
        committed = REPO / "src" / "serverlight" / "runtime" / name
        assert (tmp_path / name).read_text() == committed.read_text(), "run `make proto`"


def test_broken_connections_leave_nothing_behind(make_core: Any, serve: Any, plan: Plan, until: Any) -> None:
    """Streams that break at any moment, in the midst of a read, a write or a request, leave no task on the server's loop."""
    core = make_core()
    server = serve(core)
    with ChaosRelay(f"127.0.0.1:{server.port}", FaultPlan.parse(["kill:0.2"], seed=1)) as relay:

        def ask(num_times: int) -> None:
            for _ in range(num_times):
                stream = ClientStream(GrpcTransport(relay.address))
                with contextlib.suppress(TransportError):
                    stream.greet(plan, WAIT_S)
                    for _ in range(3):
                        stream.ask((Frame(data=b"x"),), 20_000)
                stream.close()
            until(lambda: core.num_streams == 0)

        ask(1)
        before = server.num_tasks()
        ask(150)
        until(lambda: server.num_tasks() <= before)
