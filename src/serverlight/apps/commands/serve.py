"""``serverlight serve``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.cut_options import check_cut_or_plan
from serverlight.apps.limit_options import LimitOptions
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import (
    DtypeOption,
    JsonOption,
    ModelArgument,
    ReturnCutOption,
    ThreadsOption,
    read_dtype,
)
from serverlight.apps.security_options import SecurityOptions
from serverlight.apps.terminal import STDOUT, check_writable, write_json
from serverlight.apps.watch_options import WatchOptions
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.generation import LoadedDecoder
    from serverlight.models import LoadedModel

__all__ = ["serve"]


@takes_options(guard=SecurityOptions, watch=WatchOptions, limits=LimitOptions)
def serve(
    model: ModelArgument,
    guard: SecurityOptions,
    watch: WatchOptions,
    limits: LimitOptions,
    cut: Annotated[
        list[str] | None, typer.Option("--cut", metavar="NAME", help="A cut to serve; may be repeated.")
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
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="Stop also when standard input ends: when a parent process is gone.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Run the tail of a model for clients that run its head.

    Stops on SIGTERM or Ctrl-C, after the requests that were accepted. With --json the address, model and cuts are
    written when clients can connect.

    A language model's tail serves sequences, and has only the layers behind the first of its cuts.

    Example: `serverlight serve demo-vision --cut layer2.2 --port 50051`
    """
    import torch

    from serverlight.codec import Basis
    from serverlight.plan import Plan
    from serverlight.runtime import Server

    check_writable("json", json)
    check_cut_or_plan(cut, plan)
    security = guard.read(host)
    config = limits.read()
    numbers = read_dtype(dtype)
    agreed = Plan.load(plan) if plan else None
    stopping = threading.Event()
    if until_eof:
        threading.Thread(target=_stop_at_eof, args=(stopping,), name="serverlight-stdin", daemon=True).start()
    torch.set_num_threads(threads)
    cuts = [agreed.cut] if agreed else list(cut or ())
    loaded = _load(model, cuts, return_cut or (agreed.return_cut if agreed else None), numbers)
    if agreed:
        dataclasses.replace(agreed, model=loaded.name, revision=loaded.revision).check_compatible(agreed)
    codec = agreed.codec if agreed else None
    turned = Basis.load(basis) if basis else None
    if agreed:
        agreed.check_basis(turned)
    bases = dict.fromkeys(cuts, turned) if turned else {}
    server = Server(loaded, cuts, codec=codec, bases=bases, host=host, port=port, config=config, security=security)
    facts = {"model": loaded.name, "revision": loaded.revision, "cuts": cuts}
    with _set_by_signals(stopping), watch.watching(server, facts) as url, server:
        _announce({"address": server.address, **facts, **({"http": url} if url else {})}, json)
        stopping.wait()
        given_up = server.drain()
    watch.say(f"stopped; {given_up} requests were given up")


def _load(spec: str, cuts: list[str], return_cut: str | None, dtype: Any) -> LoadedModel | LoadedDecoder:
    from serverlight.models import is_language_model, load_model

    if not is_language_model(spec):
        for name, value in {"return_cut": return_cut, "dtype": dtype}.items():
            if value is not None:
                raise ConfigError(name, f"is for language models, and {spec!r} is none; leave it away")
        return load_model(spec)
    from serverlight.generation import LoadedDecoder, layer_of  # brings transformers, which takes seconds

    first = min(cuts, key=layer_of)
    if return_cut:
        return LoadedDecoder.middle(spec, first, return_cut, dtype=dtype)
    return LoadedDecoder.tail(spec, first, dtype=dtype)


def _announce(facts: dict[str, Any], json: str | None) -> None:
    if json:
        write_json(json, facts, indent=None)
    if json != STDOUT:
        print(
            f"serving {facts['model']} (revision {facts['revision']}) on {facts['address']}, "
            f"cut at {', '.join(facts['cuts'])}" + (f"; watch it at {facts['http']}" if "http" in facts else "")
        )
    sys.stdout.flush()


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
