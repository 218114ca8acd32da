"""``serverlight serve``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from serverlight.apps.fault_options import InjectOption, InjectSeedOption, read_faults
from serverlight.apps.kept_search import AUTO
from serverlight.apps.limit_options import LimitOptions
from serverlight.apps.offers import as_one, read_memory, what_is_served
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import (
    DtypeOption,
    JsonOption,
    ModelsArgument,
    ReturnCutOption,
    ThreadsOption,
    read_dtype,
)
from serverlight.apps.ray_options import RayOptions
from serverlight.apps.recipe import Recipe
from serverlight.apps.security_options import SecurityOptions
from serverlight.apps.terminal import STDOUT, check_writable, write_json
from serverlight.apps.watch_options import WatchOptions
from serverlight.errors import ConfigError

__all__ = ["serve"]


ServedCutsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--cut",
        metavar="NAME",
        help="A cut to serve; may be repeated; `auto`, by default, is all. Of several models: every one's, or MODEL=NAME.",
    ),
]


@takes_options(guard=SecurityOptions, watch=WatchOptions, limits=LimitOptions, scale=RayOptions)
def serve(
    models: ModelsArgument,
    guard: SecurityOptions,
    watch: WatchOptions,
    limits: LimitOptions,
    scale: RayOptions,
    cut: ServedCutsOption = None,
    preload: Annotated[
        bool, typer.Option("--preload", help="Load several models at the start, and not when a client asks for one.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What weights and --kv-memory may take together, like `8GiB`; models that nobody uses make room.",
        ),
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="FILE", help="Serve this plan alone, with exactly its codec settings.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback want certificates and tokens.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 50051,
    basis: Annotated[
        str | None, typer.Option(metavar="FILE", help="A basis that clients of all these cuts may send features in.")
    ] = None,
    return_cut: ReturnCutOption = None,
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 1,
    inject: InjectOption = None,
    inject_seed: InjectSeedOption = 0,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="Stop also when standard input ends: when a parent process is gone.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Run the tail of a model, or of several, for clients that run its head.

    Stops on SIGTERM or Ctrl-C, after the requests that were accepted. With --json the address, model and cuts are
    written when clients can connect. Of several models each is loaded when the first client asks for it, or at the start.

    A language model's tail serves sequences, and has only the layers behind the first of its cuts.

    Example: `serverlight serve demo-vision --cut layer2.2 --port 50051`
    Example: `serverlight serve demo-vision demo-lm --cut demo-lm=layers.4 --preload --memory 4GiB`
    """
    check_writable("json", json)
    if cut and plan:
        raise ConfigError("cut", "give --cut NAME or --plan FILE, one of them; without either all cuts are served")
    scale.check(watch)
    security, faults = guard.read(host, watch.http_host), read_faults(inject, inject_seed)
    read_dtype(dtype)
    recipe = Recipe(
        model=models[0],
        others=tuple(models[1:]),
        preload=preload,
        memory_bytes=read_memory(memory),
        cuts=() if cut == [AUTO] else tuple(cut or ()),
        plan=plan,
        basis=basis,
        return_cut=return_cut,
        dtype=dtype,
        threads=threads,
        config=limits.read(),
        security=security,
        faults=faults,
    )
    stopping = threading.Event()
    if until_eof:
        threading.Thread(target=_stop_at_eof, args=(stopping,), name="serverlight-stdin", daemon=True).start()
    if scale.ray:
        _serve_many(recipe, scale, host, port, stopping, json)
    else:
        _serve_one(recipe, watch, host, port, stopping, json)


def _serve_one(
    recipe: Recipe, watch: WatchOptions, host: str, port: int, stopping: threading.Event, json: str | None
) -> None:
    server = recipe.make(host, port)
    served = what_is_served(server.core.engines.catalogue)
    facts = served[0] if len(served) == 1 else {"models": served}
    with _set_by_signals(stopping), watch.watching(server, as_one(served)) as url, server:
        _announce({"address": server.address, **facts, **({"http": url} if url else {})}, json)
        stopping.wait()
        given_up = server.drain()
    watch.say(f"stopped; {given_up} requests were given up")


def _serve_many(
    recipe: Recipe, options: RayOptions, host: str, port: int, stopping: threading.Event, json: str | None
) -> None:
    from serverlight.apps.ray_app import Cluster, Scale

    scale = Scale(replicas=options.replicas, max_replicas=options.max_replicas, host=host, ports=options.replica_ports)
    announcing = contextlib.redirect_stdout(sys.stdout)
    # What Ray prints is no figure. It sets handlers for signals when it starts, so ours come after it.
    with (
        contextlib.redirect_stdout(sys.stderr),
        Cluster(recipe, scale, host=host, port=port) as cluster,
        _set_by_signals(stopping),
    ):
        report = cluster.report()
        facts = {"address": cluster.address, **{name: report[name] for name in ("model", "revision", "cuts")}}
        with announcing:
            _announce(facts, json)
        stopping.wait()
    print("stopped; all replicas have drained", file=sys.stderr)


def _announce(facts: dict[str, Any], json: str | None) -> None:
    if json:
        write_json(json, facts, indent=None)
    if json != STDOUT:
        _print_served(facts)
    sys.stdout.flush()


def _print_served(facts: dict[str, Any]) -> None:
    watch = f"; watch it at {facts['http']}" if "http" in facts else ""
    if "models" not in facts:
        cuts = ", ".join(facts["cuts"])
        print(f"serving {facts['model']} (revision {facts['revision']}) on {facts['address']}, cut at {cuts}{watch}")
        return
    print(f"serving {len(facts['models'])} models on {facts['address']}{watch}")
    for row in facts["models"]:
        loaded = f"(revision {row['revision']}), cut at {', '.join(row['cuts'])}"
        print(f"  {row['model']} {loaded if row['revision'] else 'when a client asks for it'}")


@contextlib.contextmanager
def _set_by_signals(stopping: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event; a second Ctrl-C ends the process at once."""

    def stop(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stopping.set()

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _stop_at_eof(stopping: threading.Event) -> None:
    """Ends the process while it loads, and then as SIGTERM does."""
    while os.read(sys.stdin.fileno(), 1 << 16):
        pass
    if not stopping.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
