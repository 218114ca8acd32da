"""Where the time of one decode step goes, between two processes over gRPC on this machine's loopback.

    python benchmarks/lm_step.py                        # hidden size 4096, 300 steps
    python benchmarks/lm_step.py --json step.json --markdown step.md

The model is a Llama of random weights with the hidden size asked for, two layers on each side, and everything else small: narrow
attention and MLP, 128 tokens. Head and tail are therefore not those of any true model; what lies between them is.

After each step an empty echo crosses a bare gRPC stream to a third process: as many bytes up and down as the step's messages had,
answered at once. It is the link's own time, and taking it beside each step makes the difference paired. `ours` is the step's whole
time less head, tail and that echo: encode, queue, decode, sample, messages, and the hand-overs between threads.

Device and server have a core each, as on two machines; the echo's server has the server's, and works when that rests.

Bytes are counted in a pass of its own, on the sockets of a TCP relay between the two, by the kinds of HTTP/2 frame: all that
crosses, less the payload.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import torch
import transformers

from serverlight.codec import CodecConfig
from serverlight.evaluation import describe_environment
from serverlight.generation import LoadedDecoder
from serverlight.plan import Plan
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.decoder_client import DecoderClient, Token
from serverlight.runtime.device import Device
from serverlight.runtime.heartbeat import Heartbeat
from serverlight.runtime.resolver import FixedAddresses
from serverlight.runtime.sequence import Link, RemoteSequence
from serverlight.runtime.server import Server
from serverlight.sampling import Sampling

CUT = "layers.2"
PROMPT = [1, 17, 40, 9, 33, 71, 5]
SAMPLING = Sampling(temperature=0.8, top_k=50, top_p=0.95, seed=1)
FRAMING_BYTES = 5 + 9
"""Of one message in one HTTP/2 frame."""

HEADER_BYTES = 9
KINDS = {0: "DATA", 1: "HEADERS", 4: "SETTINGS", 6: "PING", 8: "WINDOW_UPDATE"}
"""Of HTTP/2 frames."""

TOLD = {
    "DATA": "message fields, framing of gRPC and HTTP/2",
    "WINDOW_UPDATE": "flow control of HTTP/2",
    "PING": "pings with which gRPC measures the link",
}

QUIET_S = 0.3
ECHO = "/benchmark.Echo/Connect"
BUDGET_MS, BUDGET_BYTES = 1.0, 64
PARTS = {
    **{name: name for name in ("head", "encode", "wire", "queue", "decode", "tail", "sample", "rest")},
    "total": "the whole step",
    "link": "an empty echo over gRPC",
    "ours": "all but head, tail and the echo",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warm-up", type=int, default=30)
    parser.add_argument("--profile", choices=("serverlight", "slicer", "fp16"), default="serverlight")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there, too")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the table there, too")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    if args.serve:
        return serve(args.serve)
    if args.echo:
        return asyncio.run(echo())
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(pathlib.Path(name) / "llama", args.hidden, args.steps + args.warm_up + len(PROMPT))
        result = measure(folder, args)
    report = table(result)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(report)
    return 0


def make_model(path: pathlib.Path, hidden: int, num_tokens: int) -> str:
    """A Llama of random weights whose layers are narrow."""
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=hidden, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=num_tokens + 1,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


# -- the other processes ----------------------------------------------------------------------------


def serve(folder: str) -> int:
    """The tail, until the input ends."""
    with Server(LoadedDecoder.tail(folder, CUT, dtype=torch.float32), [CUT]) as server:
        print(server.address, flush=True)
        sys.stdin.read()
    return 0


async def echo() -> int:
    """Answers each message at once with as many bytes as its first two say."""

    async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
        async for data in requests:
            await context.write(bytes(int.from_bytes(data[:2], "little")))

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(answer)
    _, service, method = ECHO.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
    return 0


@contextlib.contextmanager
def process(*args: str) -> Iterator[str]:
    """This script again; gives the address that it prints."""
    command = [sys.executable, __file__, *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        yield other.stdout.readline().strip()
        other.communicate()


class Echo:
    """A bare gRPC stream."""

    def __init__(self, address: str) -> None:
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._call = self._channel.stream_stream(ECHO, None, None)(iter(self._outbox.get, None))

    def ask_ms(self, up_bytes: int, down_bytes: int) -> float:
        """There and back."""
        data = down_bytes.to_bytes(2, "little") + bytes(up_bytes - 2)
        started_s = time.perf_counter()
        self._outbox.put(data)
        next(self._call)
        return (time.perf_counter() - started_s) * 1e3

    def close(self) -> None:
        """Ends the stream."""
        self._outbox.put(None)
        self._channel.close()


# -- measuring --------------------------------------------------------------------------------------


def measure(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything, ready for JSON."""
    head = LoadedDecoder.head(folder, CUT, dtype=torch.float32)
    plan = Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile=args.profile))
    far = take_cores()
    with process("--serve", folder, *far) as address, process("--echo", *far) as echo_address:
        steps = measure_steps(DecoderClient([address], plan=plan, head=head), Echo(echo_address), args)
        counted = count_bytes(Relay(address), plan, head, args.steps)
    medians = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    least = {name: min(step[name] for step in steps) for name in steps[0]}
    # Of a difference the least would be that of the luckiest step: here it is the difference of the least.
    least["ours"] = min(step["ours"] + step["link"] for step in steps) - least["link"]
    holds = {
        "time": medians["ours"] < BUDGET_MS,
        "least time": least["ours"] < BUDGET_MS,
        "bytes": max(counted[way]["DATA"] for way in ("up", "down")) <= BUDGET_BYTES,
    }
    settings = {name: getattr(args, name) for name in ("hidden", "steps", "warm_up", "profile")}
    return {
        **describe_environment(),
        "settings": settings,
        "load": os.getloadavg()[0],
        "median_ms": medians,
        "least_ms": least,
        "bytes": counted,
        "holds": holds,
    }


