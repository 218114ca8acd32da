"""``serverlight edge``."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from serverlight.apps.cut_options import CutOptions
from serverlight.apps.generation_options import CapOptions
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import JsonOption, ThreadsOption
from serverlight.apps.security_options import CredentialOptions
from serverlight.apps.terminal import STDOUT, check_writable, write_json
from serverlight.errors import AddressInUse

__all__ = ["edge"]

_DRAIN_S = 10
"""For answers that run when the endpoint stops."""


@takes_options(where=CutOptions, within=CapOptions, trust=CredentialOptions)
def edge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A language model: a Hugging Face id or folder.")],
    server: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT",
            help="Where `serverlight serve` listens, or its `ray+http://...`; may be repeated, the best first.",
        ),
    ],
    where: CutOptions,
    within: CapOptions,
    trust: CredentialOptions,
    host: Annotated[str, typer.Option(help="Address to listen on; traffic is not encrypted.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SERVERLIGHT_API_KEY", help="What requests must bring as a bearer token."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most tokens of an answer whose request sets no limit.")
    ] = 1024,
    queue: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests that may wait for the one that is being answered.")
    ] = 8,
    recovery: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to look for a server before giving up.")
    ] = 30.0,
    threads: ThreadsOption = 1,
    json: JsonOption = None,
) -> None:
    """Answer OpenAI's API on this device: the head of a language model here, its tail on a server.

    Serves /v1/chat/completions, /v1/completions, /v1/models and /health. One answer at a time; stops on SIGTERM or
    Ctrl-C. With --json the address is written when clients can connect.

    Example: `serverlight edge ./my-llama --server 10.0.0.5:50051 --cut layers.4 --port 8000`
    """
    import torch
    import uvicorn

    from serverlight.apps.answers import Answers
    from serverlight.apps.openai_api import make_app
    from serverlight.generation import LoadedDecoder
    from serverlight.runtime.decoder_client import DecoderClient
    from serverlight.text import Tokenizer

    check_writable("json", json)
    planned, caps, credentials = where.read_for_text(model), within.read(), trust.read(*server)
    torch.set_num_threads(threads)
    with contextlib.closing(_listen(host, port)) as listening:
        assert planned.cut is not None
        head = LoadedDecoder.head(model, planned.cut)
        plan = planned.plan_for(head.name, head.revision)
        tokenizer = Tokenizer.load(model, head.part.vocab_size)
        client = DecoderClient(server, plan=plan, head=head, recovery_s=recovery, caps=caps, credentials=credentials)
        answers = Answers(client, tokenizer, head.part, max_tokens=max_tokens)
        app = make_app(answers, model=head.name, api_key=api_key, max_waiting=queue)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_DRAIN_S)
        _announce(listening, {"model": head.name, "cut": plan.cut, "servers": server}, json)
        with _outliving_signals():
            uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise AddressInUse(
            f"cannot listen on {host} port {port}: {error}; choose another, or 0 for any free one"
        ) from None


def _announce(listening: socket.socket, facts: dict[str, Any], json: str | None) -> None:
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    if json:
        write_json(json, {"url": url, **facts}, indent=None)
    if json != STDOUT:
        print(f"answering for {facts['model']} on {url}, cut at {facts['cut']}, with {', '.join(facts['servers'])}")
    sys.stdout.flush()


@contextlib.contextmanager
def _outliving_signals() -> Iterator[None]:
    """uvicorn stops on a signal, and then raises it again, which would end the process before it could say goodbye."""
    caught = (signal.SIGTERM, signal.SIGINT)
    previous = {signum: signal.signal(signum, lambda *_: None) for signum in caught}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
