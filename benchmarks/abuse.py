"""What one abusive client does to others: the latency of well-behaved clients with and without it, in alternating windows.

    python benchmarks/abuse.py --json abuse.json --markdown abuse.md

A server process has `demo-vision` with the limits that it has when nobody says otherwise. Some well-behaved clients send an image,
wait for the answer, rest a little, and so on. An abuser in a process of its own comes and goes:

- `flood`: one stream with as many requests as the server lets it have under way, all the time.
- `large`: likewise, each with the most samples that a request may have.
- `giant`: messages of 60 MiB that hold nothing that fits, one after the other.
- `liar`: frames of some bytes that claim billions of elements.
- `slow reader`: requests without end, and no answer is ever read.
- `half-open`: 100 streams that never say Hello and 100 sockets that never say anything, opened again when they are ended.

Each abuser is measured against the windows right before and after its own. It runs with a lower priority, so that what it takes
of this machine's processor for itself, which on a machine of its own would cost nobody, weighs little.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import queue
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import torch

from serverlight.codec import Codec, CodecConfig
from serverlight.errors import TransportError
from serverlight.evaluation import describe_environment
from serverlight.models import load_model
from serverlight.partition import Partition, partition
from serverlight.plan import Plan
from serverlight.runtime import Client, connect
from serverlight.runtime.conversion import encode_client
from serverlight.runtime.grpc_transport import SERVICE
from serverlight.runtime.messages import Frame, Hello, InferRequest, Payload, RawTensor
from serverlight.runtime.transport import DEFAULT_MAX_MESSAGE_BYTES

CUT, CODEC = "layer2.2", CodecConfig(sparsity=0.5)
LIAR = b"SL\x01\x00\x00\x02" + b"\xff\xff\xff\xff\x0f" * 2
"""Profile fp16, float32, rank 2, both dimensions 2^32 - 1 (docs/wire-format.md, section 2)."""

GIANT_BYTES, LARGE_BATCH, NUM_HALF_OPEN = 60 * 2**20, 64, 100
MAX_OUTSTANDING, SETTLE_S, NICE = 256, 0.5, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds that a client rests after an answer")
    parser.add_argument("--window", type=float, default=3.0, help="seconds of a window")
    parser.add_argument("--rounds", type=int, default=8, help="windows with each abuser, each after one without")
    parser.add_argument("--abusers", default=",".join(ABUSERS), help="which, with commas between them")
    parser.add_argument("--serve", default="", help="more options for `serverlight serve`")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there, too")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the table there, too")
    parser.add_argument("--abuser", nargs=2, metavar=("KIND", "ADDRESS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.abuser:
        return abuse(*args.abuser)
    result = measure(args)
    report = table(result)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(report)
    return 0


# -- abusers ----------------------------------------------------------------------------------------


def model_and_plan() -> tuple[Partition, Plan, torch.Tensor]:
    model = load_model("demo-vision")
    parts = partition(model.module, model.example_inputs)
    plan = Plan(model=model.name, revision=model.revision, cut=parts.cut(CUT).name, codec=CODEC)
    return parts, plan, torch.rand(1, *model.example_inputs.shape[1:])


class Abuser:
    """Bare gRPC: what the client of this package would never do."""

    def __init__(self, address: str) -> None:
        self.address, self.on, self.num_sent = address, threading.Event(), 0
        parts, self._plan, image = model_and_plan()
        head, _ = parts.split(parts.cut(CUT))
        with torch.inference_mode():
            (feature,) = head(image)
        encode = Codec(CODEC).encode
        self.frame = encode(feature)
        self.large = encode(feature.expand(LARGE_BATCH, *feature.shape[1:]).contiguous())

    def flood(self, payload: Payload, outstanding: int = MAX_OUTSTANDING, *, reads: bool = True) -> None:
        """Requests as long as the abuser is on, so many ahead of the answers; where none is read, without end."""
        with self._stream(self._requests(payload, slots := threading.Semaphore(outstanding), reads)) as call:
            if reads:
                with contextlib.suppress(grpc.RpcError):
                    for _ in call:
                        slots.release()
            while self.on.is_set():
                time.sleep(0.05)

    def half_open(self) -> None:
        """Streams and sockets that say nothing."""
        host, _, port = self.address.rpartition(":")
        with contextlib.ExitStack() as stack:
            for _ in range(NUM_HALF_OPEN):
                stack.enter_context(self._stream(self._silence()))
                stack.enter_context(socket.create_connection((host, int(port))))
                self.num_sent += 2
            while self.on.is_set():
                time.sleep(0.05)

    def _requests(self, payload: Payload, slots: threading.Semaphore, reads: bool) -> Iterator[bytes]:
        yield encode_client(Hello(plan_json=self._plan.to_json()))
        request_id = 0
        data = encode_client(InferRequest(request_id=1, payloads=(payload,)))
        whole = (
            len(data) > 2**20
        )  # too large to be made anew each time: the second gets an error of its own, which is as good
        while self.on.is_set():
            if reads and not slots.acquire(timeout=0.1):
                continue
            request_id += 1
            self.num_sent += 1
            yield data if whole else encode_client(InferRequest(request_id=request_id, payloads=(payload,)))

    def _silence(self) -> Iterator[bytes]:
        while self.on.is_set():
            time.sleep(0.2)
        yield from ()

    @contextlib.contextmanager
    def _stream(self, requests: Iterator[bytes]) -> Iterator[Any]:
        options = [
            ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0),
            ("grpc.max_send_message_length", DEFAULT_MAX_MESSAGE_BYTES),
        ]  # fmt: skip
        channel = grpc.insecure_channel(self.address, options=options)
        call = channel.stream_stream(f"/{SERVICE}/Connect", None, None)(requests)
        try:
            yield call
        finally:
            call.cancel()
            channel.close()


def giant(abuser: Abuser) -> None:
    payload = RawTensor(dtype="float32", shape=(GIANT_BYTES // 4,), data=bytes(GIANT_BYTES))
    abuser.flood(payload, 1)


ABUSERS: dict[str, Callable[[Abuser], None]] = {
    "flood": lambda abuser: abuser.flood(Frame(data=abuser.frame)),
    "large": lambda abuser: abuser.flood(Frame(data=abuser.large)),
    "giant": giant,
    "liar": lambda abuser: abuser.flood(Frame(data=LIAR)),
    "slow reader": lambda abuser: abuser.flood(Frame(data=abuser.frame), reads=False),
    "half-open": Abuser.half_open,
}


def abuse(kind: str, address: str) -> int:
    """The child: ``on`` and ``off`` come on standard input."""
    os.nice(NICE)
    abuser = Abuser(address)
    working: threading.Thread | None = None

    def work() -> None:
        while abuser.on.is_set():
            ABUSERS[kind](abuser)

    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "on":
            abuser.on.set()
            working = threading.Thread(target=work, daemon=True)
            working.start()
        elif working is not None:
            abuser.on.clear()
            working.join(20)
        print(abuser.num_sent, flush=True)
    return 0


# -- measuring --------------------------------------------------------------------------------------


class Child:
    """A process that speaks lines."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, line: str) -> str:
        """Sends a line and waits for one."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Good:
    """Well-behaved clients; what they waited, and what went wrong, falls into the window that is open."""

    def __init__(self, address: str, num_clients: int, pause_s: float) -> None:
        parts, plan, self._image = model_and_plan()
        self._pause_s, self._window = pause_s, list[float]()
        self._failed, self._stopping = queue.SimpleQueue[str](), threading.Event()
        clients = [connect(address, plan=plan, model=parts) for _ in range(num_clients)]
        self._threads = [threading.Thread(target=self._ask, args=(client,), daemon=True) for client in clients]
        for thread in self._threads:
            thread.start()

    def window(self, seconds: float) -> list[float]:
        """Milliseconds that each request of the next seconds took, from sending the frame to the outputs."""
        self._window = window = []
        time.sleep(seconds)
        self._window = []
        return window

    def stop(self) -> list[str]:
        """Ends; returns errors."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
        return [self._failed.get() for _ in range(self._failed.qsize())]

    def _ask(self, client: Client) -> None:
        chance = random.Random(id(client))
        while not self._stopping.is_set():
            window = self._window
            try:
                window.append(client.infer_detailed(self._image).wait_ms)
            except TransportError as error:
                self._failed.put(f"{type(error).__name__}: {error}")
                time.sleep(0.1)
            time.sleep(chance.uniform(0, 2 * self._pause_s))
        client.close()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, ready for JSON."""
    rows = []
    for kind in args.abusers.split(","):
        # A server for each: what one abuser leaves behind would otherwise be the next one's baseline.
        words = ["-m", "serverlight", "serve", "demo-vision", "--cut", CUT, "--port", "0", "--json", "-", "--until-eof"]
        with Child(*words, *args.serve.split()) as server:
            address = json.loads(server.hear())["address"]
            with Child(__file__, "--abuser", kind, address) as abuser:
                abuser.hear()
                rows.append({"abuser": kind, **compare(abuser, address, args)})
                print(rows[-1], file=sys.stderr)
    settings = {name: getattr(args, name) for name in ("clients", "pause", "window", "rounds", "serve")}
    return {**describe_environment(), "settings": settings, "load": os.getloadavg()[0], "rows": rows}


def compare(abuser: Child, address: str, args: argparse.Namespace) -> dict[str, Any]:
    """Windows without and with it, in turn, and one without at the end."""
    good = Good(address, args.clients, args.pause)
    good.window(2 * SETTLE_S)
    without, with_it, rates = [good.window(args.window)], [], []
    for _ in range(args.rounds):
        num_sent = int(abuser.ask("on"))
        started_s = time.monotonic()
        good.window(SETTLE_S)
        with_it.append(good.window(args.window))
        rates.append((int(abuser.ask("off")) - num_sent) / (time.monotonic() - started_s))
        good.window(SETTLE_S)
        without.append(good.window(args.window))
    errors = good.stop()
    ratios = [
        p95(window) / statistics.fmean((p95(before), p95(after)))
        for window, before, after in zip(with_it, without, without[1:], strict=False)
    ]
    quiet, abused = list(itertools.chain(*without)), list(itertools.chain(*with_it))
    return {
        "abuser_sends_per_s": statistics.median(rates),
        "requests_without": len(quiet),
        "requests_with": len(abused),
        "p50_ms_without": statistics.median(quiet),
        "p50_ms_with": statistics.median(abused),
        "p95_ms_without": p95(quiet),
        "p95_ms_with": p95(abused),
        "p95_ratio": p95(abused) / p95(quiet),
        "p95_ratio_median_of_windows": statistics.median(ratios),
        "p95_ratios": ratios,
        "errors": len(errors),
        "first_errors": errors[:3],
    }


def p95(times_ms: list[float]) -> float:
    return statistics.quantiles(times_ms, n=20)[-1] if len(times_ms) > 1 else float("nan")


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    settings = result["settings"]
    lines = [
        f"{settings['clients']} well-behaved clients of `demo-vision` cut at {CUT}, {settings['rounds']} windows of "
        f"{settings['window']:g} s with each abuser between as many without; {result['cpu']}, {result['cores']} cores, load "
        f"{result['load']:.1f}, {result['date']}.",
        "",
        "| abuser | sends a second | p50 without, ms | with | p95 without, ms | with | p95 moves by | median of windows | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *map(line, result["rows"]),
    ]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    """One abuser's."""
    times = [f"{row[f'{p}_ms_{when}']:.1f}" for p in ("p50", "p95") for when in ("without", "with")]
    moves = [f"{row[name] - 1:+.0%}" for name in ("p95_ratio", "p95_ratio_median_of_windows")]
    cells = [row["abuser"], f"{row['abuser_sends_per_s']:.0f}", *times, *moves, str(row["errors"])]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
