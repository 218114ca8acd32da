"""Many clients for a long time, while everything goes wrong that can: is anything lost, wrong, or left behind?

    python benchmarks/soak.py                           # 64 clients, 30 minutes
    python benchmarks/soak.py --minutes 1 --clients 8 --pause 0.2

A process serves `demo-lm` and `demo-vision`; client processes have three writers for each client that sends images, on mixed
cuts. All of them come through relays (`serverlight chaos`) that kill, stall, half-open and slow connections, and the servers
damage frames, and end, stall and half-open streams themselves. Devices write slowly, so that most of them have a session open.

Every text is compared with that of one process without a network, every answer to an image with its outputs. A step that fails
is recovered by the client itself; an image is sent again by the client's user, as is a text whose first step was refused. When all
clients have left, the servers must hold no stream, no session and no keys and values; memory over the second half of the run must
not grow faster than a stated rate in any process, and the server's threads and files must be as many as before the first client.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil

from serverlight.chaos import ChaosRelay
from serverlight.evaluation import describe_environment
from serverlight.faults import FaultPlan, Strike

HERE = pathlib.Path(__file__).parent
RELAY_FAULTS = ("kill:{:g}", "stall:{:g}:2s", "drop:{:g}", "slow:{:g}:64kbit,20ms:5s")
RELAY_CHANCES = (0.0015, 0.003, 0.0005, 0.001)
SERVER_FAULTS = ("corrupt:{:g}", "kill:{:g}", "stall:{:g}:1s", "drop:{:g}")
SERVER_CHANCES = (0.01, 0.003, 0.003, 0.0005)
READY_S, LEAVE_S = 300.0, 60.0
SPARE_THREADS, SPARE_FILES = 4, 4
"""What gRPC may have kept of its pools."""

MIN_MINUTES_FOR_SLOPE, TELL_EVERY = 15, 60
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2, help="processes that the clients share")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a text")
    parser.add_argument("--pause", type=float, default=1.5, help="mean seconds between tokens, and between images")
    parser.add_argument("--faults", type=float, default=1.0, help="times the usual chance of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-growth", type=float, default=0.5, help="MiB a minute that a process may grow")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there, too")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the report there, too")
    parser.add_argument("--plot", type=pathlib.Path, help="draw memory, sessions and faults over time there")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    result = soak(args)
    report = table(result)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(report)
    if args.plot:
        plot(result, args.plot)
    return 0 if all(check["holds"] for check in result["checks"]) else 1


# -- running ----------------------------------------------------------------------------------------


class Child:
    """A process of ``soak_children.py``, and the lines that it has printed."""

    def __init__(self, *words: object) -> None:
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue(maxsize=2)  # nobody asks for more than that
        self.last = dict[str, Any]()
        command = [sys.executable, HERE / "soak_children.py", *map(str, words)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def first(self) -> dict[str, Any]:
        """What it says when it is ready."""
        return self._heard.get(timeout=READY_S)

    def end(self, timeout_s: float = 180.0) -> None:
        """Closes its standard input and waits."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout_s)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last = json.loads(line)
            with contextlib.suppress(queue.Full):
                self._heard.put_nowait(self.last)


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, ready for JSON."""
    struck, started_s = list[Strike](), time.monotonic()
    server_faults = planned(SERVER_FAULTS, SERVER_CHANCES, args.faults)
    relay_faults = planned(RELAY_FAULTS, RELAY_CHANCES, args.faults)
    with contextlib.ExitStack() as stack:
        server = Child("serve", "--seed", args.seed, *(f"--fault={fault}" for fault in server_faults))
        stack.callback(server.process.kill)
        addresses = server.first()
        before = server.first()
        plan = FaultPlan.parse(relay_faults, seed=args.seed)
        relays = {
            name: stack.enter_context(ChaosRelay(addresses[name], plan, on_strike=struck.append))
            for name in ("lm", "vision")
        }
        clients = list(start_clients(args, relays))
        for child in clients:
            stack.callback(child.process.kill)
        for child in clients:
            child.first()
        ticks = watch(args.minutes * 60, server, clients, struck)
        for child in clients:
            child.end()
        after = wait_until_left(server, before)
        server.end()
    counts = sum((Counter(child.last["counts"]) for child in clients), Counter())
    result: dict[str, Any] = {
        **describe_environment(),
        "settings": {name: value for name, value in vars(args).items() if not isinstance(value, pathlib.Path)},
        "faults_planned": {"relay": relay_faults, "server": server_faults},
        "seconds": time.monotonic() - started_s,
        "counts": dict(sorted(counts.items())),
        "wrong": [case for child in clients for case in child.last["wrong"]],
        "faults": {"relay": dict(Counter(strike.kind for strike in struck)), "server": after["faults"]},
        "before": before,
        "after": after,
        "growth_mib_per_min": growth(ticks, args.minutes),
        "ticks": ticks,
    }
    result["checks"] = judge(result, args)
    return result


def planned(faults: tuple[str, ...], chances: tuple[float, ...], times: float) -> list[str]:
    return [fault.format(min(1.0, chance * times)) for fault, chance in zip(faults, chances, strict=True)]


def start_clients(args: argparse.Namespace, relays: dict[str, ChaosRelay]) -> Iterator[Child]:
    for i in range(args.processes):
        yield Child(
            "clients", "--lm", relays["lm"].address, "--vision", relays["vision"].address, "--tokens", args.tokens,
            "--pause", args.pause, "--seed", args.seed, "--numbers", *range(i, args.clients, args.processes),
        )  # fmt: skip


def watch(seconds: float, server: Child, clients: list[Child], struck: list[Strike]) -> list[dict[str, Any]]:
    """One row a second."""
    ticks, started_s = list[dict[str, Any]](), time.monotonic()
    own = psutil.Process()
    while (now_s := time.monotonic() - started_s) < seconds:
        time.sleep(1.0)
        if any(child.process.poll() is not None for child in (server, *clients)):
            break  # the judge will see it
        if not all("rss_bytes" in child.last for child in clients):
            continue
        counts = sum((Counter(child.last["counts"]) for child in clients), Counter())
        ticks.append(
            {
                "s": round(now_s, 1),
                "rss_mib": {
                    "server": server.last["rss_bytes"] / MIB,
                    **{f"clients {i}": child.last["rss_bytes"] / MIB for i, child in enumerate(clients, start=1)},
                    "relay": own.memory_info().rss / MIB,
                },
                "threads": server.last["threads"],
                "files": server.last["files"],
                "cpu_s": server.last["cpu_s"],
                "streams": server.last["lm"]["streams"] + server.last["vision"]["streams"],
                "sessions": server.last["lm"]["sessions"],
                "kv_mib": server.last["lm"]["kv_bytes"] / MIB,
                "faults": len(struck) + sum(server.last["faults"].values()),
                "generations": counts["generations"],
                "images": counts["images"],
                "recoveries": counts["recoveries"],
            }
        )
        if len(ticks) % TELL_EVERY == 0:
            print(json.dumps(ticks[-1]), file=sys.stderr)
    return ticks


def wait_until_left(server: Child, before: dict[str, Any]) -> dict[str, Any]:
    """The server's figures when it has noticed that nobody is there, or after a minute."""
    give_up_s = time.monotonic() + LEAVE_S
    while (tick := server.last) and time.monotonic() < give_up_s:
        is_empty = not any(tick[name][what] for name in ("lm", "vision") for what in tick[name])
        if is_empty and tick["files"] <= before["files"] and tick["threads"] <= before["threads"]:
            break
        time.sleep(0.5)
    return tick