def take_cores() -> list[str]:
    """Binds this process, the device, to the first of its cores; returns the options that bind another to the last."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        return []
    os.sched_setaffinity(0, {cores[0]})
    return ["--core", str(cores[-1])]


def measure_steps(client: DecoderClient, echo: Echo, args: argparse.Namespace) -> list[dict[str, float]]:
    """One row of milliseconds a step, warm-up left out."""
    rows = list[dict[str, float]]()
    stream = client.stream(PROMPT, max_new_tokens=args.steps + args.warm_up, sampling=SAMPLING)
    next(stream)
    started_s = time.perf_counter()
    for token in stream:
        total_ms = (time.perf_counter() - started_s) * 1e3
        cost = token.cost
        link_ms = echo.ask_ms(cost.uplink_bytes - FRAMING_BYTES, cost.downlink_bytes - FRAMING_BYTES)
        rows.append(split(token, total_ms, link_ms))
        started_s = time.perf_counter()
    echo.close()
    return rows[args.warm_up - 1 :]


def split(token: Token, total_ms: float, link_ms: float) -> dict[str, float]:
    """The parts of one step; `wire` is what neither side spent on its work, `rest` what the client's loop took."""
    cost, server = token.cost, token.cost.server
    served_ms = {name: getattr(server, f"{name}_ms") for name in ("queue", "decode", "tail", "sample")}
    return {
        "head": cost.head_ms,
        "encode": cost.encode_ms,
        "wire": cost.wait_ms - sum(served_ms.values()),
        **served_ms,
        "rest": total_ms - cost.head_ms - cost.encode_ms - cost.wait_ms,
        "total": total_ms,
        "link": link_ms,
        "ours": total_ms - cost.head_ms - served_ms["tail"] - link_ms,
    }


def count_bytes(relay: Relay, plan: Plan, head: LoadedDecoder, num_steps: int) -> dict[str, Any]:
    """Means over all steps of what crossed the sockets; a prompt comes before."""
    link = Link(
        FixedAddresses((relay.address,)),
        timeout_s=60.0,
        step_timeout_s=60.0,
        recovery_s=60.0,
        heartbeat=Heartbeat(),
        credentials=Credentials(),
    )
    device = Device(plan, head.part, None)  # type: ignore[arg-type]
    sequence = RemoteSequence(link, plan, SAMPLING, device)
    token_ids, frame_bytes, skipped = PROMPT, 0, (0, 0)
    for step in range(num_steps + 1):
        frame = device.run(torch.tensor([token_ids])).piece
        assert isinstance(frame, bytes)
        sequence.send((frame,), more=False)
        reply, _ = sequence.wait()[-1]
        assert reply.token_id is not None
        token_ids, frame_bytes = [reply.token_id], frame_bytes + len(frame)
        if step == 0:
            time.sleep(QUIET_S)  # what the connection's beginning brings is over
            skipped, frame_bytes = (len(relay.up), len(relay.down)), 0
    time.sleep(QUIET_S)
    up, down = relay.up[skipped[0] :], relay.down[skipped[1] :]
    sequence.close()
    return {
        "frame": frame_bytes / num_steps,
        "up": {kind: size / num_steps for kind, size in by_kind(up, payload=frame_bytes).items()},
        "down": {kind: size / num_steps for kind, size in by_kind(down).items()},
    }


class Relay:
    """Takes one TCP connection, passes it on and keeps what crosses."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target, self.up, self.down = (host, int(port)), bytearray(), bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._join, daemon=True).start()

    def _join(self) -> None:
        client, server = self._listener.accept()[0], socket.create_connection(self._target)
        for ends in ((client, server, self.up), (server, client, self.down)):
            ends[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def by_kind(data: bytearray, *, payload: int = 0) -> dict[str, int]:
    """Bytes of each kind of HTTP/2 frame (RFC 9113, section 4.1), less a payload, in what begins and ends with whole frames."""
    sizes, at = {"DATA": -payload}, 0
    while at < len(data):
        size = HEADER_BYTES + int.from_bytes(data[at : at + 3], "big")
        kind = KINDS.get(data[at + 3], "OTHER")
        sizes[kind], at = sizes.get(kind, 0) + size, at + size
    return sizes


# -- telling ----------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    medians, least = result["median_ms"], result["least_ms"]
    counted, settings = result["bytes"], result["settings"]
    lines = [
        f"Hidden size {settings['hidden']}, profile {settings['profile']}, medians of {settings['steps']} steps; "
        f"{result['cpu']}, {result['cores']} cores, load {result['load']:.1f}, {result['date']}.",
        "",
        "| part of a step | median ms | least ms |",
        "| --- | --- | --- |",
        *(f"| {told} | {medians[name]:.3f} | {least[name]:.3f} |" for name, told in PARTS.items()),
        "",
        f"Bytes on the socket a step, beside {counted['frame']:.0f} of the frame:",
        "",
        "| what | up | down |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {counted['up'].get(kind, 0):.1f} | {counted['down'].get(kind, 0):.1f} |"
            for kind, name in TOLD.items()
        ),
        "",
        ", ".join(f"{name}: {'holds' if held else 'FAILS'}" for name, held in result["holds"].items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