def growth(ticks: list[dict[str, Any]], minutes: float) -> dict[str, float] | None:
    """MiB a minute over the second half, by least squares, of each process; ``None`` for runs too short to tell."""
    late = [tick for tick in ticks if tick["s"] >= ticks[-1]["s"] / 2]
    if minutes < MIN_MINUTES_FOR_SLOPE or len(late) < 2:
        return None
    at_min = [tick["s"] / 60 for tick in late]
    return {
        name: statistics.linear_regression(at_min, [tick["rss_mib"][name] for tick in late]).slope
        for name in late[0]["rss_mib"]
    }


def judge(result: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is claimed, and whether it held."""
    counts, before, after = result["counts"], result["before"], result["after"]
    left = sum(after[name][what] for name in ("lm", "vision") for what in after[name])
    rows = [
        ("texts finished", counts.get("generations", 0), ">= 1", counts.get("generations", 0) >= 1),
        ("images answered", counts.get("images", 0), ">= 1", counts.get("images", 0) >= 1),
        *(
            (f"faults struck in the {where}", sum(struck.values()), ">= 1", bool(struck))
            for where, struck in result["faults"].items()
        ),
        *((what, counts.get(what, 0), "0", not counts.get(what, 0)) for what in NEVER),
        ("clients that crashed", sum(n for what, n in counts.items() if what.startswith("crashed")), "0", None),
        ("streams, sessions, KV bytes and requests left", left, "0", left == 0),
        ("server threads after, less before", after["threads"] - before["threads"], f"<= {SPARE_THREADS}", None),
        ("server files after, less before", after["files"] - before["files"], f"<= {SPARE_FILES}", None),
    ]
    for name, slope in (result["growth_mib_per_min"] or {}).items():
        rows.append((f"growth of {name}, MiB a minute", round(slope, 3), f"<= {args.max_growth}", None))
    return [
        {
            "name": name,
            "value": value,
            "wanted": wanted,
            "holds": value <= float(wanted.split()[-1]) if holds is None else holds,
        }
        for name, value, wanted, holds in rows
    ]


NEVER = ("lost generations", "wrong generations", "lost images", "wrong images", "stuck")

# -- telling ----------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    settings, counts = result["settings"], result["counts"]
    planned = result["faults_planned"]
    others = [(what, number) for what, number in counts.items() if what not in NEVER]
    struck = {
        where: ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        for where, kinds in result["faults"].items()
    }
    last = result["ticks"][-1] if result["ticks"] else {"sessions": 0, "cpu_s": 0}
    mean_sessions = statistics.mean(tick["sessions"] for tick in result["ticks"]) if result["ticks"] else 0
    lines = [
        f"{settings['clients']} clients in {settings['processes']} processes for {settings['minutes']:g} minutes; "
        f"{result['cpu']}, {result['cores']} cores, {result['date']}. A mean of {mean_sessions:.0f} sessions was open; the server "
        f"took {last['cpu_s']:.0f} s of CPU time.",
        "",
        f"Planned in the relays, by piece of TCP: `{' '.join(planned['relay'])}`; struck: {struck['relay']}. "
        f"Planned in the servers, by message: `{' '.join(planned['server'])}`; struck: {struck['server']}.",
        "",
        "| what is claimed | value | wanted | holds |",
        "| --- | ---: | --- | --- |",
        *(
            f"| {check['name']} | {check['value']:,} | {check['wanted']} | {'yes' if check['holds'] else '**no**'} |"
            for check in result["checks"]
        ),
        "",
        "| what clients counted | number |",
        "| --- | ---: |",
        *(f"| {what} | {number:,} |" for what, number in others),
    ]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Memory of each process, sessions, and what happened, over time."""
    from matplotlib.figure import Figure

    ticks = result["ticks"]
    minutes = [tick["s"] / 60 for tick in ticks]
    figure = Figure(figsize=(10, 8), layout="constrained", facecolor="white")
    memory, held, happened = figure.subplots(3, 1, sharex=True)
    for name, colour in zip(ticks[0]["rss_mib"], ("#D55E00", "#0072B2", "#56B4E9", "#999999", "#E69F00"), strict=False):
        memory.plot(minutes, [tick["rss_mib"][name] for tick in ticks], label=name, color=colour)
    memory.set(title="resident memory, MiB", ylim=(0, None))
    for name, colour in (("sessions", "#D55E00"), ("streams", "#0072B2"), ("files", "#E69F00"), ("threads", "#999999")):
        held.plot(minutes, [tick[name] for tick in ticks], label=name, color=colour)
    held.set(title="what the server holds", ylim=(0, None))
    for name, colour in (("faults", "#D55E00"), ("recoveries", "#0072B2"), ("generations", "#009E73")):
        happened.plot(minutes, [tick[name] for tick in ticks], label=name, color=colour)
    happened.set(title="faults, recoveries and finished texts so far", xlabel="minutes", ylim=(0, None))
    for axes in (memory, held, happened):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
        axes.grid(color="#EEEEEE")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
